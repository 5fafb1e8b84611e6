"""What is at a place of a store path, as its page shows it: a listing, a preview, a target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from neve.castore.blobs.base import BlobService
from neve.castore.digest import format_digest
from neve.castore.directories.base import DirectoryService
from neve.castore.node import DirectoryNode, FileNode, Node, SymlinkNode
from neve.castore.traverse import get_directory, large_file
from neve.http_cache.pages.locations import Links, resolved
from neve.http_cache.pages.lookup import Part, find_node, looking_into, part_bounds
from neve.http_cache.pages.text import PREVIEW_BYTES, decoded, honest, shown
from neve.nix.store_path import StorePath
from neve.store.services import Services

ENTRIES = 500
"""Entries of a directory on a page: some hundred kilobytes of HTML."""


@dataclass(frozen=True)
class Entry:
    """One line of a listing."""

    name: str
    kind: str
    """``directory``, ``file``, ``program`` or ``symlink``."""
    href: str
    size: int | None = None
    """Bytes of a file."""
    target: str | None = None
    """Of a symlink."""
    target_href: str | None = None
    """None where it leaves the store."""


@dataclass(frozen=True)
class Contents:
    """What is there; of the last four, those that its ``kind`` has."""

    kind: str
    digest: str | None = None
    size: int | None = None
    raw: str | None = None
    listing: Part[Entry] | None = None
    preview: str | None = None
    """Text that the file begins with; None if it is no text."""
    cut: bool = False
    """Whether more follows than the preview shows."""
    target: str | None = None
    target_href: str | None = None


@dataclass(frozen=True)
class Place:
    """A place in the store, and the links of the page that shows it."""

    store_path: StorePath
    components: tuple[bytes, ...]
    links: Links

    def target_href(self, name: Sequence[bytes], target: bytes) -> str | None:
        """The page that a symlink at ``name`` below this place leads to."""
        where = resolved(self.store_path, (*self.components, *name), target)
        return None if where is None else self.links.path(*where)


def contents_at(services: Services, place: Place, number: int) -> Contents:
    """What is at a place; of a directory, page ``number``.

    Raises ``Missing``, and what the store raises for objects that are missing or damaged.
    """
    node = find_node(services, place.store_path, place.components)
    if isinstance(node, FileNode):
        return _file(services.blobs, place, node)
    if isinstance(node, SymlinkNode):
        href = place.target_href((), node.target)
        return Contents("symlink", target=shown(node.target), target_href=href)
    with looking_into(node):
        listing = _listing(services.directories, place, node, number)
    return Contents("directory", format_digest(node.digest), listing=listing)


def _listing(directories: DirectoryService, place: Place, node: DirectoryNode, number: int) -> Part[Entry]:
    """One page of a directory. The Directory itself, which may be large, is let go."""
    directory = get_directory(directories, node.digest)
    start, stop = part_bounds(number, ENTRIES, len(directory))
    entries = [_entry(place, name, child) for name, child in islice(directory, start, stop)]
    return Part(entries, number, ENTRIES, len(directory))


def head_of(blobs: BlobService, node: FileNode) -> bytes:
    """The beginning of a file, as much as tells whether it is text. Raises like ``large_file``."""
    return b"".join(large_file(blobs, node, 0, PREVIEW_BYTES))


def text_of(head: bytes, node: FileNode) -> str | None:
    """The beginning of a file as text, or None if it is no text."""
    return decoded(head, whole=len(head) == node.size)


def _file(blobs: BlobService, place: Place, node: FileNode) -> Contents:
    text = text_of(head_of(blobs, node), node)
    return Contents(
        kind_of(node),
        format_digest(node.digest),
        node.size,
        place.links.raw(place.store_path, place.components),
        preview=None if text is None else honest(text),
        cut=node.size > PREVIEW_BYTES,
    )


def _entry(place: Place, name: bytes, node: Node) -> Entry:
    href = place.links.path(place.store_path, (*place.components, name))
    text, kind = shown(name), kind_of(node)
    if isinstance(node, FileNode):
        return Entry(text, kind, href, node.size)
    if isinstance(node, SymlinkNode):
        target_href = place.target_href((name,), node.target)
        return Entry(text, kind, href, None, shown(node.target), target_href)
    return Entry(text, kind, href)


def kind_of(node: Node) -> str:
    """The word for it, as ``Entry.kind`` has it."""
    if isinstance(node, DirectoryNode):
        return "directory"
    if isinstance(node, SymlinkNode):
        return "symlink"
    return "program" if node.executable else "file"
