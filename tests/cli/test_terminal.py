"""What a person sees: progress bars, escaped names, no archives on the screen."""

from __future__ import annotations

import io
import json
import logging
import os
import pty
import select
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

import pytest

from neve.cli import logs, progress
from neve.telemetry import LOGGER
from tests.cli.conftest import Neve, Spawn
from tests.store.nix_stores import NixStore, store_path

IMPATIENT = """
import sys
from neve.cli import __main__, progress

progress._DELAY_SECONDS = 0
sys.exit(__main__.main())
"""


class Terminal(io.StringIO):
    """Something that says that it is one."""

    def isatty(self) -> bool:
        return True


@contextmanager
def terminal() -> Iterator[tuple[int, int]]:
    """The two ends of a pseudo-terminal: the person's and the program's."""
    person, program = pty.openpty()
    try:
        yield person, program
    finally:
        os.close(person)


def seen(person: int, process: subprocess.Popen[bytes]) -> bytes:
    """Everything on the screen until the process ends."""
    screen = b""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if select.select([person], [], [], 0.05)[0]:
            try:
                screen += os.read(person, 65536)
            except OSError:  # The program's end is closed.
                break
        elif process.poll() is not None:
            break
    return screen


def test_a_bar_on_a_terminal(neve: Neve, tree: Path) -> None:
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"}
    command = [sys.executable, "-c", IMPATIENT, "import", str(tree)]
    with (
        terminal() as (person, program),
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=program, env=environment) as process,
    ):
        os.close(program)
        screen = seen(person, process)
        out, _ = process.communicate()
    assert out.decode() == neve("import", tree).line + "\n"
    assert b"importing tree-1.0" in screen
    # At the end the line is wiped, and the cursor is back.
    assert screen.endswith(b"\x1b[2K")
    assert screen.rindex(b"\x1b[?25h") > screen.rindex(b"importing")


def test_no_bar_without_a_terminal(neve: Neve, tree: Path) -> None:
    done = subprocess.run([sys.executable, "-c", IMPATIENT, "import", tree], capture_output=True)
    assert done.stdout.decode() == neve("import", tree).line + "\n"
    assert done.stderr == b""


def test_binary_data_stays_off_the_terminal(neve: Neve, spawn: Spawn, tree: Path) -> None:
    path = neve("import", tree).line
    for force in ([], ["--force"]):
        with (
            terminal() as (person, program),
            spawn("nar", "export", *force, path, stdout=program) as process,
        ):
            os.close(program)
            screen = seen(person, process)
            _, err = process.communicate()
        if force:
            assert process.returncode == 0
            assert b"nix-archive-1" in screen
        else:
            assert process.returncode == 2
            assert screen == b""
            assert b"redirect" in err


def test_lines_beside_a_bar_come_after_it(neve: Neve, tmp_path: Path) -> None:
    nix_store = NixStore(tmp_path / "nix-root")
    names = nix_store.add_many(5)
    (tmp_path / "closure").write_text(json.dumps(nix_store.closure))
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"}
    command = [sys.executable, "-c", IMPATIENT, "copy", "--store-dir-root", str(nix_store.root), "closure"]
    with (
        terminal() as (person, program),
        subprocess.Popen(command, stdout=program, stderr=program, env=environment, cwd=tmp_path) as process,
    ):
        os.close(program)
        screen = seen(person, process)
    assert b"copying" in screen
    lines = screen[screen.rindex(b"\x1b[2K") + 4 :].decode().splitlines()
    assert lines.pop(-1) == "neve: copied 5 store paths, 0 were in the store"
    assert sorted(lines) == sorted(store_path(name).absolute for name in names)


@pytest.mark.parametrize(
    "command",
    [
        ["nar", "import", "--name", "x"],
        ["archive", "import", "--name", "x", "-"],
        ["copy", "-"],
        ["key", "public"],
    ],
)
def test_nothing_is_typed_in(spawn: Spawn, command: list[str]) -> None:
    with terminal() as (_, program), spawn(*command, stdin=program) as process:
        os.close(program)
        _, err = process.communicate(timeout=90)
    assert process.returncode == 2
    assert b"not typed in" in err


