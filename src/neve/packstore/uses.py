"""Uses: what a process has answered to be there, written down so that no collection takes it away.

Whoever is told that something is there may go on to store what refers to it. So a process *notes* the
keys that it finds in a file of its own, and looks once more; a *sweep* (``sweeping``) reads the files of all
processes, and leaves alone what they name. Nobody waits for anybody in the common case:

    a process                             a sweep
    reads the gate's number               makes the gate's number odd
    appends the keys to its file          reads all files
    looks them up                         drops entries, commits
    reads the gate's number again         makes the number even

If the number was even and is the same, every later sweep sees the note, and every earlier one was over
when the look was taken; else the look is taken again once the sweep is over. A key that was noted once is
answered without all that until the next collection begins, which may not count what was noted long ago.
What is stored anew is noted before it is committed: it takes a while until something known refers to it.

A note counts for as long as its process has the store open. A server answers others, who go on after it
has ended: its files are *lasting*, and count for as long as a collection grants (``Uses.lasting``). A server
begins a new file every ``PERIOD`` seconds, and notes a key once in each.

Files are not synced: what a killed process has written is there. If the machine itself went down while a
lasting file was in use, some notes may be missing; the head names the boot, so this can be told.

Keys that are *dated* get the time of their last use in the index too, when a period or the process ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import ClassVar, TypeVar

from neve.errors import NeveError
from neve.packstore.gate import Gate, removal_lock
from neve.packstore.layout import USES_DIR, os_errors, sync_directory, write_whole
from neve.packstore.notes import (
    END_NOTE,
    PERIOD,
    SUFFIX,
    Note,
    encode_head,
    encode_notes,
    end_of_notes,
    remove_left,
    seconds_since_boot,
)

T = TypeVar("T")

_MAX_NOTED = 250_000
"""Keys that a process remembers to have noted: some 40 MiB. With more it begins to note them again."""


@contextlib.contextmanager
def lasting_uses() -> Iterator[None]:
    """For a server: others count on what is noted within the block, also when this process has ended."""
    before, Uses.lasting = Uses.lasting, True
    try:
        yield
    finally:
        Uses.lasting = before


@contextlib.contextmanager
def following_paths() -> Iterator[None]:
    """For who goes on using what it finds, and finds it by dated records: within the block nothing else is
    noted, because what those refer to stays with them."""
    before, Uses.only_dated = Uses.only_dated, True
    try:
        yield
    finally:
        Uses.only_dated = before


class Uses:
    """The notes of one process about one store. Thread-safe; not to be used after a fork."""

    lasting: ClassVar[bool] = False
    """Whether this process answers others, who go on after it has ended; see ``lasting_uses``."""
    only_dated: ClassVar[bool] = False
    """Whether only dated records are noted when they are found; see ``following_paths``."""

    def __init__(self, store: Path, note_dates: Callable[[Iterable[bytes], int], None]) -> None:
        """``note_dates`` puts the time of last use (seconds since 1970) of keys into the index."""
        self._folder = store / USES_DIR
        with os_errors(f"cannot make {self._folder}"):
            self._folder.mkdir(mode=0o755, exist_ok=True)
        self._gate = Gate(self._folder)
        self._note_dates = note_dates
        self._lock = threading.Lock()
        self._fd = -1
        self._begun = seconds_since_boot()
        self._pid = os.getpid()
        # What was noted in this file and found by a look that counts, since so many collections have begun.
        self._noted: set[Note] = set()
        self._noted_since = -1
        self._dated: set[bytes] = set()
        self._dates_due = False
        self._pending = bytearray()

    def promise(
        self,
        table: int,
        look_up: Callable[[], T],
        found: Callable[[T], Iterable[bytes]],
        *,
        dated: bool = False,
        reading: bool = False,
    ) -> T:
        """What ``look_up`` returns; the keys that are ``found`` in that stay for now.

        It may be called more than once. Raises ``DiskFull`` if there is no room for a note, unless
        ``reading``: then the answer had better be given, and nobody stores anything for now anyway.
        """
        if os.getpid() != self._pid:
            return look_up()
        result = look_up()
        if not (keys := list(found(result))):
            return result
        if dated:
            self._note_dated(keys)
        if self._begin_period() or self._dates_due:
            self._dates_due = False
            self._flush_dates()
        if self._all_noted(table, keys):
            return result
        try:
            return self._promise(table, keys, look_up, found)
        except NeveError:
            if reading:
                return result
            raise

    def _promise(
        self,
        table: int,
        keys: Iterable[bytes],
        look_up: Callable[[], T],
        found: Callable[[T], Iterable[bytes]],
    ) -> T:
        """Notes ``keys`` first, and looks then."""
        wanted = {(table, key) for key in keys}
        notes: set[Note] = set()
        while True:
            before = self._gate.even()
            with self._lock:
                known = self._noted if self._noted_since == before.collections else set()
            if new := wanted - notes - known:
                self._append(new)
                notes |= new
            result = look_up()
            wanted = {(table, key) for key in found(result)}
            if self._gate.signs() == before and wanted <= notes | (wanted & known):
                break
        with self._lock:
            # Only now: from here on others answer without a look at the gate.
            if self._noted_since == before.collections:
                self._noted.update(notes)
        return result

    @property
    def is_swept(self) -> bool:
        """Whether a sweep is under way, for which ``promise`` waits."""
        return bool(self._gate.signs().sweeps % 2)

    def note(self, table: int, keys: Iterable[bytes], *, dated: bool = False) -> None:
        """Notes keys that are about to be stored, with the next ``flush``; they stay for now once they are.

        It may be called within a transaction of the index.
        """
        keys = list(keys)
        if keys and os.getpid() == self._pid:
            with self._lock:
                self._pending += encode_notes((table, key) for key in keys)
            if dated:
                self._note_dated(keys)

    def flush(self) -> None:
        """Writes what is to be noted; before anything of it is committed. Raises ``DiskFull``."""
        if self._pending and os.getpid() == self._pid:
            # The dates are for later: this is within a transaction of the index.
            self._dates_due |= self._begin_period()
            self._append(())

    def _all_noted(self, table: int, keys: Iterable[bytes]) -> bool:
        """Whether all have been noted in this period, and since the last collection has begun."""
        collections = self._gate.signs().collections
        with self._lock:
            if self._noted_since != collections or len(self._noted) > _MAX_NOTED:
                self._noted, self._noted_since = set(), collections
            return self._noted.issuperset((table, key) for key in keys)

    def _note_dated(self, keys: Iterable[bytes]) -> None:
        with self._lock:
            self._dated.update(keys)

    def _append(self, notes: Iterable[Note]) -> None:
        with self._lock, os_errors(f"cannot note in {self._folder} what is in use"):
            data = bytes(self._pending) + encode_notes(notes)
            if self._fd < 0:
                self._fd = self._create()
            _cut_off_half(self._fd)
            try:
                write_whole(self._fd, data)
            except OSError:
                with contextlib.suppress(OSError):  # Else before the next ones.
                    _cut_off_half(self._fd)
                raise
            self._pending = bytearray()

    def _create(self) -> int:
        """A new file, locked. What others have left and nobody needs any more is removed."""
        remove_left(self._folder)
        while True:
            path = self._folder / f"{os.getpid()}-{secrets.token_hex(8)}{SUFFIX}"
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                if os.fstat(fd).st_nlink:  # In between it may have been taken for one that was left.
                    self._give_to_owner(fd)
                    write_whole(fd, encode_head(lasting=self.lasting, begun=self._begun))
                    if self.lasting:
                        os.fsync(fd)
                        sync_directory(self._folder)
                    self._path = path
                    return fd
            except BaseException:
                os.close(fd)
                path.unlink(missing_ok=True)
                raise
            os.close(fd)

    def _give_to_owner(self, fd: int) -> None:
        """Whoever collects must be able to read it, also if root has the store of somebody else mounted."""
        if os.geteuid() == 0:
            owner = os.stat(self._folder)
            with contextlib.suppress(OSError):
                os.fchown(fd, owner.st_uid, owner.st_gid)

    def _begin_period(self) -> bool:
        """Returns whether it was time to."""
        if seconds_since_boot() - self._begun <= PERIOD:
            return False
        with self._lock:
            if seconds_since_boot() - self._begun <= PERIOD:
                return False
            self._begun = seconds_since_boot()
            if self.lasting:
                self._noted = set()
                self._end_file()
            return True

    def _end_file(self) -> None:
        """Lets go of the file, and says in it that it is complete, for who finds it after a power failure."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):
                _cut_off_half(fd)
                write_whole(fd, END_NOTE)
                os.fdatasync(fd)
            os.close(fd)

    def _flush_dates(self) -> None:
        with self._lock:
            dated, self._dated = self._dated, set()
        if dated:
            # It only decides what goes first one day.
            with contextlib.suppress(NeveError):
                self._note_dates(dated, int(time.time()))

    @contextlib.contextmanager
    def sweeping(self, *, begins: bool = False) -> Iterator[None]:
        """The time of a sweep: whoever asks for something meanwhile, waits. What was noted before it shows
        to who reads the files within the block, and must not be dropped in it. With ``begins``, everything
        that is asked for from now on is noted anew."""
        with self._gate.closed(begins=begins):
            yield

    def close(self) -> None:
        """Ends the notes of this process, as far as they do not last."""
        if os.getpid() != self._pid:
            if self._fd >= 0:
                os.close(self._fd)
        else:
            self._flush_dates()
            with self._lock:
                if self._fd >= 0 and not self.lasting:
                    # A collection under way may not have seen it: then it is left for the next one.
                    with contextlib.suppress(NeveError, OSError), removal_lock(self._folder):
                        self._path.unlink(missing_ok=True)
                self._end_file()
        self._fd = -1
        self._gate.close()


def _cut_off_half(fd: int) -> None:
    """Cuts half a note off: whoever reads goes by multiples of the size of one. Whole ones do no harm."""
    end = os.fstat(fd).st_size
    if end != (whole := end_of_notes(end)):
        os.ftruncate(fd, whole)
