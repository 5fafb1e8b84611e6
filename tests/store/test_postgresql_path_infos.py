"""Path infos in a PostgreSQL database: the contract, and what only a database does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from neve.store.pathinfos.base import PathInfoService
from neve.store.pathinfos.cached import CachedPathInfoService
from neve.store.pathinfos.memory import MemoryPathInfoService
from neve.store.pathinfos.urls import PATH_INFO_SERVICES
from neve.testing.pathinfos import PathInfoAgesContract, PathInfoServiceContract
from neve.testing.postgresql import PostgresServer

pytestmark = pytest.mark.postgresql


class TestPostgresql(PathInfoServiceContract, PathInfoAgesContract):
    def make_older(self, service: Any, seconds: float) -> None:
        self.postgresql.age(self.url, "path_infos", seconds)

    @pytest.fixture
    def service(self, postgresql: PostgresServer, database: str) -> Iterator[PathInfoService]:
        self.postgresql, self.url = postgresql, database
        service = PATH_INFO_SERVICES.open(database)
        yield service
        service.close()


class TestBehindMemory(PathInfoServiceContract):
    @pytest.fixture
    def service(self, database: str) -> Iterator[PathInfoService]:
        service = CachedPathInfoService(MemoryPathInfoService(), PATH_INFO_SERVICES.open(database))
        yield service
        service.close()
