"""Going through stored trees: down to one node, or over all of it as tree events."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

from neve.castore.blobs.base import BlobService, blob_not_found
from neve.castore.digest import EMPTY_BLOB, Digest, format_digest
from neve.castore.directories.base import DirectoryService, directory_not_found
from neve.castore.directory import Directory
from neve.castore.node import DirectoryNode, FileNode, Node, SymlinkNode
from neve.errors import Corrupt, LimitExceeded, NotFound
from neve.tree import (
    BATCH_BYTES,
    BATCH_EVENTS,
    END_FILE,
    LEAVE_DIRECTORY,
    WHOLE_FILE_LIMIT,
    Batches,
    BeginFile,
    Data,
    EnterDirectory,
    Event,
    File,
    Symlink,
)

_CHILDREN_AT_ONCE = 64
_NODES_AHEAD = 16 * 1024
"""Child Directories that are fetched together, by count and by all that is below them: bounds what one
level of a walk holds to some megabytes, or to one Directory if that alone has more."""


def get_directory(directories: DirectoryService, digest: Digest) -> Directory:
    """The Directory that something refers to. Raises ``NotFound`` naming it."""
    directory = directories.get(digest)
    if directory is None:
        raise directory_not_found(digest)
    return directory


def find_below(directories: DirectoryService, root: Digest, digest: Digest) -> Directory | None:
    """A Directory that the closure of ``root`` has, or None if it is missing.

    Where children cannot be asked for by themselves, one that is not found is missing only if it does not
    come with its root either.
    """
    directory = directories.get(digest)
    if directory is None and digest != root and not directories.looks_up_children:
        with contextlib.suppress(NotFound):
            # To the end: so that all of it is held, or near.
            for one in directories.get_recursive(root):
                if one.digest == digest:
                    directory = one
    return directory


def get_below(directories: DirectoryService, root: Digest, digest: Digest) -> Directory:
    """The same for what something refers to. Raises ``NotFound`` naming it."""
    directory = find_below(directories, root, digest)
    if directory is None:
        raise directory_not_found(digest)
    return directory


def open_root(directories: DirectoryService, digest: Digest) -> Directory:
    """The root of a tree that is about to be walked. Raises ``NotFound`` naming it."""
    directories.read_ahead(digest)
    return get_directory(directories, digest)


def descend(directories: DirectoryService, root: Node, components: Sequence[bytes]) -> Node | None:
    """The node at a path below ``root``, or None if nothing is there.

    A component below a file or a symlink is nothing, links are not followed. Raises ``NotFound`` if
    a Directory on the way is missing in the store.
    """
    node: Node | None = root
    for name in components:
        if not isinstance(node, DirectoryNode):
            return None
        assert isinstance(root, DirectoryNode)
        node = get_below(directories, root.digest, node.digest).get(name)
    return node


class Children:
    """The entries of a Directory in order, with the Directories of the subdirectories fetched ahead."""

    def __init__(
        self, directories: DirectoryService, directory: Directory, root: Digest | None = None
    ) -> None:
        """``root`` is that of the closure (default: ``directory``)."""
        self._directories = directories
        self._root = directory.digest if root is None else root
        self._ahead: Iterator[DirectoryNode] = (child for _, child in directory.directories())
        self._fetched: dict[Digest, Directory] = {}
        self.entries: Iterator[tuple[bytes, Node]] = iter(directory)

    def open(self, node: DirectoryNode) -> Directory:
        """The Directory of a child. Raises ``NotFound``."""
        if node.digest not in self._fetched:
            self._fetched.clear()
            self._fetched = self._directories.get_many(self._wanted(node))
        directory = self._fetched.get(node.digest)
        return directory if directory is not None else get_below(self._directories, self._root, node.digest)

    def below(self, node: DirectoryNode) -> Children:
        """The entries of a child. Raises ``NotFound``."""
        return Children(self._directories, self.open(node), self._root)

    def _wanted(self, node: DirectoryNode) -> list[Digest]:
        """What to fetch for ``node``: its Directory, and those of the subdirectories that come next."""
        wanted = [node.digest]
        nodes = node.size
        for child in islice(self._ahead, _CHILDREN_AT_ONCE):
            if child.digest != node.digest:
                nodes += child.size
                if nodes > _NODES_AHEAD:
                    break  # Fetched when its turn comes.
                wanted.append(child.digest)
        return wanted


Item = TypeVar("Item")


def with_contents(
    blobs: BlobService, items: Iterable[Item], small_file: Callable[[Item], FileNode | None]
) -> Iterator[tuple[Item, bytes]]:
    """Pairs each item with the contents of the small file it stands for, or with ``b""``.

    ``small_file`` tells the node of an item that is a file of at most ``WHOLE_FILE_LIMIT`` bytes.
    Items are consumed ahead, as far as the service's ``read_many`` reads ahead. Raises ``NotFound``
    and, if a length is not the node's, ``Corrupt``.
    """
    ahead: deque[tuple[Item, FileNode | None]] = deque()

    def digests() -> Iterator[Digest]:
        for item in items:
            node = small_file(item)
            ahead.append((item, node))
            # Whatever is no small file counts as empty, so that contents and items stay in step.
            yield EMPTY_BLOB if node is None else node.digest

    try:
        for contents in blobs.read_many(digests(), WHOLE_FILE_LIMIT):
            item, node = ahead.popleft()
            if node is not None and node.size != len(contents):
                raise wrong_length(node, len(contents))
            yield item, contents
    except LimitExceeded as error:
        liar = next(node for _, node in ahead if node is not None)
        reader = blobs.open_read(liar.digest)
        raise wrong_length(liar, reader.size if reader is not None else 0) from error


def wrong_length(node: FileNode, length: int) -> Corrupt:
    """The error for a stored blob whose length is not what the node that refers to it says."""
    return Corrupt(f"blob {format_digest(node.digest)} has {length} bytes, its node says {node.size}")


def large_file(
    blobs: BlobService, node: FileNode, start: int = 0, stop: int | None = None
) -> Iterator[bytes]:
    """The bytes ``start`` to ``stop`` (default: the end) of a file, in pieces of at most
    ``WHOLE_FILE_LIMIT`` bytes.

    Raises ``NotFound`` and, before anything is yielded, ``Corrupt`` if the length is not the node's.
    """
    reader = blobs.open_read(node.digest)
    if reader is None:
        raise blob_not_found(node.digest)
    with reader:
        if reader.size != node.size:
            raise wrong_length(node, reader.size)
        reader.seek(start)
        left = (node.size if stop is None else min(stop, node.size)) - start
        while left > 0:
            piece = reader.read_piece(min(left, WHOLE_FILE_LIMIT))
            if not piece:
                raise wrong_length(node, node.size - left)
            left -= len(piece)
            yield piece


def _walk(directories: DirectoryService, root: Node) -> Iterator[tuple[bytes, Node] | None]:
    """Names and nodes, depth first; None is the end of a directory."""
    yield b"", root
    if not isinstance(root, DirectoryNode):
        return
    stack = [Children(directories, open_root(directories, root.digest))]
    while stack:
        children = stack[-1]
        for entry in children.entries:
            yield entry
            if isinstance(entry[1], DirectoryNode):
                stack.append(children.below(entry[1]))
                break
        else:
            stack.pop()
            yield None


def is_whole(blobs: BlobService, directories: DirectoryService, root: Node) -> bool:
    """Whether all of a tree is there, be it in services that know nothing of each other, or near to a far
    one and so perhaps in part. Reads the Directories, no contents. What is there stays for now."""
    nodes = [root]
    if isinstance(root, DirectoryNode):
        found: list[Digest] = []
        try:
            for directory in directories.get_recursive(root.digest):
                found.append(directory.digest)
                nodes += (node for _, node in directory if isinstance(node, FileNode))
                if len(nodes) >= _NODES_AHEAD:
                    if _misses_contents(blobs, nodes):
                        return False
                    nodes.clear()
        except NotFound:
            return False
        if not found or (directories.tells_ages and _goes_meanwhile(directories, found)):
            return False
    return not _misses_contents(blobs, nodes)


def _goes_meanwhile(directories: DirectoryService, found: Sequence[Digest]) -> bool:
    """Freshens Directories, the root last. Whether one is gone."""
    parts = (found[start : start + _NODES_AHEAD] for start in range(0, len(found), _NODES_AHEAD))
    return any(directories.freshen(part) for part in reversed(list(parts)))


def _misses_contents(blobs: BlobService, nodes: Iterable[Node]) -> bool:
    digests = {node.digest for node in nodes if isinstance(node, FileNode)}
    return bool(blobs.missing(list(digests)))


def _small_file(entry: tuple[bytes, Node] | None) -> FileNode | None:
    if entry is not None and isinstance(entry[1], FileNode) and entry[1].size <= WHOLE_FILE_LIMIT:
        return entry[1]
    return None


def tree_events(blobs: BlobService, directories: DirectoryService, root: Node) -> Batches:
    """A stored tree as events, contents verified; the root's name is empty.

    Raises ``NotFound`` (a blob or Directory is missing) and ``Corrupt`` (also when a blob has another
    length than its node says, before any of it is emitted).
    """
    batch: list[Event] = []
    size = 0
    for entry, contents in with_contents(blobs, _walk(directories, root), _small_file):
        for event in _events(blobs, entry, contents):
            batch.append(event)
            if isinstance(event, File):
                size += len(event.contents)
            elif isinstance(event, Data):
                size += len(event.data)
            if size >= BATCH_BYTES or len(batch) >= BATCH_EVENTS:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def _events(blobs: BlobService, entry: tuple[bytes, Node] | None, contents: bytes) -> Iterable[Event]:
    if entry is None:
        return (LEAVE_DIRECTORY,)
    name, node = entry
    if isinstance(node, DirectoryNode):
        return (EnterDirectory(name),)
    if isinstance(node, SymlinkNode):
        return (Symlink(name, node.target),)
    if node.size <= WHOLE_FILE_LIMIT:
        return (File(name, node.executable, contents),)
    return _large_file_events(blobs, name, node)


def _large_file_events(blobs: BlobService, name: bytes, node: FileNode) -> Iterator[Event]:
    pieces = large_file(blobs, node)
    first = next(pieces)  # What is wrong with the blob shows before the file begins.
    yield BeginFile(name, node.executable, node.size)
    yield Data(first)
    for piece in pieces:
        yield Data(piece)
    yield END_FILE
