"""The contract of the map between trees and NARs. A backend's tests subclass it and supply ``nar_nodes``."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from neve.castore.node import MAX_SIZE, DirectoryNode, FileNode, Node, SymlinkNode
from neve.errors import InvalidRequest, Unsupported
from neve.store.nar_nodes import Nar, NarNodes

_DIGEST = hashlib.sha256(b"a digest").digest()

NODES: list[Node] = [
    FileNode(_DIGEST, 12),
    FileNode(_DIGEST, 12, executable=True),
    DirectoryNode(_DIGEST, 12),
    SymlinkNode(b"\xfftarget"),
    FileNode(_DIGEST, MAX_SIZE),
]
"""Nodes that differ as little as they can."""


def nar_of(node: Node) -> Nar:
    """A size and a hash that no other node has."""
    return Nar(96 + len(repr(node)), hashlib.sha256(repr(node).encode()).digest())


class NarNodesContract:
    """What every ``NarNodes`` does. One that cannot list says so."""

    can_list = True

    @pytest.fixture
    def nar_nodes(self) -> Iterator[NarNodes]:
        """An empty map."""
        raise NotImplementedError

    def test_absence_is_none(self, nar_nodes: NarNodes) -> None:
        assert nar_nodes.node(bytes(32)) is None
        assert nar_nodes.nar(NODES[0]) is None

    def test_both_directions(self, nar_nodes: NarNodes) -> None:
        for node in NODES:
            nar_nodes.put(node, nar_of(node))
        for node in NODES:
            assert nar_nodes.nar(node) == nar_of(node)
            assert nar_nodes.node(nar_of(node).sha256) == (node, nar_of(node).size)

    def test_the_hash_of_a_compressed_file_leads_there_too(self, nar_nodes: NarNodes) -> None:
        node, nar = NODES[0], nar_of(NODES[0])
        files = [hashlib.sha256(name).digest() for name in (b"xz", b"zstd")]
        nar_nodes.put(node, nar)
        for file in files:
            assert nar_nodes.node(file) is None
            nar_nodes.put(node, nar, file_sha256=file)
        for key in (nar.sha256, *files):
            assert nar_nodes.node(key) == (node, nar.size)
        assert nar_nodes.nar(node) == nar

    def test_an_entry_never_changes(self, nar_nodes: NarNodes) -> None:
        node, nar = NODES[0], nar_of(NODES[0])
        nar_nodes.put(node, nar)
        nar_nodes.put(node, nar)
        nar_nodes.put(NODES[1], Nar(1, nar.sha256))
        nar_nodes.put(node, Nar(1, bytes(32)))
        assert nar_nodes.node(nar.sha256) == (node, nar.size)
        assert nar_nodes.nar(node) == nar

    @pytest.mark.parametrize("size", [0, 31, 33])
    def test_hashes_have_32_bytes(self, nar_nodes: NarNodes, size: int) -> None:
        node, nar = NODES[0], nar_of(NODES[0])
        match = f"has {size} bytes, must have 32"
        with pytest.raises(InvalidRequest, match=match):
            nar_nodes.node(bytes(size))
        with pytest.raises(InvalidRequest, match=match):
            nar_nodes.put(node, Nar(112, bytes(size)))
        with pytest.raises(InvalidRequest, match=match):
            nar_nodes.put(node, nar, file_sha256=bytes(size))
        assert nar_nodes.nar(node) is None
        assert nar_nodes.node(nar.sha256) is None

    @pytest.mark.parametrize("size", [-1, MAX_SIZE + 1])
    def test_sizes_fit_64_bits(self, nar_nodes: NarNodes, size: int) -> None:
        with pytest.raises(InvalidRequest, match=f"{size} does not fit"):
            nar_nodes.put(NODES[0], Nar(size, bytes(32)))
        nar_nodes.put(NODES[0], Nar(MAX_SIZE, bytes(32)))
        assert nar_nodes.nar(NODES[0]) == Nar(MAX_SIZE, bytes(32))

    def test_many_at_once(self, nar_nodes: NarNodes) -> None:
        nar_nodes.put_many([(node, nar_of(node)) for node in NODES])
        nar_nodes.put_many([])
        assert [nar_nodes.nar(node) for node in NODES] == [nar_of(node) for node in NODES]
        assert nar_nodes.node(nar_of(NODES[-1]).sha256) == (NODES[-1], nar_of(NODES[-1]).size)

    def test_listing(self, nar_nodes: NarNodes) -> None:
        nar_nodes.put_many([(node, nar_of(node)) for node in NODES])
        nar_nodes.put(NODES[0], nar_of(NODES[0]), file_sha256=b"f" * 32)
        if not self.can_list:
            with pytest.raises(Unsupported):
                nar_nodes.list_hashes()
            return
        expected = sorted([b"f" * 32, *(nar_of(node).sha256 for node in NODES)])
        assert list(nar_nodes.list_hashes()) == expected
        assert list(nar_nodes.list_hashes(expected[0], 1)) == expected[1:2]
        assert list(nar_nodes.list_hashes(expected[-1])) == []

    def test_threads(self, nar_nodes: NarNodes) -> None:
        def put(i: int) -> None:
            node = NODES[i % len(NODES)]
            nar_nodes.put(node, nar_of(node), file_sha256=hashlib.sha256(b"%d" % i).digest())

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(put, range(64)))
        for i in range(64):
            node = NODES[i % len(NODES)]
            assert nar_nodes.node(hashlib.sha256(b"%d" % i).digest()) == (node, nar_of(node).size)

    def test_closing_twice(self, nar_nodes: NarNodes) -> None:
        nar_nodes.close()
        nar_nodes.close()
