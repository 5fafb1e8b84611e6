"""The packs that this process appends to, and what is staged in them; the rules are in ``sessions``.

Locks, in the order in which they are taken: open lock, append lock, state.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

from neve.errors import NeveError, Unavailable
from neve.packstore import pack
from neve.packstore.appender import OpenPack, open_pack
from neve.packstore.frames import FRAME_TARGET, EncodedFrame, Record, locations
from neve.packstore.index import Index
from neve.packstore.location import Location, make_place, moved
from neve.packstore.recovery import recover
from neve.packstore.sessions import (
    Portion,
    Session,
    StagedFrame,
    Waiting,
    WaitingFrame,
    give_back_apart,
)

MAX_STAGED_RECORDS = 100_000
MAX_STAGED_BYTES = 4 * 1024 * 1024 * 1024
"""Whoever stages beyond one of these, all sessions together, has everything committed first. That bounds
memory, and what recovery looks through after a crash; but what was committed so is not given back."""

APART_FROM = 4 * 1024 * 1024
"""A session that has staged so many bytes gets a pack of its own. Below that another pack to sync would cost
more than it saves."""

MAX_WAITING_BYTES = 32 * 1024 * 1024
"""With more bytes waiting in memory, in all sessions, nobody's wait any longer: who has staged a whole frame
gets a pack of its own, and what is less becomes common."""

MAX_PACKS = 64
"""With so many packs open nobody gets another one of its own: what it stages becomes common. That bounds the
descriptors, the syncs that a commit may take, and the packs that a store is left with."""


class Staging:
    """What one process has staged. Thread-safe."""

    def __init__(self, path: Path, index: Index, key: bytes) -> None:
        self._path = path
        self._index = index
        self._key = key
        self._open_lock = threading.Lock()
        self.append_lock = threading.Lock()
        """Held, nothing is appended or cut off."""
        # Under the append lock: the pack in use, and those that were in use since the last commit.
        self._pack: OpenPack | None = None
        self._full: list[OpenPack] = []
        # Under the open lock and the append lock: the pack that was in use, while nobody stages anything.
        self._parked: OpenPack | None = None
        self._leading = False
        self.epoch = 0
        """Changes when everything staged had to be given up."""
        self._failure: BaseException | None = None
        # Under the append lock, too; for who only looks, the state's.
        self._state = threading.Lock()
        self._sessions: set[Session] = set()
        self._common = Portion()
        self._committing = Portion()
        self.count = 0
        """Grows with everything that is staged in common."""

    def begin(self) -> Session:
        """A new session; it needs its ``end``."""
        with self._state:
            session = Session(self.epoch)
            self._sessions.add(session)
        return session

    def end(self, session: Session) -> None:
        """Ends a session: what it staged and has not committed is given up, and its space given back.

        Nothing may be staged for it any more. Can be called again.
        """
        with self.append_lock, self._state:
            own, portion = session.leave()
            session.waiting = Waiting()
        # First what may refer to the rest: whoever makes the index anew takes what a crash has left.
        give_back_apart(own, portion)
        with self.append_lock, self._state:
            session.ended = True
            self._sessions.discard(session)
            self._common = self._common.given_back(nobody_left=not self._sessions)
            self._park()

    def _park(self) -> None:
        """Parks the pack in use if nobody needs it now. Called with the append lock and the state held."""
        held = self._pack
        idle = not (self._sessions or self._leading or self._full or self._common.frames)
        if held is None or not idle or self._committing.frames or self._parked is not None:
            return
        self._pack = None
        try:
            parked = not held.is_full and held.park()
        except NeveError:
            parked = False
        if parked:
            self._parked = held
        else:
            held.close()

    def find(self, table: int, keys: Sequence[bytes], session: Session | None) -> dict[bytes, Location]:
        """The locations of those ``keys`` whose records are staged and not committed yet.

        ``session`` may count on them: they are committed with it, if not before.
        """
        while True:
            with self._state:
                found = self._common.find(table, keys)
                self._common.count_on(found.values(), session)
                found |= self._committing.find(table, keys)
                if session is not None:
                    found |= session.find(table, keys)
                rest = [key for key in keys if key not in found]
                others = [one for one in self._sessions if one is not session and one.find(table, rest)]
            if not others:
                return found
            try:
                self.join(others, shared=True)
            except NeveError:
                return found  # Nobody can count on what there is no room for.

    def stage(self, session: Session, table: int, records: Sequence[Record], frame: EncodedFrame) -> bool:
        """Stages a frame of ``records``; returns whether it is time to commit.

        ``session`` began before its owner staged, or found staged by others, the first record that belongs
        to these. If records had to be given up since, this raises: a commit takes what is staged, and would
        publish what refers to them.
        """
        keys, placed = [record.key for record in records], locations(frame, records, 0)
        if not session.packs:
            # It may be a view of something larger, which is not to be kept.
            frame = frame._replace(payload=bytes(frame.payload))
        with self._state:
            self.check_usable(session)
            session.waiting.add(WaitingFrame(frame, table, keys, placed))
            waiting = session.waiting.bytes
            crowded = sum([one.waiting.bytes for one in self._sessions]) >= MAX_WAITING_BYTES
        apart = session.packs or waiting >= (FRAME_TARGET if crowded else APART_FROM)
        if session.shared or (crowded and not apart) or (apart and not self._write_apart(session)):
            self.join([session])
        staged_records, staged_bytes = self.amount()
        return staged_records >= MAX_STAGED_RECORDS or staged_bytes >= MAX_STAGED_BYTES

    def _write_apart(self, session: Session) -> bool:
        """Returns whether there was a pack for it."""
        with self._open_lock:
            if not session.packs or session.packs[-1].is_full:
                if self._open_packs() >= MAX_PACKS:
                    return False
                opened = self._open()
                with self.append_lock:
                    session.packs.append(opened)
        with self.append_lock:
            # Unless all of it has become common meanwhile.
            if session.packs:
                self._write_waiting(session, session.packs[-1], session.apart)
            return True

    def _open_packs(self) -> int:
        with self.append_lock, self._state:
            return len(self.held()) + sum([len(session.packs) for session in self._sessions])

    def _write_waiting(self, session: Session, held: OpenPack, portion: Portion) -> None:
        """Appends what waits to a pack; called with the append lock held. If that fails, what is not there
        yet goes on waiting."""
        frames = session.waiting.frames
        done = 0
        try:
            for frame, table, keys, placed in frames:
                offset = held.append(frame.head, frame.entries, frame.payload)
                place = make_place(held.id, offset + len(frame.head) + len(frame.entries))
                there = moved(placed, place)
                with self._state:
                    portion.add(StagedFrame(session, held, offset, frame.size, table, keys, there))
                done += 1
        finally:
            with self._state:
                session.waiting = Waiting(frames[done:])

    def amount(self) -> tuple[int, int]:
        """Records and bytes that are staged, wherever they are."""
        with self._state:
            parts = [part for one in self._sessions for part in (one.waiting, one.apart) if part.records]
            parts.append(self._common)
            return sum([part.records for part in parts]), sum([part.bytes for part in parts])

    def check_usable(self, session: Session) -> None:
        """Raises if what the session has staged had to be given up."""
        self.check_epoch(session.epoch)
        assert not session.ended

    def check_epoch(self, begun: int) -> None:
        """Raises if everything staged had to be given up since ``begun``."""
        if begun != self.epoch:
            raise repeated(self._failure)

    def ensure_pack(self) -> None:
        """Sees to it that there is a pack with room for what is in common."""
        with self.append_lock:
            if self._pack is not None and self._pack.is_full:
                self._full.append(self._pack)
                self._pack = None
        with self._open_lock:
            if self._pack is None:
                self._use(self._open())

    def _use(self, opened: OpenPack) -> None:
        with self.append_lock:
            if self._pack is None:
                self._pack = opened
                return
        opened.close()  # Meanwhile another session's pack has become the one in use.

    def _open(self) -> OpenPack:
        """The pack that was parked, or another one. Called with the open lock held."""
        with self.append_lock:
            parked, self._parked = self._parked, None
        if parked is not None:
            if parked.resume():
                return parked
            parked.close()
        recover(self._path, self._index, self._key)
        return open_pack(self._path, self._index, self._key)

    def join(self, sessions: Iterable[Session] | None = None, *, shared: bool = False) -> None:
        """Makes what sessions (by default: all) have staged common: the next commit takes it.

        ``shared``: and what they stage from now on, until they commit.
        """
        with self._state:
            chosen = list(self._sessions if sessions is None else sessions)
            for session in chosen:
                session.shared = session.shared or shared
        for session in chosen:
            while not self._join(session):
                self.ensure_pack()

    def _join(self, session: Session) -> bool:
        """Returns whether there was a pack for what waits."""
        with self.append_lock:
            with self._state:
                own, portion = session.leave()
                if own:
                    # They may refer to what lies in the pack in use, which is committed first.
                    *before, self._pack = [*self.held(), *own]
                    self._full = before
                    self._common.join(portion)
                    self.count += 1
            if not session.waiting.frames:
                return True
            if self._pack is None or self._pack.is_full:
                return False
            self.count += 1
            self._write_waiting(session, self._pack, self._common)
            return True

    # For the leader of a commit, who holds the append lock (but not for the first one and the last two).

    def begin_commit(self) -> None:
        """From now until ``committed`` the leader needs the pack in use."""
        with self.append_lock:
            self._leading = True

    def held(self) -> list[OpenPack]:
        """All packs that a commit goes to: records in later ones may refer to earlier ones."""
        return [*self._full, *([self._pack] if self._pack else [])]

    def take(self) -> Portion:
        """What is to be committed now: everything in common, and what was taken before in vain."""
        with self._state:
            if self._committing.frames:
                self._committing.join(self._common)
            else:
                self._committing = self._common
            self._common = Portion()
            return self._committing

    def let_go_of_full(self) -> None:
        """Closes the packs that are not appended to any more: all of them was committed."""
        for held in self._full:
            held.close()
        self._full = []

    def committed(self) -> None:
        """What was taken is committed, or given up."""
        with self.append_lock, self._state:
            self._committing = Portion()
            self._leading = False
            self._park()

    def give_up(self, committed: dict[int, int] | None, failure: BaseException) -> int:
        """Drops everything staged; returns ``count`` as it was then. The packs are cut off at their
        ``committed`` lengths, if those are known, and let go."""
        with self.append_lock, self._state:
            # First what may refer to the rest.
            for session in self._sessions:
                session.waiting = Waiting()
                give_back_apart(*session.leave())
            for held in reversed(self.held()):
                if committed is not None:
                    with contextlib.suppress(NeveError):
                        held.truncate(max(committed.get(held.id, 0), pack.HEADER_SIZE))
                held.close()
            self._full, self._pack = [], None
            # Before the epoch changes: who begins after that must find nothing of it staged.
            self._common, self._committing = Portion(), Portion()
            self._failure = failure
            self.epoch += 1
            return self.count

    def close(self) -> None:
        """Lets go of the packs. What is staged is given up, and sessions that go on learn it."""
        for session in list(self._sessions):
            self.end(session)
        with self.append_lock, self._state:
            for held in [*self.held(), *([self._parked] if self._parked else [])]:
                held.close()
            self._full, self._pack, self._parked = [], None, None
            self._common = Portion()
            self._failure = Unavailable("the store has been closed")
            self.epoch += 1

    def abandon(self) -> None:
        """Closes a child's copies of the descriptors after a fork. The locks are not taken: threads that only
        the parent has may hold them for ever."""
        parked = [self._parked] if self._parked else []
        for held in [*self.held(), *parked, *(held for session in self._sessions for held in session.packs)]:
            held.close()


def repeated(failure: BaseException | None) -> NeveError:
    """The error for those whose commit another thread has led, or who come later."""
    kind = type(failure) if isinstance(failure, NeveError) else Unavailable
    return kind(f"writing to the store failed: {failure}")
