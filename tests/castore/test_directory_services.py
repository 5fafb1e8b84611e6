"""The contract of directory services, for memory and the embedded store, and what only the latter does."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from neve.castore.digest import Digest
from neve.castore.directories import local, spool
from neve.castore.directories.base import DirectoryService
from neve.castore.directories.memory import MemoryDirectoryService
from neve.castore.directories.urls import DIRECTORY_SERVICES
from neve.errors import DiskFull, PermissionDenied, Unavailable
from neve.packstore.frames import Record
from neve.packstore.layout import TMP_DIR
from neve.packstore.sessions import Session
from neve.packstore.store import PackStore, Table
from neve.testing.ages import DirectoryAgesContract
from neve.testing.directories import DirectoryServiceContract, leaf, parent, put_closure, tree
from tests.castore.damage import damage_directory


class TestMemory(DirectoryServiceContract, DirectoryAgesContract):
    finds_damage = False

    @pytest.fixture
    def service(self) -> Iterator[DirectoryService]:
        service = MemoryDirectoryService()
        yield service
        service.close()

    def make_older(self, service: Any, seconds: float) -> None:
        service._uses.make_older(seconds)


class TestLocal(DirectoryServiceContract):
    @pytest.fixture
    def service(self, tmp_path: Path) -> Iterator[DirectoryService]:
        service = DIRECTORY_SERVICES.open(f"local://{tmp_path / 'store'}")
        yield service
        service.close()

    def damage(self, service: DirectoryService, digest: Digest) -> None:
        damage_directory(service, digest)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def service(folder: Path) -> Iterator[DirectoryService]:
    service = DIRECTORY_SERVICES.open(f"local://{folder}")
    yield service
    service.close()


@pytest.mark.parametrize("mode", ["rw", "ro"])
def test_everything_is_there_after_reopening(folder: Path, mode: str) -> None:
    closure = tree()
    service = DIRECTORY_SERVICES.open(f"local://{folder}")
    put_closure(service, closure)
    service.close()
    service.close()
    service = DIRECTORY_SERVICES.open(f"local://{folder}?mode={mode}")
    assert {one.digest for one in service.get_recursive(closure[-1].digest)} == {
        one.digest for one in closure
    }
    if mode == "ro":
        for write in (service.put_multiple, lambda: service.put(leaf("new"))):
            with pytest.raises(PermissionDenied):
                write()
    service.close()


def test_a_long_upload_is_spooled_to_the_disk(
    service: DirectoryService, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "_IN_MEMORY", 1000)
    closure = [leaf(str(number)) for number in range(3000)]
    closure.append(parent(*closure))
    put_closure(service, closure)
    assert len(list(service.get_recursive(closure[-1].digest))) == len(closure)
    refused = service.put_multiple()
    for directory in closure:
        refused.put(directory)
    refused.abandon()
    assert os.listdir(folder / TMP_DIR) == []


def test_a_level_is_read_in_portions(service: DirectoryService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_PORTION_BYTES", 300)
    closure = [leaf(str(number)) for number in range(50)]
    closure.append(parent(*closure))
    put_closure(service, closure)
    in_order = [service.get(child.digest) for _, child in closure[-1].directories()]
    assert list(service.get_recursive(closure[-1].digest)) == [closure[-1], *in_order]


def test_a_putter_that_failed_leaves_nothing(
    service: DirectoryService, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> int:
        raise OSError(5, "Input/output error")

    closure = tree()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", broken)
        with pytest.raises(Unavailable):
            put_closure(service, closure)
        with pytest.raises(Unavailable):
            service.put(leaf("alone"))
    assert service.list() == []
    assert put_closure(service, closure) == closure[-1].digest
    assert len(service.list()) == len(closure)


def test_nothing_refers_to_directories_that_were_given_up(
    service: DirectoryService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else's commit fails between two groups of a closure."""
    monkeypatch.setattr(local, "FRAME_TARGET", 1)
    closure = [leaf("child"), parent(leaf("child"))]
    stage, staged = PackStore.stage, list[Record]()

    def broken(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def interrupted(self: PackStore, table: Table, records: Sequence[Record], session: Session) -> None:
        stage(self, table, records, session)
        staged.extend(records)
        if len(staged) == 1:
            with monkeypatch.context() as patch:
                patch.setattr(os, "fdatasync", broken)
                with pytest.raises(DiskFull):
                    service.put(leaf("by somebody else"))

    with monkeypatch.context() as patch:
        patch.setattr(PackStore, "stage", interrupted)
        with pytest.raises(DiskFull):
            put_closure(service, closure)
    service.put(leaf("by somebody else"))
    assert service.list() == [leaf("by somebody else").digest]
    assert put_closure(service, closure) == closure[-1].digest
