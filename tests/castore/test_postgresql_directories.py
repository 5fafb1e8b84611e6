"""Directories in a PostgreSQL database: the contract, and what only a database does."""

from __future__ import annotations

import random
import re
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from neve.castore.ages import SLACK
from neve.castore.digest import Digest, b3_digest, format_digest
from neve.castore.directories import postgresql as postgresql_module
from neve.castore.directories.base import DirectoryService
from neve.castore.directories.cached import CachedDirectoryService
from neve.castore.directories.memory import MemoryDirectoryService
from neve.castore.directories.postgresql import PostgresDirectoryService
from neve.castore.directories.urls import DIRECTORY_SERVICES
from neve.errors import Corrupt
from neve.postgres.database import Database
from neve.testing.ages import DirectoryAgesContract, is_fresh
from neve.testing.directories import DirectoryServiceContract, leaf, parent, put_closure, tree
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


@pytest.fixture
def service(database: str) -> Iterator[PostgresDirectoryService]:
    service = DIRECTORY_SERVICES.open(database)
    assert isinstance(service, PostgresDirectoryService)
    yield service
    service.close()


def test_few_questions_for_many(service: PostgresDirectoryService, monkeypatch: pytest.MonkeyPatch) -> None:
    """One a level to read a closure, two to put it."""
    closure = [leaf(f"leaf {number}") for number in range(600)]
    closure.append(parent(*closure))
    closure.append(parent(closure[-1]))
    asked = []
    real = Database._run

    def run(self: Database, work: Any, lost: Any) -> Any:
        asked.append(work)
        return real(self, work, lost)

    monkeypatch.setattr(Database, "_run", run)
    put_closure(service, closure)
    assert len(asked) == 2
    asked.clear()
    assert len(list(service.get_recursive(closure[-1].digest))) == 602
    assert len(asked) == 3


def test_long_ones_come_in_portions(
    service: PostgresDirectoryService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgresql_module, "_PORTION_BYTES", 300)
    closure = [leaf(str(number)) for number in range(50)]
    closure.append(parent(*closure))
    put_closure(service, closure)
    in_order = [service.get(child.digest) for _, child in closure[-1].directories()]
    assert list(service.get_recursive(closure[-1].digest)) == [closure[-1], *in_order]
    assert len(service.get_many([one.digest for one in closure])) == 51


def test_rows_that_are_no_directories(
    postgresql: PostgresServer, database: str, service: PostgresDirectoryService
) -> None:
    """Their bytes have the right digest."""
    service.put(leaf("a"))
    for data in (b"\xff", b"\x0a\x03\x0a\x01a", b"\x22\x00"):
        digest = b3_digest(data)
        postgresql.execute(
            f"insert into {schema_of(database)}.directories (digest, data) values (%s, %s)", [digest, data]
        )
        for call in (lambda d=digest: service.get(d), lambda d=digest: list(service.get_recursive(d))):
            with pytest.raises(Corrupt, match=re.escape(f"{format_digest(digest)} is invalid")):
                call()


@pytest.mark.parametrize("how", ["put", "put_many", "put_multiple"])
def test_a_damaged_row_is_replaced(
    postgresql: PostgresServer, database: str, service: PostgresDirectoryService, how: str
) -> None:
    closure = tree()
    put_closure(service, closure)
    schema = schema_of(database)
    damage(postgresql, database, closure[-1].digest)
    postgresql.execute(f"update {schema}.directories set data = 'x' where digest = %s", [closure[0].digest])
    rows = f"select digest, xmin::text, ctid::text from {schema}.directories order by digest"
    before = postgresql.execute(rows)
    if how == "put":
        for directory in closure:
            service.put(directory)
    elif how == "put_many":
        service.put_many(closure)
    else:
        put_closure(service, closure)
    assert [service.get(directory.digest) for directory in closure] == closure
    changed = {old[0] for old, new in zip(before, postgresql.execute(rows), strict=True) if old != new}
    assert changed == {closure[0].digest, closure[-1].digest}, "what is whole is not written anew"


