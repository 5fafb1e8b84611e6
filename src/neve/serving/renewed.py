"""What files hold, read again when they change: certificates, tokens."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from neve.errors import NeveError
from neve.telemetry import LOGGER

T = TypeVar("T")

_Stamp = tuple[tuple[int, ...] | None, ...]


class Renewed(Generic[T]):
    """A value that is made of files. Thread-safe.

    Files that cannot be used leave the value that was there before, and a line in the log: a slip while
    they are edited, or a renewal that is half done, must not end what works. They are not read again
    until they change again.
    """

    def __init__(
        self,
        paths: Sequence[str],
        read: Callable[[], T],
        renew: Callable[[], T] | None = None,
        *,
        seen: bool = True,
    ) -> None:
        """``read`` makes the value, now, and its errors are the caller's; ``renew``, or ``read`` again,
        makes the later ones. Without ``seen``, what ``read`` makes does not come from the files, so that
        they are looked at when the value is asked for."""
        self._paths = paths
        self._renew = renew or read
        self._lock = threading.Lock()
        # Before they are read: if they change meanwhile, they are read once more.
        self._stamp = self._now() if seen else None
        self._value = read()

    @property
    def is_current(self) -> bool:
        """Whether ``get`` has nothing to read. Costs a system call for each file."""
        return self._stamp == self._now()

    def get(self) -> T:
        """The value, after a look at the files; the same object until they change."""
        if not self.is_current:
            with self._lock:
                if (stamp := self._now()) != self._stamp:
                    try:
                        self._value = self._renew()
                    except NeveError as error:
                        LOGGER.error("%s; what was known before stays", error)
                    self._stamp = stamp
        return self._value

    def _now(self) -> _Stamp:
        return tuple(map(_stamp_of, self._paths))


def _stamp_of(path: str) -> tuple[int, ...] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino
