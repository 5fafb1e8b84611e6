"""What to fetch before it is asked for. Rules only; they know neither contents nor who fetches them."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Hashable, Iterable
from typing import Final, NamedTuple

_FILES = 64
"""Large files of which it is remembered how far they were read."""
_STREAMS = 8
"""Readers of one file, each in another place of it."""
_FIRST_STRETCH, _LONGEST_STRETCH = 1024 * 1024, 8 * 1024 * 1024
_DISORDER = 2 * 1024 * 1024
"""A kernel that reads ahead has several requests under way, and they come in any order."""
_NEAR = 128 * 1024
"""Two reads are not yet order, unless the second is where the first one ended, or nearly."""

FIRST_NEIGHBOURS: Final = 4
MOST_NEIGHBOURS: Final = 64
_WINDOWS = 8
_GAP = 16
"""Inodes that may lie between two files that are read one after the other: links, large files, and what was
in the kernel's caches already."""

FIRST_BELOW: Final = 128
MOST_BELOW: Final = 16 * 1024
_LISTED = 1024

_TRUST, _SURE = 4, 3
"""So many directories, one after the other, may have files of which none is read before it is taken back that
files are read after listings; and so many more must be left that one need not look."""
_UNSEEN = 16
"""And so many altogether, wherever they are: of a directory is expected what is known of the one above it, so
that in a deep tree there would be hundreds otherwise. When half of them were, one looks in any case."""
_LOOKS = 64
"""Answers to listings that a lookup is good for. Then one has names only, to see if they are looked up."""
_RANGES = 64
"""Listings of which it is remembered what inodes they made."""


class _Stream:
    """One reader's way through a file."""

    __slots__ = ("done", "end", "stretch")

    def __init__(self, end: int) -> None:
        self.end = self.done = end
        self.stretch = 0

    def misses(self, start: int) -> int | None:
        """By how much a read that begins at ``start`` is not the next one; None if it is another's."""
        distance = abs(start - self.end)
        return distance if distance <= (_DISORDER if self.stretch else _NEAR) else None


class Streams:
    """Large files that are being read: who reads one in order will want what follows. Several may read the
    same one in different places. Thread-safe."""

    def __init__(self) -> None:
        self._files: OrderedDict[Hashable, list[_Stream]] = OrderedDict()  # What was used last comes last.
        self._lock = threading.Lock()

    def read(self, file: Hashable, start: int, stop: int, size: int) -> tuple[int, int] | None:
        """Notes that a file of ``size`` bytes is read from ``start`` to ``stop``. The bytes (from, to before)
        that should be fetched ahead now, if any."""
        with self._lock:
            stream = self._stream(file, start)
            if stream is None:
                self._files[file].append(_Stream(stop))
                del self._files[file][:-_STREAMS]
                return None
            stream.end = max(stream.end, stop)
            stream.stretch = min(max(2 * stream.stretch, _FIRST_STRETCH), _LONGEST_STRETCH)
            start = max(stream.done, stream.end)
            stop = min(stream.end + stream.stretch, size)
            # In large steps: half of it is still to come when the next is begun.
            if stop - start < stream.stretch // 2 and (stop < size or start >= stop):
                return None
            stream.done = stop
            return start, stop

    def _stream(self, file: Hashable, start: int) -> _Stream | None:
        """The one that a read belongs to."""
        if file not in self._files:
            # Whoever begins at the beginning goes on from there.
            self._files[file] = [_Stream(0)]
            if len(self._files) > _FILES:
                self._files.popitem(last=False)
        self._files.move_to_end(file)
        streams = self._files[file]
        near = [(miss, place) for place, one in enumerate(streams) if (miss := one.misses(start)) is not None]
        if not near:
            return None
        stream = streams.pop(min(near)[1])
        streams.append(stream)
        return stream

    def is_in_order(self, file: Hashable, stop: int) -> bool:
        """Whether somebody reads the file in order and got to ``stop`` by now."""
        with self._lock:
            streams = self._files.get(file, [])
            return any(one.stretch and abs(stop - one.end) <= _DISORDER for one in streams)


class Window(NamedTuple):
    """Files to be fetched ahead, by the numbers of their inodes."""

    start: int
    stop: int
    """The first number that does not belong to it."""

    @property
    def middle(self) -> int:
        """When this number is read, it is time to fetch the next ones."""
        return self.stop - (self.stop - self.start) // 2


