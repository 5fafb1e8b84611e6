"""What makes up a store path is committed once, where it all lies in one store."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from neve.nix.store_path import StorePath
from neve.store.importer import import_nar, import_path
from neve.store.one_commit import one_commit
from neve.store.services import Services, open_services
from neve.tree import EnterDirectory, Event, File, LeaveDirectory

from .helpers import encoded, everything, put_blob, stored

TREE: list[Event] = [
    EnterDirectory(b""),
    File(b"a", False, b"contents"),
    EnterDirectory(b"b"),
    File(b"c", True, b"others"),
    LeaveDirectory(),
    LeaveDirectory(),
]
PATH = StorePath.parse("/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-tree")


@pytest.fixture
def syncs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with each sync of a pack."""
    synced: list[int] = []
    fdatasync = os.fdatasync

    def counted(fd: int) -> None:
        synced.append(fd)
        fdatasync(fd)

    monkeypatch.setattr(os, "fdatasync", counted)
    return synced


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Services]:
    services = open_services(f"local://{tmp_path / 'store'}")
    put_blob(services, b"the first one makes the pack")
    yield services
    services.close()


def test_a_nar_is_one_commit(services: Services, syncs: list[int]) -> None:
    syncs.clear()
    found = import_nar(services, [encoded(TREE)], store_path=PATH)
    assert services.path_infos.get(PATH.digest) == found
    assert services.nar_nodes.nar(found.node) is not None
    assert b"".join(services.renderer.stream(found.node)) == encoded(TREE)
    assert len(syncs) == 1


def test_a_folder_is_one_commit(services: Services, syncs: list[int], tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "below").mkdir(parents=True)
    (folder / "below" / "file").write_bytes(b"contents")
    syncs.clear()
    found = import_path(services, folder)
    assert services.path_infos.get(found.store_path.digest) == found
    assert len(syncs) == 1


def test_nothing_is_seen_before_the_end(services: Services) -> None:
    before = everything(services)
    with one_commit(services.blobs, services.directories, services.nar_nodes):
        stored(services, TREE)
        assert everything(services) == before
    blobs, directories, _ = everything(services)
    assert (len(blobs), len(directories)) == (3, 2)


@pytest.mark.parametrize("apart", ["blobs", "directories", "NARs"])
def test_services_that_lie_apart_commit_in_order(services: Services, tmp_path: Path, apart: str) -> None:
    """A Directory that is durable elsewhere must not wait for blobs that are not."""
    other = open_services(f"local://{tmp_path / 'other'}")
    try:
        blobs = (other if apart == "blobs" else services).blobs
        directories = (other if apart == "directories" else services).directories
        nar_nodes = (other if apart == "NARs" else services).nar_nodes
        with one_commit(blobs, directories, nar_nodes):
            digest = blobs.put_many([b"contents"])[0]
            assert blobs.has(digest)
    finally:
        other.close()
