"""The contract of directory services, over object stores of several kinds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from neve.castore.digest import Digest
from neve.castore.directories.base import DirectoryService
from neve.castore.directories.objectstore import ObjectDirectoryService
from neve.castore.directories.urls import DIRECTORY_SERVICES
from neve.castore.objectstore.layout import DIRECTORIES, key_of
from neve.testing.directories import DirectoryServiceContract
from tests.s3 import S3Server


class ObjectStoreContract(DirectoryServiceContract):
    """Damage is done to the object itself."""

    looks_up_children = False

    def damage(self, service: DirectoryService, digest: Digest) -> None:
        assert isinstance(service, ObjectDirectoryService)
        bucket = service._bucket
        key = key_of(DIRECTORIES, digest)
        data = bytearray(bucket.get(key, 2**30) or b"")
        data[len(data) // 2] ^= 4
        bucket.put(key, bytes(data))


class TestMemory(ObjectStoreContract):
    @pytest.fixture
    def service(self) -> Iterator[DirectoryService]:
        service = DIRECTORY_SERVICES.open("objectstore+memory:///")
        yield service
        service.close()


class TestFile(ObjectStoreContract):
    @pytest.fixture
    def service(self, tmp_path: Path) -> Iterator[DirectoryService]:
        service = DIRECTORY_SERVICES.open(f"objectstore+file://{tmp_path / 'store'}")
        yield service
        service.close()


class TestS3(ObjectStoreContract):
    @pytest.fixture
    def service(self, each_s3: S3Server) -> Iterator[DirectoryService]:
        service = DIRECTORY_SERVICES.open(each_s3.url(each_s3.bucket()))
        yield service
        service.close()
