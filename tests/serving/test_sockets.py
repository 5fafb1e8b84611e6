"""Addresses and claims on them."""

from __future__ import annotations

import grp
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from neve.errors import Conflict, InvalidRequest, NeveError, Unavailable
from neve.serving.addresses import (
    SUN_PATH_BYTES,
    InheritedAddress,
    TcpAddress,
    UnixAddress,
    parse_listen_address,
)
from neve.serving.sockets import Host, PassedSockets, TcpPort, UnixPath, claim_ports, passed_names, resolved
from neve.testing.servers import Certificates, make_certificates

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


# How addresses are written.


@pytest.mark.parametrize(
    ("text", "address", "shown"),
    [
        ("[::1]:8000", TcpAddress("::1", 8000), "[::1]:8000"),
        ("[::]:8000", TcpAddress("::", 8000), "[::]:8000"),
        ("[fe80::1%eth0]:1", TcpAddress("fe80::1%eth0", 1), "[fe80::1%eth0]:1"),
        ("127.0.0.1:0", TcpAddress("127.0.0.1", 0), "127.0.0.1:0"),
        ("store.example.org:65535", TcpAddress("store.example.org", 65535), "store.example.org:65535"),
        ("unix:/run/neve.sock", UnixAddress("/run/neve.sock"), "unix:/run/neve.sock"),
        ("unix:///run/neve.sock", UnixAddress("/run/neve.sock"), "unix:/run/neve.sock"),
        ("/run/neve.sock", UnixAddress("/run/neve.sock"), "unix:/run/neve.sock"),
        ("/" + 106 * "x", UnixAddress("/" + 106 * "x"), "unix:/" + 106 * "x"),
        ("sd-listen", InheritedAddress(), "sd-listen"),
        ("sd-listen:admin", InheritedAddress("admin"), "sd-listen:admin"),
    ],
)
def test_addresses(text: str, address: object, shown: str) -> None:
    assert parse_listen_address(text) == address
    assert str(address) == shown


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "no address"),
        ("8000", "no address"),
        ("localhost", "no address"),
        ("::1:8000", "no address"),
        ("[::1]", "no address"),
        ("http://localhost:8000", "no address"),
        ("run/neve.sock", "no address"),
        ("localhost:-1", "no address"),
        (":8000", r"write \[::\]:8000"),
        ("[]:8000", r"write \[::\]:8000"),
        ("localhost:65536", "65535"),
        ("unix:neve.sock", "absolute"),
        ("unix:", "absolute"),
        ("/run/", "folder"),
        ("/run/..", "folder"),
        ("/run/a\0b", "NUL"),
        ("/" + 107 * "x", "108 bytes, the path of a socket at most 107"),
        ("/" + 54 * "é", "109 bytes"),
    ],
)
def test_no_addresses(text: str, complaint: str) -> None:
    with pytest.raises(InvalidRequest, match=complaint):
        parse_listen_address(text)


def test_the_limit_on_paths_is_that_of_the_system(folder: Path) -> None:
    longest = folder / ("x" * (SUN_PATH_BYTES - len(str(folder)) - 1))
    path = UnixPath(UnixAddress(str(longest)), 0o600)
    with path.bind():
        path.publish()
        assert connects(longest)
        path.close()


# Paths.


@pytest.fixture
def claim(folder: Path) -> Iterator[Callable[..., UnixPath]]:
    claims: list[UnixPath] = []

    def make(name: str = "socket", mode: int = 0o600, group: int | None = None) -> UnixPath:
        claims.append(UnixPath(UnixAddress(str(folder / name)), mode, group))
        return claims[-1]

    yield make
    for each in claims:
        each.close()


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_permissions_of_a_path(folder: Path, claim: Callable[..., UnixPath], umask: int) -> None:
    before = os.umask(umask & 0o077)
    try:
        for mode in (0o600, 0o660, 0o666):
            path = claim("socket", mode)
            with path.bind():
                assert os.listdir(folder) != ["socket"]
                assert all(stat.S_IMODE(each.stat().st_mode) == 0o700 for each in folder.iterdir())
                path.publish()
                assert os.listdir(folder) == ["socket"]
                assert stat.S_IMODE((folder / "socket").stat().st_mode) == mode
                assert connects(folder / "socket")
            path.close()
            assert os.listdir(folder) == []
    finally:
        os.umask(before)


def test_group_of_a_path(folder: Path, claim: Callable[..., UnixPath]) -> None:
    groups = [entry.gr_gid for entry in grp.getgrall()] if os.geteuid() == 0 else os.getgroups()
    group = groups[-1]
    path = claim("socket", 0o660, group)
    with path.bind():
        path.publish()
        status = (folder / "socket").stat()
        assert status.st_gid == group
        assert stat.S_IMODE(status.st_mode) == 0o660


def test_nobody_gets_in_before_it_is_published(folder: Path, claim: Callable[..., UnixPath]) -> None:
    path = claim()
    with path.bind():
        assert not connects(folder / "socket")
        path.publish()
        assert connects(folder / "socket")
        path.withdraw()
        assert not connects(folder / "socket")
        path.withdraw()
    path.close()
    path.close()


