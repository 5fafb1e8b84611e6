"""What may be between us and a database: PgBouncer, and TLS."""

from __future__ import annotations

import contextlib
import shutil
import socket
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest

from neve.castore.directories.base import DirectoryService
from neve.castore.directories.urls import DIRECTORY_SERVICES
from neve.errors import InvalidRequest, PermissionDenied, Unavailable
from neve.store.pathinfos.base import PathInfoService
from neve.store.pathinfos.urls import PATH_INFO_SERVICES
from neve.testing.ages import DirectoryAgesContract
from neve.testing.directories import DirectoryServiceContract, leaf, put_closure, tree
from neve.testing.pathinfos import PathInfoAgesContract, PathInfoServiceContract
from neve.testing.postgresql import PostgresServer, running_postgresql
from neve.testing.servers import Certificates, make_certificates

pytestmark = pytest.mark.postgresql


# PgBouncer.


@pytest.fixture(scope="module")
def bouncer(postgresql: PostgresServer) -> Iterator[str]:
    """The folder of its socket. Each transaction gets one of two connections."""
    # Sockets need short paths.
    with (
        tempfile.TemporaryDirectory(prefix="neve-bouncer-") as folder,
        postgresql.pgbouncer(Path(folder)) as found,
    ):
        yield found


@pytest.fixture
def plain(bouncer: str, postgresql: PostgresServer, database: str) -> str:
    """The address of an empty place behind it, without a word about it."""
    return database.replace(quote(str(postgresql.folder), safe=""), quote(bouncer, safe=""))


@pytest.fixture
def pooled(plain: str) -> str:
    return f"{plain}&pooler=transaction"


@pytest.mark.pgbouncer
class TestDirectoriesBehindPgBouncer(DirectoryServiceContract, DirectoryAgesContract):
    finds_damage = False

    @pytest.fixture
    def service(self, postgresql: PostgresServer, database: str, pooled: str) -> Iterator[DirectoryService]:
        self.postgresql, self.url = postgresql, database
        service = DIRECTORY_SERVICES.open(pooled)
        yield service
        service.close()

    def make_older(self, service: Any, seconds: float) -> None:
        self.postgresql.age(self.url, "directories", seconds)


@pytest.mark.pgbouncer
class TestPathInfosBehindPgBouncer(PathInfoServiceContract, PathInfoAgesContract):
    def make_older(self, service: Any, seconds: float) -> None:
        self.postgresql.age(self.url, "path_infos", seconds)

    @pytest.fixture
    def service(self, postgresql: PostgresServer, database: str, pooled: str) -> Iterator[PathInfoService]:
        self.postgresql, self.url = postgresql, database
        service = PATH_INFO_SERVICES.open(pooled)
        yield service
        service.close()


@pytest.mark.pgbouncer
def test_many_on_few_connections(pooled: str) -> None:
    """They begin at once, and what each says often enough to have it prepared comes to any connection."""
    urls = [f"{pooled}&application_name=n{number}" for number in range(6)]

    def work(url: str) -> int:
        service = DIRECTORY_SERVICES.open(url)
        with contextlib.closing(service):
            for number in range(20):
                service.put(leaf(f"{number}"))
                assert service.get(leaf(f"{number}").digest) == leaf(f"{number}")
                put_closure(service, tree())
                assert len(list(service.get_recursive(tree()[-1].digest))) == len(tree())
            return len(service.list())

    with ThreadPoolExecutor(len(urls)) as threads:
        counts = list(threads.map(work, urls))
    assert max(counts) == 20 + len(tree())


@pytest.mark.pgbouncer
def test_who_says_nothing_of_it_is_told_what_to_say(plain: str) -> None:
    service = DIRECTORY_SERVICES.open(plain)
    with (
        contextlib.closing(service),
        pytest.raises(Unavailable, match=r"PgBouncer.* give pooler=transaction .*startup parameter: options"),
    ):
        service.list()


