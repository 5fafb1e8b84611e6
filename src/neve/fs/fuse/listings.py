"""Answers to READDIR and READDIRPLUS.

Where a listing goes on is a number that the kernel gives back: of a Directory it is a position, since those
never change. The root does, so each who begins to list it gets a listing of its own, and the number names
that too.
"""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from neve.castore.node import DirectoryNode, FileNode, Node, SymlinkNode
from neve.castore.path import MAX_NAME_BYTES
from neve.errors import LimitExceeded
from neve.fs.fuse import protocol
from neve.fs.fuse.answers import (
    DIRECTORY_MODE,
    EXECUTABLE_MODE,
    FILE_MODE,
    MAX_READ_BYTES,
    SYMLINK_MODE,
    Answers,
    directory_of,
)
from neve.fs.fuse.protocol import Read
from neve.fs.fuse.request import Parts, Request
from neve.fs.fuse.walking import Walking
from neve.fs.inodes import ROOT
from neve.fs.loads import Loads
from neve.fs.tree import Listing, Tree

MODES: Final = {FileNode: FILE_MODE, SymlinkNode: SYMLINK_MODE, DirectoryNode: DIRECTORY_MODE}

_UNKNOWN_INODE = 0xFFFFFFFF
"""As the number of an entry that the kernel was not told of: libfuse says the same."""

INODES_BY_LISTING: Final = 500_000
"""As long as the kernel knows fewer inodes, listings tell it of more. Then only where somebody looks at what
he lists: who walks through millions of names needs none."""

_NO_CACHING = bytes(8)
"""At the end of the root's listing. The kernel takes an empty answer for the end, and keeps what came before
for ever; less than an entry is the end too, but nothing is kept."""

_ROOT_LISTINGS = 8
_POSITION_BITS = 32


class Listings:
    """Listings over one tree."""

    def __init__(self, tree: Tree, loads: Loads, answers: Answers) -> None:
        self._tree = tree
        self._loads = loads
        self._answers = answers
        self._walking = Walking(tree, loads)
        self._roots = _RootListings()

    def readdir(self, request: Request) -> Parts:
        """Names, and what kind each is."""
        return self._list(request, plus=False)

    def readdirplus(self, request: Request) -> Parts:
        """The same, with all that a lookup would tell."""
        return self._list(request, plus=True)

    def _list(self, request: Request, *, plus: bool) -> Parts:
        directory = directory_of(request)
        wanted: Read = request.body
        room = min(wanted.size, MAX_READ_BYTES)
        if request.header.node == ROOT:
            self._answers.check_root_listing()
            return self._list_root(request, wanted.offset, room, plus=plus)
        if directory.parent == ROOT:
            self._tree.read_ahead(directory.digest, self._loads)
        listing = self._answers.directory(directory.digest, request)
        if wanted.offset >= len(listing) + 2:
            self._walking.ended(request)
            return ()
        entries = _Entries(room, plus=plus)
        entries.add_dots(wanted.offset, request.header.node, directory.parent)
        start = max(wanted.offset - 2, 0)
        stop = entries.fitting(listing.entries, start)
        if plus:
            self._add_plus(entries, request, listing, start, stop)
        else:
            self._add(entries, request, listing, start, stop)
        return [b"".join(entries.parts)]

    def _add(self, entries: _Entries, request: Request, listing: Listing, start: int, stop: int) -> None:
        inodes, parent = request.kernel.inodes, request.header.node
        for position in range(start, stop):
            name, node = listing.entries[position]
            # Directories are not looked for: it would take to know how long they are.
            number = None if isinstance(node, DirectoryNode) else inodes.number(parent, name, node)
            entries.parts.append(
                protocol.dirent(number or _UNKNOWN_INODE, position + 3, MODES[type(node)], name)
            )

    def _add_plus(self, entries: _Entries, request: Request, listing: Listing, start: int, stop: int) -> None:
        chosen = listing.entries[start:stop]
        sizes: Sequence[int | None] = [None] * len(chosen)
        number, kernel, directory = request.header.node, request.kernel, directory_of(request)
        if len(kernel.inodes) < INODES_BY_LISTING or kernel.looks.will_look(number, directory.parent):
            below = kernel.walks.listed(number, directory.parent)
            sizes = self._tree.sizes([node for _, node in chosen], request.held, below)
        known = [
            (name, node, size) for (name, node), size in zip(chosen, sizes, strict=True) if size is not None
        ]
        request.settle()
        last = kernel.inodes.last
        try:
            numbers = iter(kernel.inodes.remember(number, known))
        except LimitExceeded:
            sizes, numbers = [None] * len(chosen), iter(())
        kernel.read_walks.made(last + 1, kernel.inodes.last + 1, number, directory.parent)
        if not start:
            self._walking.begun(request, directory, chosen)
        append, encode = entries.parts.append, protocol.direntplus
        for following, (name, node), size in zip(itertools.count(start + 3), chosen, sizes, strict=False):
            kind = type(node)
            if size is None:
                append(protocol.direntplus_unknown(_UNKNOWN_INODE, following, MODES[kind], name))
            elif isinstance(node, FileNode) and node.executable:
                append(encode(next(numbers), size, EXECUTABLE_MODE, following, name))
            else:
                append(encode(next(numbers), size, MODES[kind], following, name))

    def _list_root(self, request: Request, offset: int, room: int, *, plus: bool) -> Parts:
        number, position = offset >> _POSITION_BITS, offset & ((1 << _POSITION_BITS) - 1)
        listing = self._roots.get(number) if offset else None
        if listing is None:
            listing = self._tree.root_listing(request.header.unique, request.held)
            number = self._roots.add(listing)
        entries = _Entries(room, plus=plus)
        base = number << _POSITION_BITS
        entries.add_dots(position, ROOT, ROOT, base)
        start = max(position - 2, 0)
        for place in range(start, entries.fitting(listing, start)):
            name, kind = listing[place]
            entries.add_unknown(_UNKNOWN_INODE, base + place + 3, MODES[kind], name)
        return [b"".join(entries.parts) or _NO_CACHING]


