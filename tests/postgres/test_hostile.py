"""Rows that nobody of ours has written, roles with few rights, names with quotes, and a server that goes away
in the middle of any call."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest

import neve
from neve.castore.ages import DEFAULT_GRACE
from neve.castore.digest import b3_digest
from neve.castore.directories.base import DirectoryService
from neve.castore.node import SymlinkNode
from neve.errors import Corrupt, NeveError, PermissionDenied, Unavailable
from neve.postgres.database import Database
from neve.postgres.records import seal
from neve.store.nar_nodes import Nar, NarNodes
from neve.store.pathinfos.base import PathInfoService
from neve.store.services import open_services
from neve.store.small_files import SmallFiles, small_files_beside
from neve.store.wire import encode_node
from neve.testing.directories import leaf, put_closure, tree
from neve.testing.nar_nodes import nar_of
from neve.testing.pathinfos import path_info, signature, store_path
from neve.testing.postgresql import PostgresServer, running_postgresql, schema_of
from tests.store.gc.helpers import check, collect, make_tree, paths

pytestmark = pytest.mark.postgresql

_PATIENCE = 60.0

TABLES = ("directories", "path_infos", "path_references", "nar_nodes", "small_files")


class Kinds(NamedTuple):
    """All that lies in a database."""

    directories: DirectoryService
    path_infos: PathInfoService
    nar_nodes: NarNodes
    small_files: SmallFiles


@contextlib.contextmanager
def opened(url: str) -> Iterator[Kinds]:
    services = open_services("memory://", directory_service=url, path_info_service=url)
    files = small_files_beside(services.nar_nodes)
    assert files is not None
    try:
        yield Kinds(services.directories, services.path_infos, services.nar_nodes, files)
    finally:
        services.close()


CLOSURE = tree()
HERE, NEW = path_info("here", references=[store_path("r")]), path_info("new")
NODE, OTHER = HERE.node, path_info("other", contents="other").node
DIGESTS = [one.digest for one in CLOSURE]


def fill(kinds: Kinds) -> None:
    put_closure(kinds.directories, CLOSURE)
    kinds.path_infos.put(HERE)
    kinds.nar_nodes.put(NODE, nar_of(NODE))
    kinds.small_files.put("log", "here", b"contents")


READS: dict[str, Callable[[Kinds], object]] = {
    "directory": lambda kinds: kinds.directories.get(DIGESTS[0]),
    "directories": lambda kinds: kinds.directories.get_many(DIGESTS),
    "closure": lambda kinds: list(kinds.directories.get_recursive(DIGESTS[-1])),
    "list": lambda kinds: kinds.directories.list(),
    "list with ages": lambda kinds: len(kinds.directories.list_with_ages()),
    "path info": lambda kinds: kinds.path_infos.get(HERE.digest),
    "version": lambda kinds: kinds.path_infos.version(HERE.digest),
    "path infos": lambda kinds: kinds.path_infos.list(),
    "names": lambda kinds: kinds.path_infos.names(),
    "encoded": lambda kinds: kinds.path_infos.list_encoded(),
    "path infos with ages": lambda kinds: len(kinds.path_infos.list_with_ages()),
    "referrers": lambda kinds: kinds.path_infos.referrers(store_path("r").digest),
    "node": lambda kinds: kinds.nar_nodes.node(nar_of(NODE).sha256),
    "nar": lambda kinds: kinds.nar_nodes.nar(NODE),
    "hashes": lambda kinds: kinds.nar_nodes.list_hashes(),
    "file": lambda kinds: kinds.small_files.get("log", "here"),
    "files": lambda kinds: kinds.small_files.list(),
}

WRITES: dict[str, Callable[[Kinds], object]] = {
    "freshen": lambda kinds: kinds.directories.freshen(DIGESTS),
    "put directory": lambda kinds: kinds.directories.put(leaf("new")),
    "put directories": lambda kinds: kinds.directories.put_many([leaf("new"), leaf("more")]),
    "put closure": lambda kinds: put_closure(kinds.directories, tree()),
    "put path info": lambda kinds: kinds.path_infos.put(NEW),
    "replace path info": lambda kinds: kinds.path_infos.put(NEW, replace=True),
    "put path infos": lambda kinds: kinds.path_infos.put_many([NEW, HERE]),
    "sign": lambda kinds: kinds.path_infos.add_signatures(HERE.digest, [signature("key")]),
    "put nar": lambda kinds: kinds.nar_nodes.put(OTHER, nar_of(OTHER)),
    "put nars": lambda kinds: kinds.nar_nodes.put_many([(OTHER, nar_of(OTHER))]),
    "put file": lambda kinds: kinds.small_files.put("log", "new", b"more"),
}

DELETES: dict[str, Callable[[Kinds], object]] = {
    "delete directories": lambda kinds: kinds.directories.delete_many([DIGESTS[-1]]),
    "delete path infos": lambda kinds: kinds.path_infos.delete_many([HERE.digest]),
}


# Going away in the middle.


@contextlib.contextmanager
def all_locked(server: PostgresServer, url: str) -> Iterator[psycopg.Connection[Any]]:
    """Nobody else gets at the tables, until the connection is closed."""
    with psycopg.connect(host=str(server.folder), user="postgres") as connection:
        tables = ", ".join(f"{schema_of(url)}.{table}" for table in TABLES)
        connection.execute(f"lock table {tables} in access exclusive mode".encode())
        yield connection


def who_waits(server: PostgresServer, url: str) -> int:
    """The server's process that waits for a lock of a table, once there is one."""
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        rows = server.execute(
            "select pid from pg_stat_activity where wait_event_type = 'Lock' and position(%s in query) > 0",
            [f'"{schema_of(url)}"'],
        )
        if rows:
            return int(rows[0][0])
        time.sleep(0.01)
    raise AssertionError("nobody waits")


