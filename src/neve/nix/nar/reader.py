"""The NAR reader: bytes in, tree events out. No I/O.

Two ways through the same grammar. The careful way (``_advance``) takes one string at a time, from however
few bytes there are, by the table of moves in ``grammar``. The fast way (``_entries``) starts between two
entries of a directory and takes an entry at once, by comparing the data with the constants that must stand
there; whatever does not match, be it wrong, unusual or merely not here yet, it leaves to the careful way.
So the fast way never raises, and all errors come from one place.

Memory: one small file, name or target that a slice of the input cut in two, and the names of the open
directories. Lengths are claims: nothing is allocated before the bytes are there.
"""

from __future__ import annotations

from enum import Enum, auto
from struct import Struct
from typing import Final

from neve.nix.nar import grammar
from neve.nix.nar.grammar import (
    CLOSE,
    CONTENTS,
    DIRECTORY,
    ENTRY,
    EXECUTABLE,
    MAX_DEPTH,
    MAX_NAME,
    NODE,
    PADDING,
    REGULAR,
    SYMLINK,
    NarError,
    State,
    Turn,
    pack_size,
)
from neve.tree import (
    END_FILE,
    LEAVE_DIRECTORY,
    WHOLE_FILE_LIMIT,
    BeginFile,
    Data,
    EnterDirectory,
    Event,
    File,
    Symlink,
)

# Constants of the fast way. What follows a string begins with the string's padding, so those are chosen by
# the string's length modulo 8.
_NAME_LENGTHS: Final = {pack_size(n): n for n in range(1, MAX_NAME + 1)}
_REGULAR: Final = tuple(zeros + NODE + REGULAR + CONTENTS for zeros in PADDING)
_EXECUTABLE: Final = tuple(zeros + NODE + REGULAR + EXECUTABLE + CONTENTS for zeros in PADDING)
_SYMLINK: Final = tuple(zeros + NODE + SYMLINK for zeros in PADDING)
_DIRECTORY: Final = tuple(zeros + NODE + DIRECTORY for zeros in PADDING)
_CLOSE: Final = tuple(zeros + CLOSE + CLOSE for zeros in PADDING)
_ENTRY_SIZE: Final = len(ENTRY)
_CLOSE_SIZE: Final = len(CLOSE + CLOSE)
_read_size: Final = Struct("<Q").unpack_from

_OUTSIDE_ENTRY: Final = frozenset((State.DIRECTORY, State.ENTRY, State.ENTRY_NAME, State.NAME))


class _Part(Enum):
    """The part of a string that the careful way collects or passes through."""

    LENGTH = auto()
    BODY = auto()
    CONTENTS = auto()
    PADDING = auto()


