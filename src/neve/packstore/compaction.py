"""Compaction: gives back the space of records that the index does not point to.

A pack of which much is not in use is *rewritten*: what is in use moves to a new pack, and the old one is
removed. Others may go on reading and writing meanwhile. Who has looked up a record before it moved, and finds
the pack gone, looks it up once more.

- The caller shares the lock of a pack while it is rewritten, so nobody appends to it. A pack in which
  somebody has something staged is left alone.
- Moved records are appended to a pack that this process has for itself, synced, and then put into the index
  in one transaction, each only if it still lies where it was read. A crash before that leaves a tail that
  recovery drops; after it, an old pack without use.
- A pack is removed only if, by a look at the whole index, nothing points to it any more. A frame that is
  damaged is never moved, so its pack stays, with the records that only it has.

Frames that are in use as a whole are copied as they are; of others the records in use are compressed anew,
together. Changes (see ``pack``) are made once more, as the newest ones. The deletions in an old pack are
repeated if another pack still has something that they delete.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from neve.errors import DiskFull, NeveError
from neve.packstore import pack
from neve.packstore.frames import describe_place
from neve.packstore.layout import PACKS_DIR, os_errors, pack_name
from neve.packstore.location import Location, make_place
from neve.packstore.moving import Mover
from neve.packstore.recovery import frame_location
from neve.packstore.removal import forget_removals, remove_packs
from neve.packstore.report import Progress, ignore_progress
from neve.packstore.reserve import free_bytes
from neve.packstore.store import PackStore
from neve.packstore.survey import Survey, packs_in_use

MIN_DEAD_SHARE = 0.1
"""A pack is rewritten if this share of it is not in use: below that more than nine bytes would have to be
moved to give one back."""

MIN_DEAD_BYTES = 4096

_REMOVE_EVERY = 1024 * 1024 * 1024
_REMOVALS = 16
"""With so many bytes of old packs at hand they are removed; with more in a large store, if there is room for
it, so that it takes so many steps. Each takes a look at the whole index, and at the heads of all frames; and
until then a rewriting takes that much more of the disk."""

_HELD_PACKS = 200
"""With so many at hand they are removed, too: each takes a descriptor."""


@dataclass
class Compacted:
    """What a compaction did, in bytes; and what it came across."""

    given_back: int = 0
    moved: int = 0
    packs_removed: int = 0
    busy: int = 0
    """Bytes not in use in packs that others are writing."""
    problems: list[str] = field(default_factory=list)


def worth_rewriting(dead: dict[int, int], lengths: dict[int, int]) -> list[int]:
    """The packs to rewrite: first those of which most is not in use."""
    chosen = [
        pack_id
        for pack_id, size in dead.items()
        if size >= MIN_DEAD_BYTES and size >= MIN_DEAD_SHARE * lengths[pack_id]
    ]
    return sorted(chosen, key=lambda pack_id: (-dead[pack_id] / lengths[pack_id], pack_id))


def compact(store: PackStore, used: Survey, progress: Progress = ignore_progress) -> Compacted:
    """Rewrites the packs that are worth it; ``used`` tells what of them is in use, by and large.

    For the one collection of a store at a time. What is damaged is told in ``problems`` and stays; so is a
    full disk, if nothing was found that could be given back first.
    """
    forget_removals(store.path, store.index)
    lengths = store.index.pack_lengths()
    dead = used.dead(lengths)
    chosen = worth_rewriting(dead, lengths)
    result = Compacted()
    while chosen:
        before = len(chosen)
        try:
            with _Compaction(store, result, progress) as run:
                _rewrite(run, chosen, dead, used)
        except DiskFull as error:
            # What was moved until then has made room.
            there = store.index.pack_lengths()
            chosen = [pack_id for pack_id in chosen if pack_id in there]
            if len(chosen) == before:
                result.problems.append(str(error))
                break
    return result


def _rewrite(run: _Compaction, chosen: list[int], dead: dict[int, int], used: Survey) -> None:
    """Rewrites the ``chosen`` packs, and empties that list."""
    nothing_moved = True
    for pack_id in chosen:
        if nothing_moved and used.live.get(pack_id):
            # First what takes no room.
            nothing_moved = False
            run.finish()
        if not run.rewrite(pack_id):
            run.result.busy += dead[pack_id]
    run.finish()
    chosen.clear()


class _Compaction:
    """One run. Holds the old packs' locks from the time they are read until they are removed."""

    def __init__(self, store: PackStore, result: Compacted, progress: Progress) -> None:
        self._store = store
        self.result = result
        self._progress = progress
        self._mover = Mover(store.path, store.index, store.key)
        total = sum(store.index.pack_lengths().values())
        self._remove_every = max(_REMOVE_EVERY, min(total // _REMOVALS, free_bytes(store.path) // 4))
        self._old: dict[int, tuple[int, int]] = {}
        """Packs that were read to the end: descriptor and length."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._mover.close()
        if kind is not None and issubclass(kind, DiskFull):
            # Some may have been moved as a whole before.
            with contextlib.suppress(NeveError):
                self._remove(set(self._old) - packs_in_use(self._store.index, set(self._old)).keys())
        self._let_go(list(self._old))

    def rewrite(self, pack_id: int) -> bool:
        """Moves what is in use out of a pack. Returns whether it could be had."""
        fd = self._share(pack_id)
        if fd < 0:
            return False
        # Under the lock: its holder may have gone on committing.
        length = self._store.index.pack_lengths().get(pack_id, 0)
        self._old[pack_id] = (fd, length)
        with os_errors(f"cannot read pack {pack_name(pack_id)}"):
            whole = self._read(pack_id, fd, length)
        if not whole:
            self._mover.commit()
            self._let_go([pack_id])
        elif (
            sum(size for _, size in self._old.values()) >= self._remove_every or len(self._old) >= _HELD_PACKS
        ):
            self.finish()
        return True

    def _share(self, pack_id: int) -> int:
        """The pack's descriptor, with its lock shared; -1 if somebody appends to it, or it is gone."""
        path = self._store.path / PACKS_DIR / pack_name(pack_id)
        with os_errors(f"cannot open {path}"):
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                return -1
            try:
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return fd
            except BlockingIOError:
                os.close(fd)
                return -1

    def _read(self, pack_id: int, fd: int, length: int) -> bool:
        """Gives all that is in use to the mover; returns whether all of it was intact."""
        whole = True
        for found in pack.scan(fd, self._store.key):
            if isinstance(found, pack.Damage):
                continue  # Whether anything in use lies there, the index tells in the end.
            if found.offset >= length:
                break
            if found.kind == pack.DATA and not self._take(pack_id, fd, found):
                whole = False
            self._progress(found.end - found.offset)
        return whole

    def _take(self, pack_id: int, fd: int, frame: pack.Frame) -> bool:
        """Moves the records of a frame that are in use. Returns False if it is damaged and any are."""
        used = list(self._used(pack_id, frame))
        if frame.seq:
            self._mover.deleted((e.table, e.key) for e in frame.entries if e.tag == pack.TOMBSTONE)
        if not used:
            return True
        stored = os.pread(fd, frame.stored_len, frame.payload_offset)
        if pack.check16(stored) != frame.payload_check:
            place = describe_place(make_place(pack_id, frame.payload_offset))
            names = ", ".join(entry.key.hex() for entry, _ in used[:3])
            more = f" and {len(used) - 3} more" if len(used) > 3 else ""
            self.result.problems.append(f"{place}: the frame is damaged, its pack stays: {names}{more}")
            return False
        self._mover.move(fd, frame, stored, used)
        return True

    def _used(self, pack_id: int, frame: pack.Frame) -> Iterator[tuple[pack.Entry, Location]]:
        """The entries to which the index points, with their locations."""
        for table in sorted({entry.table for entry in frame.entries}):
            entries = [e for e in frame.entries if e.table == table and e.tag != pack.TOMBSTONE]
            located = self._store.index.get_many(table, [entry.key for entry in entries])
            for entry in entries:
                location = located.get(entry.key)
                if location is not None and location == frame_location(pack_id, frame, entry):
                    yield entry, location

    def finish(self) -> None:
        """Commits what was moved, and removes the packs that it came from."""
        if not self._old:
            return
        self.result.moved += self._mover.commit()
        old = set(self._old)
        for pack_id, (_table, key) in packs_in_use(self._store.index, old).items():
            # Damage has hidden it.
            old.discard(pack_id)
            self.result.problems.append(
                f"pack {pack_name(pack_id)} is damaged where {key.hex()} lies, perhaps with others: it stays"
            )
        self._remove(old)
        self._let_go(list(self._old))

    def _remove(self, packs: set[int]) -> None:
        self._mover.repeat_deletions(packs)
        remove_packs(self._store.path, self._store.index, packs)
        self.result.given_back += sum(self._old[pack_id][1] for pack_id in packs)
        self.result.packs_removed += len(packs)

    def _let_go(self, packs: Iterable[int]) -> None:
        for pack_id in packs:
            fd, _ = self._old.pop(pack_id)
            with contextlib.suppress(NeveError, OSError):
                os.close(fd)
