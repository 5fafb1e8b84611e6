"""The contract of blob services, for memory and the embedded store, and what only the latter does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from neve.castore.blobs.base import BlobService
from neve.castore.blobs.local import LocalBlobService
from neve.castore.blobs.local_write import BLOBS
from neve.castore.blobs.memory import MemoryBlobService
from neve.castore.blobs.urls import BLOB_SERVICES
from neve.castore.digest import Digest
from neve.packstore.layout import PACKS_DIR, pack_name
from neve.packstore.location import offset_of, pack_of
from neve.testing.blobs import BlobServiceContract


class TestMemory(BlobServiceContract):
    finds_damage = False

    @pytest.fixture
    def service(self) -> Iterator[BlobService]:
        service = MemoryBlobService()
        yield service
        service.close()


class TestLocal(BlobServiceContract):
    @pytest.fixture
    def service(self, tmp_path: Path) -> Iterator[BlobService]:
        service = BLOB_SERVICES.open(f"local://{tmp_path / 'store'}")
        yield service
        service.close()

    def damage(self, service: BlobService, digest: Digest) -> None:
        assert isinstance(service, LocalBlobService)
        store = service._store
        location = store.find(BLOBS, [digest])[digest]
        path = store.path / PACKS_DIR / pack_name(pack_of(location.place))
        with path.open("r+b") as file:
            file.seek(offset_of(location.place) + location.stored_len // 2)
            byte = file.read(1)[0]
            file.seek(-1, 1)
            file.write(bytes([byte ^ 0x10]))
