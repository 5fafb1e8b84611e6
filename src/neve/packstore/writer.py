"""Writing: frames are staged in this process's pack, and commits make them durable and visible.

*Staged* records are in the pack but not in the index: this process knows them (so that it does not
store them twice), nobody else sees them, and a crash drops them. A *commit* syncs the pack, adds
the records to the index and only then returns. Concurrent commits share one sync: whoever comes
first leads, the others wait for a commit that covers what they staged (group commit).

*Updates* read and replace records inside the index's write transaction, which only one process
holds at a time; that is how records that can change (path infos) are compared and swapped.

Locks, in the order in which they are taken: open lock, the index's write lock (among all processes),
append lock, state. The leader of a commit keeps the append lock from its marks until the index has
taken the transaction or not, so that nothing is appended behind a mark of which that is not known.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from neve.errors import NeveError, Unavailable
from neve.packstore import pack
from neve.packstore.appender import PACK_LIMIT, OpenPack, open_pack
from neve.packstore.frames import Packed, Record, encode_frame, group_records, locations
from neve.packstore.index import Index, MapFull
from neve.packstore.index_writer import IndexWriter
from neve.packstore.joined import JoinedCommits
from neve.packstore.location import Location, make_place
from neve.packstore.locks import Arrivals
from neve.packstore.recovery import recover
from neve.packstore.updates import Transaction, Update

T = TypeVar("T")

MAX_STAGED_RECORDS = 100_000
MAX_STAGED_BYTES = 512 * 1024 * 1024
"""Whoever stages beyond one of these commits first, which bounds memory and the size of a commit."""

_SYNC_BEFORE_LOCK = 4 * 1024 * 1024
"""With more unsynced bytes than this the pack is synced before the index's write lock is taken, so
that other processes wait for a small sync only."""

_CROWD_PAUSE, _MAX_CROWD_PAUSE, _CROWD_PATIENCE = 0.002, 0.01, 10
"""Where several threads write, a commit waits for more to come: as long as they come without a pause of so
many seconds, and for so many such pauses in all. The pause is longer the more of them there are, for they
are slowed down by each other (the interpreter alone lets a thread run for 5 ms before the next one's turn).
One that writes alone is never kept waiting."""
_PAUSE_A_WRITER = 0.0005
_JUST_NOW, _RIGHT_NOW = 0.02, 0.001
"""Seconds for which it is remembered that several waited for a commit, and that somebody alone made one: the
next to come is then likely to be the same client's next request, which another thread serves."""

_Staged = dict[int, dict[bytes, Location]]


class Writer:
    """The one writer of a store in this process. Thread-safe."""

    def __init__(self, path: Path, index: Index, key: bytes) -> None:
        self._path = path
        self._index = index
        self._key = key
        self._pid = os.getpid()
        self._open_lock = threading.Lock()
        self._append_lock = threading.Lock()
        self._arrivals = Arrivals()
        self._joined = JoinedCommits()
        # Under the append lock: the pack in use, and those that became full since the last commit.
        self._pack: OpenPack | None = None
        self._full: list[OpenPack] = []
        # Under the condition's lock.
        self._state = threading.Condition()
        self._staged: _Staged = {}
        self._staged_records = 0
        self._staged_bytes = 0
        self._staged_count = 0
        self._committed_count = 0
        self._updates: list[Update] = []
        self._leading = False
        self._waiting = 0
        self._last_leader = (0, 0, 0.0)
        self._epoch = 0
        self._failure: BaseException | None = None
        # The leader's: what the commit under way is made of.
        self._committing: _Staged = {}
        self._covered = 0
        self._running: list[Update] = []

    @property
    def epoch(self) -> int:
        """Changes when staged records had to be given up; see ``commit``."""
        return self._epoch

    def staged(self, table: int, keys: Iterable[bytes]) -> dict[bytes, Location]:
        """The locations of those ``keys`` whose records are staged here and not committed yet."""
        sources = [records for s in (self._staged, self._committing) if (records := s.get(table))]
        return {key: records[key] for records in sources for key in keys if key in records}

    def stage(self, table: int, records: Sequence[Record], epoch: int, packed: Packed | None = None) -> None:
        """Appends ``records`` as one frame. Visible to this process's ``staged`` only until ``commit``.

        ``epoch`` is what it was before the caller staged, or found staged by others, the first record that
        belongs to these. If records had to be given up since, this raises: anybody's next commit takes
        what is staged, and would publish what refers to them.
        """
        self._check_process()
        if not records:
            return
        with self._arrivals.one():
            frame = encode_frame(table, records, self._key, packed=packed)
            while True:
                self._ensure_pack()
                with self._append_lock:
                    self._check_epoch(epoch)
                    if (target := self._pack) is None:
                        continue
                    offset = target.append(frame.head, frame.entries, frame.payload)
                    place = make_place(target.id, offset + len(frame.head) + len(frame.entries))
                    too_much = self._register(table, records, locations(frame, records, place), frame.size)
                    break
        if too_much:
            self._commit_staged(epoch)

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise Unavailable("this store was opened before a fork; open it in the child instead")

    def _register(self, table: int, records: Sequence[Record], placed: list[Location], size: int) -> bool:
        """Notes staged records; returns whether it is time to commit."""
        with self._state:
            staged = self._staged.setdefault(table, {})
            _merge(staged, zip([record.key for record in records], placed, strict=True))
            self._staged_records += len(records)
            self._staged_bytes += size
            self._staged_count += 1
            return self._staged_records >= MAX_STAGED_RECORDS or self._staged_bytes >= MAX_STAGED_BYTES

    def _ensure_pack(self) -> None:
        """Sees to it that there is a pack with room."""
        with self._append_lock:
            if self._pack is not None and self._pack.end >= PACK_LIMIT:
                self._full.append(self._pack)
                self._pack = None
            if self._pack is not None:
                return
        with self._open_lock:
            if self._pack is None:
                recover(self._path, self._index, self._key)
                opened = open_pack(self._path, self._index, self._key)
                with self._append_lock:
                    self._pack = opened

    def update(self, function: Callable[[Transaction], T]) -> T:
        """Runs ``function`` in the index's write transaction and returns its result once it is durable.

        Raises what ``function`` raises; then nothing of it happened. It must not write to the store
        in any other way. Records staged before are committed along.
        """
        self._check_process()
        update = Update(self._joined.guarded(function, self._check_epoch))
        with self._arrivals.one(), self._state:
            self._updates.append(update)
        try:
            self._wait(lambda: update.done)
        except BaseException:
            # Interrupted while waiting: nobody is told of the outcome, so there had better be none.
            with self._state, contextlib.suppress(ValueError):
                self._updates.remove(update)
            raise
        if update.error is not None:
            raise update.error
        result: T = update.result
        return result

    def commit(self, epoch: int | None = None) -> None:
        """Returns when everything that was staged before the call is durable and visible.

        ``epoch`` is what ``epoch`` was when the caller began to stage (by default: is now): if staged
        records had to be given up since (a failed sync), this raises instead of promising what is
        lost.
        """
        self._check_process()
        begun = self._epoch if epoch is None else epoch
        if not self._joined.postpone(begun):
            self._commit_staged(begun)

    @contextlib.contextmanager
    def one_commit(self) -> Iterator[None]:
        """Commits of this thread within the block are made at its end, all as one: durable and visible then,
        and not before. An update within it is not postponed, and takes along what was staged.

        Where several small things make one whole this saves their syncs. Left by an error, the block commits
        nothing.
        """
        with self._joined.block() as epochs:
            yield
        for begun in epochs:
            self._commit_staged(begun)

    def _check_epoch(self, begun: int) -> None:
        if begun != self._epoch:
            raise _repeated(self._failure)

    def _commit_staged(self, begun: int) -> None:
        goal = self._staged_count

        def covered() -> bool:
            self._check_epoch(begun)
            return self._committed_count >= goal

        self._wait(covered)

    def _wait(self, done: Callable[[], bool]) -> None:
        """Returns when ``done``; leads commits as long as that takes one and nobody else does."""
        while True:
            with self._state:
                self._waiting += 1
                try:
                    while not done() and self._leading:
                        self._state.wait()
                    if done():
                        return
                    self._leading = True
                finally:
                    self._waiting -= 1
            self._lead()

    def _lead(self) -> None:
        failure: BaseException | None = None
        try:
            self._arrivals.gather(*self._patience())
            while True:
                try:
                    self._commit_once()
                    break
                except MapFull:
                    self._index.grow()
        except BaseException as error:
            failure = error
            self._give_up(error)
        with self._state:
            self._committed_count = max(self._committed_count, self._covered)
            for update in self._running:
                update.error = update.error if failure is None else _repeated(failure)
                update.done = True
            self._committing, self._running = {}, []
            self._leading = False
            self._last_leader = (threading.get_ident(), self._waiting, time.monotonic())
            self._state.notify_all()
        if failure is not None:
            raise failure

    def _patience(self) -> tuple[float, float]:
        """For how long a pause, and how long in all, more are waited for: only if others write too, that is,
        were waiting at the last commit, or led it just now."""
        leader, waited, ended = self._last_leader
        remembered = _JUST_NOW if waited else _RIGHT_NOW
        if time.monotonic() - ended > remembered or not (waited or leader != threading.get_ident()):
            return 0, 0
        pause = min(max(_CROWD_PAUSE, _PAUSE_A_WRITER * max(waited, self._waiting)), _MAX_CROWD_PAUSE)
        return pause, _CROWD_PATIENCE * pause

    def _give_up(self, failure: BaseException) -> None:
        """After a failed commit: whether staged bytes are on the disk is unknown, so all are dropped.

        Sessions that counted on them learn it from the changed epoch. The packs are let go: a sync
        that has failed once must not be believed later. They are cut off where the index says, which
        is asked anew: a commit that failed at the very end may have happened.
        """
        committed: dict[int, int] | None = None
        with contextlib.suppress(NeveError):
            self._index.reopen()
            committed = self._index.pack_lengths()
        with self._append_lock, self._state:
            for held in self._held():
                if committed is not None:
                    with contextlib.suppress(NeveError):
                        held.truncate(max(committed.get(held.id, 0), pack.HEADER_SIZE))
                held.close()
            self._full, self._pack = [], None
            # Before the epoch changes: who begins after that must find nothing of it staged.
            self._staged, self._committing = {}, {}
            self._failure = failure
            self._epoch += 1
            self._staged_records = self._staged_bytes = 0
            self._covered = self._staged_count

    def _held(self) -> list[OpenPack]:
        """All packs this process holds the lock of. Called with the append lock held."""
        return [*self._full, *([self._pack] if self._pack else [])]

    def _commit_once(self) -> None:
        with self._append_lock:
            nowhere = not self._held()
        if nowhere:
            self._ensure_pack()
        self._sync_packs()
        before: list[tuple[OpenPack, int]] = []
        with contextlib.ExitStack() as frozen:
            try:
                with self._index.write() as txn:
                    changes = self._run_updates(txn).by_table()
                    frozen.enter_context(self._append_lock)
                    self._take_staged()
                    if not changes and not self._committing:
                        return
                    before = [(held, held.end) for held in self._held()]
                    self._write(txn, changes)
            except MapFull:
                for held, end in before:
                    held.truncate(end)
                raise
            for held in self._full:
                held.close()
            self._full = []

    def _sync_packs(self) -> None:
        """Syncs those packs that have many unsynced bytes."""
        with self._append_lock:
            dirty = [held for held in self._held() if held.dirty > _SYNC_BEFORE_LOCK]
            for held in dirty:
                held.dirty = 0
        for held in dirty:
            held.sync()

    def _run_updates(self, txn: IndexWriter) -> Transaction:
        with self._state:
            self._running += self._updates
            self._updates = []
        transaction = Transaction(txn)
        for update in self._running:
            update.run(transaction)
        return transaction

    def _take_staged(self) -> None:
        """Makes all that is staged part of this commit. Called with the append lock held."""
        with self._state:
            for table, records in self._staged.items():
                _merge(self._committing.setdefault(table, {}), records.items())
            self._staged = {}
            self._staged_records = self._staged_bytes = 0
            self._covered = self._staged_count

    def _write(self, txn: IndexWriter, changes: dict[int, list[Record]]) -> None:
        """Appends the changes and the marks, syncs, and puts everything into the transaction."""
        placed: list[tuple[int, Record, Location]] = []
        held = self._held()
        for table, records in changes.items():
            for group in group_records(records):
                frame = encode_frame(table, group, self._key, txn.seq)
                offset = held[-1].append(frame.head, frame.entries, frame.payload)
                place = make_place(held[-1].id, offset + len(frame.head) + len(frame.entries))
                placed += zip([table] * len(group), group, locations(frame, group, place), strict=True)
        for one in held:
            # In this order: later records refer to earlier ones, so their pack's mark comes last.
            one.append(pack.commit_mark(txn.seq, self._key))
            one.sync()
            one.dirty = 0
        for table, staged in self._committing.items():
            txn.put_absent(table, sorted(staged.items()))
        for table, record, location in placed:
            if record.tag == pack.TOMBSTONE:
                txn.delete(table, record.key)
            else:
                txn.put(table, record.key, location)
        for one in held:
            txn.set_pack_length(one.id, one.end)

    def close(self) -> None:
        """Lets go of the packs. What is staged and was not committed is given up: nobody waits for it."""
        with self._append_lock:
            for held in self._held():
                held.close()
            self._full, self._pack = [], None


def _merge(into: dict[bytes, Location], records: Iterable[tuple[bytes, Location]]) -> None:
    """Adds locations; of two for one key the higher tag counts, and then the first, as in the index."""
    for key, location in records:
        if into.setdefault(key, location).tag < location.tag:
            into[key] = location


def _repeated(failure: BaseException | None) -> NeveError:
    """The error for those whose commit another thread has led, or who come later."""
    kind = type(failure) if isinstance(failure, NeveError) else Unavailable
    return kind(f"writing to the store failed: {failure}")
