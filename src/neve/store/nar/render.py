"""NARs of stored trees: whole or any range, without ever storing a NAR.

Size and layout follow from the Directories alone, so the size is known before a blob is opened, and
a range begins where it begins: what lies before it is stepped over by the sizes of subtrees.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import NamedTuple

from neve.castore.blobs.base import BlobService
from neve.castore.digest import Digest
from neve.castore.directories.base import DirectoryService
from neve.castore.node import DirectoryNode, FileNode, Node, SymlinkNode
from neve.castore.traverse import Children, get_below, get_directory, large_file, open_root, with_contents
from neve.errors import InvalidRequest, PermissionDenied, Unavailable
from neve.nix.nar import framing
from neve.nix.nar.grammar import MAGIC
from neve.store.nar_nodes import Nar, NarNodes, known_nar
from neve.telemetry import LOGGER
from neve.tree import WHOLE_FILE_LIMIT

PIECE_BYTES = 1024 * 1024
"""Rendered bytes come in pieces of about this size."""

_MAX_SIZES = 1_000_000
"""Directories whose NAR size is remembered between calls."""


def _go_on() -> None:
    """Nobody wants a measurement to end early."""


class _Part(NamedTuple):
    """Bytes of the framing, then a file's contents from ``skip`` to ``stop`` (no file: no contents)."""

    framing: bytes
    file: FileNode | None = None
    skip: int = 0
    stop: int | None = None


