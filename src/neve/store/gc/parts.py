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

from neve.castore.ages import MIN_GRACE, Aged
from neve.castore.blobs.base import BlobService
from neve.castore.blobs.local import LocalBlobService
from neve.castore.blobs.local_write import BLOBS, CHUNK, LIST
from neve.castore.directories.base import DirectoryService
from neve.castore.directories.local import DIRECTORIES, LocalDirectoryService
from neve.errors import Unavailable, Unsupported
from neve.nix.store_path import DIGEST_SIZE
from neve.packstore.gate import collection_lock
from neve.packstore.index_writer import IndexWriter
from neve.packstore.notes import NotesReader
from neve.packstore.reserve import reserve_at_hand
from neve.packstore.store import PackStore, Table, TableTransaction
from neve.store.gc.rules import Rules
from neve.store.pathinfos.base import PathInfoService
from neve.store.pathinfos.local import PATH_INFOS, LocalPathInfoService
from neve.telemetry import LOGGER

PAGE = 1000
"""Objects in a page of a listing, and in one deletion: what buckets and databases like."""

ListPage = Callable[[bytes, int], Sequence[Aged]]


class Part(ABC):
    """One kind of objects in one service, for the time of a collection."""

    @abstractmethod
    def pages(self) -> Iterator[Sequence[Aged]]:
        """All of its objects, a page at a time."""

    @abstractmethod
    def fresh(self) -> Iterator[Sequence[bytes]]:
        """Those that must not go though nothing refers to them, as far as that is known now; a portion at a
        time. They may be there or not."""

    def late(self) -> AbstractSet[bytes]:
        """What is fresh and may have become so after its page came by, as far as it does not keep its own
        chunks fresh."""
        return frozenset()

    @abstractmethod
    def old(self, page: Sequence[Aged]) -> list[Aged]:
        """Those of a page that are not fresh."""

    def undisturbed(self) -> contextlib.AbstractContextManager[None]:
        """Within the block nothing more becomes fresh, where that can be had."""
        return contextlib.nullcontext()

    @abstractmethod
    def delete(self, old: Sequence[Aged]) -> int:
        """Deletes objects that have not become fresh meanwhile; returns how many."""


class AgedPart(Part):
    """Of a service that tells ages. What is younger than ``cutoff`` (seconds since 1970) is fresh."""

    def __init__(
        self, list_page: ListPage, delete: Callable[[Sequence[Aged]], int] | None, cutoff: float
    ) -> None:
        self._list_page = list_page
        self._delete = delete
        self._cutoff = cutoff

    def pages(self) -> Iterator[Sequence[Aged]]:
        after = b""
        while page := self._list_page(after, PAGE):
            yield page
            after = page[-1].digest

    def fresh(self) -> Iterator[Sequence[bytes]]:
        return ([one.digest for one in page if one.stamp >= self._cutoff] for page in self.pages())

    def old(self, page: Sequence[Aged]) -> list[Aged]:
        return [one for one in page if one.stamp < self._cutoff]

    def delete(self, old: Sequence[Aged]) -> int:
        assert self._delete is not None
        return self._delete(old) if old else 0


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

    def __init__(self, use: LocalUse, table: Table, *, chunks: bool = False) -> None:
        self._use = use
        self._table = table
        self._chunks = chunks

    def pages(self) -> Iterator[Sequence[Aged]]:
        after = b""
        while page := self._use.packs.page(self._table, after, PAGE):
            after = page[-1][0]
            yield [
                Aged(key, 0, location.tag == LIST, location.tag == CHUNK)
                for key, location in page
                if self._table is not BLOBS or (location.tag == CHUNK) == self._chunks
            ]

    def fresh(self) -> Iterator[Sequence[bytes]]:
        return iter([list(self._use.noted(self._table))])

    def late(self) -> AbstractSet[bytes]:
        return frozenset(self._use.noted(self._table))

    def old(self, page: Sequence[Aged]) -> list[Aged]:
        noted = self._use.noted(self._table)
        return [one for one in page if one.digest not in noted]

    def undisturbed(self) -> contextlib.AbstractContextManager[None]:
        return self._use.packs.uses.sweeping()

    def delete(self, old: Sequence[Aged]) -> int:
        packs, table = self._use.packs, self._table
        if not old:
            return 0

        def contents(txn: IndexWriter) -> int:
            # Of contents only the index forgets; see ``sweep``.
            gone = [one.digest for one in self.old(old) if not one.is_list]
            for digest in gone:
                txn.delete(table.id, digest)
            return len(gone)

        def others(transaction: TableTransaction) -> int:
            gone = [one for one in self.old(old) if one.is_list or table is not BLOBS]
            return sum(transaction.delete(table, one.digest) for one in gone)

        with self.undisturbed():
            count = 0
            if table is not BLOBS or any(one.is_list for one in old):
                count += packs.update(others)
            if table is BLOBS:
                count += packs.index.run(contents)
            return count


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
        # Whatever becomes fresh from here on is younger.
        self._cutoff = time.time() - rules.aged_grace
        aged = self._aged
        if isinstance(blobs, LocalBlobService):
            use = self._use(blobs.store)
            self.blobs: Part = LocalPart(use, BLOBS)
            self.chunks: Part = LocalPart(use, BLOBS, chunks=True)
        else:
            self.blobs = aged(blobs.list_aged, blobs.delete_aged)
            self.chunks = aged(lambda a, n: blobs.list_aged(a, n, chunks=True), blobs.delete_aged)
        if isinstance(directories, LocalDirectoryService):
            self.directories: Part = LocalPart(self._use(directories.store), DIRECTORIES)
        else:
            self.directories = aged(directories.list_aged, directories.delete_aged)
        if isinstance(path_infos, LocalPathInfoService):
            self.paths: Part | None = LocalPart(self._use(path_infos.store), PATH_INFOS)
        else:
            self.paths = aged(path_infos.list_aged) if path_infos.tells_ages else None

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

    def _aged(self, list_page: ListPage, delete: Callable[[Sequence[Aged]], int] | None = None) -> AgedPart:
        if self._rules.aged_grace < MIN_GRACE:
            LOGGER.warning(
                "what was stored %g hours ago may go: nobody may be uploading now",
                self._rules.aged_grace / 3600,
            )
        return AgedPart(list_page, delete, self._cutoff)

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
