from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from .mounts import Mount, mounting
from .samples import imported, make_tree


class Stored(NamedTuple):
    """A tree on disk, and in a store."""

    tree: Path
    store: str
    base_name: str


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    """One for the tests of a module, which only read it."""
    folder = tmp_path_factory.mktemp("stored")
    tree = make_tree(folder / "tree-1.0")
    store = f"local://{folder}/store"
    return Stored(tree, store, imported(store, tree))


@pytest.fixture(scope="module")
def shared_mount(stored: Stored, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """The stored tree, mounted; for tests that only read it."""
    with mounting(stored.store, tmp_path_factory.mktemp("mounted"), "--list-root") as mount:
        yield mount


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[..., Mount]]:
    """Mounts stores for one test."""
    with ExitStack() as stack:

        def mount(store: str, *options: str, name: str = "mounted", **others: Any) -> Mount:
            return stack.enter_context(mounting(store, tmp_path / name, *options, **others))

        yield mount
