"""Copying the contents of a group of paths: blobs first, then Directories."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from neve.castore.at_once import CallsAtOnce
from neve.castore.blobs.transfer import GROUP_BLOBS, GROUP_BYTES, BlobCopies
from neve.castore.digest import EMPTY_BLOB, Digest
from neve.castore.directories.base import directory_not_found
from neve.castore.directories.held import HeldClosure
from neve.castore.node import DirectoryNode, FileNode
from neve.errors import Corrupt, NeveError
from neve.store.mirror.order import Item
from neve.store.mirror.report import CONCERNS_ALL
from neve.store.path_info import PathInfo
from neve.store.services import Services
from neve.telemetry import Progress

MAX_PATHS = 256
_MAX_FILE_BYTES = 256 * 1024 * 1024
_HELD_REFERENCE = 300
_MAX_HELD_BYTES = 16 * 1024 * 1024
"""A group is complete with so many paths, bytes of files, or bytes of what is held: Directories, references
and signatures. Each is a few commits."""


class Contents:
    """The contents of one group of paths."""

    def __init__(
        self, source: Services, target: Services, calls: CallsAtOnce, progress: Progress, *, nars: bool
    ) -> None:
        self._source = source
        self._target = target
        self._calls = calls
        self._progress = progress
        self._nars = nars
        self._current = ""
        self.copies = BlobCopies(source.blobs, target.blobs, tick=self._tell)
        self.items: list[Item] = []
        self._wanted: dict[Digest, int | None] = {}
        self._wanted_bytes = 0
        self._file_bytes = 0
        self._held_bytes = 0

    def _tell(self) -> None:
        self._progress.advance(self.copies.taken(), self._current)

    @property
    def is_full(self) -> bool:
        """Whether this is enough for one group."""
        return (
            len(self.items) >= MAX_PATHS
            or self._file_bytes >= _MAX_FILE_BYTES
            or self._held_bytes >= _MAX_HELD_BYTES
        )

    def add(self, item: Item) -> None:
        """Takes a path; copies what the target misses of its blobs. Raises what concerns all."""
        self.items.append(item)
        nar = item.known.nar
        self._held_bytes += _HELD_REFERENCE * (len(item.references) + (len(nar.signatures) if nar else 0))
        self._current = item.known.store_path.base_name
        self._tell()
        if item.with_contents and isinstance(item.known, PathInfo) and not self._is_common():
            try:
                self._walk(item, item.known)
            except CONCERNS_ALL:
                raise
            except NeveError as error:
                item.error = error
        if self._wanted_bytes >= GROUP_BYTES or len(self._wanted) >= GROUP_BLOBS:
            self._hand_over()

    def _is_common(self) -> bool:
        """Whether both take contents from the same place: those of a binary cache come to the target."""
        return self._source.blobs is self._target.blobs

    def _walk(self, item: Item, path_info: PathInfo) -> None:
        if isinstance(path_info.node, DirectoryNode):
            item.closure = HeldClosure()
        for node in self._files(path_info, item.closure):
            item.file_bytes += node.size
            self._want(node)
        if item.closure is not None:
            self._held_bytes += item.closure.size
        self._file_bytes += item.file_bytes

    def _files(self, path_info: PathInfo, closure: HeldClosure | None) -> Iterator[FileNode]:
        """The files of a tree; its Directories go into ``closure``."""
        root = path_info.node
        if isinstance(root, FileNode):
            yield root
        if not isinstance(root, DirectoryNode):
            return
        is_there = False
        for directory in self._source.directories.get_recursive(root.digest):
            is_there = True
            if closure is not None:
                closure.add(directory)
            for _, node in directory:
                if isinstance(node, FileNode):
                    yield node
        if not is_there:
            raise directory_not_found(root.digest)

    def _want(self, node: FileNode) -> None:
        if node.digest == EMPTY_BLOB:
            return
        if self._wanted.get(node.digest, node.size) != node.size:
            self._hand_over()  # One of two nodes lies: each is looked at by itself.
        self._wanted[node.digest] = node.size
        self._wanted_bytes += node.size
        if self._wanted_bytes >= GROUP_BYTES or len(self._wanted) >= GROUP_BLOBS:
            self._hand_over()

    def _hand_over(self) -> None:
        wanted, self._wanted, self._wanted_bytes = self._wanted, {}, 0
        self.copies.add(wanted)
        self._tell()

    def finish(self) -> None:
        """Makes all of it durable. What of it is not complete, or not as it is described, has its error then.
        Raises what concerns all."""
        self._hand_over()
        self.copies.finish()
        self._tell()
        if self.copies.failures:
            for item in self.items:
                self._blame(item)
        whole = [item for item in self.items if item.closure is not None and item.error is None]
        if self._target.packs is not None:
            with self._target.one_commit():
                for item in whole:
                    self._put_directories(item)
        else:
            for _ in self._calls.map(self._put_directories, whole):
                self._tell()
        if self._nars:
            for item in self.items:
                self._check_nar(item)

    def _blame(self, item: Item) -> None:
        """Notes if what could not be copied is part of this path."""
        if item.error is not None or not item.with_contents or not isinstance(item.known, PathInfo):
            return
        try:
            nodes = {(node.digest, node.size) for node in self._files(item.known, None)}
        except CONCERNS_ALL:
            raise
        except NeveError as error:
            item.error = error
            return
        if bad := nodes & self.copies.failures.keys():
            first = self.copies.failures[min(bad)]
            more = f" (and {len(bad) - 1} blobs more)" if len(bad) > 1 else ""
            item.error = type(first)(f"{first}{more}")

    def _put_directories(self, item: Item) -> None:
        assert isinstance(item.known, PathInfo)
        assert isinstance(item.known.node, DirectoryNode)
        assert item.closure is not None
        try:
            item.closure.put(item.known.node.digest, self._target.directories)
        except CONCERNS_ALL:
            raise
        except NeveError as error:
            item.error = error

    def _check_nar(self, item: Item) -> None:
        if item.error is not None or not isinstance(item.known, PathInfo) or item.known.nar is None:
            return
        self._tell()
        try:
            if self._target.renderer.hash(item.known.node) != (item.known.nar.size, item.known.nar.sha256):
                item.error = Corrupt("its path info states another NAR hash or size")
        except CONCERNS_ALL:
            raise
        except NeveError as error:
            item.error = error

    def __enter__(self) -> Self:
        self.copies.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with contextlib.ExitStack() as closing:
            for item in self.items:
                if item.closure is not None:
                    closing.callback(item.closure.close)
            closing.callback(self.copies.__exit__, kind, error, traceback)
