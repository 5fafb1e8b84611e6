"""The contract of directory services, for memory and the embedded store, and what only the latter does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from neve.castore.digest import Digest
from neve.castore.directories.base import DirectoryService
from neve.castore.directories.local import DIRECTORIES, LocalDirectoryService
from neve.castore.directories.memory import MemoryDirectoryService
from neve.castore.directories.urls import DIRECTORY_SERVICES
from neve.packstore.layout import PACKS_DIR, pack_name
from neve.packstore.location import offset_of, pack_of
from neve.testing.directories import DirectoryServiceContract


class TestMemory(DirectoryServiceContract):
    finds_damage = False

    @pytest.fixture
    def service(self) -> Iterator[DirectoryService]:
        service = MemoryDirectoryService()
        yield service
        service.close()


class TestLocal(DirectoryServiceContract):
    @pytest.fixture
    def service(self, tmp_path: Path) -> Iterator[DirectoryService]:
        service = DIRECTORY_SERVICES.open(f"local://{tmp_path / 'store'}")
        yield service
        service.close()

    def damage(self, service: DirectoryService, digest: Digest) -> None:
        assert isinstance(service, LocalDirectoryService)
        store = service._store
        location = store.find(DIRECTORIES, [digest])[digest]
        path = store.path / PACKS_DIR / pack_name(pack_of(location.place))
        with path.open("r+b") as file:
            file.seek(offset_of(location.place) + location.stored_len - 2)
            byte = file.read(1)[0]
            file.seek(-1, 1)
            file.write(bytes([byte ^ 0x10]))
