"""The contracts of the services that are in a table, alone and as near and far ones."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import quote

import pytest

from neve.bigtable.address import target_of
from neve.castore.digest import Digest
from neve.castore.directories.base import DirectoryService
from neve.castore.directories.bigtable import BigtableDirectoryService
from neve.castore.directories.urls import DIRECTORY_SERVICES
from neve.registry import parse_address
from neve.store.bigtable import BigtableNarNodes
from neve.store.nar_nodes import NarNodes
from neve.store.pathinfos.base import PathInfoService
from neve.store.pathinfos.urls import PATH_INFO_SERVICES
from neve.store.services import open_services
from neve.testing.bigtable import Emulator
from neve.testing.directories import DirectoryServiceContract
from neve.testing.nar_nodes import NarNodesContract
from neve.testing.pathinfos import PathInfoServiceContract
from tests.bigtable.emulated import FAMILY, NARS, NewTable

pytestmark = pytest.mark.bigtable


def cache(near: str, far: str) -> str:
    return f"cache://?near={quote(near, safe='')}&far={quote(far, safe='')}"


class TestDirectories(DirectoryServiceContract):
    @pytest.fixture
    def service(self, new_table: NewTable, bigtable_emulator: Emulator) -> Iterator[DirectoryService]:
        url = new_table()
        self.emulator, self.table = bigtable_emulator, target_of(parse_address(url)).table
        service = DIRECTORY_SERVICES.open(url)
        assert isinstance(service, BigtableDirectoryService)
        yield service
        service.close()

    def damage(self, service: DirectoryService, digest: Digest) -> None:
        key = digest.hex().encode()
        [(_, _, value, micros)] = self.emulator.rows(self.table)[key]
        self.emulator.write(self.table, FAMILY, key, {key: value[:-1] + bytes([value[-1] ^ 1])}, micros)


class TestFarDirectories(DirectoryServiceContract):
    finds_damage = False

    @pytest.fixture
    def service(self, new_table: NewTable) -> Iterator[DirectoryService]:
        service = DIRECTORY_SERVICES.open(cache("memory://", new_table()))
        yield service
        service.close()


class TestNearDirectories(DirectoryServiceContract):
    finds_damage = False

    @pytest.fixture
    def service(self, new_table: NewTable) -> Iterator[DirectoryService]:
        service = DIRECTORY_SERVICES.open(cache(new_table(), "memory://"))
        yield service
        service.close()


class TestPathInfos(PathInfoServiceContract):
    @pytest.fixture
    def service(self, new_table: NewTable) -> Iterator[PathInfoService]:
        service = PATH_INFO_SERVICES.open(new_table())
        yield service
        service.close()


class TestFarPathInfos(PathInfoServiceContract):
    @pytest.fixture
    def service(self, new_table: NewTable) -> Iterator[PathInfoService]:
        services = open_services("memory://", path_info_service=cache("lru://?capacity=1", new_table()))
        yield services.path_infos
        services.close()


class TestNearPathInfos(PathInfoServiceContract):
    @pytest.fixture
    def service(self, new_table: NewTable) -> Iterator[PathInfoService]:
        services = open_services("memory://", path_info_service=cache(new_table(), "memory://"))
        yield services.path_infos
        services.close()


class TestNarNodes(NarNodesContract):
    @pytest.fixture
    def nar_nodes(self, new_table: NewTable) -> Iterator[NarNodes]:
        services = open_services("memory://", path_info_service=f"{new_table()}&nar_family_name={NARS}")
        assert isinstance(services.nar_nodes, BigtableNarNodes)
        yield services.nar_nodes
        services.close()