def test_a_live_path_is_refused(folder: Path, claim: Callable[..., UnixPath]) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(folder / "socket"))
        other.listen(1)
        with pytest.raises(Conflict, match=f"something is already listening on unix:{folder}/socket"):
            claim()
        # Also when its queue is full.
        clients = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) for _ in range(9)]
        for client in clients:
            client.connect_ex(str(folder / "socket"))
        with pytest.raises(Conflict, match="already listening"):
            claim()
        for client in clients:
            client.close()
        assert stat.S_ISSOCK((folder / "socket").stat().st_mode)
    assert os.listdir(folder) == ["socket"]


def test_a_stale_socket_is_removed(folder: Path, claim: Callable[..., UnixPath]) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(folder / "socket"))
        other.listen(1)
    path = claim()
    with path.bind():
        path.publish()
        assert connects(folder / "socket")


def test_one_that_became_live_meanwhile_is_refused(folder: Path, claim: Callable[..., UnixPath]) -> None:
    path = claim()
    with path.bind(), socket.socket(socket.AF_UNIX) as other:
        other.bind(str(folder / "socket"))
        other.listen(1)
        with pytest.raises(Conflict, match="already listening"):
            path.publish()
        path.close()
        assert connects(folder / "socket")
    assert os.listdir(folder) == ["socket"]


@pytest.mark.parametrize("kind", ["file", "folder", "link", "datagram"])
def test_what_is_no_stream_socket_is_refused(folder: Path, claim: Callable[..., UnixPath], kind: str) -> None:
    there = folder / "socket"
    datagram = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    if kind == "file":
        there.write_bytes(b"precious")
    elif kind == "folder":
        there.mkdir()
    elif kind == "link":
        there.symlink_to("elsewhere")
    else:
        datagram.bind(str(there))
    with datagram, pytest.raises((Conflict, Unavailable), match=r"no socket|wrong type"):
        claim()
    assert os.listdir(folder) == ["socket"]


def test_folders_that_cannot_be_used(folder: Path) -> None:
    with pytest.raises(Unavailable, match=f"cannot listen on unix:{folder}/none/socket: No such file"):
        UnixPath(UnixAddress(f"{folder}/none/socket"), 0o600)
    (folder / "file").touch()
    with pytest.raises(Unavailable, match="Not a directory"):
        UnixPath(UnixAddress(f"{folder}/file/socket"), 0o600)


def test_a_path_that_became_somebody_elses_stays(folder: Path, claim: Callable[..., UnixPath]) -> None:
    path = claim()
    with path.bind(), socket.socket(socket.AF_UNIX) as other:
        path.publish()
        os.unlink(folder / "socket")
        other.bind(str(folder / "socket"))
        other.listen(1)
        path.close()
        assert connects(folder / "socket")


