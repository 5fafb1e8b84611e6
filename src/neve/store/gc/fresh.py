"""What must not go because it is fresh: what processes have put, or answered to be there, not long ago.

It is a root like a path that is kept, with all that it refers to. More becomes fresh while a collection goes
on; ``catch_up`` marks that, and is called once more in each sweep, before anything is dropped in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import NamedTuple

from neve.castore.blobs.local_write import BLOBS
from neve.castore.digest import Digest
from neve.castore.directories.local import DIRECTORIES
from neve.nix.store_path import DIGEST_SIZE
from neve.packstore.notes import NotesReader
from neve.store.gc.contents import Contents
from neve.store.gc.mark import Marker
from neve.store.gc.paths import Paths
from neve.store.pathinfos.local import PATH_INFOS

_AT_ONCE = 1000


class News(NamedTuple):
    """Keys that were noted."""

    paths: set[bytes]
    directories: set[Digest]
    blobs: set[Digest]


class Fresh:
    """Reads what has become fresh, and sees to it that it is marked."""

    def __init__(self, contents: Contents, notes: NotesReader) -> None:
        self._contents = contents
        self._notes = notes
        self.marker = Marker(contents.directories)
        self.paths: set[bytes] = set()
        """Paths that were asked for or put; they may be there or not."""
        self.kept: set[bytes] = set()
        """The paths that stay, once they have been chosen."""
        self._all: Paths | None = None
        self._unfollowed: list[Digest] = []
        self.spared: set[Digest] = set()
        """What was marked since the rest was condemned: Directories, blobs and chunks."""

    def chosen(self, paths: Paths, kept: set[bytes]) -> None:
        """From now on what is fresh is added to ``kept``."""
        self._all = paths
        self.kept = kept

    def condemned(self) -> None:
        """From now on what is marked is noted as ``spared``."""
        self.marker.see_new = self._spare

    def _spare(self, directories: bool, digests: Sequence[Digest]) -> None:
        self.spared.update(digests)
        if not directories:
            self._unfollowed += digests

    def read(self) -> News:
        """What has become fresh since the last call."""
        news = self._notes.news()
        paths = {key[:DIGEST_SIZE] for key in news.get(PATH_INFOS.id, ())}
        self.paths |= paths
        return News(paths, news.get(DIRECTORIES.id, set()), news.get(BLOBS.id, set()))

    def mark(self, news: News) -> None:
        """Marks it, and all that it refers to."""
        self.keep_paths(news.paths)
        missing = self.marker.missing
        # Some of it is about to be stored, and nothing is missing where it is not there yet.
        self.marker.mark_directories(news.directories)
        self.marker.missing = missing
        self.marker.mark_contents(news.blobs)
        # The chunks of what was marked before the rest was condemned are marked with those of all others.
        blobs, self._unfollowed = self._unfollowed, []
        self.marker.mark_contents(self._contents.chunks(blobs))
        self._unfollowed = []

    def catch_up(self) -> int:
        """Reads and marks; returns how much is new."""
        news = self.read()
        self.mark(news)
        return sum(map(len, news))

    def keep_paths(self, digests: Iterable[bytes]) -> None:
        """Keeps paths after all, as far as they are there, with all that they refer to."""
        if self._all is None:
            return
        digests = list(digests)
        # Those that are kept already may have been replaced since.
        waiting = [*self._all.closure(digests, self.kept), *digests]
        while waiting:
            part, waiting = waiting[:_AT_ONCE], waiting[_AT_ONCE:]
            found = self._contents.path_infos(part)
            self.marker.mark([info.node for info in found])
            # One that was put since all paths were looked at refers to what nobody has kept for it so far.
            waiting += self._all.closure(chain.from_iterable(info.references for info in found), self.kept)
