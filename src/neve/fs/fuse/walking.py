"""Files that will be read because their directory has been listed, as tar and grep do.

Those of the directories that come next are fetched ahead. When the kernel asks for the rest of a listing,
and there is none, it has made inodes of what it was told of: the contents that are at hand are sent to it
then. So who reads in order seldom has to ask, and still more seldom to wait.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import Final, NamedTuple

from neve.castore.digest import Digest
from neve.castore.node import DirectoryNode, FileNode, Node
from neve.fs.fuse.request import Kernel, Request
from neve.fs.inodes import DirectoryInode
from neve.fs.loads import Loads
from neve.fs.tree import Tree
from neve.tree import WHOLE_FILE_LIMIT

AHEAD_BYTES: Final = 4 * 1024 * 1024
"""Contents on their way, or at hand, before they are needed: enough that a reader as fast as the kernel's
caches does not get to the end while the next are fetched, and not much if he stops."""

_ENTRIES = 1024
"""Of longer directories, only so many entries are looked at, from where it matters on."""
_MOST_ENTRIES = 4 * _ENTRIES
_MOST_UP = 64
"""Directories above one in which what comes next is looked for: a guest may list one that is a million deep,
as often as it likes."""

_Entries = Sequence[tuple[bytes, Node]]


class _Listed(NamedTuple):
    """A directory of which the kernel knows all entries by now."""

    kernel: Kernel
    number: int


class _Sending:
    """Source of nothing: has contents sent to the kernel, of the files of a directory that are at hand. The
    kernel may make it wait for a read that it has under way, so that it is nothing for who answers those."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree

    def fetch(self, wanted: Sequence[_Listed]) -> Iterator[tuple[_Listed, None]]:
        for one in wanted:
            self._send(one.kernel, one.number)
            yield one, None

    def _send(self, kernel: Kernel, number: int) -> None:
        directory = kernel.inodes.get(number)
        listing = self._tree.known(directory.digest) if isinstance(directory, DirectoryInode) else None
        if listing is None:
            return
        at_hand = self._tree.contents.some_at_hand(_files(listing.entries), AHEAD_BYTES)
        if not kernel.read_walks.is_sure(number):
            at_hand = at_hand[:-1]  # If the kernel asks for that one, the others have been read too.
        for node, data in at_hand:
            inode = kernel.inodes.number(number, b"", node)
            if inode is not None:
                kernel.store(inode, node.digest, data)


class Walking:
    """What listings make necessary, over one tree."""

    def __init__(self, tree: Tree, loads: Loads) -> None:
        self._tree = tree
        self._loads = loads
        self._sending = _Sending(tree)

    def begun(self, request: Request, directory: DirectoryInode, entries: _Entries) -> None:
        """A directory is being listed from the beginning; these are the first of its entries."""
        reads, number = request.kernel.read_walks, request.header.node
        reads.listed(number, directory.parent, has_files=bool(_files(entries)))
        if reads.will_read(number) and not reads.is_near(directory.digest):
            self._fetch(request.kernel, directory)

    def ended(self, request: Request) -> None:
        """The end of a directory is about to be told."""
        kernel, number = request.kernel, request.header.node
        if kernel.send is not None and kernel.read_walks.will_read(number):
            self._loads.fetch_ahead(self._sending, [_Listed(kernel, number)])

    def _fetch(self, kernel: Kernel, directory: DirectoryInode) -> None:
        """Fetches the files of a directory, and of those that will be listed after it."""
        near: list[Digest] = []
        files: list[FileNode] = []
        total = looked_at = 0
        for digest, entries in self._course(kernel, directory):
            if total <= AHEAD_BYTES // 2:
                near.append(digest)
            for node in _files(entries):
                files.append(node)
                total += node.size
            looked_at += 1 + len(entries)
            if total > AHEAD_BYTES or looked_at > _MOST_ENTRIES:
                break
        self._tree.contents.several_ahead(files, self._loads)
        kernel.read_walks.are_near(near)

    def _course(self, kernel: Kernel, directory: DirectoryInode) -> Iterator[tuple[Digest, _Entries]]:
        """Directories in the order in which they are walked, as far as they are at hand, from one on."""
        listing = self._tree.known(directory.digest)
        if listing is None:
            return
        entries: _Entries = listing.entries[:_ENTRIES]
        yield directory.digest, entries
        stack = [_directories(entries)]
        for _ in range(_MOST_UP):
            while stack:
                node = next(stack[-1], None)
                if node is None:
                    stack.pop()
                    continue
                listing = self._tree.known(node.digest)
                if listing is None:
                    return
                entries = listing.entries[:_ENTRIES]
                yield node.digest, entries
                stack.append(_directories(entries))
            parent = kernel.inodes.get(directory.parent)
            if not isinstance(parent, DirectoryInode) or parent == directory:
                return
            listing = self._tree.known(parent.digest)
            if listing is None:
                return
            start = bisect_right(listing.entries, directory.name, key=itemgetter(0))
            # Next is what comes after it in its parent.
            stack.append(_directories(listing.entries[start : start + _ENTRIES]))
            directory = parent


def _files(entries: _Entries) -> list[FileNode]:
    """Those that are small and have contents."""
    return [
        node for _, node in entries[:_ENTRIES] if type(node) is FileNode and 0 < node.size <= WHOLE_FILE_LIMIT
    ]


def _directories(entries: _Entries) -> Iterator[DirectoryNode]:
    return (node for _, node in entries if type(node) is DirectoryNode)