class NarReader:
    """Reads one archive. Feed it, take the events, close it at the end of the data.

    The events are those of ``neve.tree``; the root's name is ``b""``. Not thread-safe. After an error
    the reader is unusable and repeats the error.
    """

    def __init__(self) -> None:
        self._offset = 0  # of the data being fed, in the archive
        self._mark = 0  # where the part being collected begins
        self._state = State.MAGIC
        self._part = _Part.LENGTH
        self._have = bytearray()  # what is here of that part
        self._want = 8  # its size
        self._length = 0  # of the string that it belongs to
        self._names: list[bytes] = []  # per open directory: the entry read last
        self._executable = False
        self._left = 0  # bytes of contents still to come
        self._small: bytearray | None = None  # contents of a file that goes out whole
        self._error: NarError | None = None

    @property
    def done(self) -> bool:
        """Whether the whole archive was read. Any further byte is an error."""
        return self._state is State.END and self._error is None

    def feed(self, data: bytes | bytearray | memoryview) -> list[Event]:
        """The events of the next bytes of the archive. ``data`` is not kept; ``bytes`` is the fastest.

        Raises NarError, and then gives no events of these bytes.
        """
        if self._error is not None:
            raise self._error
        if not isinstance(data, bytes):
            data = bytes(data)
        events: list[Event] = []
        pos, end = 0, len(data)
        try:
            while pos < end:
                if self._state is State.DIRECTORY and self._part is _Part.LENGTH and not self._have:
                    pos = self._entries(data, pos, events)
                pos = self._advance(data, pos, events)
        except NarError as error:
            self._error = error
            raise
        self._offset += end
        return events

    def close(self) -> None:
        """Says that no bytes follow. Raises NarError unless the archive is complete."""
        if self._error is not None:
            raise self._error
        if self._state is State.END:
            return
        self._mark = self._offset
        left = self._left
        expected = f"{left} more bytes of contents" if left else self._state.value
        self._error = self._wrong(expected, "the end of the data")
        raise self._error

    # The fast way

    def _entries(self, data: bytes, pos: int, events: list[Event]) -> int:
        """Takes whole entries from ``pos`` on as long as they are as usual; the position it got to.

        Before and after, the state is DIRECTORY, between two entries.
        """
        names = self._names
        last = names[-1]
        while True:
            at = pos + _ENTRY_SIZE
            n = _NAME_LENGTHS.get(data[at : at + 8])
            if n is None or not data.startswith(ENTRY, pos):
                if len(names) == 1 or not data.startswith(_CLOSE[0], pos):
                    break
                events.append(LEAVE_DIRECTORY)
                names.pop()
                last = names[-1]
                pos += _CLOSE_SIZE
                continue
            at += 8
            name = data[at : at + n]
            if name <= last or b"\0" in name or b"/" in name or name in grammar.DOTS:
                break
            at += n
            executable = not data.startswith(_REGULAR[n & 7], at)
            if executable and not data.startswith(_EXECUTABLE[n & 7], at):
                next_pos = self._link_or_directory(data, at, name, events)
            else:
                at += len((_EXECUTABLE if executable else _REGULAR)[n & 7])
                next_pos = self._file(data, at, name, executable, events)
            if not next_pos:
                break
            pos = next_pos
            last = names[-1]
        return pos

    def _file(self, data: bytes, at: int, name: bytes, executable: bool, events: list[Event]) -> int:
        """A file whose length stands at ``at``: the position after its entry, or 0 if it is not all here."""
        start = at + 8
        if start > len(data):
            return 0
        size: int = _read_size(data, at)[0]
        stop = start + size
        if size > WHOLE_FILE_LIMIT or not data.startswith(close := _CLOSE[size & 7], stop):
            return 0
        events.append(File(name, executable, data[start:stop]))
        self._names[-1] = name
        return stop + len(close)

    def _link_or_directory(self, data: bytes, at: int, name: bytes, events: list[Event]) -> int:
        """What follows a name at ``at``, as ``_file``."""
        names = self._names
        if data.startswith(head := _DIRECTORY[len(name) & 7], at):
            if len(names) >= MAX_DEPTH:
                return 0
            names[-1] = name
            names.append(b"")
            events.append(EnterDirectory(name))
            return at + len(head)
        start = at + len(head := _SYMLINK[len(name) & 7]) + 8
        if not data.startswith(head, at) or start > len(data):
            return 0
        size: int = _read_size(data, start - 8)[0]
        stop = start + size
        target = data[start:stop]
        if not data.startswith(close := _CLOSE[size & 7], stop) or grammar.target_fault(target) is not None:
            return 0
        names[-1] = name
        events.append(Symlink(name, target))
        return stop + len(close)

    # The careful way

    def _advance(self, data: bytes, pos: int, events: list[Event]) -> int:
        """Takes what is here of the next part of a string; the position after it."""
        if pos == len(data):
            return pos
        if self._part is _Part.CONTENTS:
            return self._pass_contents(data, pos, events)
        have = self._have
        if not have:
            self._mark = self._offset + pos
            if self._state is State.END:
                raise self._wrong(State.END.value, "more bytes")
        piece = data[pos : pos + self._want - len(have)]
        have += piece
        if len(have) == self._want:
            part = bytes(have)
            have.clear()
            self._end_part(part, events)
        return pos + len(piece)

    def _end_part(self, part: bytes, events: list[Event]) -> None:
        """Takes a whole length, a whole string with its padding, or the padding of contents."""
        if self._part is _Part.LENGTH:
            self._on_length(int.from_bytes(part, "little"), events)
            return
        size = self._length if self._part is _Part.BODY else 0
        if any(part[size:]):
            self._mark += size
            raise self._wrong("zeros as padding", f"the bytes {part[size:].hex(' ')}")
        self._await(_Part.LENGTH, 8)
        if size:
            self._on_string(part[:size], events)

    def _on_length(self, length: int, events: list[Event]) -> None:
        if length not in grammar.LENGTHS[self._state]:
            raise self._wrong(self._state.value, f"a string of {length} bytes")
        self._length = length
        if self._state is State.CONTENTS:
            self._begin_contents(events)
        elif length:
            self._await(_Part.BODY, length + -length % 8)
        else:
            self._on_string(b"", events)

    def _on_string(self, token: bytes, events: list[Event]) -> None:
        if self._state is State.NAME:
            self._check(grammar.name_fault(token, self._names[-1]), token)
            self._names[-1] = token
            self._state = State.ENTRY_NODE
        elif self._state is State.TARGET:
            self._check(grammar.target_fault(token), token)
            events.append(Symlink(self._name(), token))
            self._state = State.NODE_CLOSE
        else:
            move = grammar.MOVES[self._state].get(token)
            if move is None:
                raise self._wrong(self._state.value, f"'{grammar.readable(token)}'")
            self._move(move, events)

    def _move(self, move: State | Turn, events: list[Event]) -> None:
        """Makes a move of the table, with what it means for the events and the open directories."""
        if move is State.REGULAR:
            self._executable = False
        elif move is State.EXECUTABLE:
            self._executable = True
        elif self._state is State.KIND and move is State.DIRECTORY:
            if len(self._names) >= MAX_DEPTH:
                raise self._wrong(f"at most {MAX_DEPTH} directories inside each other", "one more")
            events.append(EnterDirectory(self._name()))
            self._names.append(b"")
        elif self._state is State.DIRECTORY and move is Turn.NODE_ENDED:
            events.append(LEAVE_DIRECTORY)
            self._names.pop()
        if isinstance(move, Turn):
            move = State.ENTRY_CLOSE if self._names else State.END
        self._state = move

    def _begin_contents(self, events: list[Event]) -> None:
        self._left = self._length
        if self._length <= WHOLE_FILE_LIMIT:
            self._small = bytearray()
        else:
            events.append(BeginFile(self._name(), self._executable, self._length))
        if self._length:
            self._part = _Part.CONTENTS
        else:
            self._end_contents(events)

    def _pass_contents(self, data: bytes, pos: int, events: list[Event]) -> int:
        piece = data[pos : pos + min(self._left, WHOLE_FILE_LIMIT)]
        self._left -= len(piece)
        if self._small is None:
            events.append(Data(piece))
        else:
            self._small += piece
        if not self._left:
            self._end_contents(events)
        return pos + len(piece)

    def _end_contents(self, events: list[Event]) -> None:
        if self._small is None:
            events.append(END_FILE)
        else:
            events.append(File(self._name(), self._executable, bytes(self._small)))
            self._small = None
        self._state = State.NODE_CLOSE
        padding = -self._length % 8
        self._await(_Part.PADDING if padding else _Part.LENGTH, padding or 8)

    def _await(self, part: _Part, size: int) -> None:
        self._part = part
        self._want = size

    def _name(self) -> bytes:
        """The name of the node being read."""
        return self._names[-1] if self._names else b""

    def _check(self, fault: str | None, found: bytes) -> None:
        if fault is not None:
            raise self._wrong(fault, f"'{grammar.readable(found)}'")

    def _wrong(self, expected: str, found: str) -> NarError:
        """The error at the part being read."""
        names = self._names[:-1] if self._state in _OUTSIDE_ENTRY else self._names
        return NarError(self._mark, b"/".join(names), expected, found)
