"""Where a daemon listens: claims the addresses, and refuses those that would let in the wrong people.

What each process can bind by itself (TCP; a path, if there is one process only) is an ``Endpoint``.
The rest is accepted by the parent and carried to private sockets of the workers: by *route*, which
says whether it is for administration and whether it is TLS.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from neve.errors import InvalidRequest
from neve.server.settings import Endpoint
from neve.server.splice import Splicer
from neve.serving.addresses import DEFAULT_ADDRESS, TcpAddress, UnixAddress
from neve.serving.listeners import (
    OWNER_ONLY,
    BoundTcpListener,
    BoundUnixListener,
    Claims,
    Listener,
    PassedListener,
    TcpListener,
    UnixListener,
)
from neve.serving.listeners import Listeners as AllListeners
from neve.serving.sockets import resolved
from neve.serving.tls import Tls

_OTHERS = 0o077


@dataclass(frozen=True, kw_only=True)
class ListenOptions:
    """What the command line says about it."""

    addresses: Sequence[str] = (DEFAULT_ADDRESS,)
    admin_addresses: Sequence[str] = ()
    metrics_addresses: Sequence[str] = ()
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


class _Door(NamedTuple):
    """A listener, and where what comes through it goes."""

    listener: Listener
    route: Route
    endpoints: Sequence[Endpoint] = ()
    """What each process binds by itself; where there are none, connections are carried to private sockets."""


class _Claims(Claims):
    """Claims addresses for those who use the store, or for those who administer it."""

    def __init__(self, options: ListenOptions, *, admin: bool, shared: bool) -> None:
        self.doors: list[_Door] = []
        self._options = options
        self._admin = admin
        self._shared = shared
        """Whether several processes serve."""

    def _open(self, listener: Listener, route: Route, endpoints: Sequence[Endpoint] = ()) -> Listener:
        listener.note = route.note
        self.doors.append(_Door(listener, route, endpoints))
        return listener

    def tcp(self, address: TcpAddress) -> Listener:
        hosts = resolved(address)
        self._check_tcp(str(address), [host.number for host in hosts])
        route = Route(self._admin, self._options.tls is not None)
        listener = TcpListener(address, hosts)
        return self._open(
            listener, route, [Endpoint(port.address, route.admin, route.tls) for port in listener.ports]
        )

    def unix(self, address: UnixAddress) -> Listener:
        options, route = self._options, Route(self._admin, tls=False)
        mode = options.admin_socket_mode if self._admin else options.socket_mode
        group = None if self._admin and not mode & _OTHERS else options.socket_group
        if self._shared:
            return self._open(BoundUnixListener(address, mode, group), route)
        listener = UnixListener(address, mode, group)
        return self._open(listener, route, [Endpoint(f"unix:{listener.path.staging}", self._admin)])

    def passed(self, listener: PassedListener) -> None:
        if listener.is_tcp:
            self._check_tcp(listener.name, [listener.socket.getsockname()[0]])
        elif self._admin:
            self._check_admin_socket(listener)
        self._open(listener, Route(self._admin, listener.is_tcp and self._options.tls is not None))

    def _check_tcp(self, address: str, hosts: Sequence[str]) -> None:
        """Whoever reaches the address must be known, or be meant to use the store."""
        tls = self._options.tls
        if self._admin:
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

    def _check_admin_socket(self, listener: PassedListener) -> None:
        """Its permissions are those that systemd gave it."""
        name, path = listener.name, listener.socket.getsockname()
        try:
            mode = os.stat(path).st_mode if isinstance(path, str) and path else 0o777
        except OSError as error:
            raise InvalidRequest(f"--admin-listen sd-listen: {name}: {error.strerror}") from error
        if open_to := mode & _OTHERS & ~self._options.admin_socket_mode:
            raise InvalidRequest(
                f"--admin-listen sd-listen: {name} is open to others than its owner (mode bits "
                f"{open_to:04o}); set SocketMode=0600, or allow it with --admin-socket-mode"
            )


class _MetricsClaims(Claims):
    """Claims addresses for who collects figures. They tell nothing of what is stored, so that whoever names
    such an address may let everybody in."""

    def __init__(self, options: ListenOptions) -> None:
        self.listeners: list[Listener] = []
        self._options = options

    def _open(self, listener: Listener) -> Listener:
        listener.note = " (metrics)"
        self.listeners.append(listener)
        return listener

    def tcp(self, address: TcpAddress) -> Listener:
        return self._open(BoundTcpListener(address, 1))

    def unix(self, address: UnixAddress) -> Listener:
        return self._open(BoundUnixListener(address, self._options.socket_mode, self._options.socket_group))

    def passed(self, listener: PassedListener) -> None:
        self._open(listener)


class Listeners(AllListeners):
    """All addresses of a daemon."""

    def __init__(self, options: ListenOptions, processes: int, environment: MutableMapping[str, str]) -> None:
        """Claims them for so many processes. Raises ``InvalidRequest`` also for those that would let in the
        wrong people."""
        use, admin = (_Claims(options, admin=admin, shared=processes > 1) for admin in (False, True))
        metrics = _MetricsClaims(options)
        wanted = [
            (use, options.addresses),
            (admin, options.admin_addresses),
            (metrics, options.metrics_addresses),
        ]
        super().__init__(wanted, environment)
        self._doors = [*use.doors, *admin.doors]
        self.metrics = [each for listener in metrics.listeners for each in listener.sockets(0)]
        """What figures are given out on, bound."""

    @property
    def routes(self) -> list[Route]:
        """What is carried to private sockets; empty if nothing is."""
        return sorted({door.route for door in self._doors if not door.endpoints}, key=lambda r: r.name)

    def endpoints(self) -> list[Endpoint]:
        """What each process binds by itself."""
        return [endpoint for door in self._doors for endpoint in door.endpoints]

    def attach(self, splicer: Splicer) -> None:
        """Hands what is to be carried to the splicer."""
        for door in self._doors:
            for each in door.listener.sockets(0):
                splicer.add_listener(each, door.route.name)


def _is_loopback(host: str) -> bool:
    address = ipaddress.ip_address(host)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped.is_loopback
    return address.is_loopback
