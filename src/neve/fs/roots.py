"""The root of the file system: names, and the nodes behind them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from neve.castore.node import Node


class RootNodes(Protocol):
    """What lies in the root. Called from several threads, and each call may take long.

    Failures are errors of ``neve.errors``; None means "not there".
    """

    def get(self, name: bytes) -> Node | None:
        """The node of that name: for store paths, the base name."""

    def list(self) -> Iterator[tuple[bytes, Node]]:
        """All names and nodes, in any order. May be ``Unsupported``."""