def in_the_middle(
    server: PostgresServer, url: str, call: Callable[[Kinds], object], kinds: Kinds
) -> Future[object]:
    """What becomes of a call whose connection is ended while the server is at it."""
    with ThreadPoolExecutor(1) as threads:
        with all_locked(server, url):
            result = threads.submit(call, kinds)
            server.execute("select pg_terminate_backend(%s)", [who_waits(server, url)])
        with contextlib.suppress(NeveError):
            result.result()
    return result


@pytest.mark.parametrize("name", READS)
def test_who_reads_asks_again(name: str, postgresql: PostgresServer, database: str) -> None:
    with opened(database) as kinds:
        fill(kinds)
        expected = READS[name](kinds)
        assert expected
        assert in_the_middle(postgresql, database, READS[name], kinds).result() == expected


@pytest.mark.parametrize("name", WRITES)
def test_who_puts_does_it_again(name: str, postgresql: PostgresServer, database: str) -> None:
    with opened(database) as kinds:
        fill(kinds)
        result = in_the_middle(postgresql, database, WRITES[name], kinds).result()
        states = [read(kinds) for read in READS.values()]
        assert WRITES[name](kinds) == result
        assert [read(kinds) for read in READS.values()] == states


@pytest.mark.parametrize("name", WRITES)
def test_putting_twice_because_nobody_heard_that_it_was_done(
    name: str, postgresql: PostgresServer, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection is lost after everything was written, and before that was said."""
    real = Database.repeat
    lost: list[int] = []

    def repeat(self: Database, work: Callable[[Any], Any]) -> Any:
        tried: list[int] = []

        def work_that_nobody_hears_of(connection: Any) -> Any:
            result = work(connection)
            tried.append(connection.info.backend_pid)
            if len(tried) == 1:
                postgresql.execute("select pg_terminate_backend(%s)", tried)
                lost.extend(tried)
                connection.execute("select 1")
            return result

        return real(self, work_that_nobody_hears_of)

    with opened(database) as kinds:
        fill(kinds)
        monkeypatch.setattr(Database, "repeat", repeat)
        result = WRITES[name](kinds)
        monkeypatch.undo()
        assert lost
        states = [read(kinds) for read in READS.values()]
        assert WRITES[name](kinds) == result
        assert [read(kinds) for read in READS.values()] == states


def test_a_server_that_is_started_anew_in_the_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a moment nobody is there."""
    monkeypatch.setattr("neve.postgres.database._LET_IN_SECONDS", _PATIENCE)
    calls = [READS["closure"], *(WRITES[name] for name in ("put closure", "put path infos", "put nar"))]
    with running_postgresql() as server, ThreadPoolExecutor(1) as threads:
        url = server.url()
        with opened(url) as kinds:
            fill(kinds)
            for call in calls:
                with contextlib.suppress(psycopg.OperationalError), all_locked(server, url):
                    result = threads.submit(call, kinds)
                    who_waits(server, url)
                    server.stop()
                server.start()
                expected = call(kinds)
                assert result.result(2 * _PATIENCE) == expected


@pytest.mark.parametrize("name", DELETES)
def test_who_deletes_is_told_and_can_do_it_again(
    name: str, postgresql: PostgresServer, database: str
) -> None:
    with opened(database) as kinds:
        fill(kinds)
        failure = in_the_middle(postgresql, database, DELETES[name], kinds).exception()
        assert type(failure) is Unavailable
        assert str(failure).startswith("postgresql://")
        # Nothing of it was done by halves.
        assert kinds.path_infos.list() == [HERE]
        assert kinds.path_infos.referrers(store_path("r").digest) == [HERE.digest]
        assert {DIGESTS[-1]} <= set(kinds.directories.list())
        assert DELETES[name](kinds) == 1


def test_no_call_waits_for_ever(postgresql: PostgresServer, database: str) -> None:
    calls = [*READS.values(), *WRITES.values()]
    with opened(database) as kinds:
        fill(kinds)
    with (
        opened(f"{database}&timeout=2&pool={len(calls)}") as kinds,
        ThreadPoolExecutor(len(calls)) as threads,
    ):
        kinds.directories.list()
        with all_locked(postgresql, database):
            results = [threads.submit(call, kinds) for call in calls]
            failures = [result.exception(_PATIENCE) for result in results]
        assert {type(failure) for failure in failures} == {Unavailable}
        assert all("not done in time" in str(failure) for failure in failures), failures
    with opened(database) as kinds:
        for call in calls:
            call(kinds)


# Rights.


@pytest.fixture
def clerk(postgresql: PostgresServer, database: str) -> Iterator[str]:
    """The address of a role that may log in, and nothing else."""
    postgresql.execute("create role clerk login")
    yield database.replace("postgres@", "clerk@")
    postgresql.execute("drop owned by clerk")
    postgresql.execute("drop role clerk")


def test_a_role_that_may_nothing(postgresql: PostgresServer, database: str, clerk: str) -> None:
    with opened(clerk) as kinds, pytest.raises(PermissionDenied, match="permission denied for database"):
        kinds.directories.list()
    with opened(database) as kinds:
        fill(kinds)
    for call in (*READS.values(), *WRITES.values()):
        with opened(clerk) as kinds, pytest.raises(PermissionDenied, match="permission denied for schema"):
            call(kinds)


def test_a_role_that_may_only_read(postgresql: PostgresServer, database: str, clerk: str) -> None:
    with opened(database) as kinds:
        fill(kinds)
        expected = {name: read(kinds) for name, read in READS.items()}
    for table in ("directories", "path_infos"):
        postgresql.age(database, table)
    schema = schema_of(database)
    postgresql.execute(f"grant usage on schema {schema} to clerk")
    postgresql.execute(f"grant select on all tables in schema {schema} to clerk")
    with opened(clerk) as kinds:
        assert {name: read(kinds) for name, read in READS.items()} == expected
        for write in WRITES.values():
            with pytest.raises(PermissionDenied, match="permission denied for"):
                write(kinds)
    with opened(database) as kinds:
        assert {name: read(kinds) for name, read in READS.items()} == expected


# Names.


def test_names_with_quotes(postgresql: PostgresServer) -> None:
    postgresql.execute("""create database "it's ""odd"" % \\ ä" template template0""")
    postgresql.execute("""create role "o'dd ""one"" %" superuser login""")
    try:
        url = postgresql.url().replace(
            "postgres@/postgres", "o%27dd%20%22one%22%20%25@/it%27s%20%22odd%22%20%25%20%5C%20%C3%A4"
        )
        with opened(url) as kinds:
            fill(kinds)
            assert kinds.path_infos.get(HERE.digest) == HERE
            for odd in ("it's", '"', "\\", "%s", "ä", "'; drop table x; --"):
                kinds.small_files.put("log", odd, odd.encode())
                assert kinds.small_files.get("log", odd) == odd.encode()
    finally:
        postgresql.execute("""drop database "it's ""odd"" % \\ ä" """)
        postgresql.execute("""drop role "o'dd ""one"" %" """)


# Rows.


def insert(server: PostgresServer, url: str, table: str, key: bytes, data: bytes) -> None:
    column = "key" if table in ("nar_nodes", "small_files") else "digest"
    server.execute(f"insert into {schema_of(url)}.{table} ({column}, data) values (%s, %s)", [key, data])


def test_keys_that_are_no_digests(postgresql: PostgresServer, database: str, tmp_path: Path) -> None:
    """They are nobody's of ours, and in nobody's way."""
    with neve.open(
        blob_service=f"local://{tmp_path}", directory_service=database, path_info_service=database
    ) as store:
        infos = [store.import_path(make_tree(tmp_path / str(number), number, files=5)) for number in (1, 2)]
        hashes = store.services.nar_nodes.list_hashes()
        for key in (b"", b"\1", b"\2" * 19, b"\3" * 31, b"\4" * 33, b"\5" * 1000):
            for table, begin in (("directories", b""), ("path_infos", b""), ("nar_nodes", b"h")):
                insert(postgresql, database, table, begin + key, b"odd" * 10)
        for table in ("directories", "path_infos"):
            postgresql.age(database, table, 2 * DEFAULT_GRACE)
        assert paths(store) == {info.store_path for info in infos}
        assert {len(digest) for digest in store.directories.list()} == {32}
        assert {len(digest) for digest, _ in store.path_infos.list_encoded()} == {20}
        assert store.services.nar_nodes.list_hashes() == hashes
        check(store)
        assert collect(store, keep=[infos[0].store_path]).paths_dropped == 1
        check(store)
        with neve.open(f"local://{tmp_path}/mirror") as target:
            assert store.mirror_to(target).failures == {}
            check(target)


def test_rows_beside_path_infos_that_are_none(postgresql: PostgresServer, database: str) -> None:
    """With seals that fit: of those who can write there, everybody can make them."""
    sha256 = nar_of(NODE).sha256
    by_hash, by_node = b"h" + sha256, b"n" + b3_digest(encode_node(NODE))
    with opened(database) as kinds:
        fill(kinds)
        for data in (b"", b"\1" * 7, b"\1" * 8, b"\xff" * 100):
            for key in (by_hash, by_node):
                postgresql.execute(f"delete from {schema_of(database)}.nar_nodes")
                insert(postgresql, database, "nar_nodes", key, seal("nar_nodes", key, data))
                with pytest.raises(Corrupt, match=r"the stored (tree|NAR) of "):
                    kinds.nar_nodes.node(sha256) if key == by_hash else kinds.nar_nodes.nar(NODE)
        for key in (by_hash, by_node):
            postgresql.execute(f"delete from {schema_of(database)}.nar_nodes")
            insert(postgresql, database, "nar_nodes", key, b"\0" * 100)
            with pytest.raises(Corrupt, match=f"row of {key.hex()} .* does not match its seal"):
                kinds.nar_nodes.node(sha256) if key == by_hash else kinds.nar_nodes.nar(NODE)
        insert(postgresql, database, "small_files", b"log/a", b"\0" * 100)
        with pytest.raises(Corrupt, match="table small_files does not match its seal"):
            kinds.small_files.get("log", "a")
        kinds.small_files.put("log", "a", b"anew")
        assert kinds.small_files.get("log", "a") == b"anew"
        insert(postgresql, database, "small_files", b"log/\xff", seal("small_files", b"log/\xff", b""))
        with pytest.raises(Corrupt, match="6c6f672fff in the table small_files has no name"):
            kinds.small_files.list()


def test_damaged_rows_of_nars_are_replaced(postgresql: PostgresServer, database: str) -> None:
    nar = nar_of(NODE)
    key = b"n" + b3_digest(encode_node(NODE))
    with opened(database) as kinds:
        fill(kinds)
        kinds.nar_nodes.put(OTHER, nar_of(OTHER))
        postgresql.execute(
            f"update {schema_of(database)}.nar_nodes set data = '\\x00' where key <> %b", [key]
        )
        for _ in range(2):
            kinds.nar_nodes.put_many([(NODE, nar), (OTHER, nar_of(OTHER))])
            assert kinds.nar_nodes.nar(NODE) == nar
            assert kinds.nar_nodes.nar(OTHER) == nar_of(OTHER)
            assert kinds.nar_nodes.node(nar.sha256) == (NODE, nar.size)
            assert kinds.nar_nodes.node(nar_of(OTHER).sha256) == (OTHER, nar_of(OTHER).size)
        # What is whole stays, whatever somebody else says of it.
        kinds.nar_nodes.put(NODE, Nar(1, nar.sha256))
        assert kinds.nar_nodes.nar(NODE) == nar


def test_a_nar_of_which_the_row_is_damaged_is_computed_anew(
    postgresql: PostgresServer, database: str, caplog: pytest.LogCaptureFixture
) -> None:
    services = open_services("memory://", directory_service=database, path_info_service=database)
    with contextlib.closing(services):
        node = SymlinkNode(b"target")
        nar = services.nar_calculation.calculate_nar(node)
        postgresql.execute(f"update {schema_of(database)}.nar_nodes set data = '\\x00'")
        for _ in range(2):
            assert services.nar_calculation.calculate_nar(node) == nar
        assert services.nar_nodes.node(nar.sha256) == (node, nar.size)
    assert caplog.text.count("computed anew") == 1
