"""The tree of all store paths: what lies where, over the services that hold it."""

from __future__ import annotations

from neve.castore.blobs.base import BlobService
from neve.castore.directories.base import DirectoryService
from neve.fs.roots import RootNodes


class Tree:
    """Looks up, lists and reads. Thread-safe; the services stay their owner's."""

    def __init__(self, blobs: BlobService, directories: DirectoryService, roots: RootNodes) -> None:
        self.blobs = blobs
        self.directories = directories
        self.roots = roots
