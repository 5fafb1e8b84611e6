"""Where a daemon listens: claims the addresses, and refuses those that would let in the wrong people.

What each process can bind by itself (TCP; a path, if there is one process only) is an ``Endpoint``.
The rest is accepted by the parent and carried to private sockets of the workers: by *route*, which
says whether it is for administration and whether it is TLS.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
from abc import ABC, abstractmethod
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass

from neve.errors import InvalidRequest
from neve.server.settings import Endpoint
from neve.server.splice import Splicer
from neve.serving.addresses import (
    DEFAULT_ADDRESS,
    InheritedAddress,
    ListenAddress,
    TcpAddress,
    UnixAddress,
    parse_listen_address,
)
from neve.serving.sockets import Host, PassedSocket, PassedSockets, UnixPath, claim_ports, resolved
from neve.serving.tls import Tls
from neve.telemetry import LOGGER

OWNER_ONLY = 0o600
_OTHERS = 0o077


@dataclass(frozen=True, kw_only=True)
class ListenOptions:
    """What the command line says about it."""

    addresses: Sequence[str] = (DEFAULT_ADDRESS,)
    admin_addresses: Sequence[str] = ()
    socket_mode: int = OWNER_ONLY
    admin_socket_mode: int = OWNER_ONLY
    socket_group: int | None = None
    insecure: bool = False
    """Whether everybody may use the store who reaches an address."""
    tls: Tls | None = None


@dataclass(frozen=True)
class Route:
    """What kind of private socket a connection is carried to."""

    admin: bool
    tls: bool

    @property
    def name(self) -> str:
        """A word for it."""
        return ("admin" if self.admin else "use") + ("-tls" if self.tls else "")

    @property
    def note(self) -> str:
        """What to add to an address in the log."""
        notes = ["administration"] * self.admin + ["TLS"] * self.tls
        return f" ({', '.join(notes)})" if notes else ""


class Listener(ABC):
    """One address, claimed."""

    def __init__(self, address: str, route: Route) -> None:
        self.address = address
        self.route = route

    def endpoints(self) -> list[Endpoint]:
        """What each process binds by itself."""
        return []

    def sockets(self) -> list[socket.socket]:
        """What is to be accepted and carried to private sockets; belongs to the caller."""
        return []

    def publish(self) -> None:
        """Lets clients in: all that is needed to serve them is there."""
        return

    def withdraw(self) -> None:
        """Lets no new clients in, as far as that is possible. May be called at any time."""
        return

    @abstractmethod
    def close(self) -> None:
        """Gives the address up, after whoever served it has ended."""


class _TcpListener(Listener):
    def __init__(self, address: TcpAddress, hosts: Sequence[Host], route: Route) -> None:
        self._ports = claim_ports(address, hosts)
        super().__init__(str(TcpAddress(address.host, self._ports[0].port)), route)

    def endpoints(self) -> list[Endpoint]:
        return [Endpoint(port.address, self.route.admin, self.route.tls) for port in self._ports]

    def close(self) -> None:
        for port in self._ports:
            port.close()


class _UnixListener(Listener):
    """A path whose socket the one process that serves it makes itself."""

    def __init__(self, address: UnixAddress, route: Route, mode: int, group: int | None) -> None:
        super().__init__(str(address), route)
        self._path = UnixPath(address, mode, group)

    def endpoints(self) -> list[Endpoint]:
        return [Endpoint(f"unix:{self._path.staging}", self.route.admin)]

    def publish(self) -> None:
        self._path.publish()

    def withdraw(self) -> None:
        self._path.withdraw()

    def close(self) -> None:
        self._path.close()


class _SharedUnixListener(_UnixListener):
    """A path that several processes serve."""

    def __init__(self, address: UnixAddress, route: Route, mode: int, group: int | None) -> None:
        super().__init__(address, route, mode, group)
        self._socket = self._path.bind()

    def endpoints(self) -> list[Endpoint]:
        return []

    def sockets(self) -> list[socket.socket]:
        return [self._socket]

    def close(self) -> None:
        self._socket.close()
        super().close()


class _PassedListener(Listener):
    def __init__(self, passed: PassedSocket, route: Route) -> None:
        super().__init__(f"{_socket_name(passed.socket)} (sd-listen)", route)
        self._socket = passed.socket

    def sockets(self) -> list[socket.socket]:
        return [self._socket]

    def close(self) -> None:
        self._socket.close()


class Listeners:
    """All addresses of a daemon. To be closed, also after an error."""

    def __init__(self, options: ListenOptions, processes: int, environment: MutableMapping[str, str]) -> None:
        """Claims them for so many processes. ``environment`` says what systemd passed on, and is left
        without it. Raises ``InvalidRequest``, ``Conflict``, ``PermissionDenied``, ``Unavailable``."""
        self._options = options
        self._shared = processes > 1
        self._listeners: list[Listener] = []
        try:
            self._open(environment)
        except BaseException:
            self.close()
            raise

    def _open(self, environment: MutableMapping[str, str]) -> None:
        wanted: list[tuple[ListenAddress, bool]] = [
            *((parse_listen_address(text), False) for text in self._options.addresses),
            *((parse_listen_address(text), True) for text in self._options.admin_addresses),
        ]
        # Sockets with a name first: those without one take what is left.
        inherited = [item for item in wanted if isinstance(item[0], InheritedAddress)]
        if inherited:
            passed = PassedSockets(environment)
            try:
                for address, admin in sorted(inherited, key=lambda item: item[0] == InheritedAddress()):
                    assert isinstance(address, InheritedAddress)
                    self._listeners += [self._passed(each, admin) for each in passed.take(address)]
            finally:
                if left := passed.close():
                    LOGGER.warning("sockets that systemd passed on and no address names: %s", ", ".join(left))
        for address, admin in wanted:
            if isinstance(address, TcpAddress):
                self._listeners.append(self._tcp(address, admin))
            elif isinstance(address, UnixAddress):
                self._listeners.append(self._unix(address, admin))

    def _tcp(self, address: TcpAddress, admin: bool) -> Listener:
        hosts = resolved(address)
        self._check_tcp(str(address), [host.number for host in hosts], admin)
        return _TcpListener(address, hosts, Route(admin, self._options.tls is not None))

    def _unix(self, address: UnixAddress, admin: bool) -> Listener:
        mode = self._options.admin_socket_mode if admin else self._options.socket_mode
        group = None if admin and not mode & _OTHERS else self._options.socket_group
        kind = _SharedUnixListener if self._shared else _UnixListener
        return kind(address, Route(admin, tls=False), mode, group)

    def _passed(self, passed: PassedSocket, admin: bool) -> Listener:
        try:
            tcp = passed.socket.family != socket.AF_UNIX
            name = _socket_name(passed.socket)
            if tcp:
                self._check_tcp(name, [passed.socket.getsockname()[0]], admin)
            elif admin:
                self._check_admin_socket(name, passed.socket)
        except BaseException:
            passed.socket.close()
            raise
        return _PassedListener(passed, Route(admin, tcp and self._options.tls is not None))

    def _check_tcp(self, address: str, hosts: Sequence[str], admin: bool) -> None:
        """Whoever reaches the address must be known, or be meant to use the store."""
        tls = self._options.tls
        if admin:
            if tls is None or tls.admin_ca is None:
                raise InvalidRequest(
                    f"--admin-listen {address}: over TCP, administration needs --tls-cert, --tls-key and "
                    "--tls-admin-ca; or name a socket, unix:/path"
                )
            return
        known = tls is not None and tls.client_ca is not None
        if not known and not self._options.insecure and not all(map(_is_loopback, hosts)):
            raise InvalidRequest(
                f"{address} can be reached from other machines: it needs --tls-cert, --tls-key and "
                "--tls-client-ca, or --insecure to let everybody in"
            )

    def _check_admin_socket(self, name: str, passed: socket.socket) -> None:
        """Its permissions are those that systemd gave it."""
        path = passed.getsockname()
        try:
            mode = os.stat(path).st_mode if isinstance(path, str) and path else 0o777
        except OSError as error:
            raise InvalidRequest(f"--admin-listen sd-listen: {name}: {error.strerror}") from error
        if open_to := mode & _OTHERS & ~self._options.admin_socket_mode:
            raise InvalidRequest(
                f"--admin-listen sd-listen: {name} is open to others than its owner (mode bits "
                f"{open_to:04o}); set SocketMode=0600, or allow it with --admin-socket-mode"
            )

    # For those who serve.

    @property
    def routes(self) -> list[Route]:
        """What is carried to private sockets; empty if nothing is."""
        return sorted({each.route for each in self._listeners if each.sockets()}, key=lambda r: r.name)

    def endpoints(self) -> list[Endpoint]:
        """What each process binds by itself."""
        return [endpoint for listener in self._listeners for endpoint in listener.endpoints()]

    def attach(self, splicer: Splicer) -> None:
        """Hands what is to be carried to the splicer."""
        for listener in self._listeners:
            for each in listener.sockets():
                splicer.add_listener(each, listener.route.name)

    def publish(self) -> None:
        """Lets clients in, and logs where."""
        for listener in self._listeners:
            listener.publish()
        for listener in self._listeners:
            LOGGER.info("listening on %s%s", listener.address, listener.route.note)

    def withdraw(self) -> None:
        """Removes paths. May be called at any time, and more than once."""
        for listener in self._listeners:
            listener.withdraw()

    def close(self) -> None:
        """Gives all of it up, after those who served have ended."""
        with contextlib.ExitStack() as closing:
            for listener in self._listeners:
                closing.callback(listener.close)
        self._listeners = []


def _is_loopback(host: str) -> bool:
    address = ipaddress.ip_address(host)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped.is_loopback
    return address.is_loopback


def _socket_name(listening: socket.socket) -> str:
    name = listening.getsockname()
    if listening.family == socket.AF_UNIX:
        return f"unix:{name}" if isinstance(name, str) else f"unix-abstract:{os.fsdecode(name[1:])}"
    return str(TcpAddress(name[0], name[1]))
