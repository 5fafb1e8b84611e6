"""Collections of stores whose blobs and Directories lie in buckets, and where contents are blob and chunk."""

from __future__ import annotations

import contextlib
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import neve
from neve.castore.ages import DEFAULT_GRACE
from neve.castore.blobs.chunks import Chunker
from neve.castore.digest import b3_digest
from neve.library import Store
from tests.castore.objectstore.interference import Fault, Request, proxy_before
from tests.s3 import S3Server
from tests.store.gc.helpers import check, collect, make_tree, paths


class Place:
    """A store in several places on this machine. ``opened`` opens it as another process would."""

    def __init__(self, folder: Path, blobs: str) -> None:
        self._folder = folder
        self._blobs = f"{blobs}{folder}/blobs"

    @contextlib.contextmanager
    def opened(self) -> Iterator[Store]:
        with neve.open(
            blob_service=self._blobs,
            directory_service=f"objectstore+file://{self._folder}/directories",
            path_info_service=f"local://{self._folder}/paths",
        ) as store:
            yield store

    def make_older(self, table: str = "*", seconds: float = DEFAULT_GRACE + 10) -> None:
        for path in self._folder.glob(f"*/{table}/b3/*/*"):
            then = path.stat().st_mtime - seconds
            os.utime(path, (then, then))


@pytest.fixture(params=["objectstore+file://", "local://"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return Place(tmp_path / "store", request.param)


@pytest.fixture
def bucket(tmp_path: Path) -> Place:
    return Place(tmp_path / "store", "objectstore+file://")


def in_chunks_and_the_last() -> tuple[bytes, bytes]:
    """A blob that is stored in chunks, and its last one: small, and with a digest that comes first."""
    for seed in range(1000):
        blob = random.Random(seed).randbytes(1_200_000)
        chunker = Chunker()
        last = bytes([*chunker.feed([blob]), *chunker.finish()][-1])
        if len(last) < 100_000 and b3_digest(last) < b3_digest(blob):
            return blob, last
    raise AssertionError


def test_contents_that_are_a_blob_too_stay_for_who_has_them_as_a_chunk(place: Place, tmp_path: Path) -> None:
    blob, last = in_chunks_and_the_last()
    (tmp_path / "blob").write_bytes(blob)
    (tmp_path / "last").write_bytes(last)
    with place.opened() as store:
        store.import_path(tmp_path / "last")
    with place.opened() as store:
        stays = store.import_path(tmp_path / "blob")
    place.make_older()
    with place.opened() as store:
        report = collect(store, keep=[stays.store_path])
        assert report.paths_dropped == 1
        check(store)


def test_a_list_that_is_fresh_keeps_an_older_chunk(bucket: Place, tmp_path: Path) -> None:
    (tmp_path / "stays").write_bytes(b"stays")
    with bucket.opened() as store:
        store.import_path(tmp_path / "stays")
        (digest,) = store.blobs.put_many([b"fresh"])
    bucket.make_older("blobs", DEFAULT_GRACE - 10)
    bucket.make_older("chunks", DEFAULT_GRACE + 10)
    with bucket.opened() as store:
        assert collect(store).chunks_dropped == 0
        assert store.blobs.read(digest) == b"fresh"


def test_a_dry_run_counts_what_a_real_one_counts(place: Place, tmp_path: Path) -> None:
    with place.opened() as store:
        infos = [store.import_path(make_tree(tmp_path / str(number), number)) for number in range(2)]
    place.make_older()
    with place.opened() as store:
        told = collect(store, keep=[infos[0].store_path], dry_run=True)
        done = collect(store, keep=[infos[0].store_path])
    assert told.chunks_dropped > 0
    for counted in ("paths_dropped", "directories_dropped", "blobs_dropped", "chunks_dropped", "fresh"):
        assert getattr(told, counted) == getattr(done, counted), counted


def test_what_dead_writers_left_goes(bucket: Place, tmp_path: Path) -> None:
    """Once it is old enough. Who writes just now is not disturbed, and files of others stay."""
    (tmp_path / "stays").write_bytes(b"stays")
    with bucket.opened() as store:
        digest = store.import_path(tmp_path / "stays").node.digest  # type: ignore[union-attr]
    there = [path for path in (tmp_path / "store").glob("*/*/b3/*/*") if path.is_file()]
    left = [path.with_name(f"{path.name}#{number}") for path in there for number in (1, 2**62)]
    others = there[0].with_name("somebody's#1")
    for path in (*left, others):
        path.write_bytes(b"unfinished")
    with bucket.opened() as store:
        collect(store)
    assert all(path.exists() for path in left)
    bucket.make_older("*")
    os.utime(left[0])
    with bucket.opened() as store:
        collect(store, dry_run=True)
        assert all(path.exists() for path in left)
        assert store.blobs.list() == [digest]
        collect(store)
        assert [path for path in left if path.exists()] == left[:1]
        assert others.exists()
        check(store)


def test_what_cannot_be_removed_is_told_and_in_nobodys_way(bucket: Place, tmp_path: Path) -> None:
    (tmp_path / "stays").write_bytes(b"stays")
    with bucket.opened() as store:
        store.import_path(tmp_path / "stays")
    there = next(path for path in (tmp_path / "store").glob("blobs/chunks/b3/*/*") if path.is_file())
    # A folder of that name: nobody has a right to remove it as a file.
    there.with_name(f"{there.name}#1").mkdir()
    with bucket.opened() as store:
        (problem,) = collect(store, grace=0).problems
        assert problem.startswith("what was not finished could not be removed: cannot look for unfinished")
        check(store)


def test_a_whole_collection_over_s3(each_s3: S3Server, tmp_path: Path) -> None:
    url = each_s3.url(each_s3.bucket(), "/prefix")
    trees = [make_tree(tmp_path / str(number), number, files=10) for number in range(2)]

    def opened() -> Store:
        return neve.open(
            blob_service=url, directory_service=url, path_info_service=f"local://{tmp_path}/paths"
        )

    with opened() as store:
        kept, gone = [store.import_path(tree) for tree in trees]
    with opened() as store:
        report = collect(store, keep=[kept.store_path], grace=0)
        assert (report.paths_dropped, report.directories_dropped) == (1, 1)
        assert report.blobs_dropped > 0
        assert report.chunks_dropped > report.blobs_dropped
        assert paths(store) == {kept.store_path}
        check(store)
    with opened() as store:
        assert collect(store, grace=0).blobs_dropped == 0
        assert store.import_path(trees[1]).node == gone.node
        assert paths(store) == {kept.store_path, gone.store_path}
        check(store)


def test_closures_are_marked_several_at_once(s3: S3Server, tmp_path: Path) -> None:
    """Each is one request: one after the other, a collection would take that time for every path."""
    bucket, both = s3.bucket(), threading.Barrier(2)

    def plan(request: Request) -> Fault | None:
        if request.method == "GET" and "/dirs/b3/" in request.path:
            both.wait(30)
        return None

    with proxy_before(s3.port) as proxy:
        url = s3.url(bucket, port=proxy.port)
        paths_at = f"local://{tmp_path}/paths"
        place = {"blob_service": url, "directory_service": url, "path_info_service": paths_at}
        with neve.open(**place) as store:
            for number in range(4):
                store.import_path(make_tree(tmp_path / str(number), number, files=2))
        proxy.plan = plan
        with neve.open(**place) as store:
            report = collect(store)
    assert (report.paths_kept, report.missing, both.broken) == (4, 0, False)
