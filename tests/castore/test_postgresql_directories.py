"""Directories in a PostgreSQL database: the contract, and what only a database does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from neve.castore.digest import Digest
from neve.castore.directories.base import DirectoryService
from neve.castore.directories.cached import CachedDirectoryService
from neve.castore.directories.memory import MemoryDirectoryService
from neve.castore.directories.urls import DIRECTORY_SERVICES
from neve.testing.ages import DirectoryAgesContract
from neve.testing.directories import DirectoryServiceContract
from neve.testing.postgresql import PostgresServer, schema_of

pytestmark = pytest.mark.postgresql


def damage(postgresql: PostgresServer, url: str, digest: Digest) -> None:
    """Changes the last bit of a Directory."""
    postgresql.execute(
        f"update {schema_of(url)}.directories set data = set_bit(data, 0, 1 - get_bit(data, 0)) "
        "where digest = %s",
        [digest],
    )


class TestPostgresql(DirectoryServiceContract, DirectoryAgesContract):
    @pytest.fixture
    def service(self, postgresql: PostgresServer, database: str) -> Iterator[DirectoryService]:
        self.postgresql, self.url = postgresql, database
        service = DIRECTORY_SERVICES.open(database)
        yield service
        service.close()

    def make_older(self, service: Any, seconds: float) -> None:
        self.postgresql.age(self.url, "directories", seconds)

    def damage(self, service: DirectoryService, digest: Digest) -> None:
        damage(self.postgresql, self.url, digest)


class TestBehindMemory(DirectoryServiceContract):
    finds_damage = False

    @pytest.fixture
    def service(self, database: str) -> Iterator[DirectoryService]:
        service = CachedDirectoryService(MemoryDirectoryService(), DIRECTORY_SERVICES.open(database))
        yield service
        service.close()