def test_a_damaged_row_that_is_replaced_is_fresh(
    postgresql: PostgresServer, database: str, service: PostgresDirectoryService
) -> None:
    service.put(leaf("a"))
    postgresql.age(database, "directories")
    damage(postgresql, database, leaf("a").digest)
    service.put(leaf("a"))
    assert service.delete_many([leaf("a").digest], unused_for=20 * SLACK) == 0
    assert service.get(leaf("a").digest) == leaf("a")


def test_any_date_has_an_age(
    postgresql: PostgresServer, database: str, service: PostgresDirectoryService
) -> None:
    """An administrator may want a row to stay, and dates it so that it always does."""
    service.put(leaf("a"))
    for date, ages in (
        ("infinity", [0]),
        ("294276-01-01", [0]),
        ("-infinity", [1e10]),
        ("4000-01-01 BC", [1e10]),
    ):
        postgresql.execute(f"update {schema_of(database)}.directories set used_at = '{date}'")
        assert [age for _, age in service.list_with_ages()] == ages
        assert service.list() == [leaf("a").digest]
        if ages == [0]:
            assert service.delete_many([leaf("a").digest], unused_for=1) == 0
    assert service.delete_many([leaf("a").digest], unused_for=20 * SLACK) == 1


@pytest.mark.parametrize("damaged", [False, True])
def test_writers_of_the_same_in_any_order(
    postgresql: PostgresServer, database: str, damaged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for somebody who waits for him."""
    monkeypatch.setattr("neve.postgres.errors.DEADLOCKS", ())
    leaves = [leaf(str(number)) for number in range(300)]
    services = [DIRECTORY_SERVICES.open(f"{database}&application_name=n{number}") for number in range(4)]
    if damaged:
        services[0].put_many(leaves)
        postgresql.execute(f"update {schema_of(database)}.directories set data = digest")

    def put(number: int) -> None:
        services[number].put_many(random.Random(number).sample(leaves, 300))
        services[number].delete_many([one.digest for one in random.Random(number).sample(leaves, 100)])
        services[number].put_many(random.Random(-number).sample(leaves, 300))

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(put, range(4)))
    services[0].put_many(leaves)
    assert services[1].list() == sorted(one.digest for one in leaves)
    for service in services:
        service.close()


def test_what_is_read_is_fresh_but_reading_needs_no_right_to_write(
    postgresql: PostgresServer, database: str, service: PostgresDirectoryService
) -> None:
    put_closure(service, tree())
    postgresql.age(database, "directories")
    read_only = DIRECTORY_SERVICES.open(f"{database}&options=-c%20default_transaction_read_only%3Don")
    assert len(list(read_only.get_recursive(tree()[-1].digest))) == len(tree())
    read_only.close()
    assert service.delete_many([one.digest for one in tree()], unused_for=20 * SLACK) == 0
    assert not any(is_fresh(age) for _, age in service.list_with_ages())
    assert len(list(service.get_recursive(tree()[-1].digest))) == len(tree())
    assert all(is_fresh(age) for _, age in service.list_with_ages())


@pytest.mark.slow
def test_a_million_rows_in_bounded_memory(
    postgresql: PostgresServer, database: str, service: PostgresDirectoryService
) -> None:
    service.put(leaf("a"))
    postgresql.execute(
        f"insert into {schema_of(database)}.directories (digest, data) "
        "select int8send(n) || substr(sha256(''), 1, 24), '' from generate_series(1, 1000000) as n"
    )
    count, after = 0, b""
    tracemalloc.start()
    try:
        while page := service.list(after, 10_000):
            assert after < page[0]
            count, after = count + len(page), page[-1]
        assert tracemalloc.get_traced_memory()[1] < 16 * 1024 * 1024
    finally:
        tracemalloc.stop()
    assert count == 1_000_001
