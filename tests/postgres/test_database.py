"""A database that refuses, fails, goes away and comes back."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest

from neve.castore.directories.postgresql import PostgresDirectoryService
from neve.castore.directories.urls import DIRECTORY_SERVICES
from neve.errors import (
    Corrupt,
    DiskFull,
    InvalidRequest,
    LimitExceeded,
    NeveError,
    PermissionDenied,
    Unavailable,
    Unsupported,
)
from neve.postgres.address import target_of
from neve.postgres.database import Connection, Database
from neve.postgres.schema import MIGRATIONS
from neve.registry import parse_address
from neve.store.pathinfos.urls import PATH_INFO_SERVICES
from neve.testing.directories import leaf, put_closure, tree
from neve.testing.pathinfos import path_info, signature
from neve.testing.postgresql import PostgresServer, running_postgresql, schema_of

pytestmark = pytest.mark.postgresql


@contextlib.contextmanager
def directories(url: str) -> Iterator[PostgresDirectoryService]:
    service = DIRECTORY_SERVICES.open(url)
    assert isinstance(service, PostgresDirectoryService)
    try:
        yield service
    finally:
        service.close()


@contextlib.contextmanager
def opened(url: str) -> Iterator[Database]:
    database = Database.open(parse_address(url))
    try:
        yield database
    finally:
        database.close()


@pytest.fixture
def own_server() -> Iterator[PostgresServer]:
    """One that may be stopped."""
    with running_postgresql() as server:
        yield server


# Getting in.


def test_opening_connects_to_nothing() -> None:
    url = "postgresql://nobody@/nothing?host=/nowhere"
    complaint = r"postgresql://\*\*\*@/nothing cannot be reached: .*/nowhere"
    with directories(url) as service, pytest.raises(Unavailable, match=complaint):
        service.get(leaf("a").digest)


@pytest.fixture
def locked(postgresql: PostgresServer) -> Iterator[str]:
    """The address of a user who needs a password, which is ``sesame``."""
    postgresql.execute("create role locked login password 'sesame'")
    postgresql.execute("grant create on database postgres to locked")
    url = postgresql.url(user="locked")
    yield url
    postgresql.execute("drop owned by locked cascade")
    postgresql.execute("drop role locked")


def test_passwords(locked: str, tmp_path: Path, postgresql: PostgresServer) -> None:
    with (
        directories(locked) as service,
        pytest.raises(PermissionDenied, match=r"a password is needed: .*pgpass"),
    ):
        service.get(leaf("a").digest)
    for wrong in (locked.replace("locked@", "locked:wrong@"), f"{locked}&password=wrong"):
        with directories(wrong) as service, pytest.raises(PermissionDenied) as error:
            service.get(leaf("a").digest)
        assert "authentication failed" in str(error.value)
        assert "wrong" not in str(error.value)
    passfile = tmp_path / "passwords"
    passfile.write_text("*:*:*:locked:sesame\n")
    passfile.chmod(0o600)
    right = (
        locked.replace("locked@", "locked:sesame@"),
        f"{locked}&password=sesame",
        f"{locked}&passfile={passfile}",
    )
    for url in right:
        with directories(url) as service:
            service.put(leaf("a"))
            assert service.get(leaf("a").digest) == leaf("a")


def test_a_database_that_is_not_there(postgresql: PostgresServer) -> None:
    url = postgresql.url(database="nowhere")
    complaint = r'cannot be reached: .*database "nowhere" does not exist'
    with directories(url) as service, pytest.raises(Unavailable, match=complaint):
        service.list()


@pytest.mark.parametrize(
    ("parameters", "complaint"),
    [
        ("schemas=x", r"address 'postgresql://\*\*\*@host/db\?schemas=x': unknown parameter 'schemas'"),
        ("client_encoding=latin1", "unknown parameter 'client_encoding'"),
        ("schema=Neve", "parameter 'schema' is 'Neve', must have up to 63 lower-case letters"),
        ("schema=a%22b", "parameter 'schema'"),
        ("schema=pg_neve", "PostgreSQL's own"),
        ("timeout=0", "parameter 'timeout' is '0', must be a number of seconds"),
        ("pool=0", "parameter 'pool' is '0', must be a whole number from 1 to 1000"),
    ],
)
def test_parameters_that_are_refused(parameters: str, complaint: str) -> None:
    with pytest.raises(InvalidRequest, match=complaint) as error:
        DIRECTORY_SERVICES.open(f"postgresql://me:sesame@host/db?{parameters}")
    assert "sesame" not in str(error.value)


def test_an_address_that_libpq_cannot_read() -> None:
    with pytest.raises(InvalidRequest, match="client library cannot read it") as error:
        DIRECTORY_SERVICES.open("postgresql://me:ses%ame@host/db")
    assert "ame" not in str(error.value).partition("client library")[2].replace("name", "")
    with pytest.raises(InvalidRequest, match=r"'postgresql://\*\*\*@host/db': .* cannot read it: malformed"):
        DIRECTORY_SERVICES.open("postgresql://me:ses ame@host/db")


@pytest.mark.parametrize(
    "place",
    ["me:ses@ame@host/db", "me:ses/ame@host/db", "me@ame:ses@host/db"],
)
def test_addresses_of_which_libpq_makes_something_else(place: str) -> None:
    """It would look for a host that is named as the rest of the password is."""
    with pytest.raises(InvalidRequest, match=r"write @ and / .* as %40 and %2F") as error:
        DIRECTORY_SERVICES.open(f"postgresql://{place}")
    assert "ses" not in str(error.value).partition("names")[0]


def test_one_connection_for_all_who_ask_one_after_the_other(
    postgresql: PostgresServer, database: str
) -> None:
    with directories(database) as first, directories(database) as second:
        for number in range(5):
            first.put(leaf(str(number)))
            assert second.get(leaf(str(number)).digest) == leaf(str(number))
        count = "select count(*) from pg_stat_activity where position(%s in query) > 0"
        # Whoever counts is one of them.
        assert postgresql.execute(f"{count} and pid <> pg_backend_pid()", [schema_of(database)]) == [(1,)]


def test_a_child_has_connections_of_its_own(database: str) -> None:
    """On its parent's it would read answers to others."""
    code = f"""
import os
from neve.postgres.database import Database
from neve.registry import parse_address

def process():
    database = Database.open(parse_address({database!r}))
    return database.read(lambda connection: connection.execute("select pg_backend_pid()").fetchone()[0])

parents = process()
reading, writing = os.pipe()
if os.fork() == 0:
    os.write(writing, str(process()).encode())
    os._exit(0)
os.wait()
assert int(os.read(reading, 100)) != parents == process()
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_child_that_goes_on_with_what_its_parent_has_opened(database: str) -> None:
    """It connects itself, and closing it takes nothing from its parent."""
    code = f"""
