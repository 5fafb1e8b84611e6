"""The parts of a store that does not lie in one folder: what a collection may drop from each of its services.

A part is either *aged*: a bucket, a database, whose writers keep fresh what they count on
(``neve.castore.ages``); what is young by its stamp stays. Or it is *local*: an embedded store that has this
kind of objects; what processes have noted stays (``neve.packstore.uses``). Each object counts for itself:
writers of such stores ask for all that they need, and not only for the root of it.
"""

from __future__ import annotations

import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, NamedTuple, Protocol

from neve.castore.ages import SLACK
from neve.castore.blobs.base import BlobService
from neve.castore.blobs.local import LocalBlobService
from neve.castore.blobs.local_write import BLOB, BLOBS, CHUNK, LIST
from neve.castore.directories.base import DirectoryService
from neve.castore.directories.local import DIRECTORIES, LocalDirectoryService
from neve.errors import Unavailable, Unsupported
from neve.nix.store_path import DIGEST_SIZE
from neve.packstore.gate import collection_lock
from neve.packstore.index_writer import IndexWriter
from neve.packstore.notes import NotesReader
from neve.packstore.reserve import reserve_at_hand
from neve.packstore.store import PackStore, Table
from neve.store.gc.rules import Rules
from neve.store.pathinfos.base import PathInfoService
from neve.store.pathinfos.local import PATH_INFOS, LocalPathInfoService
from neve.telemetry import LOGGER

PAGE = 1000
"""Objects in a page of a listing, and in one deletion: what buckets and databases like."""

ListPage = Callable[[bytes, int], Sequence[tuple[Any, ...]]]
"""A page of a listing with ages: digest, age, and of blobs whether it is known to be in one piece."""


class Delete(Protocol):
    """``delete_many`` of a service that tells ages."""

    def __call__(self, digests: Sequence[bytes], *, unused_for: float | None) -> int: ...


class Item(NamedTuple):
    """An object in a part."""

    digest: bytes
    is_old: bool
    """It is not fresh."""
    in_chunks: bool | None
    """Whether it is a blob that is stored in chunks; None: that is not known."""


class Part(ABC):
    """One kind of objects in one service, for the time of a collection."""

    reads_freshen = False
    """Whether looking at an object may make it fresh for others, too."""

    @abstractmethod
    def pages(self) -> Iterator[Sequence[Item]]:
        """All of its objects, a page at a time."""

    @abstractmethod
    def fresh(self) -> Iterator[Sequence[bytes]]:
        """Those that must not go though nothing refers to them, as far as that is known now; a portion at a
        time. They may be there or not."""

    def late(self) -> AbstractSet[bytes]:
        """What is fresh and may have become so after its page came by, as far as it does not keep its own
        chunks fresh."""
        return frozenset()

    def undisturbed(self) -> contextlib.AbstractContextManager[None]:
        """Within the block nothing more becomes fresh, where that can be had."""
        return contextlib.nullcontext()

    @abstractmethod
    def delete(self, digests: Sequence[bytes]) -> int:
        """Deletes objects that have not become fresh meanwhile; returns how many."""


class AgedPart(Part):
    """Of a service that tells ages. ``grace``: for so many seconds, back from now, what was used is fresh."""

    reads_freshen = True

    def __init__(self, list_page: ListPage, delete: Delete, grace: float) -> None:
        self._list_page = list_page
        self._delete = delete
        self._grace = grace
        self._began = time.monotonic()

    def _unused_for(self) -> float:
        """What counts is the age at the beginning: what was registered later was not marked."""
        return self._grace + time.monotonic() - self._began

    def pages(self) -> Iterator[Sequence[Item]]:
        after = b""
        while True:
            unused_for = self._unused_for()
            page = self._list_page(after, PAGE)
            if not page:
                return
            yield [Item(one[0], one[1] >= unused_for, None if not any(one[2:]) else False) for one in page]
            after = page[-1][0]

    def fresh(self) -> Iterator[Sequence[bytes]]:
        return ([one.digest for one in page if not one.is_old] for page in self.pages())

    def delete(self, digests: Sequence[bytes]) -> int:
        return self._delete(digests, unused_for=self._unused_for()) if digests else 0


class LocalUse:
    """One embedded store that has some of the objects: the lock of its collection, and its notes."""

    def __init__(self, packs: PackStore, notes: NotesReader) -> None:
        self.packs = packs
        self._notes = notes
        self._noted: dict[int, set[bytes]] = {}

    def noted(self, table: Table) -> AbstractSet[bytes]:
        """The keys that were noted up to now; the set goes on growing."""
        for number, keys in self._notes.news().items():
            size = DIGEST_SIZE if number == PATH_INFOS.id else None
            self._noted.setdefault(number, set()).update(key[:size] for key in keys)
        return self._noted.setdefault(table.id, set())


