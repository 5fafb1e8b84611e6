"""The ingester: takes tree events, stores blobs and Directories, answers with the root node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from neve.castore.blobs.base import BlobBatch, BlobService, BlobWriter
from neve.castore.directories.base import DirectoryPutter, DirectoryService
from neve.castore.directory import DirectoryBuilder, SizeRule
from neve.castore.node import DirectoryNode, FileNode, Node, SymlinkNode, validate_node
from neve.errors import InvalidRequest
from neve.tree import BeginFile, Data, EndFile, EnterDirectory, Event, File, LeaveDirectory, Symlink


class Ingester:
    """A sink for one tree. Not thread-safe.

    Blobs are stored as they come; Directories become visible only with ``finish``, all together.
    Without ``finish``, leaving the ``with`` block gives everything up.
    """

    def __init__(
        self, blobs: BlobService, directories: DirectoryService, *, size_rule: SizeRule = SizeRule.EXACT
    ) -> None:
        self._batch: BlobBatch = blobs.batch()
        self._directories = directories
        self._putter: DirectoryPutter | None = None
        self._size_rule = size_rule
        self._builders: list[tuple[bytes, DirectoryBuilder]] = []
        self._writer: BlobWriter | None = None
        self._begun: BeginFile | None = None
        self._written = 0
        self._root: Node | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self._writer is not None:
                self._writer.abandon()
            if self._putter is not None:
                self._putter.abandon()
        finally:
            self._batch.close()

    def feed(self, events: Sequence[Event]) -> None:
        """Stores the next events. Raises ``InvalidRequest`` when they describe no valid tree."""
        digests = iter(self._batch.put_many([event.contents for event in events if type(event) is File]))
        builder = self._builders[-1][1] if self._builders else None
        for event in events:
            if type(event) is File:
                if builder is not None:
                    builder.add_file(event.name, next(digests), len(event.contents), event.executable)
                else:
                    self._finish_root(FileNode(next(digests), len(event.contents), event.executable))
            else:
                self._other(event)
                builder = self._builders[-1][1] if self._builders else None

    def _other(self, event: Event) -> None:
        if isinstance(event, Data):
            if self._writer is None:
                raise InvalidRequest("contents come outside of a file")
            self._written += self._writer.write(event.data)
        elif isinstance(event, Symlink):
            self._add_symlink(event)
        elif isinstance(event, EnterDirectory):
            self._builders.append((event.name, DirectoryBuilder(self._size_rule)))
        elif isinstance(event, LeaveDirectory):
            self._leave()
        elif isinstance(event, BeginFile):
            if self._writer is not None:
                raise InvalidRequest(f"file {event.name!r} begins inside another")
            self._begun, self._writer, self._written = event, self._batch.open_write(), 0
        elif isinstance(event, EndFile):
            self._end_file()

    def _add_symlink(self, event: Symlink) -> None:
        if self._builders:
            self._builders[-1][1].add_symlink(event.name, event.target)
        else:
            self._finish_root(SymlinkNode(event.target))

    def _end_file(self) -> None:
        if self._writer is None or self._begun is None:
            raise InvalidRequest("a file ends that was not begun")
        name, executable, size = self._begun
        if self._written != size:
            raise InvalidRequest(f"file {name!r} has {self._written} bytes, {size} were announced")
        digest = self._writer.close()
        self._writer = self._begun = None
        if self._builders:
            self._builders[-1][1].add_file(name, digest, size, executable)
        else:
            self._finish_root(FileNode(digest, size, executable))

    def _leave(self) -> None:
        if not self._builders:
            raise InvalidRequest("a directory ends that was not entered")
        name, builder = self._builders.pop()
        encoded, digest, size = builder.finish()
        if self._putter is None:
            self._putter = self._directories.put_multiple()
        self._putter.put_built(encoded, digest)
        if self._builders:
            self._builders[-1][1].add_directory(name, digest, size)
        else:
            self._finish_root(DirectoryNode(digest, size))

    def _finish_root(self, node: Node) -> None:
        if self._root is not None:
            raise InvalidRequest("the tree has more than one root")
        validate_node(node)
        self._root = node

    def finish(self) -> Node:
        """The root node, once everything below it is durable and visible."""
        if self._root is None or self._builders or self._writer is not None:
            raise InvalidRequest("the tree is not complete")
        self._batch.commit()
        if self._putter is not None:
            self._putter.close()
        return self._root