def test_names_are_escaped_on_a_terminal(neve: Neve, spawn: Spawn, tree: Path) -> None:
    (tree / "\x1b[31mred").touch()
    path = neve("import", tree).line
    with terminal() as (person, program), spawn("ls", "-l", path, stdout=program) as process:
        os.close(program)
        screen = seen(person, process).decode()
        process.communicate()
    assert " na\\xffme" in screen
    assert " odd-link -> to\\xfe" in screen
    assert " \\x1b[31mred" in screen
    assert b"\x1b[31mred\n" in neve("ls", path).out


@pytest.fixture
def stderr(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """To be put in place of stderr in the test itself: before it, pytest puts its own there."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(progress, "_DELAY_SECONDS", 0)
    monkeypatch.setattr(progress, "_INTERVAL_SECONDS", 0)
    return Terminal()


def test_short_work_shows_no_bar(stderr: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_DELAY_SECONDS", 1000)
    with redirect_stderr(stderr), progress.progress_bar("working") as bar:
        bar.start(10)
        bar.advance(10, "x")
    assert stderr.getvalue() == ""


def test_a_bar_with_a_known_total(stderr: Terminal) -> None:
    with redirect_stderr(stderr), progress.progress_bar("working [1]") as bar:
        bar.start(4_000_000)
        bar.advance(1_000_000, "a/" * 50 + "end")
        bar.advance(1_000_000)
    text = stderr.getvalue()
    assert "working [1]" in text
    assert "2.0/4.0 MB" in text
    assert "a/end" in text
    assert "a/" * 40 not in text


def test_few_updates(stderr: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_INTERVAL_SECONDS", 1000)
    with redirect_stderr(stderr), progress.progress_bar("working") as bar:
        bar.advance(1, "first")
        for _ in range(1000):
            bar.advance(1, "second")
    assert "first" in stderr.getvalue()
    assert "second" not in stderr.getvalue()


def test_stages(stderr: Terminal) -> None:
    with redirect_stderr(stderr), progress.progress_bar("working") as bar:
        bar.start(1000)
        bar.advance(1000, "first")
        bar.start(None)
        bar.advance(17, "second")
    text = stderr.getvalue()
    assert text.index("1.0/1.0 kB") < text.index("17 bytes")
    assert text.index("first") < text.index("second")


def test_a_bar_for_everything_long(neve: Neve, stderr: Terminal, tree: Path, tmp_path: Path) -> None:
    def shown(*arguments: str | bytes | Path, stdin: bytes = b"") -> str:
        terminal = Terminal()
        assert neve(*arguments, stdin=stdin, stderr=terminal).code == 0
        return terminal.getvalue()

    assert "importing tree-1.0" in shown("import", tree)
    path = neve("import", tree).line
    nar = neve("nar", "export", path).out
    (tmp_path / "x.nar").write_bytes(nar)
    assert "exporting tree-1.0" in shown("nar", "export", path)
    assert "2.1/2.1 MB" in shown("nar", "export", path)
    assert "2.1/2.1 MB" in shown("nar", "import", "--name", "x", tmp_path / "x.nar")
    assert "2.1 MB" in shown("nar", "import", "--name", "x", stdin=nar)
    assert "2.1/2.1 MB" in shown("export", path, tmp_path / "out")
    assert "6/6 bytes" in shown("export", f"{path}/text", tmp_path / "out2")
    assert "verifying" in shown("verify")
    assert "rebuilding the index" in shown("verify", "--rebuild-index")
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(tree, ".")
    text = shown("archive", "import", tmp_path / "x.tar")
    assert text.index("reading the archive") < text.index("storing")


def test_log_lines_above_the_bar(stderr: Terminal) -> None:
    logs.configure(logging.INFO, as_json=False)
    with redirect_stderr(stderr):
        with progress.progress_bar("working") as bar:
            bar.advance(1)
            LOGGER.info("hello")
            bar.advance(1)
        assert sys.stderr is stderr
    assert "neve: hello\n" in stderr.getvalue()


def test_no_bar_where_the_cursor_cannot_move(stderr: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    with redirect_stderr(stderr), progress.progress_bar("working") as bar:
        bar.advance(1)
    assert stderr.getvalue() == ""


def test_no_bar_where_there_is_no_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    with progress.progress_bar("working") as bar:
        bar.advance(1)
