"""Stores with trees in them, and what of those is there."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import neve
from neve.library import Store
from neve.nix.store_path import StorePath
from neve.store.check import verify_store
from neve.store.gc.collect import collect_garbage
from neve.store.gc.report import GcReport
from neve.store.gc.rules import Rules
from neve.store.importer import ImportOptions
from neve.store.path_info import PathInfo


def make_tree(root: Path, number: int, *, files: int = 40) -> Path:
    """A tree that shares half of its files with those of other numbers; one file is in chunks."""
    for i in range(files):
        noise = random.Random(i if i % 2 else i + 1000 * number)
        folder = root / f"d{i % 5}" / f"e{i % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"file-{i}").write_bytes(noise.randbytes(noise.randrange(1, 9000)))
    noise = random.Random(number)
    (root / "large").write_bytes(random.Random(0).randbytes(600_000) + noise.randbytes(600_000))
    (root / "link").symlink_to("large")
    return root


@contextmanager
def opened(folder: Path) -> Iterator[Store]:
    with neve.open(f"local://{folder}") as store:
        yield store


def imported(folder: Path, trees: Path, numbers: Sequence[int]) -> list[PathInfo]:
    """The path infos of trees, imported one after the other."""
    found = []
    with opened(folder) as store:
        for number in numbers:
            tree = make_tree(trees / str(number), number)
            found.append(store.import_path(tree, ImportOptions(name=f"tree-{number}")))
    return found


def collect(store: Store, **rules: object) -> GcReport:
    return collect_garbage(store.services, Rules(**rules))  # type: ignore[arg-type]


def paths(store: Store) -> set[StorePath]:
    return {info.store_path for info in store.path_infos}


def counts(store: Store) -> tuple[int, int]:
    """Blobs with chunks, and Directories."""
    packs = store.services.packs
    assert packs is not None
    return packs.index.count(1), packs.index.count(2)


def check(store: Store) -> None:
    """Everything that shows is whole, to the last byte."""
    problems = verify_store(store.services, nar_hashes=True).problems
    assert problems == []
