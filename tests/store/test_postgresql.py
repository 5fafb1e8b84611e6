"""What lies beside path infos in a PostgreSQL database."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from neve.registry import parse_address
from neve.store.nar_nodes import NarNodes
from neve.store.postgresql import open_nar_nodes
from neve.testing.nar_nodes import NarNodesContract

pytestmark = pytest.mark.postgresql


class TestNarNodes(NarNodesContract):
    @pytest.fixture
    def nar_nodes(self, database: str) -> Iterator[NarNodes]:
        nar_nodes = open_nar_nodes(parse_address(database))
        yield nar_nodes
        nar_nodes.close()
