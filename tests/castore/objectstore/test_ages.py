"""Ages in folders, where they can be changed: what is older then is so for every kind of store."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from neve.castore.ages import SLACK
from neve.castore.blobs.base import BlobService
from neve.castore.blobs.urls import BLOB_SERVICES
from neve.castore.directories.base import DirectoryService
from neve.castore.directories.urls import DIRECTORY_SERVICES
from neve.castore.objectstore.bucket import Bucket, Meta
from neve.castore.objectstore.layout import BLOBS, CHUNKS, DIRECTORIES
from neve.testing.ages import BlobAgesContract, DirectoryAgesContract


def make_older(folder: Path, seconds: float) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            then = path.stat().st_mtime - seconds
            os.utime(path, (then, then))


def delete_before_freshening(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Bucket.freshen

    def freshen(bucket: Bucket, key: str, meta: Meta) -> bool:
        if folder in (path := folder.parent / key).parents:
            path.unlink()
        return real(bucket, key, meta)

    monkeypatch.setattr(Bucket, "freshen", freshen)


class TestBlobAges(BlobAgesContract):
    @pytest.fixture(autouse=True)
    def at(self, tmp_path: Path) -> None:
        self.folder = tmp_path / "store"

    @pytest.fixture
    def service(self) -> Iterator[BlobService]:
        service = BLOB_SERVICES.open(f"objectstore+file://{self.folder}")
        yield service
        service.close()

    def make_older(self, service: Any, seconds: float) -> None:
        make_older(self.folder, seconds)

    def test_what_is_young_is_not_written_again(self, service: BlobService) -> None:
        digests = service.put_many([b"one", bytes(700_000)])
        self.make_older(service, SLACK / 2)
        before = {path: path.stat().st_mtime_ns for path in self.folder.rglob("*") if path.is_file()}
        assert service.missing(digests) == []
        assert service.put_many([b"one"]) == digests[:1]
        assert before == {path: path.stat().st_mtime_ns for path in before}

    def test_a_list_that_stays_keeps_the_chunk_of_its_name(self, service: BlobService) -> None:
        (digest,) = service.put_many([b"one"])
        self.make_older(service, 4 * SLACK)
        for path in (self.folder / "blobs").rglob("*"):
            if path.is_file():
                os.utime(path)
        assert service.delete_many([digest], unused_for=3 * SLACK) == 0
        assert service.read(digest) == b"one"

    def test_a_blob_that_has_lost_a_chunk_is_missing_once_it_is_old(self, service: BlobService) -> None:
        digests = service.put_many([os.urandom(900_000)])
        self.make_older(service, 4 * SLACK)
        service.delete_chunks([service.stored_chunks(digests[0])[1].digest])
        assert service.missing(digests) == digests

    @pytest.mark.parametrize("table", [BLOBS, CHUNKS])
    def test_what_goes_while_it_is_made_to_stay_is_missing(
        self, service: BlobService, monkeypatch: pytest.MonkeyPatch, table: str
    ) -> None:
        """A collection has looked at its age before. With many chunks there are minutes for that."""
        digests = service.put_many([os.urandom(900_000)])
        wanted = digests if table == BLOBS else [service.stored_chunks(digests[0])[1].digest]
        self.make_older(service, 4 * SLACK)
        delete_before_freshening(self.folder / table, monkeypatch)
        assert service.missing(wanted) == wanted


class TestDirectoryAges(DirectoryAgesContract):
    @pytest.fixture(autouse=True)
    def at(self, tmp_path: Path) -> None:
        self.folder = tmp_path / "store"

    @pytest.fixture
    def service(self) -> Iterator[DirectoryService]:
        service = DIRECTORY_SERVICES.open(f"objectstore+file://{self.folder}")
        yield service
        service.close()

    def make_older(self, service: Any, seconds: float) -> None:
        make_older(self.folder, seconds)

    def test_what_goes_while_it_is_made_to_stay_is_missing(
        self, service: DirectoryService, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        root = self.put_root(service, "root")
        self.make_older(service, 4 * SLACK)
        delete_before_freshening(self.folder / DIRECTORIES, monkeypatch)
        assert service.freshen([root]) == [root]
