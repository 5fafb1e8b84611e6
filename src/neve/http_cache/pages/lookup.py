"""What the store knows of a path: its node, what it refers to, who refers to it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from neve.castore.node import DirectoryNode, Node
from neve.castore.traverse import descend
from neve.errors import NeveError, NotFound, Unsupported
from neve.http_cache.pages.referrers import KeptReferrers
from neve.http_cache.pages.text import shown
from neve.http_cache.statuses import far_errors
from neve.nix import base32
from neve.nix.store_path import DIGEST_SIZE, StorePath
from neve.store.path_info import PathDescription, PathInfo
from neve.store.pathinfos.base import PathInfoService
from neve.store.services import Services

_RELATED = 100
"""References, and referrers, on a page: each costs a look at the store."""
_RELATED_SECONDS = 1.0
"""How long a page looks for them; to a backend that is far, a look takes long."""

_LARGE_TREE = 50_000
_ONE_LARGE = threading.Lock()
"""A tree with more nodes may have a Directory that takes 150 MiB as objects (300,000 entries): one of those
is looked at at a time. It keeps the interpreter busy, so nobody would be faster side by side."""

T = TypeVar("T")


class Missing(NotFound):
    """What the address names is not there: the fault of who asks, not of the store."""


@dataclass(frozen=True)
class Part(Generic[T]):
    """One page of a list."""

    items: Sequence[T]
    number: int
    """Of the page, from 1 on."""
    per_page: int
    total: int
    """Items on all pages."""

    @property
    def pages(self) -> int:
        return max(1, -(-self.total // self.per_page))

    @property
    def start(self) -> int:
        """How many items are on the pages before."""
        return (self.number - 1) * self.per_page


def part_bounds(number: int, per_page: int, total: int) -> tuple[int, int]:
    """First and last (exclusive) item of a page. Raises ``Missing`` for a page that there is not."""
    start = (number - 1) * per_page
    if start >= total and number > 1:
        raise Missing(f"there is no page {number:,}")
    return start, min(total, start + per_page)


class Related(NamedTuple):
    """Another store path, as a path's page names it."""

    text: str
    store_path: StorePath | None
    """What to link to, if that is known."""
    search: str | None = None
    """Else, what finds it. None for both: it is not in the store."""


def describe(services: Services, digest: bytes) -> PathInfo | PathDescription | None:
    """What the store, or the cache it fetches from, tells of the path with this digest.

    What either of them says wrong is not the fault of who asks.
    """
    with far_errors():
        return services.path_infos.describe(digest)


def find(services: Services, store_path: StorePath) -> PathInfo | PathDescription:
    """What there is to tell of a path. Raises ``Missing``."""
    found = describe(services, store_path.digest)
    if found is None:
        raise Missing(f"{store_path} is not in this cache")
    if found.store_path != store_path:
        raise Missing(f"{store_path} is not in this cache; the path with this hash is {found.store_path}")
    return found


@contextlib.contextmanager
def looking_into(node: Node) -> Iterator[None]:
    """In the block, Directories of a tree may be held."""
    large = isinstance(node, DirectoryNode) and node.size > _LARGE_TREE
    with _ONE_LARGE if large else contextlib.nullcontext():
        yield


def find_node(services: Services, store_path: StorePath, components: Sequence[bytes]) -> Node:
    """What is at a place below a store path. Raises ``Missing``, also for contents that are elsewhere."""
    found = find(services, store_path)
    if isinstance(found, PathDescription):
        raise Missing(f"the contents of {store_path} have not been fetched into this cache yet")
    with looking_into(found.node):
        node = descend(services.directories, found.node, components)
    if node is None:
        below = shown(b"/".join(components))
        raise Missing(f"{store_path} has nothing at {below}")
    return node


class Neighbours:
    """Looks for store paths that others name, for a second at most.

    What there was no time to look for counts as there: the page it is linked to will tell.
    """

    def __init__(self, path_infos: PathInfoService, seconds: float = _RELATED_SECONDS) -> None:
        self._path_infos = path_infos
        self._deadline = time.monotonic() + seconds

    def named(self, store_path: StorePath, text: str | None = None) -> Related:
        """One of which digest and name are known."""
        found = self._look(store_path.digest)
        absent = found is None or (isinstance(found, StorePath) and found.name != store_path.name)
        return Related(text or store_path.base_name, None if absent else store_path)

    def digest(self, digest: bytes) -> Related:
        """One of which only the digest is known."""
        found = self._look(digest)
        if isinstance(found, StorePath):
            return Related(found.base_name, found)
        text = base32.encode(digest)
        return Related(f"{text}-…", None, None if found is None else text)

    def _look(self, digest: bytes) -> StorePath | NeveError | None:
        """The store path, None if it is not there, an error if that cannot be told."""
        if time.monotonic() >= self._deadline:
            return Unsupported("no time left")
        try:
            found = self._path_infos.describe(digest)
        except NeveError as error:
            return error
        return None if found is None else found.store_path


def references(neighbours: Neighbours, found: PathInfo | PathDescription, number: int) -> Part[Related]:
    """One page of what a path refers to. Raises ``Missing``."""
    if found.nar is not None:
        names = found.nar.reference_names
        start, stop = part_bounds(number, _RELATED, len(names))
        related = [neighbours.named(name) for name in names[start:stop]]
        return Part(related, number, _RELATED, len(names))
    # Without narinfo, references have no names.
    digests = found.references
    start, stop = part_bounds(number, _RELATED, len(digests))
    return Part([neighbours.digest(d) for d in digests[start:stop]], number, _RELATED, len(digests))


def referrers(
    kept: KeptReferrers, neighbours: Neighbours, digest: bytes, number: int
) -> Part[Related] | None:
    """One page of who refers to a path; None if the store cannot tell. Raises ``Missing``."""
    try:
        joined = kept.get(digest)
    except Unsupported:
        return None
    total = len(joined) // DIGEST_SIZE
    start, stop = part_bounds(number, _RELATED, total)
    digests = [joined[i * DIGEST_SIZE : (i + 1) * DIGEST_SIZE] for i in range(start, stop)]
    return Part([neighbours.digest(digest) for digest in digests], number, _RELATED, total)


def deriver(neighbours: Neighbours, found: PathInfo | PathDescription) -> Related | None:
    """The derivation that made a path, if that is known."""
    if found.nar is None or found.nar.deriver is None:
        return None
    model = found.nar.deriver
    try:
        return neighbours.named(model.with_drv())
    except NeveError:  # A name that is too long with its ending, so that no store has it.
        return Related(f"{model.base_name}.drv", None)