@pytest.mark.pgbouncer
def test_options_that_it_lets_through(postgresql: PostgresServer, database: str, tmp_path: Path) -> None:
    """Then all goes well, until something is prepared on another connection."""
    with (
        tempfile.TemporaryDirectory(prefix="neve-bouncer-") as folder,
        postgresql.pgbouncer(Path(folder), ignore_startup_parameters="options") as bouncer,
    ):
        plain = database.replace(quote(str(postgresql.folder), safe=""), quote(bouncer, safe=""))
        services = [DIRECTORY_SERVICES.open(f"{plain}&application_name={name}") for name in "abcd"]

        def work(service: DirectoryService) -> None:
            for _ in range(100):
                service.get(leaf("a").digest)

        with ThreadPoolExecutor(len(services)) as threads:
            failures = [one.exception() for one in [threads.submit(work, service) for service in services]]
        for service in services:
            service.close()
        assert any(failures)
        for failure in filter(None, failures):
            assert type(failure) is Unavailable
            assert "give pooler=transaction in the address" in str(failure)


def test_poolers_that_are_refused() -> None:
    with pytest.raises(
        InvalidRequest, match="parameter 'pooler' is 'session', must be one of: none, transact"
    ):
        DIRECTORY_SERVICES.open("postgresql://host/db?pooler=session")


# TLS.


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def guarded(certificates: Certificates) -> Iterator[PostgresServer]:
    """A server that listens on the network, for who comes with TLS."""
    with running_postgresql() as server:
        server.stop()
        settings = {"ssl": "on", "listen_addresses": "127.0.0.1"}
        for kind, file in (
            ("cert", certificates.server_certificate),
            ("key", certificates.server_key),
            ("ca", certificates.ca),
        ):
            there = server.folder / file.name
            shutil.copy(file, there)
            there.chmod(0o600)
            server.own(there)
            settings[f"ssl_{kind}_file"] = str(there)
        started_somewhere(server, settings)
        server.execute("create role client superuser login")
        yield server


def started_somewhere(server: PostgresServer, settings: dict[str, str]) -> None:
    """On a port that is free; somebody else may take that first."""
    for left in reversed(range(10)):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        try:
            server.start(**settings, port=str(port))
            return
        except psycopg.OperationalError:
            server.stop()
            if not left:
                raise


def listed(url: str) -> object:
    """What a server lets one do."""
    service = DIRECTORY_SERVICES.open(url)
    with contextlib.closing(service):
        service.put(leaf("a"))
        return service.list()


def test_a_server_that_is_who_it_says(guarded: PostgresServer, certificates: Certificates) -> None:
    url = guarded.network_url(sslmode="verify-full", sslrootcert=str(certificates.ca))
    assert listed(url) == [leaf("a").digest]
    with contextlib.closing(DIRECTORY_SERVICES.open(url)) as service:
        database = service._database  # type: ignore[attr-defined]
        question = b"select ssl from pg_stat_ssl where pid = pg_backend_pid()"
        assert database.read(lambda connection: connection.execute(question).fetchone()) == (True,)


def test_a_server_that_is_not(guarded: PostgresServer, certificates: Certificates, tmp_path: Path) -> None:
    others = make_certificates(tmp_path)
    for parameters, complaint in (
        ({"sslrootcert": str(others.ca)}, "certificate verify failed"),
        ({"sslrootcert": str(certificates.ca), "host": "db.example"}, 'not match host name "db.example"'),
        ({"sslrootcert": str(tmp_path / "none")}, "none.* does not exist"),
    ):
        url = guarded.network_url(sslmode="verify-full")
        for name, value in parameters.items():
            url = (
                f"{url.replace('host=localhost&', '')}&{name}={value}"
                if name == "host"
                else f"{url}&{name}={value}"
            )
        with pytest.raises(Unavailable, match=f"cannot be reached: .*{complaint}"):
            listed(url)


def test_clients_that_are_not_let_in(guarded: PostgresServer, certificates: Certificates) -> None:
    with pytest.raises(PermissionDenied, match=r"no pg_hba.conf entry .* no encryption"):
        listed(guarded.network_url(sslmode="disable"))
    secure = {"sslmode": "verify-full", "sslrootcert": str(certificates.ca)}
    with pytest.raises(PermissionDenied, match="requires a valid client certificate"):
        listed(guarded.network_url(user="client", **secure))
    pair = {"sslcert": str(certificates.client_certificate), "sslkey": str(certificates.client_key)}
    assert listed(guarded.network_url(user="client", **secure, **pair)) == [leaf("a").digest]
