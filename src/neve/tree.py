"""The event vocabulary: a tree of files as a flat stream of events.

Producers (filesystem walk, NAR reader, tar reader, a stored root) emit these events, consumers
(castore ingester, NAR writer and hasher, materializer) take them, and each fits each. The
vocabulary knows neither Nix nor any service.

Grammar of a whole stream, which describes exactly one root::

    stream    = node
    node      = File | BeginFile Data* EndFile | Symlink | directory
    directory = EnterDirectory node* LeaveDirectory

The children of a directory come in strictly ascending order of their names, compared as bytes.
The root's name is whatever the producer knows (often ``b""``); consumers decide whether it counts.
The ``Data`` between a ``BeginFile`` and its ``EndFile`` adds up to exactly ``size`` bytes; a
producer that cannot keep that promise raises instead of emitting ``EndFile``.

Events travel in batches (lists), because a Python call per event and sink would cost more than the
event's work. A batch holds about ``BATCH_BYTES`` of contents or ``BATCH_EVENTS`` events.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, TypeAlias

WHOLE_FILE_LIMIT = 512 * 1024
"""Files up to this many bytes come as one ``File``, longer ones in pieces (at most this long)."""

BATCH_BYTES = 1024 * 1024
"""A producer closes a batch when it holds at least this many bytes of contents."""

BATCH_EVENTS = 1024
"""A producer closes a batch when it holds at least this many events."""


class File(NamedTuple):
    """A regular file whose contents come whole (at most ``WHOLE_FILE_LIMIT`` bytes)."""

    name: bytes
    executable: bool
    contents: bytes


class BeginFile(NamedTuple):
    """A regular file of ``size`` bytes; its contents follow as ``Data`` events."""

    name: bytes
    executable: bool
    size: int


class Data(NamedTuple):
    """The next bytes of the file that was begun last."""

    data: bytes


class EndFile(NamedTuple):
    """All contents of the file that was begun last have been seen."""


class Symlink(NamedTuple):
    """A symbolic link; ``target`` is 1 to 4095 bytes without NUL."""

    name: bytes
    target: bytes


class EnterDirectory(NamedTuple):
    """A directory; its children follow, then its ``LeaveDirectory``."""

    name: bytes


class LeaveDirectory(NamedTuple):
    """The end of the directory that was entered last."""


END_FILE = EndFile()
LEAVE_DIRECTORY = LeaveDirectory()

Event: TypeAlias = File | BeginFile | Data | EndFile | Symlink | EnterDirectory | LeaveDirectory
Batches: TypeAlias = Iterator[list[Event]]


class Sink(Protocol):
    """A consumer of one tree. Not thread-safe: one thread feeds it."""

    def feed(self, events: Sequence[Event]) -> None:
        """Takes the next batch. Raises what its backend raises; the sink is then unusable."""
