"""The NAR writer: tree events in, bytes out; and the hasher built on it. No I/O."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Final

from neve.errors import InvalidRequest
from neve.nix.nar import framing, grammar
from neve.nix.nar.grammar import CLOSE, MAGIC, MAX_CONTENTS, MAX_DEPTH, PADDING
from neve.tree import BeginFile, Data, EndFile, EnterDirectory, Event, File, LeaveDirectory, Symlink

_TAILS_OF_ROOT: Final = tuple(zeros + CLOSE for zeros in PADDING)
_TAILS_OF_ENTRY: Final = tuple(zeros + CLOSE + framing.ENTRY_CLOSE for zeros in PADDING)

_JOIN_BYTES: Final = 1024 * 1024
"""The hasher joins pieces up to about this many bytes: hashlib works on big buffers without the GIL."""

_DIRECT_BYTES: Final = 128 * 1024
"""Pieces from this size on are hashed without being joined."""


class NarTreeError(InvalidRequest):
    """The events are no tree that a NAR can hold; ``path`` is the node (components joined by ``/``)."""

    def __init__(self, path: bytes, problem: str) -> None:
        super().__init__(path, problem)
        self.path = path
        self.problem = problem

    def __str__(self) -> str:
        where = f"'{grammar.readable(self.path)}'" if self.path else "the root"
        return f"cannot write {where} to a NAR: {self.problem}"


class NarEncoder:
    """Turns the events of one tree into the bytes of its NAR. Not thread-safe.

    Checks the order of events, the names and the sizes of files, so that what comes out is a NAR or an
    error is raised. After an error the encoder is unusable.
    """

    def __init__(self) -> None:
        self._names: list[bytes] = []  # per open directory: the entry written last
        self._begun: BeginFile | None = None
        self._left = 0  # bytes of the begun file still to come
        self._started = False
        self._done = False
        self._tails = _TAILS_OF_ROOT  # what follows a node of n bytes, by n & 7

    def encode(self, events: Sequence[Event]) -> list[bytes]:
        """The bytes of the next events as pieces, to be joined or written one after the other.

        Contents are passed on as they are, uncopied, and the pieces share constants. Raises NarTreeError.
        """
        pieces: list[bytes] = []
        add = pieces.append
        for event in events:
            if isinstance(event, File):
                name, executable, contents = event
                size = len(contents)
                add(self._before(name) + framing.file_head(size, executable))
                if size:
                    add(contents)
                add(self._tails[size & 7])
                self._done = not self._names
            elif isinstance(event, Data):
                add(self._data(event.data))
            else:
                add(self._rare(event))
        return pieces

    def finish(self) -> None:
        """Says that no events follow. Raises NarTreeError unless the tree is complete."""
        if self._begun is not None:
            raise self._wrong(f"{self._left} of its {self._begun.size} bytes and its end are missing")
        if self._names:
            raise NarTreeError(b"/".join(self._names[:-1]), "the end of the directory is missing")
        if not self._done:
            raise self._wrong("there are no events")

    def _rare(self, event: BeginFile | EndFile | Symlink | EnterDirectory | LeaveDirectory) -> bytes:
        if isinstance(event, EnterDirectory):
            return self._enter(event)
        if isinstance(event, LeaveDirectory):
            return self._leave()
        if isinstance(event, Symlink):
            head = self._before(event.name)
            fault = grammar.target_fault(event.target)
            if fault is not None:
                raise self._wrong(f"expected {fault}, found '{grammar.readable(event.target)}'")
            self._done = not self._names
            return head + grammar.SYMLINK + grammar.encode_str(event.target) + self._tails[0]
        if isinstance(event, BeginFile):
            return self._begin_file(event)
        return self._end_file()

    def _before(self, name: bytes) -> bytes:
        """What stands before a node of this name; checks that it may come here."""
        names = self._names
        if names and self._begun is None:
            fault = grammar.name_fault(name, names[-1])
            if fault is not None:
                names[-1] = name
                raise self._wrong(f"expected {fault}")
            names[-1] = name
            return framing.entry_open(name)
        if self._begun is not None:
            raise self._wrong("another node follows before the end of the file")
        if self._started:
            raise self._wrong("a second root follows it")
        self._started = True
        return MAGIC

    def _enter(self, event: EnterDirectory) -> bytes:
        head = self._before(event.name)
        if len(self._names) >= MAX_DEPTH:
            raise self._wrong(f"more than {MAX_DEPTH} directories inside each other")
        self._names.append(b"")
        self._tails = _TAILS_OF_ENTRY
        return head + framing.DIRECTORY_OPEN

    def _leave(self) -> bytes:
        names = self._names
        if not names or self._begun is not None:
            raise self._wrong("a directory ends that was not entered")
        names.pop()
        if names:
            return framing.DIRECTORY_CLOSE + framing.ENTRY_CLOSE
        self._done = True
        return framing.DIRECTORY_CLOSE

    def _begin_file(self, event: BeginFile) -> bytes:
        head = self._before(event.name)
        if not 0 <= event.size <= MAX_CONTENTS:
            raise self._wrong(f"expected a size of 0 to {MAX_CONTENTS} bytes, found {event.size}")
        self._begun = event
        self._left = event.size
        return head + framing.file_head(event.size, event.executable)

    def _data(self, data: bytes) -> bytes:
        if self._begun is None:
            raise self._wrong("contents come without a file")
        self._left -= len(data)
        if self._left < 0:
            raise self._wrong(f"more contents come than its size of {self._begun.size} bytes")
        return data

    def _end_file(self) -> bytes:
        if self._begun is None:
            raise self._wrong("a file ends that was not begun")
        size = self._begun.size
        if self._left:
            raise self._wrong(f"only {size - self._left} of its {size} bytes came")
        self._begun = None
        self._done = not self._names
        return self._tails[size & 7]

    def _wrong(self, problem: str) -> NarTreeError:
        return NarTreeError(b"/".join(self._names), problem)


class NarHasher:
    """A sink that computes size and sha256 of the NAR of the tree it is fed. Not thread-safe.

    ``watch`` sees the bytes of the NAR, too, in pieces.
    """

    def __init__(self, watch: Callable[[bytes], object] | None = None) -> None:
        self._watch = watch
        self._encoder = NarEncoder()
        self._hash = hashlib.sha256()
        self._size = 0
        self._pending: list[bytes] = []
        self._pending_size = 0

    def feed(self, events: Sequence[Event]) -> None:
        """Takes the next events; keeps their contents until about 1 MiB is together. Raises NarTreeError."""
        pieces = self._encoder.encode(events)
        if max(map(len, pieces), default=0) >= _DIRECT_BYTES:
            pieces = self._pass_large(pieces)
        self._pending += pieces
        self._pending_size += sum(map(len, pieces))
        if self._pending_size >= _JOIN_BYTES:
            self._flush()

    def result(self) -> tuple[int, bytes]:
        """Size of the NAR in bytes and its sha256 (32 bytes). Raises NarTreeError if events are missing."""
        self._encoder.finish()
        self._flush()
        return self._size, self._hash.digest()

    def _pass_large(self, pieces: list[bytes]) -> list[bytes]:
        """Hashes everything up to the last large piece; the pieces after it."""
        rest = 0
        for index, piece in enumerate(pieces):
            if len(piece) >= _DIRECT_BYTES:
                self._pending += pieces[rest:index]
                self._flush()
                self._update(piece)
                rest = index + 1
        return pieces[rest:]

    def _flush(self) -> None:
        if self._pending:
            self._update(b"".join(self._pending))
            self._pending.clear()
            self._pending_size = 0

    def _update(self, data: bytes) -> None:
        self._hash.update(data)
        self._size += len(data)
        if self._watch is not None:
            self._watch(data)
