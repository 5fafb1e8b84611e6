"""Marking what can be reached, in services that are no embedded store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from neve.castore.blobs.memory import MemoryBlobService
from neve.castore.digest import Digest, b3_digest
from neve.castore.directories.memory import MemoryDirectoryService
from neve.castore.directory import Directory
from neve.castore.node import DirectoryNode, FileNode, SymlinkNode
from neve.errors import Corrupt
from neve.store.gc.mark import Marker


class Stored:
    """Directories in memory, as a backend gives them."""

    def __init__(self) -> None:
        self.directories = MemoryDirectoryService()
        self.blobs = MemoryBlobService()
        self.asked: list[Digest] = []

    def get(self, digests: Sequence[Digest]) -> Mapping[Digest, bytes]:
        self.asked += digests
        found = self.directories.get_many(digests)
        return {digest: directory.encode() for digest, directory in found.items()}

    def put(self, entries: dict[bytes, DirectoryNode | FileNode | SymlinkNode]) -> DirectoryNode:
        directory = Directory(entries)
        return DirectoryNode(self.directories.put(directory), directory.size())


def file(contents: bytes) -> FileNode:
    return FileNode(b3_digest(contents), len(contents))


def test_all_that_is_reached_is_marked_once() -> None:
    stored = Stored()
    shared = stored.put({b"s": file(b"shared")})
    left = stored.put({b"a": file(b"a"), b"down": shared, b"link": SymlinkNode(b"a")})
    root = stored.put({b"left": left, b"right": shared, b"z": file(b"a")})
    stored.put({b"other": file(b"other")})
    marker = Marker(stored.get)
    marker.mark([root, file(b"alone"), SymlinkNode(b"x"), left])
    assert all(node.digest in marker.directories for node in (root, left, shared))
    assert all(b3_digest(data) in marker.contents for data in (b"a", b"shared", b"alone"))
    assert marker.count == 6
    assert len(stored.asked) == 3
    marker.mark([root])
    assert len(stored.asked) == 3


def test_many_levels_and_many_children() -> None:
    stored = Stored()
    node = stored.put({b"f": file(b"bottom")})
    for _ in range(2000):
        node = stored.put({b"d": node})
    wide = stored.put({b"%d" % i: stored.put({b"f": file(b"%d" % i)}) for i in range(1000)})
    marker = Marker(stored.get)
    marker.mark([node, wide])
    assert len(marker.directories) == 3002
    assert len(marker.contents) == 1001


def test_what_is_missing_is_counted() -> None:
    stored = Stored()
    root = stored.put({b"gone": DirectoryNode(b3_digest(b"gone"), 0), b"f": file(b"f")})
    marker = Marker(stored.get)
    marker.mark([root])
    assert marker.missing == 1
    assert b3_digest(b"f") in marker.contents


def test_who_looks_sees_what_is_new() -> None:
    stored = Stored()
    root = stored.put({b"f": file(b"f")})
    seen: list[tuple[bool, list[Digest]]] = []
    marker = Marker(stored.get, lambda directories, digests: seen.append((directories, list(digests))))
    marker.mark([root])
    assert seen == [(True, [root.digest]), (False, [b3_digest(b"f")])]
    marker.mark_contents([b3_digest(b"f"), b3_digest(b"g")])
    assert seen[2:] == [(False, [b3_digest(b"g")])]


def test_damage_is_not_passed_over() -> None:
    def get(digests: Sequence[Digest]) -> Mapping[Digest, bytes]:
        raise Corrupt("damaged")

    with pytest.raises(Corrupt):
        Marker(get).mark_directories([bytes(32)])
