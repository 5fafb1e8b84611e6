"""The inode table: what the numbers mean that the kernel knows files by.

Files of the same contents and executable bit share an inode, and so do symlinks with the same target: the
kernel then keeps their contents once. A directory has one of its own for each place it has, that is for
each parent and name: the kernel knows one parent per directory, and with a shared inode ``..`` would lead
from one of two equal directories into the parent of the other.

The kernel counts how often it was told of an inode and says when it forgets them, so the table holds what
the kernel holds. A kernel may hold millions, hence the packed form: some 200 bytes for a file.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple, TypeAlias

from neve.castore.digest import Digest
from neve.castore.node import DirectoryNode, FileNode, Node, SymlinkNode
from neve.errors import LimitExceeded

ROOT: Final = 1
"""The number of the root, by the protocol."""

MAX_INODES: Final = 4_000_000
"""Most inodes that a guest may know at once, about 1 GB. Linux itself spends a kilobyte on each, so that only
a hostile one gets there, walking a tree that contains itself many times over. The kernel of this machine
is not limited: with memory enough it keeps more, and forgets them when it needs the memory."""


class DirectoryInode(NamedTuple):
    """A directory at one place."""

    parent: int
    name: bytes
    digest: Digest
    """Of no bytes for the root, which is no Directory."""
    children: int
    """How many entries it has."""


Inode: TypeAlias = FileNode | SymlinkNode | DirectoryInode


class TooManyInodes(LimitExceeded):
    """The kernel knows as many inodes as it may."""


_FILE = struct.Struct("<c32sQ")
_PLAIN, _EXECUTABLE, _SYMLINK = b"f", b"x", b"l"

_Record: TypeAlias = bytes | DirectoryInode
"""How an inode is kept; equal ones share a number."""


class InodeTable:
    """Numbers and their meaning. Thread-safe. No number is used twice."""

    def __init__(self, limit: int = MAX_INODES) -> None:
        self._limit = limit
        self._records: dict[int, _Record] = {ROOT: DirectoryInode(ROOT, b"", b"", 0)}
        self._numbers: dict[_Record, int] = {}
        self._more_lookups: dict[int, int] = {}  # But for the first one.
        self._last = ROOT
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._records)

    def get(self, number: int) -> Inode | None:
        """What a number stands for, or None: no kernel asks for that, but a guest may."""
        record = self._records.get(number)
        return record if record is None or isinstance(record, DirectoryInode) else _unpacked(record)

    @property
    def last(self) -> int:
        """The number that was given last."""
        return self._last

    def number(self, parent: int, name: bytes, node: Node, children: int = 0) -> int | None:
        """The number of an entry, if the kernel knows it."""
        return self._numbers.get(_packed(parent, name, node, children))

    def remember(self, parent: int, entries: Iterable[tuple[bytes, Node, int]]) -> list[int]:
        """The numbers of entries of ``parent``: names, nodes, and for directories how many entries they
        have. Each counts as looked up once more. Those that are new get numbers in their order.

        Raises ``TooManyInodes``; then none of them counts.
        """
        records = [
            _FILE.pack(_EXECUTABLE if node[2] else _PLAIN, node[0], node[1])
            if type(node) is FileNode
            else _packed(parent, name, node, children)
            for name, node, children in entries
        ]
        with self._lock:
            numbers, known, more = [], self._numbers, self._more_lookups
            room = self._limit - len(self._records)
            if len(records) > room and sum(record not in known for record in records) > room:
                raise TooManyInodes(f"the kernel knows {len(self._records)} inodes, more it may not")
            for record in records:
                number = known.get(record)
                if number is None:
                    self._last = number = self._last + 1
                    known[record] = number
                    self._records[number] = record
                else:
                    more[number] = more.get(number, 0) + 1
                numbers.append(number)
            return numbers

    def forget(self, number: int, lookups: int) -> None:
        """The kernel has forgotten an inode as often as it was told of it, or less often."""
        if number == ROOT:
            return
        with self._lock:
            record = self._records.get(number)
            if record is None:
                return
            left = self._more_lookups.pop(number, 0) - lookups
            if left >= 0:
                if left:
                    self._more_lookups[number] = left
                return
            del self._records[number], self._numbers[record]

    def files(self, start: int, stop: int) -> Iterator[tuple[int, FileNode]]:
        """The files with numbers from ``start`` to before ``stop``: what the kernel was told of together,
        in the order in which it was."""
        for number in range(start, stop):
            record = self._records.get(number)
            if isinstance(record, bytes) and record[:1] != _SYMLINK:
                yield number, _file(record)


def _packed(parent: int, name: bytes, node: Node, children: int) -> _Record:
    if isinstance(node, FileNode):
        digest, size, executable = node
        return _FILE.pack(_EXECUTABLE if executable else _PLAIN, digest, size)
    if isinstance(node, DirectoryNode):
        return DirectoryInode(parent, name, node.digest, children)
    return _SYMLINK + node.target


def _unpacked(record: bytes) -> FileNode | SymlinkNode:
    return SymlinkNode(record[1:]) if record[:1] == _SYMLINK else _file(record)


def _file(record: bytes) -> FileNode:
    kind, digest, size = _FILE.unpack(record)
    return FileNode(digest, size, kind == _EXECUTABLE)
