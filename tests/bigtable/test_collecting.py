"""Collections of stores whose Directories and path infos are in a table."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import neve
from neve.bigtable.address import target_of
from neve.castore.ages import DEFAULT_GRACE
from neve.cli.__main__ import main
from neve.errors import NotFound
from neve.library import Store
from neve.registry import parse_address
from neve.store.gc import mixed
from neve.store.importer import ImportOptions
from neve.store.path_info import PathInfo
from neve.testing.bigtable import Emulator
from tests.bigtable.emulated import FAMILY, NARS, NewTable
from tests.store.gc.helpers import check, collect, make_tree, paths

pytestmark = pytest.mark.bigtable


class Place:
    """A store with its blobs in a folder. ``opened`` opens it as another process would."""

    def __init__(self, folder: Path, blobs: str, table: str, emulator: Emulator) -> None:
        self._folder = folder
        self._blobs = f"{blobs}{folder}"
        self._url = table
        self._table = target_of(parse_address(table)).table
        self._emulator = emulator

    @property
    def addresses(self) -> dict[str, str]:
        return {
            "blob_service": self._blobs,
            "directory_service": f"{self._url}&timeout=60",
            "path_info_service": f"{self._url}&timeout=60&nar_family_name={NARS}",
        }

    @contextlib.contextmanager
    def opened(self) -> Iterator[Store]:
        with neve.open(**self.addresses) as store:
            yield store

    def imported(self, trees: Path, number: int) -> PathInfo:
        tree = trees / str(number)
        with self.opened() as store:
            if not tree.exists():
                make_tree(tree, number, files=20)
            return store.import_path(tree, ImportOptions(name=f"tree-{number}"))

    def make_older(self, seconds: float = DEFAULT_GRACE + 10) -> None:
        for path in self._folder.glob("*/b3/*/*"):
            then = path.stat().st_mtime - seconds
            os.utime(path, (then, then))
        self._emulator.age(self._table, seconds)

    def keys(self) -> set[bytes]:
        """Of the rows with Directories and path infos."""
        rows = self._emulator.rows(self._table)
        return {key for key, cells in rows.items() if any(family == FAMILY for family, *_ in cells)}


@pytest.fixture(params=["objectstore+file://", "local://"])
def place(
    request: pytest.FixtureRequest, new_table: NewTable, bigtable_emulator: Emulator, tmp_path: Path
) -> Place:
    return Place(tmp_path / "blobs", request.param, new_table(), bigtable_emulator)


def needed(store: Store, infos: list[PathInfo]) -> set[bytes]:
    """The keys of the rows that these paths need."""
    digests = {info.digest for info in infos}
    for info in infos:
        digests.update(one.digest for one in store.directories.get_recursive(info.node.digest))  # type: ignore[union-attr]
    return {digest.hex().encode() for digest in digests}


def test_all_but_what_is_kept_goes(place: Place, tmp_path: Path) -> None:
    kept, gone, asked = (place.imported(tmp_path, number) for number in range(3))
    with place.opened() as store:
        stays = needed(store, [kept, asked])
        assert stays < place.keys()
    place.make_older()
    with place.opened() as store:
        assert store.path_info(asked.store_path) == asked
    with place.opened() as store:
        told = collect(store, keep=[kept.store_path], dry_run=True)
        assert paths(store) == {kept.store_path, gone.store_path, asked.store_path}
        report = collect(store, keep=[kept.store_path])
        for one in (told, report):
            assert (one.paths_kept, one.paths_dropped) == (2, 1)
            assert min(one.directories_dropped, one.blobs_dropped, one.chunks_dropped) > 0
        assert told.directories_dropped == report.directories_dropped
        assert place.keys() == stays
        assert paths(store) == {kept.store_path, asked.store_path}
        check(store)
        with pytest.raises(NotFound):
            b"".join(store.services.renderer.stream(gone.node))
    # The map of NARs knows it still, and the tree must come all the same.
    assert place.imported(tmp_path, 1) == gone
    with place.opened() as store:
        assert collect(store).directories_dropped == 0
        check(store)


def test_a_path_that_is_imported_anew_during_a_collection_stays_whole(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When its path info is gone already, and its Directories and blobs are about to go."""
    kept, again = (place.imported(tmp_path, number) for number in range(2))
    place.make_older()
    real = mixed._Run._drop_paths

    def then(run: mixed._Run, condemned: list[bytes]) -> list[bytes]:
        dropped = real(run, condemned)
        assert dropped == [again.digest]
        # In another thread: in that of a collection nothing counts as somebody's use.
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(place.imported, tmp_path, 1).result() == again
        return dropped

    monkeypatch.setattr(mixed._Run, "_drop_paths", then)
    with place.opened() as store:
        collect(store, keep=[kept.store_path])
        assert paths(store) == {kept.store_path, again.store_path}
        check(store)


def test_the_command(place: Place, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    kept, _ = (place.imported(tmp_path, number) for number in range(2))
    with place.opened() as store:
        stays = needed(store, [kept])
    place.make_older()
    services = [f"--{name.replace('_', '-')}-addr={address}" for name, address in place.addresses.items()]
    capfd.readouterr()
    assert main(["gc", "--json", f"--keep={kept.store_path.absolute}", *services]) == 0
    report = json.loads(capfd.readouterr().out)
    assert (report["pathsKept"], report["pathsDropped"]) == (1, 1)
    assert place.keys() == stays
    with place.opened() as store:
        check(store)