import os
from neve.postgres.database import Database
from neve.registry import parse_address

database = Database.open(parse_address({database!r}))

def process():
    return database.read(lambda connection: connection.execute("select pg_backend_pid()").fetchone()[0])

parents = process()
for used in (True, False):
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.write(writing, str(process() if used else 0).encode())
        database.close()
        os._exit(0)
    os.wait()
    assert int(os.read(reading, 100)) != parents == process()
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_options_of_the_environment_count(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGOPTIONS", "-c work_mem=5MB")
    with opened(database) as one:
        found = one.read(lambda connection: connection.execute("show work_mem").fetchone())
    assert found == ("5MB",)


@pytest.mark.parametrize("timeout", ["86400", "999999999"])
def test_a_long_timeout(database: str, timeout: str) -> None:
    """Also one that is longer than any that the server has."""
    with directories(f"{database}&timeout={timeout}") as service:
        assert service.list() == []


def test_settings_of_somebody_else(database: str) -> None:
    """What they make of values and conditions is not what we ask for."""
    settings = {
        "bytea_output": "escape",
        "DateStyle": "German",
        "IntervalStyle": "sql_standard",
        "TimeZone": "Asia/Tokyo",
        "default_transaction_isolation": "serializable",
        "extra_float_digits": "-15",
        "search_path": "nowhere",
        "standard_conforming_strings": "off",
        "transform_null_equals": "on",
    }
    options = quote(" ".join(f"-c {name}={value}" for name, value in settings.items()))
    with directories(f"{database}&options={options}&application_name=odd") as service:
        put_closure(service, tree())
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(lambda number: service.put(leaf(str(number % 5))), range(20)))
        listed = service.list_with_ages()
        assert len(listed) == len(tree()) + 5
        assert all(0 <= age < 3600 for _, age in listed)
        assert len(list(service.get_recursive(tree()[-1].digest))) == len(tree())
        assert service.delete_many([leaf("1").digest], unused_for=3600) == 0


def test_passwords_are_in_no_representation() -> None:
    target = target_of(parse_address("postgresql://me:sesame@host/db?password=sesame"))
    assert "sesame" not in repr(target)


