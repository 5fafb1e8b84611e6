"""Where a cache listens: claims the addresses, and makes the sockets that its processes inherit.

A port has a socket for each process, and the kernel spreads connections over them; a path, and what systemd
passed on, has one that all of them accept from.
"""

from __future__ import annotations

import contextlib
import socket
from abc import ABC, abstractmethod
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass

from neve.serving.addresses import (
    InheritedAddress,
    ListenAddress,
    TcpAddress,
    UnixAddress,
    parse_listen_address,
)
from neve.serving.sockets import (
    PassedSocket,
    PassedSockets,
    TcpPort,
    UnixPath,
    cannot_listen,
    claim_ports,
    resolved,
)
from neve.telemetry import LOGGER

DEFAULT_ADDRESS = "[::1]:8080"
OWNER_ONLY = 0o600


@dataclass(frozen=True, kw_only=True)
class ListenOptions:
    """What the command line says about it."""

    addresses: Sequence[str] = (DEFAULT_ADDRESS,)
    socket_mode: int = OWNER_ONLY
    socket_group: int | None = None


class Listener(ABC):
    """One address, claimed."""

    address: str

    @abstractmethod
    def sockets(self, process: int) -> list[socket.socket]:
        """What a process, counted from 0, accepts from. They stay the listener's."""

    def publish(self) -> None:
        """Lets clients in: those who serve them are there."""
        return

    def withdraw(self) -> None:
        """Removes what others find it by. May be called at any time, and more than once."""
        return

    @abstractmethod
    def close(self) -> None:
        """Gives it up. Connections that nobody has accepted get lost with the last process that has it."""


class _TcpListener(Listener):
    def __init__(self, address: TcpAddress, processes: int) -> None:
        self._ports: list[TcpPort] = claim_ports(address, resolved(address))
        self._sockets: list[list[socket.socket]] = []
        self.address = str(TcpAddress(address.host, self._ports[0].port))
        try:
            for _ in range(processes):
                self._sockets.append([])
                for port in self._ports:
                    self._sockets[-1].append(port.bind())
        except OSError as error:
            self.close()
            raise cannot_listen(self.address, error) from error

    def sockets(self, process: int) -> list[socket.socket]:
        return self._sockets[process]

    def close(self) -> None:
        for each in (each for sockets in self._sockets for each in sockets):
            each.close()
        for port in self._ports:
            port.close()


class _UnixListener(Listener):
    def __init__(self, address: UnixAddress, mode: int, group: int | None) -> None:
        self.address = str(address)
        self._path = UnixPath(address, mode, group)
        try:
            self._socket = self._path.bind()
        except BaseException:
            self._path.close()
            raise

    def sockets(self, process: int) -> list[socket.socket]:
        return [self._socket]

    def publish(self) -> None:
        self._path.publish()

    def withdraw(self) -> None:
        self._path.withdraw()

    def close(self) -> None:
        self._socket.close()
        self._path.close()


class _PassedListener(Listener):
    def __init__(self, passed: PassedSocket) -> None:
        self._socket = passed.socket
        self.address = f"{_socket_name(passed.socket)} (sd-listen)"

    def sockets(self, process: int) -> list[socket.socket]:
        return [self._socket]

    def close(self) -> None:
        self._socket.close()


class Listeners:
    """All addresses of a cache. To be closed, also after an error."""

    def __init__(self, options: ListenOptions, processes: int, environment: MutableMapping[str, str]) -> None:
        """Claims them for so many processes. ``environment`` says what systemd passed on, and is left
        without it. Raises ``InvalidRequest``, ``Conflict``, ``PermissionDenied``, ``Unavailable``."""
        self._options = options
        self._processes = processes
        self._listeners: list[Listener] = []
        try:
            self._open([parse_listen_address(text) for text in options.addresses], environment)
        except BaseException:
            self.close()
            raise

    def _open(self, addresses: Sequence[ListenAddress], environment: MutableMapping[str, str]) -> None:
        inherited = [address for address in addresses if isinstance(address, InheritedAddress)]
        if inherited:
            passed = PassedSockets(environment)
            try:
                # Sockets with a name first: those without one take what is left.
                for address in sorted(inherited, key=lambda address: address == InheritedAddress()):
                    self._listeners += map(_PassedListener, passed.take(address))
            finally:
                if left := passed.close():
                    LOGGER.warning("sockets that systemd passed on and no address names: %s", ", ".join(left))
        for each in addresses:
            if isinstance(each, TcpAddress):
                self._listeners.append(_TcpListener(each, self._processes))
            elif isinstance(each, UnixAddress):
                mode, group = self._options.socket_mode, self._options.socket_group
                self._listeners.append(_UnixListener(each, mode, group))

    def sockets(self, process: int) -> list[socket.socket]:
        """All that a process accepts from, bound. They stay ours: a process of its own inherits them, this
        one duplicates them."""
        return [each for listener in self._listeners for each in listener.sockets(process)]

    def all_descriptors(self) -> list[int]:
        """What processes inherit, those of each other included."""
        found = [each.fileno() for process in range(self._processes) for each in self.sockets(process)]
        return list(dict.fromkeys(found))

    def publish(self, note: str) -> None:
        """Lets clients in, and logs where; ``note`` is added for TCP."""
        for listener in self._listeners:
            listener.publish()
        for listener in self._listeners:
            unix = listener.sockets(0)[0].family == socket.AF_UNIX
            LOGGER.info("listening on %s%s", listener.address, "" if unix else note)

    def withdraw(self) -> None:
        """Removes paths. May be called at any time, and more than once."""
        for listener in self._listeners:
            listener.withdraw()

    def close(self) -> None:
        """Gives all of it up. Can be called again."""
        with contextlib.ExitStack() as closing:
            for listener in self._listeners:
                closing.callback(listener.close)
        self._listeners = []


def _socket_name(listening: socket.socket) -> str:
    name = listening.getsockname()
    if listening.family == socket.AF_UNIX:
        return f"unix:{name}" if isinstance(name, str) else "unix-abstract"
    return str(TcpAddress(name[0], name[1]))