class Neighbours:
    """Small files that are read one after the other, by the numbers of their inodes: a directory's entries
    get theirs together, when it is listed. Thread-safe."""

    def __init__(self) -> None:
        self._windows: list[Window] = []  # What was used last comes first.
        self._lock = threading.Lock()

    def missed(self, number: int) -> Window:
        """What is to be fetched because ``number`` is read and was not at hand. The more, the more often
        that was right."""
        with self._lock:
            place = self._find(number, _GAP)
            if place is None:
                return self._add(Window(number, number + FIRST_NEIGHBOURS))
            return self._after(self._windows.pop(place), number)

    def used(self, number: int) -> Window | None:
        """Notes that ``number`` was at hand: what should be fetched now, if anything."""
        with self._lock:
            place = self._find(number, 0)
            if place is None or number < self._windows[place].middle:
                return None
            window = self._windows.pop(place)
            return self._after(window, window.stop)

    def _find(self, number: int, gap: int) -> int | None:
        for place, (start, stop) in enumerate(self._windows):
            if start <= number < stop + gap:
                return place
        return None

    def _after(self, before: Window, start: int) -> Window:
        return self._add(Window(start, start + min(2 * (before.stop - before.start), MOST_NEIGHBOURS)))

    def _add(self, window: Window) -> Window:
        self._windows.insert(0, window)
        del self._windows[_WINDOWS:]
        return window


class Walks:
    """Directories that are being listed one below the other, by the numbers of their inodes. Thread-safe."""

    def __init__(self) -> None:
        self._listed: OrderedDict[int, int] = OrderedDict()
        self._lock = threading.Lock()

    def listed(self, number: int, parent: int) -> int:
        """Notes that a directory is listed: how many nodes below it to fetch. The more, the more has been
        listed beside it and above."""
        with self._lock:
            nodes = min(2 * self._listed.get(parent, FIRST_BELOW), MOST_BELOW)
            for one in (parent, number):
                self._listed[one] = nodes
                self._listed.move_to_end(one)
            while len(self._listed) > _LISTED:
                self._listed.popitem(last=False)
            return nodes


class Looks:
    """Directories of which what has been listed is looked up too, as by ``ls -l``; by the numbers of inodes.
    Thread-safe."""

    def __init__(self) -> None:
        self._left: OrderedDict[int, int] = OrderedDict()
        self._lock = threading.Lock()

    def looked_up(self, number: int, parent: int) -> None:
        """Notes that an entry of a directory is looked up: others of it may be, and those of the ones beside
        it."""
        with self._lock:
            for one in (parent, number):
                self._left[one] = _LOOKS
                self._left.move_to_end(one)
            while len(self._left) > _LISTED:
                self._left.popitem(last=False)

    def will_look(self, number: int, parent: int) -> bool:
        """Whether the entries that are listed now are expected to be looked up. Not for ever: who is told all
        does not ask, and nobody knows whether he would."""
        with self._lock:
            one = number if self._left.get(number, 0) else parent
            left = self._left.get(one, 0)
            if left:
                self._left[one] = left - 1
            return left > 0


class ReadWalks:
    """Directories whose files are read after they have been listed, by the numbers of inodes. Thread-safe."""

    def __init__(self) -> None:
        self._trust: OrderedDict[int, int] = OrderedDict()
        self._ranges: deque[tuple[int, int, int, int]] = deque(maxlen=_RANGES)
        self._near: frozenset[Hashable] = frozenset()
        self._unseen = 0
        """Directories of which files should be read, listed since one was seen to be."""
        self._lock = threading.Lock()

    def listed(self, number: int, parent: int, *, has_files: bool) -> None:
        """Notes that somebody begins to list a directory. Of it is expected what is known of its parent."""
        with self._lock:
            trust = self._trust.get(parent, 0) if self._unseen < _UNSEEN else 0
            self._set(number, trust)
            if has_files and trust:
                self._set(parent, trust - 1)
                self._unseen += 1

    def made(self, first: int, stop: int, number: int, parent: int) -> None:
        """Notes that by a listing of the directory the kernel gets to know inodes from ``first`` to before
        ``stop``."""
        if first < stop:
            with self._lock:
                self._ranges.appendleft((first, stop, number, parent))

    def read(self, number: int) -> None:
        """Notes that a file is read."""
        with self._lock:
            for first, stop, directory, parent in self._ranges:
                if first <= number < stop:
                    self._set(directory, _TRUST)
                    self._set(parent, _TRUST)
                    self._unseen = 0
                    return

    def will_read(self, number: int) -> bool:
        """Whether the files of a directory are expected to be read."""
        return self._trust.get(number, 0) > 0

    def is_sure(self, number: int) -> bool:
        """Whether that has been seen so lately that it need not be seen here."""
        return self._trust.get(number, 0) >= _SURE and self._unseen <= _UNSEEN // 2

    def are_near(self, directories: Iterable[Hashable]) -> None:
        """Notes that enough is fetched ahead, until a directory is listed that is none of these."""
        self._near = frozenset(directories)

    def is_near(self, directory: Hashable) -> bool:
        """Whether nothing has to be fetched yet when it is listed."""
        return directory in self._near

    def _set(self, number: int, trust: int) -> None:
        self._trust[number] = trust
        self._trust.move_to_end(number)
        while len(self._trust) > _LISTED:
            self._trust.popitem(last=False)