def test_more_threads_than_connections(database: str) -> None:
    with directories(f"{database}&pool=2") as service, ThreadPoolExecutor(8) as threads:
        leaves = [leaf(str(number)) for number in range(40)]
        assert list(threads.map(service.put, leaves)) == [one.digest for one in leaves]


def test_all_connections_stay_in_use(database: str) -> None:
    complaint = r"all 1 connections .* were in use for 0.2 s"
    with opened(f"{database}&pool=1&timeout=0.2") as one, pytest.raises(Unavailable, match=complaint):
        one.read(lambda _: one.read(lambda _: None))


def test_a_server_without_another_connection(own_server: PostgresServer) -> None:
    own_server.stop()
    own_server.start(max_connections="5", superuser_reserved_connections="0", autovacuum="off")
    with contextlib.ExitStack() as stack:
        held = [
            stack.enter_context(psycopg.connect(host=str(own_server.folder), user="postgres"))
            for _ in range(5)
        ]
        with directories(own_server.url()) as service:
            with pytest.raises(Unavailable, match=r"cannot be reached: .*too many clients"):
                service.list()
            # Who comes a moment too early waits.
            timer = threading.Timer(0.3, held[0].close)
            timer.start()
            assert service.list() == []
            timer.join()


# Going away.


def test_a_server_that_comes_back(own_server: PostgresServer) -> None:
    url = own_server.url()
    with directories(url) as service:
        service.put(leaf("before"))
        own_server.stop()
        for call in (lambda: service.get(leaf("before").digest), lambda: service.put(leaf("lost"))):
            with pytest.raises(Unavailable, match="cannot be reached"):
                call()
        own_server.start()
        assert service.get(leaf("before").digest) == leaf("before")
        # A connection that was lost while nobody used it costs nobody anything, also who writes.
        for how in (signal.SIGINT, signal.SIGQUIT):
            own_server.stop(how)
            own_server.start()
            service.put(leaf(how.name))
        assert len(service.list()) == 3


def test_a_connection_that_is_lost_on_the_way(postgresql: PostgresServer, database: str) -> None:
    """Who reads asks once more; who writes is told, because nobody knows what was done."""
    asked = []

    def work(connection: Connection) -> int:
        asked.append(connection.info.backend_pid)
        if len(asked) % 2:
            postgresql.execute("select pg_terminate_backend(%s)", [asked[-1]])
        connection.execute("select pg_sleep(0)")
        return len(asked)

    with opened(database) as one:
        assert one.read(work) == 2
        with pytest.raises(Unavailable, match=r"terminating connection|closed the connection"):
            one.write(work)
        assert len(set(asked)) == 2  # The second connection was kept for the third time.
        assert one.write(work) == 4


def test_a_server_that_takes_too_long(database: str) -> None:
    with opened(f"{database}&timeout=0.2") as one:
        with pytest.raises(Unavailable, match=r"not done in time \(timeout= in the address\) .*57014"):
            one.read(lambda connection: connection.execute("select pg_sleep(60)"))
        one.read(lambda connection: connection.execute("select 1"))


def test_a_server_that_stops_answering(own_server: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neve.postgres.database._LATE_SECONDS", 0.0)
    with directories(f"{own_server.url()}&timeout=1&connect_timeout=2") as service:
        service.put(leaf("a"))
        for call in (lambda: service.put(leaf("b")), lambda: service.delete_many([leaf("a").digest])):
            service.list()  # Connected again.
            with own_server.paused(), pytest.raises(Unavailable, match="does not answer within 1 s"):
                call()
        assert service.get(leaf("a").digest) == leaf("a")


# Refusing.


def test_a_database_that_takes_no_changes(postgresql: PostgresServer, database: str) -> None:
    read_only = f"{database}&options=-c%20default_transaction_read_only%3Don"
    with directories(read_only) as service, pytest.raises(PermissionDenied, match="takes no changes"):
        service.get(leaf("a").digest)  # There are no tables, and they cannot be made.
    with directories(database) as service:
        put_closure(service, tree())
    postgresql.age(database, "directories")
    with directories(read_only) as service:
        assert len(list(service.get_recursive(tree()[-1].digest))) == len(tree())
        with pytest.raises(PermissionDenied, match="takes no changes"):
            service.put(leaf("a"))


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        ("53100", DiskFull),
        ("53200", Unavailable),
        ("58030", Unavailable),
        ("42501", PermissionDenied),
        ("XX001", Corrupt),
        ("54000", LimitExceeded),
    ],
)
def test_what_the_server_complains_of(database: str, state: str, kind: type[NeveError]) -> None:
    statement = f"do $$ begin raise exception 'it hurts' using errcode = '{state}'; end $$".encode()
    with opened(database) as one, pytest.raises(kind, match=f"it hurts \\[{state}\\]") as error:
        one.write(lambda connection: connection.execute(statement))
    assert type(error.value) is kind


