"""Stores whose metadata is in Bigtable, as commands and servers use them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from neve.bigtable.client import Client
from neve.library import open_store
from neve.store.bigtable import BigtableNarNodes
from neve.store.check import verify_store
from neve.store.composition import Composition, parse
from neve.testing.bigtable import INSTANCE, PROJECT, Emulator
from neve.testing.servers import running_daemon
from tests.bigtable.emulated import FAMILY, NARS, NewTable

pytestmark = pytest.mark.bigtable


@pytest.fixture
def file(tmp_path: Path, new_table: NewTable) -> Path:
    """Blobs in a folder, all else in one table, and near it a little."""
    table = new_table().partition("table_name=")[2].partition("&")[0]
    file = tmp_path / "store.toml"
    file.write_text(
        f"""
[blobservices.root]
type = "local"
path = "{tmp_path}/blobs"
[directoryservices.root]
type = "bigtable"
instance_name = "{INSTANCE}"
project_id = "{PROJECT}"
table_name = "{table}"
family_name = "{FAMILY}"
timeout = "60"
[pathinfoservices.root]
type = "cache"
near = "lru://"
far = "table"
[pathinfoservices.table]
type = "bigtable"
instance_name = "{INSTANCE}"
project_id = "{PROJECT}"
table_name = "{table}"
family_name = "{FAMILY}"
nar_family_name = "{NARS}"
timeout = 60
"""
    )
    return file


@pytest.fixture
def composition(file: Path) -> Composition:
    return parse(file.read_text(), str(file))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """2,000 small files in 120 folders, six deep."""
    root = tmp_path / "source"
    for number in range(2000):
        folder = root / f"{number % 4}/{number % 20}/x/y/{number % 120 // 4}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"file-{number}").write_bytes(b"%d" % number)
    return root


def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """The calls that are made from now on."""
    found: Counter[str] = Counter()
    call = Client._call

    def counting(self: Client, name: str) -> Any:
        found[name] += 1
        return call(self, name)

    monkeypatch.setattr(Client, "_call", counting)
    return found


def test_an_import_and_back(
    composition: Composition, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In few requests: each costs a way to the server and back."""
    calls = counted(monkeypatch)
    with open_store(composition=composition) as store:
        assert isinstance(store.services.nar_nodes, BigtableNarNodes)
        info = store.import_path(source)
        # Two for each level of folders, and some for the path info and the NAR.
        assert calls.total() < 30
        calls.clear()
    with open_store(composition=composition) as store:
        assert len(list(store.directories.get_recursive(info.node.digest))) > 100  # type: ignore[union-attr]
        # One for each level.
        assert calls.total() < 10
        assert b"".join(store.nar(info.store_path))
        assert verify_store(store.services).problems == []
        assert store.open(f"{info.store_path}/0/0/x/y/0/file-0").read() == b"0"
        again = store.import_path(source)
        assert again == info


def test_daemons_share_it(composition: Composition, source: Path, tmp_path: Path) -> None:
    """None of them has a state of its own: what one has taken, the other has."""
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    with (
        open_store(composition=composition) as first,
        open_store(composition=composition) as second,
        running_daemon(first.services, folder=tmp_path / "one") as one,
        running_daemon(second.services, folder=tmp_path / "two") as two,
        open_store(one.url) as to_one,
        open_store(two.url) as to_two,
    ):
        info = to_one.import_path(source)
        assert to_two.path_infos.get(info.digest) == info
        assert to_two.open(f"{info.store_path}/0/0/x/y/0/file-0").read() == b"0"
        assert [found.store_path for found in second.path_infos] == [info.store_path]


def test_mirroring_there_and_back(
    composition: Composition, source: Path, tmp_path: Path, bigtable_emulator: Emulator
) -> None:
    with (
        open_store(f"local://{tmp_path}/first") as first,
        open_store(composition=composition) as there,
        open_store(f"local://{tmp_path}/second") as second,
    ):
        info = first.import_path(source)
        first.mirror_to(there)
        assert there.path_infos.get(info.digest) == info
        there.mirror_to(second)
        assert second.path_infos.get(info.digest) == info
        assert verify_store(second.services).problems == []
