"""Exit codes, what goes to which stream, failures in one line."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import click
import pytest

from neve import __version__
from neve.cli import options, program
from neve.cli.commands import cli
from neve.cli.logs import one_line
from neve.errors import Unavailable
from tests.cli.conftest import Neve, Spawn


def commands(group: click.Group, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for name, command in group.commands.items():
        found.append((*path, name))
        if isinstance(command, click.Group):
            found += commands(command, (*path, name))
    return found


@pytest.mark.parametrize("command", [(), *commands(cli)], ids=" ".join)
def test_help_has_an_example(neve: Neve, command: tuple[str, ...]) -> None:
    done = neve(*command, "--help")
    assert done.code == 0
    assert done.err == ""
    assert f"Usage: {' '.join(('neve', *command))}" in done.out.decode()
    _, _, example = done.out.decode().partition("Example:\n")
    assert "neve " in example.partition("\n\n")[0]


def test_version(neve: Neve) -> None:
    assert neve("--version").line == f"neve {__version__}"


def test_without_a_command(neve: Neve) -> None:
    done = neve()
    assert done.code == 2
    assert done.out == b""
    assert done.err.startswith("Usage: neve")
    assert neve("nar").err == "neve: missing command; see: neve nar --help\n"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["imprt"], "no such command 'imprt'"),
        (["ls"], "missing argument"),
        (["ls", "--no-such-option", "x"], "no such option"),
        (["--log-level", "loud", "ls", "x"], "'loud'"),
        (["ls", "--store", "/srv/neve", "x"], "write for example local:///srv/neve"),
        (["ls", "--store", "://", "x"], "has no scheme"),
        (["ls", "--store", "local:///x#y", "x"], "fragment"),
        (["ls", "--blob-service-addr", "x", "x"], "--blob-service-addr"),
        (["nar", "export", "x"], "'x'"),
    ],
)
def test_wrong_usage(neve: Neve, arguments: list[str], complaint: str) -> None:
    done = neve(*arguments)
    assert done.code == 2
    assert done.out == b""
    assert complaint in done.err
    assert done.err.startswith("neve: ")
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("address", "complaint"),
    [
        ("sled:///srv/neve", "neve's own is local"),
        ("nonsense:///srv/neve", "known: cache, combined, grpc+http, grpc+https, grpc+unix, local, memory"),
        ("local:///srv/neve?cache=1", "unknown parameter 'cache'"),
        ("local://host/srv/neve", "no host"),
        ("local:///srv/neve?mode=wo", "must be one of: rw, ro"),
        ("local:///", "root"),
    ],
)
def test_addresses_that_open_nothing(neve: Neve, address: str, complaint: str) -> None:
    assert complaint in neve("path-info", "--store", address).failure


def test_folders_that_are_no_store(neve: Neve, tree: Path, tmp_path: Path) -> None:
    there = f"local://{tree}"
    assert f"{tree} is not a neve store" in neve("path-info", "--store", there).failure
    assert "not empty" in neve("import", "--store", there, tree / "text").failure
    assert "is not a folder" in neve("path-info", "--store", f"{there}/text").failure
    neve("import", tree / "text")
    description = tmp_path / "store" / "store.json"
    description.write_text(json.dumps({**json.loads(description.read_text()), "version": 99}))
    for command in ("path-info", "verify", "stats"):
        assert "use a newer neve" in neve(command).failure
    description.write_text("{")
    assert "store.json" in neve("path-info").failure


def test_what_is_stored_elsewhere_in_memory(neve: Neve) -> None:
    assert neve("path-info", "--store", "memory://").out == b""
    assert "only an embedded store" in neve("stats", "--store", "memory://").failure


@pytest.mark.parametrize("error", [ValueError("secret\nplan"), RecursionError("deep"), KeyError("x")])
def test_bugs_are_one_line_too(neve: Neve, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(program, "invoke", fail)
    failure = neve("ls").failure
    assert failure.startswith("internal error")
    assert type(error).__name__ in failure


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(5, "Input/output error", b"/a\xff"), "/a\\udcff: Input/output error"),
        (OSError("odd"), "odd"),
        (MemoryError(), "out of memory"),
        (Unavailable("the\x1b[31m peer"), "the\\x1b[31m peer"),
        (click.FileError("x", "is odd"), "Could not open file 'x': is odd"),
    ],
)
def test_failures(neve: Neve, error: Exception, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(program, "invoke", fail)
    assert neve("ls").failure == message


def test_broken_pipes_are_no_news(neve: Neve, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(program, "invoke", fail)
    assert neve("ls") == (1, b"", "")


def test_log_lines(neve: Neve, tree: Path) -> None:
    neve("import", tree / "text")
    assert neve("--log-level", "error", "verify").err == ""
    debug = neve("--log-level", "debug", "verify").err.splitlines()
    assert debug[0].startswith("neve: debug: opening the store local://")
    assert debug[-1].startswith("neve: read ")
    lines = neve("--json", "--log-level", "debug", "verify").err.splitlines()
    first, *_, last = [json.loads(line) for line in lines]
    assert first["level"] == "debug"
    assert last["level"] == "info"
    assert last["logger"] == "neve"
    assert last["message"].startswith("read ")
    assert "T" in last["time"]


def test_failures_as_json(neve: Neve) -> None:
    done = neve("--json", "import", "no-such-file")
    assert done.code == 1
    document = json.loads(done.err)
    assert document["level"] == "error"
    assert document["message"] == "no-such-file does not exist"


def test_tracebacks_with_debug(spawn: Spawn, tmp_path: Path) -> None:
    with spawn("--log-level", "debug", "import", tmp_path / "none") as process:
        _, err = process.communicate()
    assert b"Traceback" in err
    assert err.splitlines()[-1] == f"neve: {tmp_path}/none does not exist".encode()
    with spawn("import", tmp_path / "none") as process:
        _, err = process.communicate()
    assert err == f"neve: {tmp_path}/none does not exist\n".encode()


def test_one_line() -> None:
    assert one_line("plain ä") == "plain ä"
    assert one_line("a\nb\x1b[1m\udcff") == "a\\nb\\x1b[1m\\udcff"


def test_default_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert options.default_store() == "local:///var/lib/neve"
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_DATA_HOME", "/data/my home?")
    assert options.default_store() == "local:///data/my%20home%3F/neve"
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/me")
    assert options.default_store() == "local:///home/me/.local/share/neve"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert options.stat_cache_folder() == "/home/me/.cache/neve/stat"
    monkeypatch.setenv("HOME", "nowhere")
    with pytest.raises(click.UsageError, match="no home folder"):
        options.default_store()


def test_the_logger_is_left_alone_by_others(neve: Neve) -> None:
    for _ in range(3):
        neve("--version")
    assert len(logging.getLogger("neve").handlers) == 1