def test_what_was_undone_because_of_others_is_done_anew(database: str) -> None:
    turns: list[int] = []

    def work(connection: Connection) -> int:
        turns.append(0)
        if len(turns) < 4:
            connection.execute("do $$ begin raise exception 'again' using errcode = '40P01'; end $$")
        return len(turns)

    with opened(database) as one:
        assert one.write(work) == 4
        with pytest.raises(Unavailable, match="again"):
            one.write(
                lambda connection: connection.execute(
                    "do $$ begin raise exception 'again' using errcode = '40001'; end $$"
                )
            )


# The tables.


def test_many_begin_at_once(database: str) -> None:
    services = [DIRECTORY_SERVICES.open(f"{database}&application_name=n{number}") for number in range(8)]
    calls: list[Callable[[], object]] = [service.list for service in services]
    with ThreadPoolExecutor(8) as threads:
        assert [call.result() for call in [threads.submit(call) for call in calls]] == [[]] * 8
    for service in services:
        service.close()


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
def test_many_begin_at_once_in_isolation(database: str, isolation: str) -> None:
    """Who has waited for others sees what they have done, whatever a database has for who says nothing."""
    options = quote("-c default_transaction_isolation=" + isolation.replace(" ", "\\ "))
    urls = [f"{database}&options={options}&application_name=n{number}" for number in range(8)]
    path_infos = [path_info(f"p{number}") for number in range(20)]

    def work(url: str) -> list[object]:
        service = PATH_INFO_SERVICES.open(url)
        with contextlib.closing(service):
            mine = [info.with_signatures([signature(url[-2:])]) for info in path_infos]
            return [result for result in service.put_many(mine) if isinstance(result, NeveError)]

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(work, urls)) == [[]] * 8
    service = PATH_INFO_SERVICES.open(database)
    with contextlib.closing(service):
        for info in path_infos:
            found = service.get(info.digest)
            assert found is not None
            assert found.nar is not None
            assert {one.name for one in found.nar.signatures} == {f"n{number}" for number in range(8)}


def test_tables_of_a_newer_version(postgresql: PostgresServer, database: str) -> None:
    with directories(database) as service:
        service.put(leaf("a"))
    version = f"{schema_of(database)}.version"
    assert postgresql.execute(f"select number from {version}") == [(len(MIGRATIONS),)]
    postgresql.execute(f"update {version} set number = 1000")
    with (
        directories(database) as service,
        pytest.raises(Unsupported, match=f"have version 1000, this neve knows those up to {len(MIGRATIONS)}"),
    ):
        service.get(leaf("a").digest)


def test_a_migration_takes_the_time_that_it_needs(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for those who wait for it. Other statements are given up as always."""
    monkeypatch.setattr("neve.postgres.database._LATE_SECONDS", 0.0)
    with directories(database) as service:
        service.put(leaf("a"))
    monkeypatch.setattr("neve.postgres.schema.MIGRATIONS", (*MIGRATIONS, "select pg_sleep(3)"))
    urls = [f"{database}&timeout=1&application_name=n{number}" for number in range(2)]
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(2) as threads:
        services = [stack.enter_context(directories(url)) for url in urls]
        found = [threads.submit(service.list) for service in services]
        assert [one.result() for one in found] == [[leaf("a").digest]] * 2
    with opened(urls[0]) as one, pytest.raises(Unavailable, match=r"not done in time|does not answer"):
        one.read(lambda connection: connection.execute("select pg_sleep(60)"))


def test_a_migration_that_fails_leaves_nothing(
    postgresql: PostgresServer, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with directories(database) as service:
        service.put(leaf("a"))
    with monkeypatch.context() as patch:
        patch.setattr("neve.postgres.schema.MIGRATIONS", (*MIGRATIONS, "create table {s}.more (); nonsense"))
        with directories(database) as service, pytest.raises(Unavailable, match="syntax error"):
            service.list()
    added = (*MIGRATIONS, "create table {s}.more ()")
    monkeypatch.setattr("neve.postgres.schema.MIGRATIONS", added)
    with directories(database) as service:
        assert service.list() == [leaf("a").digest]
    schema = schema_of(database)
    assert postgresql.execute(f"select number from {schema}.version") == [(len(added),)]
    assert postgresql.execute(f"select * from {schema}.more") == []