class LocalPart(Part):
    """Of an embedded store."""

    def __init__(self, use: LocalUse, table: Table, tag: int | None = None) -> None:
        """``tag``: of the table, only those records."""
        self._use = use
        self._table = table
        self._tag = tag

    def pages(self) -> Iterator[Sequence[Item]]:
        after = b""
        while page := self._use.packs.page(self._table, after, PAGE):
            after = page[-1][0]
            noted = self._use.noted(self._table)
            yield [
                Item(key, key not in noted, location.tag == LIST)
                for key, location in page
                if self._tag in (None, location.tag)
            ]

    def fresh(self) -> Iterator[Sequence[bytes]]:
        return iter([list(self._use.noted(self._table))])

    def late(self) -> AbstractSet[bytes]:
        return frozenset(self._use.noted(self._table))

    def undisturbed(self) -> contextlib.AbstractContextManager[None]:
        return self._use.packs.uses.sweeping()

    def delete(self, digests: Sequence[bytes]) -> int:
        if not digests:
            return 0
        packs, table = self._use.packs, self._table
        with self.undisturbed():
            noted = self._use.noted(table)
            located = packs.find(table, [digest for digest in digests if digest not in noted])
            # Of contents only the index forgets; see ``sweep``.
            contents = [key for key, found in located.items() if table is BLOBS and found.tag != LIST]
            others = [key for key in located if table is not BLOBS or located[key].tag == LIST]
            if others:
                packs.delete_many(table, others)
            packs.index.run(lambda txn: _forget(txn, table.id, contents))
            return len(located)


def _forget(txn: IndexWriter, table: int, keys: Sequence[bytes]) -> None:
    for key in keys:
        txn.delete(table, key)


class Parts:
    """All parts of a store, from the beginning of a collection to its end. Raises ``Unsupported``."""

    def __init__(
        self,
        blobs: BlobService,
        directories: DirectoryService,
        path_infos: PathInfoService,
        rules: Rules,
        held: contextlib.ExitStack,
    ) -> None:
        """``held`` gets what ends with the collection."""
        self._rules = rules
        self._held = held
        self.uses: dict[int, LocalUse] = {}
        """The embedded stores among them."""
        self._check(blobs, directories, path_infos)
        if rules.aged_grace <= 2 * SLACK and (blobs.tells_ages or directories.tells_ages):
            LOGGER.warning("with a grace of less than two hours nobody may be uploading now")
        aged = self._aged
        if isinstance(blobs, LocalBlobService):
            use = self._use(blobs.store)
            self.blobs: Part = LocalPart(use, BLOBS, LIST)
            self.whole_blobs: Part | None = LocalPart(use, BLOBS, BLOB)
            self.chunks: Part = LocalPart(use, BLOBS, CHUNK)
        else:
            self.blobs = aged(blobs.list_with_ages, blobs.delete_many)
            self.whole_blobs = None
            self.chunks = aged(blobs.list_chunks_with_ages, blobs.delete_chunks)
        if isinstance(directories, LocalDirectoryService):
            self.directories: Part = LocalPart(self._use(directories.store), DIRECTORIES)
        else:
            self.directories = aged(directories.list_with_ages, directories.delete_many)
        if isinstance(path_infos, LocalPathInfoService):
            self.paths: Part | None = LocalPart(self._use(path_infos.store), PATH_INFOS)
        else:
            self.paths = None
            if path_infos.tells_ages:
                self.paths = aged(path_infos.list_with_ages, path_infos.delete_many)

    def _check(self, blobs: BlobService, directories: DirectoryService, paths: PathInfoService) -> None:
        for what, service, local in (
            ("blobs", blobs, isinstance(blobs, LocalBlobService)),
            ("Directories", directories, isinstance(directories, LocalDirectoryService)),
        ):
            if not (local or service.tells_ages):
                raise Unsupported(
                    f"{type(service).__name__} does not tell when its {what} were stored, so what others are "
                    "just uploading could go; name a server by its administration address, of a cache the "
                    "near part, else the services behind it"
                )
        known = isinstance(paths, LocalPathInfoService) or paths.tells_ages
        if self._rules.drops_paths and not known:
            raise Unsupported(
                f"{type(paths).__name__} does not tell when its path infos were stored, so no store path can "
                "be dropped there; without --keep only what none reaches goes"
            )

    def _aged(self, list_page: ListPage, delete: Delete) -> AgedPart:
        return AgedPart(list_page, delete, self._rules.aged_grace)

    def _use(self, packs: PackStore) -> LocalUse:
        if id(packs) not in self.uses:
            self._held.enter_context(reserve_at_hand(packs.path))
            self._held.enter_context(collection_lock(packs.path))
            with packs.uses.sweeping(begins=True):
                notes = NotesReader(packs.path, self._rules.local_grace)
            if not notes.is_certain:
                raise uncertain(packs)
            # What is looked at from here on is nobody's use.
            self._held.enter_context(packs.only_looking())
            self.uses[id(packs)] = LocalUse(packs, notes)
        return self.uses[id(packs)]


def uncertain(packs: PackStore) -> Unavailable:
    """The error for a store of which it is not known what clients count on."""
    return Unavailable(
        f"the machine went down while {packs.path} was served, so it is not known what clients count "
        "on; wait until the grace is over, or allow none with --grace 0 if nobody is uploading"
    )
