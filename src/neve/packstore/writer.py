"""Writing: records are staged in frames, and commits make them durable and visible.

*Staged* records wait in memory, or lie in a pack without being in the index: this process knows them
(so that it does not store them twice), nobody else sees them, and a crash drops them. ``sessions`` tells
for whom they are staged, and how their space is given back. A *commit* syncs the packs, adds
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
from neve.packstore.appender import OpenPack
from neve.packstore.frames import Packed, Record, encode_frame, group_records, locations
from neve.packstore.index import Index, MapFull
from neve.packstore.index_writer import IndexWriter
from neve.packstore.joined import JoinedCommits
from neve.packstore.location import Location, make_place
from neve.packstore.locks import Arrivals
from neve.packstore.sessions import Portion, Session
from neve.packstore.staging import Staging, repeated
from neve.packstore.updates import Transaction, Update
from neve.telemetry import span

T = TypeVar("T")

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


class Writer:
    """The one writer of a store in this process. Thread-safe."""

    def __init__(self, path: Path, index: Index, key: bytes) -> None:
        self._index = index
        self._key = key
        self._pid = os.getpid()
        self._staging = Staging(path, index, key)
        self._arrivals = Arrivals()
        self._joined = JoinedCommits()
        # Under the condition's lock.
        self._state = threading.Condition()
        self._committed_count = 0
        self._updates: list[Update] = []
        self._leading = False
        self._waiting = 0
        self._last_leader = (0, 0, 0.0)
        # The leader's: what the commit under way is made of.
        self._covered = 0
        self._running: list[Update] = []

    def begin(self) -> Session:
        """Begins a session, for who stages or counts on what others have staged; it needs its ``end``."""
        self._check_process()
        return self._staging.begin()

    def end(self, session: Session) -> None:
        """Ends a session: what it staged and has not committed is given up, and its space given back.

        Can be called again.
        """
        # In this order: the block that has postponed a commit looks the other way round.
        session.left = True
        # A child has no say in what its parent has staged.
        if not session.postponed and os.getpid() == self._pid:
            self._staging.end(session)

    @contextlib.contextmanager
    def session(self) -> Iterator[Session]:
        """A session that ends with the block."""
        session = self.begin()
        try:
            yield session
        finally:
            self.end(session)

    def staged(self, table: int, keys: Sequence[bytes], session: Session | None) -> dict[bytes, Location]:
        """The locations of those ``keys`` whose records are staged here and not committed yet.

        ``session`` may count on them: they are committed with it, if not before.
        """
        return self._staging.find(table, keys, session)

    def stage(
        self, table: int, records: Sequence[Record], session: Session, packed: Packed | None = None
    ) -> None:
        """Stages ``records`` as one frame. Visible to this process's ``staged`` only until ``commit``.

        ``session`` began before the caller staged, or found staged by others, the first record that
        belongs to these. If records had to be given up since, this raises.
        """
        self._check_process()
        if not records:
            return
        with self._arrivals.one():
            frame = encode_frame(table, records, self._key, packed=packed)
            too_much = self._staging.stage(session, table, records, frame)
        if too_much:
            self._staging.join()
            self._commit_staged(session.epoch)

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise Unavailable("this store was opened before a fork; open it in the child instead")

    def update(self, function: Callable[[Transaction], T]) -> T:
        """Runs ``function`` in the index's write transaction and returns its result once it is durable.

        Raises what ``function`` raises; then nothing of it happened. It must not write to the store
        in any other way. What lies in common is committed along.
        """
        self._check_process()
        update = Update(self._joined.guarded(function, self._staging.check_epoch))
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

    def commit(self, session: Session | None = None) -> None:
        """Returns when everything that ``session`` has staged, or found staged, is durable and visible.

        By default: everything that was staged before the call. If records had to be given up since the
        session began (a failed sync), this raises instead of promising what is lost.
        """
        self._check_process()
        begun = self._staging.epoch
        with self._arrivals.one():
            self._staging.join(None if session is None else [session])
        if session is None:
            self._commit_staged(begun)
            return
        self._staging.check_usable(session)
        session.shared = False
        if not self._joined.postpone(session):
            self._commit_staged(session.epoch)

    @contextlib.contextmanager
    def one_commit(self) -> Iterator[None]:
        """Commits of this thread within the block are made at its end, all as one: durable and visible then,
        and not before. An update within it is not postponed, and takes along what was staged.

        Where several small things make one whole this saves their syncs. Left by an error, the block commits
        nothing.
        """
        with contextlib.ExitStack() as ending:
            with self._joined.block() as sessions:
                ending.callback(self._end_postponed, sessions)
                yield
            for epoch in {session.epoch for session in sessions}:
                self._commit_staged(epoch)

    def _end_postponed(self, sessions: Iterable[Session]) -> None:
        for session in sessions:
            session.postponed = False
            if session.left:
                self.end(session)

    def _commit_staged(self, begun: int) -> None:
        goal = self._staging.count

        def covered() -> bool:
            self._staging.check_epoch(begun)
            return self._committed_count >= goal

        self._wait(covered)

    def _wait(self, done: Callable[[], bool]) -> None:
        """Returns when ``done``; leads commits as long as that takes one and nobody else does."""
        with span("packs.commit"):
            self._wait_or_lead(done)

    def _wait_or_lead(self, done: Callable[[], bool]) -> None:
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
            self._staging.begin_commit()
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
        finally:
            self._end_lead(failure)
        if failure is not None:
            raise failure

    def _end_lead(self, failure: BaseException | None) -> None:
        """Tells those who wait what came of it, and lets one of them lead."""
        self._staging.committed()
        with self._state:
            self._committed_count = max(self._committed_count, self._covered)
            for update in self._running:
                update.error = update.error if failure is None else repeated(failure)
                update.done = True
            self._running = []
            self._leading = False
            self._last_leader = (threading.get_ident(), self._waiting, time.monotonic())
            self._state.notify_all()

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

        Sessions learn it from the changed epoch, also those that have theirs apart. The packs are let go: a
        sync that has failed once must not be believed later. They are cut off where the index says, which is
        asked anew: a commit that failed at the very end may have happened.
        """
        committed: dict[int, int] | None = None
        try:
            with contextlib.suppress(NeveError):
                self._index.reopen()
                committed = self._index.pack_lengths()
        finally:
            self._covered = self._staging.give_up(committed, failure)

    def _commit_once(self) -> None:
        with self._staging.append_lock:
            nowhere = not self._staging.held()
        if nowhere:
            self._staging.ensure_pack()
        self._sync_packs()
        before: list[tuple[OpenPack, int]] = []
        with contextlib.ExitStack() as frozen:
            try:
                with self._index.write() as txn:
                    changes = self._run_updates(txn).by_table()
                    frozen.enter_context(self._staging.append_lock)
                    self._covered = self._staging.count
                    taken = self._staging.take()
                    if not changes and not taken.frames:
                        self._staging.let_go_of_full()
                        return
                    before = [(held, held.end) for held in self._staging.held()]
                    self._write(txn, taken, changes)
            except MapFull:
                for held, end in before:
                    held.truncate(end)
                raise
            self._staging.let_go_of_full()

    def _sync_packs(self) -> None:
        """Syncs those packs that have many unsynced bytes."""
        with self._staging.append_lock:
            dirty = [held for held in self._staging.held() if held.dirty > _SYNC_BEFORE_LOCK]
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

    def _write(self, txn: IndexWriter, taken: Portion, changes: dict[int, list[Record]]) -> None:
        """Appends the changes and the marks, syncs, and puts everything into the transaction."""
        placed: list[tuple[int, Record, Location]] = []
        held = self._staging.held()
        for table, records in changes.items():
            for group in group_records(records):
                frame = encode_frame(table, group, self._key, txn.seq)
                offset = held[-1].append(frame.head, frame.entries, frame.payload)
                place = make_place(held[-1].id, offset + len(frame.head) + len(frame.entries))
                placed += zip([table] * len(group), group, locations(frame, group, place), strict=True)
        after = 0
        for one in held:
            # In this order: later records refer to earlier ones, so their pack's mark comes last.
            one.append(pack.commit_mark(txn.seq, self._key, after))
            one.sync()
            one.dirty = 0
            after = one.id
        for table, staged in taken.tables.items():
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
        if os.getpid() == self._pid:
            self._staging.close()
        else:
            self._staging.abandon()
