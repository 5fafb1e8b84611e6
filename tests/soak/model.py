"""What must be in the store."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Item:
    """A tree, and its path in the store."""

    tree: Path
    store_path: str
    nar_hash: str
    present: bool = False
    """It was acknowledged, and nobody has said since that it may go."""
    users: int = 0
    """Who imports it or looks at it; it must not go meanwhile."""
    dropping: bool = False


class Model:
    """All items. Thread-safe."""

    def __init__(self, items: Sequence[Item]) -> None:
        self.items = items
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def used(self, numbers: random.Random, count: int, *, present: bool) -> Iterator[list[Item]]:
        """Up to ``count`` items that stay during the block; with ``present``, that must be there."""
        with self._lock:
            free = [item for item in self.items if not item.dropping and (item.present or not present)]
            chosen = numbers.sample(free, min(count, len(free)))
            for item in chosen:
                item.users += 1
        try:
            yield chosen
        finally:
            with self._lock:
                for item in chosen:
                    item.users -= 1

    def acknowledge(self, items: Sequence[Item]) -> None:
        """They must be there from now on."""
        with self._lock:
            for item in items:
                item.present = True

    @contextlib.contextmanager
    def dropping(self, numbers: random.Random, count: int) -> Iterator[list[Item]]:
        """Up to ``count`` items that may go during the block: nobody counts on them."""
        with self._lock:
            free = [item for item in self.items if item.present and not item.users and not item.dropping]
            chosen = numbers.sample(free, min(count, len(free)))
            for item in chosen:
                item.dropping, item.present = True, False
        try:
            yield chosen
        finally:
            with self._lock:
                for item in chosen:
                    item.dropping = False

    def present(self) -> list[Item]:
        """Those that must be there."""
        with self._lock:
            return [item for item in self.items if item.present]
