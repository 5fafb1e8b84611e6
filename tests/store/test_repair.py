"""Embedded stores that are damaged, and repaired from another store."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from neve.castore.blobs.local_write import BLOB, BLOBS, CHUNK, LIST
from neve.castore.digest import Digest
from neve.castore.directories.local import DIRECTORIES
from neve.castore.directory import Directory
from neve.castore.node import DirectoryNode, FileNode
from neve.errors import InvalidRequest, PermissionDenied, Unsupported
from neve.packstore.layout import PACKS_DIR, pack_name
from neve.packstore.location import Location, offset_of, pack_of
from neve.packstore.pack import HEADER_SIZE
from neve.packstore.store import PackStore, Table
from neve.store.check import rebuild_index, verify_store
from neve.store.mirror import mirror
from neve.store.nar_nodes import NAR_NODES
from neve.store.path_info import PathInfo
from neve.store.pathinfos.local import PATH_INFOS, REFERRERS
from neve.store.repair import RepairReport, repair
from neve.store.services import Services, open_services
from neve.store.small_files import SMALL_FILES, small_files_beside
from tests.server.serve import served

from .mirror.stores import add, check_whole, fill, store

TABLES = [BLOBS, DIRECTORIES, PATH_INFOS, REFERRERS, NAR_NODES, SMALL_FILES]


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Services]:
    with store("local", tmp_path / "target") as services:
        yield services


@pytest.fixture(params=["local", "daemon", "memory"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Services]:
    with store(request.param, tmp_path / "source") as services:
        yield services


def packs_of(services: Services) -> PackStore:
    assert services.packs is not None
    return services.packs


def located(services: Services, table: Table) -> dict[bytes, Location]:
    return dict(packs_of(services).page(table, b"", 100_000))


def flip(services: Services, location: Location, at: int) -> None:
    """Flips a bit of a frame, counted from where its contents begin."""
    path = packs_of(services).path / PACKS_DIR / pack_name(pack_of(location.place))
    with path.open("r+b") as file:
        file.seek(offset_of(location.place) + at)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 0x10]))


def reopened(services: Services, folder: Path) -> None:
    """Makes sure that the store is as good for who comes later, and without its index."""
    check = verify_store(services, nar_hashes=True)
    assert check.problems == []
    services.close()
    for _ in range(2):
        again = open_services(f"local://{folder}/store")
        assert verify_store(again, nar_hashes=True).problems == []
        again.close()
        rebuild_index(f"local://{folder}/store")


def repaired(target: Services, source: Services) -> RepairReport:
    assert verify_store(target).problems
    report = repair(target, source, nar_hashes=True)
    assert report.reasons == []
    assert report.problems == []
    assert report.repaired
    return report


def test_every_record_of_a_table(target: Services, source: Services, tmp_path: Path) -> None:
    expected = fill(target, 6)
    mirror(target, source)
    for table in TABLES[:-1]:
        for tag in (CHUNK, BLOB, LIST) if table is BLOBS else (1,):
            there = [one for one in located(target, table).values() if one.tag == tag]
            assert there
            for location in {one.place: one for one in there}.values():
                flip(target, location, location.stored_len // 2)
            repaired(target, source)
            check_whole(target, expected)
    reopened(target, tmp_path / "target")


def test_small_files(target: Services, tmp_path: Path) -> None:
    with store("local", tmp_path / "source") as source:
        for services in (target, source):
            files = small_files_beside(services.nar_nodes)
            assert files is not None
            files.put("log", "one", b"built " * 20)
        for location in located(target, SMALL_FILES).values():
            flip(target, location, 3)
        repaired(target, source)
        files = small_files_beside(target.nar_nodes)
        assert files is not None
        assert files.get("log", "one") == b"built " * 20


@pytest.mark.parametrize("seed", range(4))
def test_bits_flipped_anywhere(seed: int, target: Services, tmp_path: Path) -> None:
    """Also in heads of frames and marks, which lead to others."""
    numbers = random.Random(seed)
    with store("local", tmp_path / "source") as source:
        expected = fill(target, 8)
        mirror(target, source)
        for path in (packs_of(target).path / PACKS_DIR).iterdir():
            data = bytearray(path.read_bytes())
            for _ in range(12):
                data[numbers.randrange(HEADER_SIZE, len(data))] ^= 1 << numbers.randrange(8)
            path.write_bytes(data)
        repaired(target, source)
        check_whole(target, expected)
    reopened(target, tmp_path / "target")


def test_what_is_missing(target: Services, source: Services) -> None:
    """A Directory that is missing leads to others, and to blobs."""
    expected = fill(target, 4)
    mirror(target, source)
    target.directories.delete_many(target.directories.list(limit=1000))
    target.blobs.delete_many(target.blobs.list(limit=1000))
    repaired(target, source)
    check_whole(target, expected)


def test_a_chunk_that_is_missing(target: Services, source: Services) -> None:
    expected = fill(target, 4)
    mirror(target, source)
    chunks = [key for key, location in located(target, BLOBS).items() if location.tag == CHUNK]
    target.blobs.delete_many(chunks[::2])
    repaired(target, source)
    check_whole(target, expected)


def test_what_cannot_be_repaired_is_told_with_the_paths(target: Services, tmp_path: Path) -> None:
    with store("local", tmp_path / "source") as source:
        fill(target, 3)
        mirror(target, source)
        only_here = add(target, "only-here")
        for location in {one.place: one for one in located(target, BLOBS).values()}.values():
            flip(target, location, location.stored_len // 2)
        report = repair(target, source)
        assert report.problems
        for problem in report.problems:
            assert f"breaks {only_here.store_path.absolute}" in problem
        assert report.repaired
        assert len(report.reasons) == len(report.problems)
        assert all("is not in the store" in reason for reason in report.reasons)


def test_a_source_that_is_damaged_in_the_same_place(target: Services, tmp_path: Path) -> None:
    with store("local", tmp_path / "source") as source:
        expected = fill(target, 3)
        mirror(target, source)
    # Opened anew: nothing of it is at hand.
    with store("local", tmp_path / "source") as source:
        digest = next(iter(located(target, DIRECTORIES)))
        for services in (target, source):
            location = located(services, DIRECTORIES)[digest]
            flip(services, location, location.stored_len // 2)
        report = repair(target, source)
        assert all("not repaired: the stored bytes of Directory" in reason for reason in report.reasons)
        assert report.reasons
        assert report.problems
        # From a good one it goes on where it was.
        with store("memory", tmp_path / "x") as other:
            assert fill(other, 3) == expected
            repaired(target, other)
            check_whole(target, expected)


def test_a_path_info_whose_contents_are_gone_too(target: Services, source: Services) -> None:
    expected = fill(target, 3)
    mirror(target, source)
    location = located(target, PATH_INFOS)[expected[0].digest]
    flip(target, location, 5)
    for digest in unique_objects(target, expected[0], expected[1:]):
        target.blobs.delete_many([digest])
    repaired(target, source)
    check_whole(target, expected)


def unique_objects(services: Services, path_info: PathInfo, others: list[PathInfo]) -> set[Digest]:
    """The blobs that no other path has."""
    return blobs_of(services, path_info) - set[Digest]().union(*[blobs_of(services, one) for one in others])


def blobs_of(services: Services, path_info: PathInfo) -> set[Digest]:
    assert isinstance(path_info.node, DirectoryNode)
    closure: list[Directory] = list(services.directories.get_recursive(path_info.node.digest))
    return {
        node.digest
        for directory in closure
        for _, node in directory
        if isinstance(node, FileNode) and node.size
    }


def test_beside_a_daemon_that_serves(target: Services, tmp_path: Path) -> None:
    """It reads what was repaired, although it has the store open all the time."""
    with (
        store("memory", tmp_path / "source") as source,
        tempfile.TemporaryDirectory(prefix="neve-") as sockets,
    ):
        expected = fill(target, 4)
        mirror(target, source)
        url = f"local://{packs_of(target).path}"
        with served(url, Path(sockets) / "s") as daemon:
            client = open_services(daemon.url)
            for table in (BLOBS, DIRECTORIES, PATH_INFOS):
                for location in {one.place: one for one in located(target, table).values()}.values():
                    flip(target, location, location.stored_len // 2)
            assert verify_store(client, nar_hashes=True).problems
            repaired(target, source)
            check_whole(client, expected)
            client.close()


def test_a_store_that_is_well_is_left_alone(target: Services, source: Services) -> None:
    fill(target, 2)
    before = [path.stat().st_size for path in (packs_of(target).path / PACKS_DIR).iterdir()]
    report = repair(target, source)
    assert (report.problems, report.repaired, report.reasons) == ([], 0, [])
    assert [path.stat().st_size for path in (packs_of(target).path / PACKS_DIR).iterdir()] == before


def test_what_cannot_be_repaired(target: Services, tmp_path: Path) -> None:
    with store("memory", tmp_path / "source") as source:
        with pytest.raises(Unsupported, match="only an embedded store"):
            repair(source, target)
        with pytest.raises(InvalidRequest, match="from itself"):
            repair(target, target)
    with store("local", tmp_path / "other"):
        pass
    read_only = open_services(f"local://{tmp_path}/other/store?mode=ro")
    with pytest.raises(PermissionDenied, match="read-only"):
        repair(read_only, target)
    read_only.close()
