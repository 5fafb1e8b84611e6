"""What is staged: encoded to be committed, but not committed. And for whom, so that it can be given back.

A *session* is somebody who stages records that belong together, until they are committed or given up.
What it stages goes three ways:

*It waits* in memory, as long as it is little, and is appended to the pack that all sessions share when
the session commits.

*It lies apart*, once it has become much: in a pack of its own, or several. No commit takes it before the
session asks for one; then the last of these packs becomes the one that all share.

*It lies in common*, in the pack that all share, from then on. Whoever commits takes all of it along.

When another session finds one of its records, and so counts on it, all that it has staged becomes common
at once, and so does what it adds until it commits. So what lies in common never refers to what waits or
lies apart, and in the order in which packs are committed later ones refer to earlier ones only.

A session that ends without a commit gives back the space of what it staged. Its own packs are cut off
where it began to append. What lies in common is cut off from the end, as far back as it was staged by
sessions that have ended and found by nobody else; with the last session goes all of it. What is left
lies between the records of others, and goes along with the next commit.

The bytes that are cut off lie behind the last commit mark of a pack that this process holds the lock
of. Nobody else has looked at them, and recovery would drop them: so it does not matter what a crash
leaves of them, or of the cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from neve.errors import NeveError
from neve.packstore.appender import OpenPack
from neve.packstore.frames import EncodedFrame
from neve.packstore.location import Location


class Session:
    """Somebody who stages; made, guarded and ended by ``Staging``."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        """The one in which the session began; see ``Staging.stage``."""
        self.left = False
        """Its owner has ended it; while its commit is postponed, it goes on."""
        self.ended = False
        self.postponed = False
        """Its commit has been asked for, and is made later by the thread; see ``Writer.one_commit``."""
        self.shared = False
        """Others have found what it staged since its last commit: what is added is common at once."""
        self.waiting = Waiting()
        self.packs: list[OpenPack] = []
        """Those of its own; it appends to the last one."""
        self.apart = Portion()

    def leave(self) -> tuple[list[OpenPack], Portion]:
        """Its packs, and what lies there; the session goes on without."""
        left = self.packs, self.apart
        self.packs, self.apart = [], Portion()
        return left

    def find(self, table: int, keys: Iterable[bytes]) -> dict[bytes, Location]:
        """Records that wait or lie apart; the place of one that waits is not known yet."""
        return self.waiting.find(table, keys) | self.apart.find(table, keys)


class _Records:
    """Locations by table and key; of two for one key the higher tag counts, and then the first, as in the
    index. Not thread-safe."""

    def __init__(self) -> None:
        self.tables: dict[int, dict[bytes, Location]] = {}
        self.records = 0
        """How many were added, those included that do not count."""
        self.bytes = 0

    def _add(self, table: int, keys: Sequence[bytes], placed: Sequence[Location], size: int) -> None:
        self.records += len(keys)
        self.bytes += size
        staged = self.tables.setdefault(table, {})
        for key, location in zip(keys, placed, strict=True):
            if staged.setdefault(key, location).tag < location.tag:
                staged[key] = location

    def find(self, table: int, keys: Iterable[bytes]) -> dict[bytes, Location]:
        staged = self.tables.get(table)
        return {key: staged[key] for key in keys if key in staged} if staged else {}


class WaitingFrame(NamedTuple):
    """A frame that is in no pack yet; ``placed`` as if its payload lay at 0."""

    frame: EncodedFrame
    table: int
    keys: Sequence[bytes]
    placed: Sequence[Location]


class Waiting(_Records):
    """Frames that wait, in the order in which they are to be appended."""

    def __init__(self, frames: Iterable[WaitingFrame] = ()) -> None:
        super().__init__()
        self.frames: list[WaitingFrame] = []
        for frame in frames:
            self.add(frame)

    def add(self, frame: WaitingFrame) -> None:
        self.frames.append(frame)
        self._add(frame.table, frame.keys, frame.placed, frame.frame.size)


class StagedFrame(NamedTuple):
    """A frame in a pack, the records in it, and who has staged it."""

    session: Session
    held: OpenPack
    offset: int
    size: int
    table: int
    keys: Sequence[bytes]
    placed: Sequence[Location]


class Portion(_Records):
    """Frames in packs, in the order in which they were appended."""

    def __init__(self, frames: Iterable[StagedFrame] = ()) -> None:
        super().__init__()
        self.frames: list[StagedFrame] = []
        self._numbers: dict[int, int] = {}
        self._found = 0
        for frame in frames:
            self.add(frame)

    def add(self, frame: StagedFrame) -> None:
        self._numbers[frame.placed[0].place] = len(self.frames)
        self.frames.append(frame)
        self._add(frame.table, frame.keys, frame.placed, frame.size)

    def join(self, other: Portion) -> None:
        """Adds what ``other`` holds."""
        for frame in other.frames:
            self.add(frame)

    def count_on(self, found: Iterable[Location], session: Session | None) -> None:
        """Notes that ``session`` has found records here: while anybody stages, those of others must stay."""
        for location in found:
            number = self._numbers[location.place]
            if self.frames[number].session is not session:
                self._found = max(self._found, number + 1)

    def given_back(self, *, nobody_left: bool) -> Portion:
        """What is left once the end is cut off, as far as it is of sessions that have ended and nobody counts
        on it."""
        kept = 0 if nobody_left else self._found
        count = len(self.frames)
        while count > kept and self.frames[count - 1].session.ended:
            count -= 1
        if count == len(self.frames):
            return self
        count += _cut(self.frames[count:])
        # Anew: what was cut off may have stood for a record that stays.
        left = Portion(self.frames[:count])
        left._found = min(self._found, count)
        return left


def _cut(frames: Sequence[StagedFrame]) -> int:
    """Cuts frames at the ends of their packs off, the last pack first; returns how many had to stay.

    What a disk does not let go is still staged: it goes along with the next commit.
    """
    count = len(frames)
    while count:
        held = frames[count - 1].held
        first = count - 1
        while first and frames[first - 1].held is held:
            first -= 1
        try:
            held.truncate(frames[first].offset)
        except NeveError:
            return count
        count = first
    return 0


def give_back_apart(packs: Iterable[OpenPack], portion: Portion) -> None:
    """Lets go of a session's own packs, without what lies there. What cannot be cut off, recovery does."""
    _cut(portion.frames)
    for held in packs:
        held.close()
