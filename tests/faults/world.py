"""What operations work on: trees, what is known of them, and stores made of them."""

from __future__ import annotations

import os
import random
import sys
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from neve.cli import __main__ as program
from neve.cli import logs
from tests.faults import supervised
from tests.faults.supervised import Fault, Outcome
from tests.soak.trees import archive, nar_hash

LARGE = 5_000_000
"""Bytes of the large file: it has chunks, and makes its session get a pack of its own."""


class Item(NamedTuple):
    """A tree, and what it is in a store."""

    tree: Path
    store_path: str
    nar_hash: str


class World:
    """A folder with all that is the same for each case."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.trees = folder / "trees"
        self._scratch = folder / "scratch"
        self._scratch.mkdir(parents=True)
        for name, seed, size in (("first", 1, 0), ("second", 2, 0), ("large", 3, LARGE), ("third", 4, 0)):
            _make_tree(self.trees / name, seed, size)
        self.items = {tree.name: self._item(tree) for tree in sorted(self.trees.iterdir())}
        self.nar = folder / "second.nar"
        self.nar.write_bytes(b"".join(archive(self.trees / "second")))
        self.tar = folder / "second.tar"
        with tarfile.open(self.tar, "w") as tar:
            tar.add(self.trees / "second", ".")

    def _item(self, tree: Path) -> Item:
        empty = self.folder / "nothing"
        empty.mkdir(exist_ok=True)
        done = self.run(empty, neve("import", "--store", "memory://", tree), watch=False)
        assert done.status == 0, done.errors
        return Item(tree, done.output.strip(), nar_hash(tree))

    def run(
        self, folder: Path, action: Callable[[], int], fault: Fault | None = None, *, watch: bool = True
    ) -> Outcome:
        """Does something to what is in ``folder``, in a process for which nothing else is there."""

        def within() -> int:
            os.environ |= {"HOME": str(folder), "TMPDIR": str(folder / "tmp"), "NEVE_CONFIG": ""}
            os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
            tempfile.tempdir = str(folder / "tmp")
            return action()

        (folder / "tmp").mkdir(exist_ok=True)
        return supervised.run(within, folder, self._scratch, fault, watch=watch)


def neve(*arguments: str | Path) -> Callable[[], int]:
    """The program as an action. What it fails of is told in one more line: the name of the error."""

    def action() -> int:
        logs.failure = told
        return program.main([str(argument) for argument in arguments])

    return action


def told(
    message: str, error: BaseException, tell: Callable[[str, BaseException], None] = logs.failure
) -> None:
    tell(message, error)
    print(f"FAILED {type(error).__module__}.{type(error).__name__}", file=sys.stderr)


def in_turn(actions: Sequence[Callable[[], int]]) -> Callable[[], int]:
    """One after the other, as long as they succeed."""
    return lambda: next((status for action in actions if (status := action())), 0)


def _make_tree(root: Path, seed: int, large: int) -> None:
    """Few files, of every kind; some are in every tree."""
    numbers = random.Random(seed)
    (root / "folder" / "deeper").mkdir(parents=True)
    (root / "empty").mkdir()
    for place in range(6):
        own = numbers if place % 2 else random.Random(place)
        (root / "folder" / f"file-{place}").write_bytes(own.randbytes(own.randrange(40_000)))
    (root / "folder" / "deeper" / "script").write_text(f"#!/bin/sh\necho {seed}\n")
    (root / "folder" / "deeper" / "script").chmod(0o755)
    (root / "nothing").write_bytes(b"")
    (root / "link").symlink_to("folder/file-1")
    # Over 512 KiB: it is cut into chunks.
    (root / "medium").write_bytes(numbers.randbytes(600_000 if large else 10_000))
    if large:
        (root / "large").write_bytes(numbers.randbytes(large))
