"""Path infos in a PostgreSQL database: the contract, and what only a database does."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from neve.errors import Corrupt, NeveError, NotFound
from neve.postgres.records import seal
from neve.store.pathinfos import postgresql as postgresql_module
from neve.store.pathinfos.base import PathInfoService, stored_or_error
from neve.store.pathinfos.cached import CachedPathInfoService
from neve.store.pathinfos.memory import MemoryPathInfoService
from neve.store.pathinfos.postgresql import TABLE
from neve.store.pathinfos.urls import PATH_INFO_SERVICES
from neve.store.wire import encode_path_info
from neve.testing.pathinfos import (
    PathInfoAgesContract,
    PathInfoServiceContract,
    path_info,
    signature,
    store_path,
)
from neve.testing.postgresql import PostgresServer, schema_of
from tests.store.helpers import resident

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


@pytest.fixture
def service(database: str) -> Iterator[PathInfoService]:
    service = PATH_INFO_SERVICES.open(database)
    yield service
    service.close()


@pytest.fixture
def other(database: str) -> Iterator[PathInfoService]:
    """The same as another process has it."""
    service = PATH_INFO_SERVICES.open(f"{database}&application_name=other")
    yield service
    service.close()


def test_a_version_for_each_state(service: PathInfoService, other: PathInfoService) -> None:
    given = path_info("p", signatures=["one"])
    assert service.version(given.digest) is None
    service.put(given)
    versions = [service.version(given.digest)]
    service.put(given)
    assert [other.version(given.digest)] == versions
    other.put(path_info("p", signatures=["two"]))
    versions.append(service.version(given.digest))
    other.delete_many([given.digest])
    assert service.version(given.digest) is None
    service.put(given)
    versions.append(service.version(given.digest))
    assert len(set(versions)) == 3


def damaged(postgresql: PostgresServer, url: str, data: bytes, key: bytes) -> None:
    postgresql.execute(
        f"insert into {schema_of(url)}.path_infos (digest, data) values (%s, %s) "
        "on conflict (digest) do update set data = excluded.data",
        [key, data],
    )


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "is damaged: .*does not match its seal"),
        (seal(TABLE, store_path("p").digest, b"\x0a\x00"), "is invalid: node"),
        (seal(TABLE, store_path("q").digest, encode_path_info(path_info("q"))), "is damaged: .*its seal"),
        (
            seal(TABLE, store_path("p").digest, encode_path_info(path_info("q"))),
            f"is that of {store_path('q').base_name[:32]}",
        ),
    ],
    ids=["empty", "no-path-info", "row-of-another", "of-another-path"],
)
def test_damage(
    postgresql: PostgresServer, database: str, service: PathInfoService, data: bytes, complaint: str
) -> None:
    given = service.put(path_info("p", references=[store_path("a")]))
    fine = service.put(path_info("fine"))
    damaged(postgresql, database, data, given.digest)
    calls: list[Callable[[], object]] = [
        lambda: service.get(given.digest),
        lambda: service.put(given),
        service.list,
        lambda: service.add_signatures(given.digest, [signature("key")]),
    ]
    for call in calls:
        with pytest.raises(Corrupt, match=f"{given.store_path.base_name[:32]} {complaint}"):
            call()
    assert isinstance(service.put_many([given, fine])[0], Corrupt)
    assert service.put_many([given, fine])[1] == fine
    if "damaged" in complaint:
        encoded = dict(service.list_encoded())
        assert isinstance(encoded[given.digest], Corrupt)
        assert encoded[fine.digest] == encode_path_info(fine)
    assert service.put(given, replace=True) == given
    assert service.get(given.digest) == given
    damaged(postgresql, database, data, given.digest)
    assert service.delete_many([given.digest]) == 1
    assert service.referrers(store_path("a").digest) == []


def test_rows_that_are_too_long_are_not_read_whole(
    postgresql: PostgresServer, database: str, service: PathInfoService
) -> None:
    given = service.put(path_info("p"))
    postgresql.execute(
        f"update {schema_of(database)}.path_infos set data = convert_to(repeat('a', 300000000), 'utf8')"
    )
    code = f"""
