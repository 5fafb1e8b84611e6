"""The configuration file as a file: where it is, what it holds, in which line a key stands.

What its keys mean is not known here; see ``configuration``.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from neve.errors import InvalidRequest, LimitExceeded, NeveError, NotFound, PermissionDenied, Unavailable

VARIABLE = "NEVE_CONFIG"
SYSTEM_FILE = "/etc/neve/neve.toml"

MAX_FILE_BYTES = 256 * 1024
"""All options of all commands take less than a tenth of it, and the parser is not made for more."""

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_KEY = r"""(?:[A-Za-z0-9_-]+|"[^"\\]*"|'[^']*')"""
_DOTTED = rf"{_KEY}(?:\s*\.\s*{_KEY})*"
_HEADER = re.compile(rf"\s*\[\s*({_DOTTED})\s*\]\s*(?:#.*)?")
_ENTRY = re.compile(rf"\s*({_DOTTED})\s*=")


@dataclass(frozen=True)
class ConfigFile:
    """A file that was read. ``tables`` is what TOML makes of it."""

    path: str
    text: str
    tables: Mapping[str, Any]

    def place(self, keys: Sequence[str]) -> str:
        """The file, and the line in which a key (with the tables that it is in) stands, for a message."""
        line = self.line_of(keys)
        return self.path if line is None else f"{self.path}, line {line}"

    def line_of(self, keys: Sequence[str]) -> int | None:
        """The line of a key, or of the table's head, counted from 1. None where it cannot be told: it is
        written in a way that needs all of the parser, or seems to stand in several lines."""
        wanted = tuple(keys)
        exact: list[int] = []
        below: list[int] = []
        for number, found in _lines(self.text):
            if found == wanted:
                exact.append(number)
            elif found[: len(wanted)] == wanted:
                below.append(number)
        if exact:
            return exact[0] if len(exact) == 1 else None
        return below[0] if below else None


def _lines(text: str) -> Iterator[tuple[int, tuple[str, ...]]]:
    """The keys that lines begin with, tables included, as far as that can be seen from one line."""
    table: tuple[str, ...] = ()
    for number, line in enumerate(text.split("\n"), 1):
        if head := _HEADER.fullmatch(line.rstrip("\r")):
            table = _parts(head[1])
            yield number, table
        elif entry := _ENTRY.match(line):
            yield number, (*table, *_parts(entry[1]))


def _parts(dotted: str) -> tuple[str, ...]:
    return tuple(part.strip("\"'") for part in re.findall(_KEY, dotted))


def shown_key(keys: Sequence[str]) -> str:
    """A key with its tables, as it would be written."""
    return ".".join(key if _BARE.fullmatch(key) else f'"{key}"' for key in keys)


def find(environment: Mapping[str, str]) -> ConfigFile | None:
    """The first file that is there: the user's, then the system's. Raises as ``read`` does."""
    for path in _usual_places(environment):
        try:
            return read(path, named=False)
        except NotFound:
            continue
    return None


def _usual_places(environment: Mapping[str, str]) -> Iterator[str]:
    base = environment.get("XDG_CONFIG_HOME", "")
    if not os.path.isabs(base):  # As the XDG Base Directory Specification says.
        base = os.path.join(os.path.expanduser("~"), ".config")
    if os.path.isabs(base):
        yield os.path.join(base, "neve", "neve.toml")
    yield SYSTEM_FILE


def read(path: str, *, named: bool = True) -> ConfigFile:
    """Reads a file. One that nobody ``named`` must not be what others could have written, nor a pipe, where
    nobody knows what is being waited for.

    Raises ``NotFound``, ``PermissionDenied``, ``Unavailable``, ``LimitExceeded`` and, if it is no TOML,
    ``InvalidRequest``."""
    try:
        text = _content(path, named).decode()
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise InvalidRequest(f"{path}, line {line}: this is no UTF-8") from error
    return ConfigFile(path, text, _parsed(path, text))


def _content(path: str, named: bool) -> bytes:
    content = b""
    try:
        # A pipe without a writer would not even open.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | (0 if named else os.O_NONBLOCK))
        with open(descriptor, "rb") as file:
            if not named:
                _check_found(path, os.fstat(descriptor))
            # A pipe gives what there is.
            while len(content) <= MAX_FILE_BYTES and (part := file.read(MAX_FILE_BYTES + 1 - len(content))):
                content += part
    except OSError as error:
        raise _translated(path, error) from error
    if len(content) > MAX_FILE_BYTES:
        raise LimitExceeded(f"{path} has more than {MAX_FILE_BYTES} bytes, the limit of a configuration file")
    return content


def _check_found(path: str, status: os.stat_result) -> None:
    """Raises ``PermissionDenied`` or ``InvalidRequest``."""
    if stat.S_ISFIFO(status.st_mode):
        raise InvalidRequest(f"{path} is a pipe; to read it all the same, name it with --config")
    if not stat.S_ISREG(status.st_mode):
        return  # A folder is told by reading it, and /dev/null stands for an empty file.
    if status.st_mode & stat.S_IWOTH:
        raise PermissionDenied(f"the configuration file {path} can be written by everybody; chmod o-w it")
    if status.st_uid not in (0, os.geteuid()):
        raise PermissionDenied(
            f"the configuration file {path} belongs to user {status.st_uid}; to trust it, "
            "name it with --config"
        )


def _translated(path: str, error: OSError) -> NeveError:
    text = f"cannot read the configuration file {path}: {error.strerror}"
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return NotFound(text)
    if isinstance(error, PermissionError):
        return PermissionDenied(f"{text}; to go without one, set {VARIABLE} to nothing")
    return Unavailable(text)


def _parsed(path: str, text: str) -> Mapping[str, Any]:
    import tomllib  # Most have no file.

    try:
        return tomllib.loads(text)
    except ValueError as error:  # Also numbers with more digits than Python converts.
        raise InvalidRequest(f"{path} is no TOML: {error}") from error
    except RecursionError as error:
        raise InvalidRequest(f"{path}: this is nested too deep") from error
