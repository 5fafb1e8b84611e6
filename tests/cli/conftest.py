"""Running ``neve`` in this process or as one of its own, always against a store of the test's own."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pytest

from neve.cli.__main__ import main


class Result(NamedTuple):
    """How a command ended."""

    code: int
    out: bytes
    err: str

    @property
    def line(self) -> str:
        """The one line on stdout of a command that succeeded."""
        assert self.code == 0, self.err
        assert self.out.count(b"\n") == 1
        return self.out.decode().removesuffix("\n")

    @property
    def failure(self) -> str:
        """What the one line on stderr of a command that failed says, with nothing on stdout."""
        assert self.code == 1, self.err
        assert self.out == b""
        assert self.err.startswith("neve: ")
        assert self.err.endswith("\n")
        assert self.err.count("\n") == 1
        return self.err[6:-1]


class Neve(Protocol):
    def __call__(
        self, *arguments: str | bytes | Path, stdin: bytes = b"", stderr: io.StringIO | None = None
    ) -> Result: ...


Spawn = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture(autouse=True)
def _environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEVE_STORE", f"local://{tmp_path}/store")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("BLOB_SERVICE_ADDR", "DIRECTORY_SERVICE_ADDR", "PATH_INFO_SERVICE_ADDR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("NEVE_STORE_COMPOSITION", raising=False)


def _text(argument: str | bytes | Path) -> str:
    return os.fsdecode(argument)


@pytest.fixture
def neve(monkeypatch: pytest.MonkeyPatch) -> Neve:
    """Runs a command line in this process."""

    def run(*arguments: str | bytes | Path, stdin: bytes = b"", stderr: io.StringIO | None = None) -> Result:
        out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
        err = io.StringIO() if stderr is None else stderr
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main([_text(argument) for argument in arguments])
        assert "Traceback" not in err.getvalue()
        assert isinstance(out.buffer, io.BytesIO)
        return Result(code, out.buffer.getvalue(), err.getvalue())

    return run


@pytest.fixture
def spawn() -> Spawn:
    """Starts a command line as a process, with pipes for stdout and stderr."""

    def start(*arguments: str | bytes | Path, **options: Any) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "neve.cli", *map(_text, arguments)]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, **{**pipes, **options})

    return start


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small tree with one of everything that can be in one."""
    root = tmp_path / "tree-1.0"
    (root / "bin").mkdir(parents=True)
    (root / "bin" / "run").write_bytes(b"#!/bin/sh\nexit 0\n")
    (root / "bin" / "run").chmod(0o755)
    (root / "bin" / "alias").symlink_to("run")
    (root / "empty").mkdir()
    (root / "large").write_bytes(os.urandom(1 << 16) * 32)
    (root / "nothing").touch()
    (root / "text").write_bytes(b"Hello\n")
    with open(os.path.join(os.fsencode(root), b"na\xffme"), "wb") as file:
        file.write(b"odd\n")
    os.symlink(b"to\xfe", os.path.join(os.fsencode(root), b"odd-link"))
    return root


def same_trees(a: Path, b: Path) -> bool:
    """Whether two trees have the same names, kinds, contents, targets and executable bits."""
    return _described(os.fsencode(a)) == _described(os.fsencode(b))


def _described(root: bytes) -> dict[bytes, object]:
    found: dict[bytes, object] = {}
    for folder, directories, files in os.walk(root):
        for name in directories + files:
            path = os.path.join(folder, name)
            key = os.path.relpath(path, root)
            if os.path.islink(path):
                found[key] = os.readlink(path)
            elif os.path.isdir(path):
                found[key] = None
            else:
                with open(path, "rb") as file:
                    found[key] = (bool(os.stat(path).st_mode & 0o100), file.read())
    return found
