"""The contract of ``NarNodes``, for memory and the embedded store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from neve.errors import Corrupt
from neve.packstore.frames import Record
from neve.packstore.store import PackStore
from neve.store.nar_nodes import NAR_NODES, LocalNarNodes, MemoryNarNodes, NarNodes
from neve.testing.nar_nodes import NODES, NarNodesContract, nar_of


class TestMemory(NarNodesContract):
    @pytest.fixture
    def nar_nodes(self) -> Iterator[NarNodes]:
        nar_nodes = MemoryNarNodes()
        yield nar_nodes
        nar_nodes.close()


class TestLocal(NarNodesContract):
    @pytest.fixture
    def nar_nodes(self, tmp_path: Path) -> Iterator[NarNodes]:
        nar_nodes = LocalNarNodes(PackStore.open(tmp_path / "store"))
        yield nar_nodes
        nar_nodes.close()


def test_entries_outlive_the_process(tmp_path: Path) -> None:
    node, nar = NODES[2], nar_of(NODES[2])
    nar_nodes = LocalNarNodes(PackStore.open(tmp_path / "store"))
    nar_nodes.put(node, nar, file_sha256=bytes(32))
    nar_nodes.close()
    nar_nodes = LocalNarNodes(PackStore.open(tmp_path / "store", read_only=True))
    assert nar_nodes.nar(node) == nar
    assert nar_nodes.node(bytes(32)) == (node, nar.size)
    nar_nodes.close()


def test_a_damaged_entry_is_told(tmp_path: Path) -> None:
    store = PackStore.open(tmp_path / "store")
    store.stage(NAR_NODES, [Record(1, b"h" + bytes(32), bytes(8) + b"\xff")], store.writer.begin())
    store.writer.commit()
    nar_nodes = LocalNarNodes(store)
    with pytest.raises(Corrupt, match="00000000 is invalid"):
        nar_nodes.node(bytes(32))
    nar_nodes.close()