import resource
from neve.errors import Corrupt
from neve.store.pathinfos.urls import PATH_INFO_SERVICES
from neve.testing.pathinfos import path_info, signature

def most():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

service, given = PATH_INFO_SERVICES.open({database!r}), path_info("p")
assert service.get(path_info("other").digest) is None
before = most()
for call in (
    lambda: service.get(given.digest),
    lambda: service.put(given),
    service.list,
    lambda: service.add_signatures(given.digest, [signature("key")]),
):
    try:
        call()
    except Corrupt as error:
        assert "does not match its seal" in str(error)
    else:
        raise AssertionError
assert len(service.list_encoded()) == 1
print(most() - before)
"""
    command = [sys.executable, "-c", code]
    assert int(subprocess.run(command, check=True, capture_output=True).stdout) < 64
    assert service.put(given, replace=True) == given
    assert service.get(given.digest) == given


def test_processes_that_put_the_same(service: PathInfoService, other: PathInfoService) -> None:
    """In one step, or many at once: one conflict or one union, and the referrers of what is stored."""

    def put(number: int) -> list[bool]:
        one = (service, other)[number % 2]
        mine = [
            path_info(f"p{i}", contents=f"of {number % 3}", references=[store_path(f"r{number % 3}")])
            for i in range(10)
        ]
        signed = [info.with_signatures([signature(f"key-{number}")]) for info in mine]
        if number % 4 == 0:
            return [not isinstance(result, NeveError) for result in one.put_many(signed[::-1])][::-1]
        results = [stored_or_error(one, info) for info in signed]
        return [not isinstance(result, NeveError) for result in results]

    with ThreadPoolExecutor(12) as threads:
        results = list(threads.map(put, range(12)))
    for i in range(10):
        stored = service.get(store_path(f"p{i}").digest)
        assert stored is not None
        assert stored.nar is not None
        won = {number for number in range(12) if results[number][i]}
        [kind] = {number % 3 for number in won}
        assert won == {number for number in range(12) if number % 3 == kind}
        assert {one.name for one in stored.nar.signatures} == {f"key-{number}" for number in won}
        for each in range(3):
            referrers = service.referrers(store_path(f"r{each}").digest)
            assert (stored.digest in referrers) == (each == kind)


def test_pages_of_long_ones_are_short(service: PathInfoService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgresql_module, "_PAGE_BYTES", 1000)
    infos = sorted((path_info(f"p{i}", signatures=["key"]) for i in range(25)), key=lambda info: info.digest)
    service.put_many(infos)
    assert 1 <= len(service.list()) < 25
    assert list(service) == infos


def test_more_referrers_than_a_page(service: PathInfoService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgresql_module, "_REFERRERS", 3)
    infos = [path_info(f"p{i}", references=[store_path("a")]) for i in range(10)]
    service.put_many(infos)
    assert list(service.referrers(store_path("a").digest)) == sorted(info.digest for info in infos)


def test_nobody_signs_what_is_gone(service: PathInfoService) -> None:
    given = service.put(path_info("p"))
    service.delete_many([given.digest])
    with pytest.raises(NotFound):
        service.add_signatures(given.digest, [signature("key")])
    assert service.get(given.digest) is None


@pytest.mark.slow
def test_a_million_rows_in_bounded_memory(
    postgresql: PostgresServer, database: str, service: PathInfoService
) -> None:
    """Each row damaged: of those there is more to say than of others."""
    assert service.list() == []
    postgresql.execute(
        f"insert into {schema_of(database)}.path_infos (digest, data) "
        "select int8send(n) || substr(sha256(''), 1, 12), sha256('') from generate_series(1, 1000000) as n"
    )
    lists: list[Callable[[bytes, int], Sequence[tuple[bytes, object]]]] = [
        service.list_with_ages,
        service.list_encoded,
    ]
    before = peak = resident()
    for list_page in lists:
        count, after = 0, b""
        while page := list_page(after, 5000):
            assert after < page[0][0]
            count, after = count + len(page), page[-1][0]
            peak = max(peak, resident())
        assert count == 1_000_000
    assert peak - before < 48 * 1024 * 1024, "all take many times as much"
