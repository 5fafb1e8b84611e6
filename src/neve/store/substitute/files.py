"""What a binary cache is made of: files below one address."""

from __future__ import annotations

import contextlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import unquote

from neve.errors import Corrupt, InvalidRequest, LimitExceeded, Unavailable, Unsupported

T = TypeVar("T")

_CLOSE_SECONDS = 10.0
"""How long those who read are waited for: what they read from notices at once, what they do with it might
take a moment."""

_QUOTED = 120
"""Characters."""

_DECODINGS = 4
"""How often percent signs are undone when looking for what is hidden behind them."""


class InvalidAnswer(Corrupt):
    """What a cache says is malformed, untrue or not trusted. The message names the file."""


class Transient(Unavailable):
    """A failure that may be over in a moment."""

    def __init__(self, message: str, *, after: float = 0) -> None:
        super().__init__(message)
        self.after = after
        """Seconds to wait at least, as the server asks for."""


@dataclass(frozen=True)
class CacheFile:
    """A file of a cache, being read."""

    pieces: Iterator[bytes]
    """Its contents. Raises ``Transient`` when they stop coming."""
    ends_by_itself: bool = True
    """Whether one that was cut short is told from a shorter one."""


class CacheFiles(ABC):
    """The files of one cache. Thread-safe.

    Names are paths below its address, as ``checked_name`` gives them. All errors name the file, without
    credentials.
    """

    url: str
    """The address, to be shown; without a slash at the end."""

    def __init__(self) -> None:
        self.closing = threading.Event()
        """Set when nobody wants anything any more: whoever reads a file ends soon."""
        self._uses = 0
        self._change = threading.Condition()

    def where(self, name: str) -> str:
        """A file, to be shown."""
        return f"{self.url}/{name}"

    @abstractmethod
    def open(self, name: str) -> AbstractContextManager[CacheFile | None]:
        """A file, or None if there is none. Raises ``Transient`` where ``repeating`` helps."""

    def read(self, name: str, limit: int) -> bytes | None:
        """The contents of a small file, or None. Raises ``LimitExceeded`` beyond ``limit`` bytes."""
        return self.repeating(lambda: self._read(name, limit))

    def _read(self, name: str, limit: int) -> bytes | None:
        with self.open(name) as file:
            if file is None:
                return None
            contents = bytearray()
            with naming(self.where(name)):
                for piece in file.pieces:
                    contents += piece
                    if len(contents) > limit:
                        raise LimitExceeded(f"longer than the limit of {limit} bytes")
            return bytes(contents)

    def repeating(self, function: Callable[[], T]) -> T:
        """What ``function``, which opens files, gives; after a ``Transient`` failure it may be called again.

        ``Unavailable`` if the cache is being closed.
        """
        with self._change:
            if self.closing.is_set():
                raise self.closed()
            self._uses += 1
        try:
            return self._repeat(function)
        finally:
            with self._change:
                self._uses -= 1
                self._change.notify_all()

    def _repeat(self, function: Callable[[], T]) -> T:
        return function()

    def closed(self) -> Unavailable:
        """The error for whoever still reads."""
        return Unavailable(f"{self.url} is closed")

    def close(self) -> None:
        """Ends what is being read, waiting for that a little, and lets go of all. Can be called again."""
        with self._change:
            self.closing.set()
            self._change.wait_for(lambda: self._uses == 0, _CLOSE_SECONDS)


def quoted(text: str) -> str:
    """What a cache has said, for a message: escaped, and not at any length."""
    return repr(text) if len(text) <= _QUOTED else f"{text[:_QUOTED]!r}... ({len(text)} long)"


@contextlib.contextmanager
def naming(where: str) -> Iterator[None]:
    """Errors about what a file holds name the file, and blame the cache instead of who asked for it."""
    try:
        yield
    except LimitExceeded as error:
        raise LimitExceeded(f"{where}: {error}") from error
    except Unsupported as error:
        # A library is missing here. The request was fine.
        raise Unavailable(f"{where}: {error}") from error
    except InvalidRequest as error:
        raise InvalidAnswer(f"{where}: {error}") from error


def checked_name(url: str, base: str) -> str:
    """The name of the file that a narinfo's ``url`` means in the cache at ``base``.

    Raises ``InvalidRequest`` unless it stays below the cache's address, whatever a server makes of it: no
    other host, no way up, nothing hidden behind percent signs.
    """
    name = url.removeprefix(base + "/")
    path = name.partition("?")[0]
    for _ in range(_DECODINGS):
        _check_path(path, url)
        path = unquote(path, errors="replace")
    if "%" in path and unquote(path, errors="replace") != path:
        raise _outside(url, "is encoded again and again")
    _check_path(path, url)
    if "#" in name:
        raise _outside(url, "has a fragment")
    return name


def _check_path(path: str, url: str) -> None:
    if path.startswith("/"):
        raise _outside(url, "does not begin at the cache's address")
    if ":" in path.partition("/")[0]:
        raise _outside(url, "is an address of its own")
    if "\\" in path or not path.isprintable():
        raise _outside(url, "has characters that no file of a cache has")
    if any(part in ("", ".", "..") for part in path.split("/")):
        raise _outside(url, "has an empty component, or one that leads elsewhere")


def _outside(url: str, reason: str) -> InvalidRequest:
    return InvalidRequest(f"URL {quoted(url)} {reason}; it must stay below the address of the cache")
