"""The contract of blob services, over object stores of several kinds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from neve.castore.blobs.base import BlobService
from neve.castore.blobs.objectstore import ObjectBlobService
from neve.castore.blobs.urls import BLOB_SERVICES
from neve.castore.digest import Digest
from neve.castore.objectstore.layout import BLOBS, CHUNKS, key_of
from neve.testing.blobs import BlobServiceContract
from tests.s3 import S3Server


class ObjectStoreContract(BlobServiceContract):
    """Damage is done to the object itself."""

    def damage(self, service: BlobService, digest: Digest) -> None:
        assert isinstance(service, ObjectBlobService)
        bucket = service._bucket
        key = key_of(CHUNKS, digest)
        if bucket.head(key) is None:
            key = key_of(BLOBS, digest)
        data = bytearray(bucket.get(key, 2**30) or b"")
        data[len(data) // 2] ^= 4
        bucket.put(key, bytes(data))


class TestMemory(ObjectStoreContract):
    @pytest.fixture
    def service(self) -> Iterator[BlobService]:
        service = BLOB_SERVICES.open("objectstore+memory:///")
        yield service
        service.close()


class TestFile(ObjectStoreContract):
    @pytest.fixture
    def service(self, tmp_path: Path) -> Iterator[BlobService]:
        service = BLOB_SERVICES.open(f"objectstore+file://{tmp_path / 'store'}")
        yield service
        service.close()


class TestS3(ObjectStoreContract):
    @pytest.fixture
    def service(self, each_s3: S3Server) -> Iterator[BlobService]:
        service = BLOB_SERVICES.open(each_s3.url(each_s3.bucket()))
        yield service
        service.close()
