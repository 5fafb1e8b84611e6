"""The contract of path info services, for memory and the embedded store, and what only the latter does."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from neve.errors import Corrupt, NotFound, PermissionDenied
from neve.packstore.frames import Record
from neve.packstore.location import Location
from neve.packstore.store import PackStore, Table
from neve.store.path_info import PathInfo
from neve.store.pathinfos.base import PathInfoService
from neve.store.pathinfos.local import PATH_INFOS, LocalPathInfoService
from neve.store.pathinfos.memory import MemoryPathInfoService
from neve.store.pathinfos.urls import PATH_INFO_SERVICES
from neve.testing.pathinfos import PathInfoAgesContract, PathInfoServiceContract, path_info, store_path


class TestMemory(PathInfoServiceContract, PathInfoAgesContract):
    @pytest.fixture
    def service(self) -> Iterator[PathInfoService]:
        service = MemoryPathInfoService()
        yield service
        service.close()

    def make_older(self, service: Any, seconds: float) -> None:
        service._uses.make_older(seconds)


class TestLocal(PathInfoServiceContract):
    @pytest.fixture
    def service(self, tmp_path: Path) -> Iterator[PathInfoService]:
        service = PATH_INFO_SERVICES.open(f"local://{tmp_path / 'store'}")
        yield service
        service.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


def reopened(folder: Path, mode: str = "rw") -> PathInfoService:
    return PATH_INFO_SERVICES.open(f"local://{folder}?mode={mode}")


def test_what_was_acknowledged_is_there_after_reopening(folder: Path) -> None:
    given = path_info("p", references=[store_path("p"), store_path("a")], signatures=["key"])
    service = reopened(folder)
    service.put(given)
    service.close()
    for mode in ("rw", "ro"):
        service = reopened(folder, mode)
        assert service.get(given.digest) == given
        assert list(service) == [given]
        assert list(service.referrers(given.digest)) == [given.digest]
        service.close()


def test_a_store_open_read_only_takes_nothing(folder: Path) -> None:
    service = reopened(folder)
    stored = service.put(path_info("p", signatures=["key"]))
    service.close()
    service = reopened(folder, "ro")
    with pytest.raises(PermissionDenied, match="read-only"):
        service.put(path_info("q"))
    with pytest.raises(PermissionDenied, match="read-only"):
        service.delete_many([stored.digest])
    # Nothing would change.
    assert service.put(path_info("p")) == stored
    service.close()


def _put_from_another_process(folder: Path, name: str) -> None:
    service = reopened(folder)
    for i in range(5):
        service.put(path_info("p", signatures=[f"{name}-{i}"]))
    service.close()


def test_signers_in_several_processes_lose_nothing(folder: Path) -> None:
    reopened(folder).close()
    context = multiprocessing.get_context("spawn")
    names = ["a", "b", "c"]
    processes = [context.Process(target=_put_from_another_process, args=(folder, name)) for name in names]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    service = reopened(folder)
    stored = service.get(path_info("p").digest)
    assert stored is not None
    assert stored.nar is not None
    assert {one.name for one in stored.nar.signatures} == {f"{name}-{i}" for name in names for i in range(5)}
    service.close()


def test_what_is_collected_while_listing_is_left_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = PackStore.open(folder)
    service = LocalPathInfoService(store)
    infos = sorted((path_info(f"p{i}") for i in range(9)), key=lambda info: info.digest)
    for info in infos:
        service.put(info)
    gone = {info.digest for info in (*infos[:5], infos[7])}
    real = store.read

    def read(table: Table, key: bytes, location: Location) -> bytes:
        if key in gone:
            raise NotFound("its pack is gone")
        return real(table, key, location)

    monkeypatch.setattr(store, "read", read)
    assert list(service.list(limit=3)) == [infos[5]]
    assert list(service) == [infos[5], infos[6], infos[8]]
    service.close()


@pytest.fixture
def damaged(folder: Path) -> Iterator[tuple[LocalPathInfoService, PathInfo]]:
    """A service with a record that is sealed all right and yet no path info."""
    store = PackStore.open(folder)
    service = LocalPathInfoService(store)
    given = path_info("p", references=[store_path("a")])
    service.put(given)

    store.update(lambda transaction: transaction.put(PATH_INFOS, Record(1, given.digest, b"\x0a\x00")))
    yield service, given
    service.close()


def test_damage_is_told_with_the_path(damaged: tuple[LocalPathInfoService, PathInfo]) -> None:
    service, given = damaged
    calls: list[Callable[[], object]] = [
        lambda: service.get(given.digest),
        lambda: service.put(given),
        lambda: service.list(),
        lambda: service.add_signatures(given.digest, []),
    ]
    for call in calls:
        with pytest.raises(Corrupt, match=f"{given.store_path.base_name[:32]} is invalid: node"):
            call()


def test_damage_can_be_deleted_and_replaced(damaged: tuple[LocalPathInfoService, PathInfo]) -> None:
    service, given = damaged
    assert service.put(given, replace=True) == given
    assert service.get(given.digest) == given
    service._store.update(
        lambda transaction: transaction.put(PATH_INFOS, Record(1, given.digest, b"\x0a\x00"))
    )
    assert service.delete_many([given.digest]) == 1
    assert service.get(given.digest) is None
