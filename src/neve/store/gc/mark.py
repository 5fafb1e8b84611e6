"""Marking: what can be reached from given nodes.

It is told how to get Directories and chunk lists, and knows no backend; so it serves any whose contents can
be listed and deleted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from neve.castore.digest import Digest
from neve.castore.directory import referred_digests
from neve.castore.node import DirectoryNode, FileNode, Node
from neve.errors import NotFound
from neve.store.gc.digest_set import DigestSet
from neve.telemetry import NO_PROGRESS, Progress

_AT_ONCE = 256

GetDirectories = Callable[[Sequence[Digest]], Mapping[Digest, bytes]]
"""The encodings of those Directories that are there. Raises ``Corrupt`` for one that is damaged."""

GetChunks = Callable[[Sequence[Digest]], Iterable[Digest]]
"""The chunks of those blobs that are stored in chunks."""

SeeNew = Callable[[bool, Sequence[Digest]], None]
"""Is told the digests that were marked just now: whether of Directories (else of contents), and which."""


class Marker:
    """Marks closures. What is marked has all that it refers to marked, once a call has returned.

    Chunks are marked with ``mark_chunks``: which blobs have some is best looked up for many at a time.
    """

    def __init__(
        self, get: GetDirectories, see_new: SeeNew | None = None, *, folder: Path | None = None
    ) -> None:
        """``folder``: for files of what is marked, where that may be more than memory should hold."""
        self._get = get
        self.see_new: SeeNew = see_new or (lambda _directories, _digests: None)
        self.directories = DigestSet(folder)
        self.contents = DigestSet(folder)
        """Blobs and chunks."""
        self.missing = 0
        """Directories that are referred to and are not there."""

    @property
    def count(self) -> int:
        """How much is marked."""
        return len(self.directories) + len(self.contents)

    def mark(self, nodes: Iterable[Node], progress: Progress = NO_PROGRESS) -> None:
        """Marks what nodes refer to."""
        directories: list[Digest] = []
        contents: list[Digest] = []
        for node in nodes:
            if isinstance(node, DirectoryNode):
                directories.append(node.digest)
            elif isinstance(node, FileNode):
                contents.append(node.digest)
        self.mark_contents(contents)
        self.mark_directories(directories, progress)

    def mark_contents(self, digests: Iterable[Digest]) -> None:
        """Marks blobs or chunks."""
        new = self.contents.add_new(digests)
        if new:
            self.see_new(False, new)

    def mark_chunks(self, blobs: Sequence[Digest], get_chunks: GetChunks) -> None:
        """Marks the chunks of blobs."""
        self.mark_contents(get_chunks(blobs))

    def mark_directories(self, digests: Iterable[Digest], progress: Progress = NO_PROGRESS) -> None:
        """Marks Directories and what they refer to, without recursion."""
        waiting = self._new(digests)
        while waiting:
            part, waiting = waiting[-_AT_ONCE:], waiting[:-_AT_ONCE]
            found = self._get(part)
            self.missing += len(part) - len(found)
            children: list[Digest] = []
            for encoded in found.values():
                below, files = referred_digests(encoded)
                children += below
                self.mark_contents(files)
            progress.advance(len(part))
            waiting += self._new(children)

    def mark_closure(self, root: Digest, encoded: Iterable[bytes]) -> None:
        """Marks a closure that comes as a whole, from where Directories cannot be had one by one; unless it
        was marked before. One of which nothing comes is missing."""
        if root in self.directories:
            return
        closure: list[Digest] = [root]
        is_there = False
        try:
            for directory in encoded:
                is_there = True
                below, files = referred_digests(directory)
                self.mark_contents(files)
                closure += below
        except NotFound:
            is_there = False
        if not is_there:
            self.missing += 1
            return
        # Only now: the contents of what did not come are not marked.
        self._new(closure)

    def close(self) -> None:
        """Lets go of the files."""
        self.directories.close()
        self.contents.close()

    def _new(self, digests: Iterable[Digest]) -> list[Digest]:
        new = self.directories.add_new(digests)
        if new:
            self.see_new(True, new)
        return new
