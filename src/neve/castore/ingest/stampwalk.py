"""A walk that reads no contents: the stamp of a tree on disk, to compare with that of an import."""

from __future__ import annotations

import os
import stat

from neve.castore.ingest.exclude import Exclude
from neve.castore.ingest.filesystem import FilesystemWalk
from neve.castore.ingest.statcache import TreeStamp
from neve.tree import Event


def stamp_tree(path: bytes, *, exclude: Exclude | None = None) -> TreeStamp:
    """The stamp of the tree at ``path`` as it is now, read without its contents."""
    stamp = TreeStamp()
    for _ in _StampWalk(path, exclude=exclude, stamp=stamp):
        pass
    return stamp


class _StampWalk(FilesystemWalk):
    """A walk that looks at files without opening them."""

    def _small_file(self, event_name: bytes, name: bytes, dir_fd: int) -> None:
        try:
            state = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        except OSError as error:
            raise self._os_error(name, error) from error
        if not stat.S_ISREG(state.st_mode):
            raise self._refuse(name, state.st_mode)
        assert self._stamp is not None
        self._stamp.file(event_name, state)

    def _take(self) -> list[Event]:
        self._batch, self._size = [], 0
        return []
