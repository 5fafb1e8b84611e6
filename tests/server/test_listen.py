"""Who may listen where."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from neve.errors import Conflict, InvalidRequest
from neve.server.listen import Listeners, ListenOptions
from neve.server.settings import Endpoint
from neve.serving.addresses import (
    SUN_PATH_BYTES,
)
from neve.serving.sockets import Host
from neve.serving.tls import Tls, TlsFiles, read_tls
from neve.testing.servers import Certificates, make_certificates
from tests.logged import logged

IPV4 = Host(socket.AF_INET, "127.0.0.1")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One with a short path, as sockets need it."""
    assert len(str(tmp_path)) < SUN_PATH_BYTES - 20, "use a shorter --basetemp"
    return tmp_path


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


def connects(path: Path | str) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except OSError:
            return False
        return True


# Who may listen where.


def opened(processes: int = 1, **options: object) -> Listeners:
    return Listeners(ListenOptions(**options), processes, {})  # type: ignore[arg-type]


def tls(certificates: Certificates, **files: Path) -> Tls:
    found = read_tls(
        TlsFiles(
            certificate=str(certificates.server_certificate),
            key=str(certificates.server_key),
            **{name: str(path) for name, path in files.items()},
        )
    )
    assert found is not None
    return found


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0"])
def test_outside_needs_certificates(certificates: Certificates, address: str) -> None:
    with pytest.raises(InvalidRequest, match="--tls-client-ca, or --insecure to let everybody in"):
        opened(addresses=[address])
    with pytest.raises(InvalidRequest, match="can be reached from other machines"):
        opened(addresses=[address], tls=tls(certificates))
    opened(addresses=[address], tls=tls(certificates, client_ca=certificates.ca)).close()
    opened(addresses=[address], insecure=True).close()


@pytest.mark.parametrize("address", ["127.0.0.1:0", "127.9.9.9:0", "[::ffff:127.0.0.1]:0", "localhost:0"])
def test_loopback_needs_none(certificates: Certificates, address: str) -> None:
    listeners = opened(addresses=[address])
    assert [endpoint.tls for endpoint in listeners.endpoints()] in ([False], [False, False])
    assert listeners.routes == []
    listeners.close()
    listeners = opened(addresses=[address], tls=tls(certificates))
    assert all(endpoint.tls for endpoint in listeners.endpoints())
    listeners.close()


def test_administration_over_tcp_needs_its_own_certificates(certificates: Certificates) -> None:
    for options in (
        {},
        {"insecure": True},
        {"tls": tls(certificates)},
        {"tls": tls(certificates, client_ca=certificates.ca)},
    ):
        with pytest.raises(InvalidRequest, match="--tls-admin-ca; or name a socket"):
            opened(addresses=[], admin_addresses=["127.0.0.1:0"], **options)
    listeners = opened(
        addresses=[], admin_addresses=["127.0.0.1:0"], tls=tls(certificates, admin_ca=certificates.ca)
    )
    (endpoint,) = listeners.endpoints()
    assert (endpoint.admin, endpoint.tls) == (True, True)
    listeners.close()


@pytest.mark.parametrize("processes", [1, 2])
def test_modes_of_sockets(folder: Path, processes: int) -> None:
    options = {"addresses": [f"{folder}/use"], "admin_addresses": [f"unix:{folder}/admin"]}

    def modes(**more: int) -> tuple[int, int]:
        listeners = opened(processes, **options, **more)
        made = []
        for endpoint in listeners.endpoints():
            made.append(socket.socket(socket.AF_UNIX))
            made[-1].bind(endpoint.address.removeprefix("unix:"))
            made[-1].listen()
        listeners.publish()
        use, admin = [stat.S_IMODE((folder / name).stat().st_mode) for name in ("use", "admin")]
        for each in made:
            each.close()
        listeners.close()
        assert os.listdir(folder) == []
        return use, admin

    with logged() as messages:
        assert modes() == (0o600, 0o600)
    assert messages == [
        f"listening on unix:{folder}/use",
        f"listening on unix:{folder}/admin (administration)",
    ]
    assert modes(socket_mode=0o666) == (0o666, 0o600)
    assert modes(admin_socket_mode=0o660) == (0o600, 0o660)


def test_sockets_that_several_processes_share_are_carried(folder: Path) -> None:
    options = {"addresses": [f"{folder}/use", "127.0.0.1:0"], "admin_addresses": [f"{folder}/admin"]}
    alone = opened(1, **options)
    assert alone.routes == []
    assert [endpoint.admin for endpoint in alone.endpoints()] == [False, False, True]
    alone.close()
    shared = opened(2, **options)
    assert [route.name for route in shared.routes] == ["admin", "use"]
    (tcp,) = shared.endpoints()
    assert tcp == Endpoint(tcp.address, admin=False, tls=False)
    shared.close()
    assert os.listdir(folder) == []


def test_after_an_error_nothing_is_left(folder: Path) -> None:
    (folder / "file").touch()
    with pytest.raises(Conflict, match="no socket"):
        opened(2, addresses=[f"{folder}/a", f"{folder}/b", f"{folder}/file"])
    assert os.listdir(folder) == ["file"]