@pytest.mark.parametrize("stale", [False, True])
def test_of_many_that_race_for_a_path_one_wins(folder: Path, stale: bool) -> None:
    racers, address = 4, UnixAddress(str(folder / "socket"))
    for _ in range(60):
        if stale:
            with socket.socket(socket.AF_UNIX) as old:
                old.bind(address.path)
        barrier = threading.Barrier(racers)
        won: list[tuple[UnixPath, socket.socket]] = []
        lost: list[NeveError] = []

        def race(
            barrier: threading.Barrier = barrier,
            won: list[tuple[UnixPath, socket.socket]] = won,
            lost: list[NeveError] = lost,
        ) -> None:
            barrier.wait()
            try:
                path = UnixPath(address, 0o600)
            except Conflict as error:
                lost.append(error)
                return
            listener = path.bind()
            try:
                path.publish()
                won.append((path, listener))
            except Conflict as error:
                lost.append(error)
                listener.close()
                path.close()

        threads = [threading.Thread(target=race) for _ in range(racers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(won), len(lost)) == (1, racers - 1)
        ((path, listener),) = won
        with listener:
            assert connects(address.path)
            path.close()
        assert os.listdir(folder) == []


# Ports.


def test_a_port_is_ours_alone() -> None:
    first = TcpPort(IPV4, 0)
    assert first.address == f"127.0.0.1:{first.port}"
    for other in (IPV4, Host(socket.AF_INET, "0.0.0.0")):
        with pytest.raises(OSError, match="in use"):
            TcpPort(other, first.port)
    # Our own processes may listen there.
    listening = [socket.create_server(("127.0.0.1", first.port), reuse_port=True) for _ in range(2)]
    with pytest.raises(OSError, match="in use"):
        TcpPort(IPV4, first.port)
    for each in listening:
        each.close()
    first.close()
    TcpPort(IPV4, first.port).close()


@pytest.mark.parametrize("shares", [False, True])
def test_a_port_where_somebody_listens_is_refused(shares: bool) -> None:
    with socket.create_server(("127.0.0.1", 0), reuse_port=shares) as other:
        address = TcpAddress("127.0.0.1", other.getsockname()[1])
        with pytest.raises(Conflict, match=f"cannot listen on {address}: address already in use"):
            claim_ports(address, resolved(address))


def test_old_connections_do_not_matter() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            accepted, _ = server.accept()
            accepted.close()  # The side that closes first remembers the connection for a while.
    TcpPort(IPV4, port).close()


def test_of_many_that_race_for_a_port_one_wins() -> None:
    for _ in range(60):
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        barrier = threading.Barrier(3)
        won: list[TcpPort] = []

        def race(barrier: threading.Barrier = barrier, won: list[TcpPort] = won, port: int = port) -> None:
            barrier.wait()
            try:
                won.append(TcpPort(IPV4, port))
            except OSError:
                return

        threads = [threading.Thread(target=race) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        won[0].close()


def test_a_name_may_have_several_addresses() -> None:
    address = TcpAddress("localhost", 0)
    claimed = claim_ports(
        address, [IPV4, Host(socket.AF_INET, "127.0.0.2"), Host(socket.AF_INET, "192.0.2.1")]
    )
    assert [each.address for each in claimed] == [f"127.0.0.{i}:{claimed[0].port}" for i in (1, 2)]
    for each in claimed:
        each.close()
    with pytest.raises(Unavailable, match="localhost:0: Cannot assign"):
        claim_ports(address, [Host(socket.AF_INET, "192.0.2.1")])
    with pytest.raises(InvalidRequest, match=r"cannot listen on no-such-host\.invalid:1: "):
        resolved(TcpAddress("no-such-host.invalid", 1))


# Sockets from systemd.


def passed(*sockets: socket.socket, names: str = "", code: str) -> str:
    """What ``code`` prints in a process that gets ``sockets`` as systemd would pass them."""
    setting_up = f"""
import os, sys
from neve.errors import NeveError
from neve.serving.addresses import InheritedAddress
from neve.serving.sockets import PassedSockets
given = {[each.fileno() for each in sockets]}
moved = [os.dup(fd) for fd in given]
for i, fd in enumerate(moved):
    os.dup2(fd, 3 + i, inheritable=True)
environment = dict(LISTEN_FDS=str(len(given)), LISTEN_PID=str(os.getpid()), LISTEN_FDNAMES={names!r}, X="y")
try:
    {code}
except NeveError as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run(
        [sys.executable, "-c", setting_up],
        pass_fds=[each.fileno() for each in sockets],
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    return done.stdout.strip()


def test_passed_sockets(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(folder / "socket"))
        unix.listen()
        code = """
    passed = PassedSockets(environment)
    named = passed.take(InheritedAddress('b'))
    rest = passed.take(InheritedAddress())
    print([(e.name, e.socket.family.name, e.socket.fileno()) for e in named + rest], environment)
    print([os.get_inheritable(e.socket.fileno()) for e in named + rest])
    passed.take(InheritedAddress('b'))
""".strip()
        said = passed(tcp, unix, names="a:b", code=code).splitlines()
    assert said == [
        "[('b', 'AF_UNIX', 4), ('a', 'AF_INET', 3)] {'X': 'y'}",
        "[False, False]",
        "InvalidRequest sd-listen:b: no such socket was passed on by systemd (there: none)",
    ]


def test_passed_sockets_must_listen(folder: Path) -> None:
    code = "PassedSockets(environment)"
    with socket.socket() as idle, socket.socket(type=socket.SOCK_DGRAM) as datagram:
        for each, name in ((idle, "idle"), (datagram, "")):
            said = passed(each, names=name, code=code)
            expected = (
                f"InvalidRequest sd-listen: descriptor 3 ({name or 'unnamed'}) is no listening stream socket"
            )
            assert said == expected
    with socket.create_server(("127.0.0.1", 0)) as tcp:
        folder_too = "environment['LISTEN_FDS'] = '2'; os.dup2(os.open('/', os.O_RDONLY), 4)"
        more = f"{folder_too}; PassedSockets(environment)"
        assert passed(tcp, code=more) == "InvalidRequest sd-listen: descriptor 4 (unnamed) is no socket"
        more = "environment['LISTEN_FDS'] = '90'; PassedSockets(environment)"
        assert "Bad file descriptor" in passed(tcp, code=more) or "is no socket" in passed(tcp, code=more)


def test_sockets_for_another_process() -> None:
    for environment in ({}, {"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "a"}):
        sockets = PassedSockets(environment)
        assert environment == {}
        with pytest.raises(InvalidRequest, match="sd-listen: no such socket was passed on"):
            sockets.take(InheritedAddress())
    for count in ("", "-1", "4097", "9" * 5000, "\u0663", "1 "):
        with pytest.raises(InvalidRequest, match="LISTEN_FDS is"):
            passed_names(count, "")
    assert passed_names("3", "a:b") == ["a", "b", ""]
    assert passed_names("1", "a:b") == ["a"]
    assert passed_names("0", "") == []
    with pytest.raises(InvalidRequest, match="LISTEN_FDS is 'x'"):
        PassedSockets({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "x"})