class NarRenderer:
    """Renders NARs from the given services. Thread-safe.

    Keeps the NAR sizes of Directories it has measured, about 150 bytes each, and of a million at most
    (more while it measures a tree that has more).
    """

    def __init__(self, blobs: BlobService, directories: DirectoryService) -> None:
        self._blobs = blobs
        self._directories = directories
        self._sizes: dict[Digest, int] = {}

    def size(self, root: Node, check: Callable[[], None] = _go_on) -> int:
        """The size of the NAR in bytes. Reads Directories, no blob. Raises ``NotFound``.

        ``check`` is called before each Directory that is looked at, and may raise to end it.
        """
        return framing.MAGIC_SIZE + self._node_size(root, check)

    def _node_size(self, node: Node, check: Callable[[], None] = _go_on) -> int:
        if isinstance(node, FileNode):
            return framing.file_size(node.size, node.executable)
        if isinstance(node, SymlinkNode):
            return framing.symlink_size(len(node.target))
        size = self._sizes.get(node.digest)
        return self._measure(node, check) if size is None else size

    def _measure(self, root: DirectoryNode, check: Callable[[], None]) -> int:
        """Fills ``_sizes`` for everything below ``root``, children first, without recursion."""
        if len(self._sizes) >= _MAX_SIZES:
            self._sizes = {}  # Another thread may still be filling the old one, and goes on with that.
        sizes = self._sizes
        check()
        stack = [(root.digest, open_root(self._directories, root.digest))]
        levels = [Children(self._directories, stack[0][1])]
        while stack:
            for _, node in levels[-1].entries:
                if isinstance(node, DirectoryNode) and node.digest not in sizes:
                    check()
                    directory = levels[-1].open(node)
                    stack.append((node.digest, directory))
                    levels.append(Children(self._directories, directory, root.digest))
                    break
            else:
                digest, directory = stack.pop()
                levels.pop()
                sizes[digest] = framing.DIRECTORY_SIZE + sum(
                    framing.entry_overhead(len(name))
                    + (sizes[node.digest] if isinstance(node, DirectoryNode) else self._node_size(node))
                    for name, node in directory
                )
        return sizes[root.digest]

    def stream(self, root: Node, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """The bytes ``start`` to ``stop`` (default: the end) of the NAR, in pieces of about 1 MiB.

        Raises as ``groups`` does.
        """
        return map(b"".join, self.groups(root, start, stop))

    def groups(self, root: Node, start: int = 0, stop: int | None = None) -> Iterator[list[bytes]]:
        """Like ``stream``, but in lists of pieces of about 1 MiB together: what a vectored write takes
        without their being joined.

        Raises ``NotFound`` (a blob or Directory is missing) and ``Corrupt`` (a blob does not match
        its digest, or has another length than its node says); nothing is ever padded or cut.
        """
        if start < 0 or (stop is not None and stop < start):
            raise InvalidRequest(f"no such range of a NAR: {start} to {stop}")
        parts = self._all_parts(root) if start == 0 else self._parts_from(root, start)
        return self._render(parts if stop is None else _first(parts, stop - start))

    def segments(self, root: Node) -> Iterator[list[bytes] | FileNode]:
        """The whole NAR like ``groups``, but with the node of a large file in place of its contents: for a
        caller who has the contents in another form, and checks them."""
        return self._render_small(self._all_parts(root))

    def hash(self, root: Node) -> Nar:
        """Renders the NAR to its size and sha256. Raises like ``stream``."""
        hasher = hashlib.sha256()
        size = 0
        for piece in self.stream(root):
            hasher.update(piece)
            size += len(piece)
        return Nar(size, hasher.digest())

    def _render(self, parts: Iterator[_Part]) -> Iterator[list[bytes]]:
        pieces: list[bytes] = []
        size = 0
        for (head, node, skip, stop), contents in with_contents(self._blobs, parts, _small_file):
            pieces.append(head)
            size += len(head)
            if node is None:
                pass
            elif node.size <= WHOLE_FILE_LIMIT:
                if skip or stop is not None:
                    contents = contents[skip:stop]
                pieces.append(contents)
                size += len(contents)
            else:
                for piece in large_file(self._blobs, node, skip, stop):
                    pieces.append(piece)
                    size += len(piece)
                    if size >= PIECE_BYTES:
                        yield pieces
                        pieces, size = [], 0
            if size >= PIECE_BYTES:
                yield pieces
                pieces, size = [], 0
        if size:
            yield pieces

    def _render_small(self, parts: Iterator[_Part]) -> Iterator[list[bytes] | FileNode]:
        pieces: list[bytes] = []
        size = 0
        for part, contents in with_contents(self._blobs, parts, _small_file):
            pieces += (part.framing, contents)
            size += len(part.framing) + len(contents)
            large = part.file is not None and part.file.size > WHOLE_FILE_LIMIT
            if large or size >= PIECE_BYTES:
                yield pieces
                pieces, size = [], 0
            if large:
                assert part.file is not None
                yield part.file
        if size:
            yield pieces

    def _all_parts(self, root: Node) -> Iterator[_Part]:
        """The whole NAR. What closes an entry is put before the next, so that a file is one part."""
        if not isinstance(root, DirectoryNode):
            yield from _leaf(MAGIC, root)
            return
        pending = MAGIC + framing.DIRECTORY_OPEN
        levels = [Children(self._directories, open_root(self._directories, root.digest))]
        entry_open, file_head, tails = framing.entry_open, framing.file_head, _ENTRY_TAILS
        while levels:
            children = levels[-1]
            for name, node in children.entries:
                if isinstance(node, FileNode):
                    size = node.size
                    yield _Part(pending + entry_open(name) + file_head(size, node.executable), node)
                    pending = tails[size & 7]
                elif isinstance(node, SymlinkNode):
                    pending += entry_open(name) + framing.symlink(node.target) + framing.ENTRY_CLOSE
                else:
                    pending += entry_open(name) + framing.DIRECTORY_OPEN
                    levels.append(children.below(node))
                    break
                if len(pending) > _MAX_PENDING:
                    yield _Part(pending)
                    pending = b""
            else:
                levels.pop()
                pending += framing.DIRECTORY_CLOSE + (framing.ENTRY_CLOSE if levels else b"")
            if len(pending) > _MAX_PENDING:
                yield _Part(pending)
                pending = b""
        yield _Part(pending)

    def _parts_from(self, root: Node, start: int) -> Iterator[_Part]:
        """The NAR from byte ``start`` on: entries that end before it are not looked into."""
        cut = _Cut(start)
        yield from cut.bytes(MAGIC)
        if not isinstance(root, DirectoryNode):
            yield from cut.parts(_leaf(b"", root))
            return
        if cut.step_over(self._node_size(root)):
            return
        yield from cut.bytes(framing.DIRECTORY_OPEN)
        levels = [Children(self._directories, get_directory(self._directories, root.digest))]
        while levels:
            children = levels[-1]
            for name, node in children.entries:
                if cut.left and cut.step_over(framing.entry_overhead(len(name)) + self._node_size(node)):
                    continue
                yield from cut.bytes(framing.entry_open(name))
                if isinstance(node, DirectoryNode):
                    yield from cut.bytes(framing.DIRECTORY_OPEN)
                    below = get_below(self._directories, root.digest, node.digest)
                    levels.append(Children(self._directories, below, root.digest))
                    break
                yield from cut.parts(_leaf(b"", node))
                yield from cut.bytes(framing.ENTRY_CLOSE)
            else:
                levels.pop()
                yield from cut.bytes(framing.DIRECTORY_CLOSE + (framing.ENTRY_CLOSE if levels else b""))


_MAX_PENDING = 16 * 1024

_ENTRY_TAILS = tuple(framing.file_tail(size) + framing.ENTRY_CLOSE for size in range(8))


def _leaf(before: bytes, node: FileNode | SymlinkNode) -> Iterator[_Part]:
    if isinstance(node, SymlinkNode):
        yield _Part(before + framing.symlink(node.target))
    else:
        yield _Part(before + framing.file_head(node.size, node.executable), node)
        yield _Part(framing.file_tail(node.size))


def _small_file(part: _Part) -> FileNode | None:
    node = part.file
    return node if node is not None and node.size <= WHOLE_FILE_LIMIT else None


class _Cut:
    """Leaves out the first bytes of a NAR: ``left`` is how many are still to be left out."""

    def __init__(self, left: int) -> None:
        self.left = left

    def step_over(self, size: int) -> bool:
        """Leaves out ``size`` bytes at once, if all of them are to be left out."""
        if size > self.left:
            return False
        self.left -= size
        return True

    def bytes(self, data: bytes) -> Iterator[_Part]:
        if not self.step_over(len(data)):
            yield _Part(data[self.left :])
            self.left = 0

    def parts(self, parts: Iterator[_Part]) -> Iterator[_Part]:
        for part in parts:
            size = part.file.size if part.file is not None else 0
            if not self.left:
                yield part
            elif self.step_over(len(part.framing) + size):
                continue
            else:
                skip = max(0, self.left - len(part.framing))
                yield _Part(part.framing[self.left :], part.file, skip)
                self.left = 0


def _first(parts: Iterator[_Part], left: int) -> Iterator[_Part]:
    """The first ``left`` bytes of ``parts``; the files behind them are not even looked at."""
    while left > 0 and (part := next(parts, None)) is not None:
        head = part.framing[:left]
        left -= len(head)
        if part.file is None or not left:
            yield _Part(head)
        else:
            stop = min(part.file.size, part.skip + left)
            left -= stop - part.skip
            yield _Part(head, part.file, part.skip, stop)


class NarCalculation(ABC):
    """Answers with the size and sha256 of the NAR of a stored tree. Thread-safe."""

    @abstractmethod
    def calculate_nar(self, node: Node) -> Nar:
        """Raises ``NotFound`` if a blob or Directory is missing, ``Corrupt`` if one is damaged."""


class RenderingNarCalculation(NarCalculation):
    """Renders the NAR and hashes it, once for each tree: ``nar_nodes`` remembers."""

    def __init__(self, renderer: NarRenderer, nar_nodes: NarNodes) -> None:
        self._renderer = renderer
        self._nar_nodes = nar_nodes

    def calculate_nar(self, node: Node) -> Nar:
        known = known_nar(self._nar_nodes, node)
        if known is not None:
            return known
        nar = self._renderer.hash(node)
        try:
            self._nar_nodes.put(node, nar)
        except (PermissionDenied, Unavailable) as error:
            # A store that is open read-only, or a full disk: the answer is right all the same.
            LOGGER.debug("the NAR hash of a tree cannot be remembered: %s", error)
        return nar
