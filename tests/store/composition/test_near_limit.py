"""A near store in front of one that is far away stays as small as it is told, and nothing is lost by that."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from neve.library import Store, open_store
from neve.packstore.uses import lasting_uses
from neve.store.composition import BLOBS, KINDS, parse
from neve.store.path_info import PathInfo
from neve.testing.blob_reading import incompressible

KIB = 1024
SIZE = 100 * KIB
LIMIT = 6 * SIZE
"""Of the contents of 12 paths."""


@pytest.fixture
def far(tmp_path: Path) -> str:
    return f"local://{tmp_path}/far"


@pytest.fixture
def paths(tmp_path: Path, far: str) -> list[PathInfo]:
    """What is far: paths that share nothing."""
    with open_store(far) as store:
        found = []
        for number in range(12):
            folder = tmp_path / f"tree-{number}"
            folder.mkdir()
            (folder / "file").write_bytes(incompressible(SIZE, number))
            found.append(store.import_path(folder))
        return found


def cache(tmp_path: Path, far: str, near_kinds: Sequence[str]) -> str:
    near = {kind: f"local://{tmp_path}/near" if kind in near_kinds else "memory://" for kind in KINDS}
    return "".join(f'[{kind}.root]\ntype = "cache"\nnear = "{near[kind]}"\nfar = "{far}"\n' for kind in KINDS)


@pytest.fixture
def store(request: pytest.FixtureRequest, tmp_path: Path, far: str) -> Iterator[Store]:
    """One that a server has open: it goes on while others collect what is near."""
    text = cache(tmp_path, far, request.param)
    with lasting_uses(), open_store(composition=parse(text, "near.toml")) as opened:
        yield opened


def collect(tmp_path: Path) -> None:
    """What the timer does."""
    options = ["--store", f"local://{tmp_path}/near", "--max-size", str(LIMIT), "--grace", "0s"]
    subprocess.run([sys.executable, "-m", "neve.cli", "gc", *options], check=True, capture_output=True)


def on_disk(tmp_path: Path) -> int:
    return sum(file.stat().st_size for file in (tmp_path / "near/packs").iterdir())


def read(store: Store, paths: Sequence[PathInfo]) -> None:
    for path in paths:
        assert store.path_infos.get(path.digest) == path
        assert len(b"".join(store.nar(path.store_path))) > SIZE


@pytest.mark.parametrize(
    "store", [KINDS, KINDS[:2], (BLOBS,)], indirect=True, ids=["all", "contents", "blobs"]
)
def test_near_stays_within_its_size(store: Store, paths: list[PathInfo], tmp_path: Path) -> None:
    """Also where no path infos are near."""
    for _ in range(2):
        read(store, paths)
        # More than once: what has just been written to stays until the next time.
        for _ in range(2):
            read(store, paths[:2])
            collect(tmp_path)
        assert on_disk(tmp_path) <= LIMIT + 2 * SIZE
    read(store, paths)


@pytest.mark.parametrize("store", [KINDS], indirect=True, ids=["all"])
def test_what_was_used_last_stays_near(store: Store, paths: list[PathInfo], tmp_path: Path) -> None:
    read(store, paths)
    collect(tmp_path)
    with open_store(f"local://{tmp_path}/near?mode=ro") as near:
        there = list(near.path_infos)
        assert 0 < len(there) <= LIMIT // SIZE
        read(near, there)