class _Entries:
    """An answer that is being made, of at most ``room`` bytes."""

    def __init__(self, room: int, *, plus: bool) -> None:
        self._room = room
        self._plus = plus
        self.parts: list[bytes] = []

    def add_unknown(self, node: int, following: int, kind: int, name: bytes) -> None:
        """An entry that the kernel learns no more about."""
        make = protocol.direntplus_unknown if self._plus else protocol.dirent
        self.parts.append(make(node, following, kind, name))

    def add_dots(self, position: int, node: int, parent: int, base: int = 0) -> None:
        """The first two entries, if the listing goes on at ``position`` and they are still to come."""
        for place, number, name in ((0, node, b"."), (1, parent, b"..")):
            size = protocol.dirent_bytes(name, plus=self._plus)
            if position <= place and size <= self._room:
                self._room -= size
                self.add_unknown(number, base + place + 1, DIRECTORY_MODE, name)

    def fitting(self, entries: Sequence[tuple[bytes, object]], start: int) -> int:
        """The position of the first entry from ``start`` on for which there is no room."""
        room = self._room
        head = protocol.dirent_bytes(b"", plus=self._plus)
        if (len(entries) - start) * (head + MAX_NAME_BYTES) <= room:
            return max(start, len(entries))
        for position in range(start, len(entries)):
            room -= head + (len(entries[position][0]) + 7 & ~7)
            if room < 0:
                return position
        return max(start, len(entries))


class _RootListings:
    """Listings of the root that somebody may be reading; the last few. Thread-safe."""

    def __init__(self) -> None:
        self._listings: OrderedDict[int, list[tuple[bytes, type[Node]]]] = OrderedDict()
        self._last = 0
        self._lock = threading.Lock()

    def get(self, number: int) -> list[tuple[bytes, type[Node]]] | None:
        with self._lock:
            if number in self._listings:
                self._listings.move_to_end(number)
            return self._listings.get(number)

    def add(self, listing: list[tuple[bytes, type[Node]]]) -> int:
        """Its number: small ones, since the kernel takes 63 bits together with the position."""
        with self._lock:
            self._last = number = self._last % (1 << 20) + 1
            self._listings[number] = listing
            while len(self._listings) > _ROOT_LISTINGS:
                self._listings.popitem(last=False)
            return number
