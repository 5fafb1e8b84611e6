"""The tree of all store paths: what lies where, and what is in it, over the services that hold it.

What is asked for comes from what is at hand, or ``NotAtHand`` says what is to be fetched. ``held`` is what
was fetched for the one who asks, so that he gets on, however full the caches are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from neve.castore.blobs.base import BlobService
from neve.castore.digest import Digest
from neve.castore.directories.base import DirectoryService, directory_not_found
from neve.castore.directory import Directory
from neve.castore.node import DirectoryNode, FileNode, Node
from neve.errors import NotFound
from neve.fs.caches import Cache
from neve.fs.contents import Contents
from neve.fs.loads import Far, Held, Loads, NotAtHand, from_held
from neve.fs.roots import RootNodes

CACHED_ENTRIES: Final = 400_000
"""Entries of Directories at hand, some 300 bytes each. One Directory is kept however long it is."""

_CHILDREN_AT_ONCE = 256
_NODES_AHEAD = 64 * 1024
"""Child Directories that are fetched together, by count and by all that is below them: what one answer
makes necessary stays within some 20 MB."""

_BELOW_AT_ONCE = 32
"""Directories that are fetched together, ahead of need."""

_READ_AHEAD_TWICE = 64


class Listing:
    """A Directory, and its entries by position."""

    __slots__ = ("_entries", "directory")

    def __init__(self, directory: Directory) -> None:
        self.directory = directory
        self._entries: list[tuple[bytes, Node]] | None = None

    @property
    def entries(self) -> list[tuple[bytes, Node]]:
        """All of them, in the order of their names."""
        if self._entries is None:
            self._entries = list(self.directory)
        return self._entries

    def __len__(self) -> int:
        return len(self.directory)


class _Below(NamedTuple):
    """The Directories below some others, level by level, with up to so many nodes."""

    digests: tuple[Digest, ...]
    nodes: int


class _Directories:
    """Source of Directories, by digest; and of nothing but a full cache by what lies below some."""

    def __init__(self, service: DirectoryService) -> None:
        self._service = service
        self.cache: Cache[Digest, Listing] = Cache(CACHED_ENTRIES)

    def fetch(self, wanted: Sequence[Digest | _Below]) -> Iterator[tuple[Digest | _Below, Listing | None]]:
        digests = [digest for digest in wanted if isinstance(digest, bytes)]
        if digests:
            yield from self._fetch(digests)
        for below in wanted:
            if isinstance(below, _Below):
                self._fetch_below(below)
                yield below, None

    def _fetch(self, digests: Sequence[Digest]) -> Iterator[tuple[Digest, Listing]]:
        found = self._service.get_many(digests)
        for digest in digests:
            directory = found.get(digest)
            if directory is None:
                raise directory_not_found(digest)
            listing = Listing(directory)
            self.cache.put(digest, listing, len(directory) + 1)
            yield digest, listing

    def _fetch_below(self, below: _Below) -> None:
        left = below.nodes
        known = (self.cache.get(digest) for digest in below.digests)
        level = [listing for listing in known if listing is not None]
        while level and left > 0:
            wanted: dict[Digest, None] = {}
            for listing in level:
                for _, node in listing.directory.directories():
                    if node.digest not in self.cache:
                        wanted[node.digest] = None
            level = []
            for part in _parts(list(wanted)):
                for _, listing in self._fetch(part):
                    left -= len(listing)
                    level.append(listing)
                if left <= 0:
                    return


def _parts(digests: Sequence[Digest]) -> Iterator[Sequence[Digest]]:
    for start in range(0, len(digests), _BELOW_AT_ONCE):
        yield digests[start : start + _BELOW_AT_ONCE]


class _Closures:
    """Source of nothing: lets a service to which every question is far know what will be walked."""

    def __init__(self, service: DirectoryService) -> None:
        self._service = service

    def fetch(self, wanted: Sequence[Digest]) -> Iterator[tuple[Digest, None]]:
        for digest in wanted:
            self._service.read_ahead(digest)
            yield digest, None


class _BelowRoots(Far):
    """Source of Directories that are not found by themselves: by the root of the tree that they are in, and
    their digest. What else comes with that root is at hand then, as far as there is room."""

    def __init__(self, service: DirectoryService, cache: Cache[Digest, Listing]) -> None:
        self._service = service
        self._cache = cache

    @property
    def is_needed(self) -> bool:
        """Whether a Directory that is not found may be there."""
        return not self._service.looks_up_children

    def fetch(self, wanted: Sequence[tuple[Digest, Digest]]) -> Iterator[tuple[object, Listing]]:
        for root in {root: None for root, _ in wanted}:
            missing = {digest for of, digest in wanted if of == root}
            # To the end: so that the service holds all of it, if it holds any.
            for directory in self._service.get_recursive(root):
                listing = Listing(directory)
                self._cache.put(directory.digest, listing, len(directory) + 1)
                if directory.digest in missing:
                    missing.remove(directory.digest)
                    yield (root, directory.digest), listing
            for digest in missing:
                raise directory_not_found(digest)


class _Roots(Far):
    """Source of what lies in the root, by name: a node, or None."""

    def __init__(self, roots: RootNodes) -> None:
        self._roots = roots

    def fetch(self, wanted: Sequence[bytes]) -> Iterator[tuple[bytes, Node | None]]:
        for name in wanted:
            yield name, self._roots.get(name)


class _RootListings(Far):
    """Source of listings of the root: names, and what kind of node each is."""

    def __init__(self, roots: RootNodes) -> None:
        self._roots = roots

    def fetch(self, wanted: Sequence[object]) -> Iterator[tuple[object, list[tuple[bytes, type[Node]]]]]:
        for one in wanted:
            yield one, [(name, type(node)) for name, node in self._roots.list()]


class Tree:
    """Looks up, lists and reads. Thread-safe; the services stay their owner's."""

    def __init__(self, blobs: BlobService, directories: DirectoryService, roots: RootNodes) -> None:
        self._directories = _Directories(directories)
        self._below_roots = _BelowRoots(directories, self._directories.cache)
        self._closures = _Closures(directories)
        self._roots = _Roots(roots)
        self._root_listings = _RootListings(roots)
        self._read_ahead: Cache[Digest, bool] = Cache(_READ_AHEAD_TWICE)
        self.contents = Contents(blobs)
        self.is_near = blobs.looks_up_at_once
        """Whether contents come from this machine: then it takes computing to get them, not waiting."""

    def root(self, name: bytes, held: Held) -> Node | None:
        """What lies in the root under that name. Asked anew each time: it may appear later."""
        node: Node | None = from_held(self._roots, name, held)
        return node

    def root_listing(self, reader: object, held: Held) -> list[tuple[bytes, type[Node]]]:
        """All names in the root and their kinds, as they are now, for one ``reader``."""
        listing: list[tuple[bytes, type[Node]]] = from_held(self._root_listings, reader, held)
        return listing

    def directory(self, digest: Digest, held: Held, root: Callable[[], Digest | None]) -> Listing:
        """The Directory that something refers to; ``root`` tells the root of the tree that it is in, if it is
        below one. Raises ``NotFound`` if it is missing."""
        listing = self._directories.cache.get(digest)
        if listing is not None:
            return listing
        try:
            listing = from_held(self._directories, digest, held)
        except NotFound:
            top = root() if self._below_roots.is_needed else None
            if top is None or top == digest:
                raise
            listing = from_held(self._below_roots, (top, digest), held)
        assert isinstance(listing, Listing)
        return listing

    def known(self, digest: Digest) -> Listing | None:
        """The same, if it is at hand."""
        return self._directories.cache.get(digest)

    def sizes(self, nodes: Sequence[Node], held: Held, below: int) -> list[int | None]:
        """What stat(2) tells as size: of a file its length in bytes, of a symlink that of its target, of a
        directory how many entries it has.

        None for a Directory that is better asked for alone: it is damaged, or so much is below it that
        it may be long. If any must be fetched, so are up to ``below`` nodes below them.
        """
        sizes: list[int | None] = [node[1] if type(node) is FileNode else len(node[0]) for node in nodes]
        wanted: dict[Digest, None] = {}
        fetched = nodes_ahead = 0
        for place, node in enumerate(nodes):
            if type(node) is not DirectoryNode:
                continue
            key = self._directories, node.digest
            known = held.get(key) or self._directories.cache.get(node.digest)
            sizes[place] = len(known) if isinstance(known, Listing) else None
            if key not in held and known is not None:
                continue
            if fetched < _CHILDREN_AT_ONCE and nodes_ahead + node.size <= _NODES_AHEAD:
                fetched += 1
                nodes_ahead += node.size
                if key not in held:
                    wanted[node.digest] = None
        if wanted:
            digests = tuple(wanted)
            raise NotAtHand(self._directories, digests, [_Below(digests, below)])
        return sizes

    def read_ahead(self, digest: Digest, loads: Loads) -> None:
        """Says that a tree is about to be walked."""
        if digest not in self._read_ahead:
            self._read_ahead.put(digest, True, 1)
            loads.fetch_ahead(self._closures, [digest])

    def close(self) -> None:
        """Lets go of open blobs, not of the services."""
        self.contents.close()
