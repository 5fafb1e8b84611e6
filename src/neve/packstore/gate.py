"""The gate: what processes and a collection tell each other while it sweeps; ``uses`` tells how.

::

    uses/gate            16 bytes: the number, and how many collections have begun; flock: exclusive while a
                         sweep is under way
    uses/collecting      flock: exclusive for a collection
    uses/removing        flock: the same, and shared for who removes files of notes
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from neve.errors import Unavailable
from neve.packstore.layout import USES_DIR, os_errors

_COLLECTION_LOCK, _REMOVAL_LOCK = "collecting", "removing"

_NUMBERS = struct.Struct("<QQ")


class Signs(NamedTuple):
    """What the gate says."""

    sweeps: int
    """Odd while a sweep is under way."""
    collections: int


class Gate:
    """The numbers that tell of sweeps and collections, and the lock to wait for a sweep. Thread-safe."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "gate"
        with os_errors(f"cannot open {self._path}"):
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def signs(self) -> Signs:
        with os_errors(f"cannot read {self._path}"):
            data = os.pread(self._fd, _NUMBERS.size, 0)
        return Signs(*_NUMBERS.unpack(data)) if len(data) == _NUMBERS.size else Signs(0, 0)

    def even(self) -> Signs:
        """The same, once no sweep is under way."""
        while (signs := self.signs()).sweeps % 2:
            with self._locked(fcntl.LOCK_SH):
                pass
            self._mend()
        return signs

    def _mend(self) -> None:
        """Makes the number even if whoever made it odd has died."""
        with contextlib.suppress(BlockingIOError), self._locked(fcntl.LOCK_EX | fcntl.LOCK_NB):
            signs = self.signs()
            if signs.sweeps % 2:
                self._set(signs._replace(sweeps=signs.sweeps + 1))

    @contextlib.contextmanager
    def closed(self, *, begins: bool = False) -> Iterator[None]:
        """The time of a sweep: the number is odd within the block. ``begins``: and a collection begins."""
        with os_errors(f"cannot lock {self._path}"), self._locked(fcntl.LOCK_EX):
            before = self.signs()
            signs = Signs(before.sweeps | 1, before.collections + begins)
            self._set(signs)
            try:
                yield
            finally:
                self._set(signs._replace(sweeps=signs.sweeps + 1))

    def _set(self, signs: Signs) -> None:
        with os_errors(f"cannot write {self._path}"):
            data, written = _NUMBERS.pack(*signs), 0
            while written < len(data):  # Half of them would tell another story.
                written += os.pwrite(self._fd, data[written:], written)

    @contextlib.contextmanager
    def _locked(self, kind: int) -> Iterator[None]:
        # Opened anew: a lock belongs to the open file, and threads must not share theirs.
        fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, kind)
            yield
        finally:
            os.close(fd)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


@contextlib.contextmanager
def removal_lock(folder: Path) -> Iterator[None]:
    """Held for a moment by who removes files of notes: no collection is under way meanwhile. Raises
    ``BlockingIOError`` if one is."""
    with _lock(folder / _REMOVAL_LOCK, fcntl.LOCK_SH | fcntl.LOCK_NB):
        yield


@contextlib.contextmanager
def collection_lock(store: Path) -> Iterator[None]:
    """Held by the one collection of a store at a time. Raises ``Unavailable`` if there is another."""
    folder = store / USES_DIR
    with contextlib.ExitStack() as held:
        try:
            with os_errors(f"cannot lock the store in {store}"):
                folder.mkdir(mode=0o755, exist_ok=True)
            held.enter_context(_lock(folder / _COLLECTION_LOCK, fcntl.LOCK_EX | fcntl.LOCK_NB))
        except BlockingIOError:
            raise Unavailable(
                f"a collection of the store in {store} is under way; wait for its end"
            ) from None
        held.enter_context(_lock(folder / _REMOVAL_LOCK, fcntl.LOCK_EX))
        yield


@contextlib.contextmanager
def _lock(path: Path, kind: int) -> Iterator[None]:
    with os_errors(f"cannot open {path}"):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(fd, kind)
        yield
    finally:
        os.close(fd)
