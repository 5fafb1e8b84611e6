"""The near part of a cache: a store of contents that no path info reaches, to be bounded and not emptied.

What was stored last stays, as much as fits. When something was read last is not known, so it is no better
than that; but what is read and was dropped comes near once more, and is new then. As packs only grow, a
record's place tells its age, and moving what stays to another pack keeps the order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from neve.castore.blobs.local_write import BLOBS, LIST
from neve.castore.directories.local import DIRECTORIES
from neve.packstore.location import Location
from neve.packstore.store import PackStore
from neve.packstore.survey import record_bytes
from neve.store.gc.contents import PAGE, Contents
from neve.store.gc.digest_set import DigestSet
from neve.store.gc.mark import Marker
from neve.telemetry import NO_PROGRESS, Progress

_PORTION = 20
"""Bits of a place that are not looked at: a mebibyte of a pack stays or goes as a whole."""

_Entry = tuple[bytes, Location]


def keep_latest(packs: PackStore, marker: Marker, limit: int, progress: Progress = NO_PROGRESS) -> None:
    """Marks what was stored last, up to ``limit`` bytes of the packs; of a blob that is stored in chunks all
    of them. Not what Directories refer to: a near part need not have it.
    """
    oldest = _oldest_that_fits(packs, limit, progress)
    for table in (DIRECTORIES, BLOBS):
        marked = marker.directories if table is DIRECTORIES else marker.contents
        for page in _pages(packs, table.id):
            marked.add_new(key for key, location in page if _portion(location) >= oldest)
            progress.advance(0)


def _portion(location: Location) -> int:
    return location.place >> _PORTION


def _pages(packs: PackStore, table: int) -> Iterator[Sequence[_Entry]]:
    after = b""
    while page := packs.index.page(table, after, PAGE):
        after = page[-1][0]
        yield page


def _oldest_that_fits(packs: PackStore, limit: int, progress: Progress) -> int:
    """The portion from which on all stays."""
    sizes: dict[int, float] = {}
    lists: dict[int, list[_Entry]] = {}
    for table in (DIRECTORIES.id, BLOBS.id):
        for page in _pages(packs, table):
            for key, location in page:
                portion = _portion(location)
                sizes[portion] = sizes.get(portion, 0) + record_bytes(key, location)
                if table == BLOBS.id and location.tag == LIST:
                    lists.setdefault(portion, []).append((key, location))
            progress.advance(0)
    oldest, contents, counted = max(sizes, default=0) + 1, Contents(packs), DigestSet()
    left: float = limit
    for portion in sorted(sizes, reverse=True):
        left -= sizes[portion]
        # Chunks may be older than the blob.
        chunks = counted.add_new(contents.chunks_of(lists.get(portion, [])))
        for key, location in packs.find(BLOBS, chunks).items():
            if (older := _portion(location)) < portion:
                size = record_bytes(key, location)
                sizes[older] -= size
                left -= size
        if left < 0:
            break
        oldest = portion
    return oldest
