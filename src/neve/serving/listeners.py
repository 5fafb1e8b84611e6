"""The addresses that a server was given, claimed and published.

What becomes of their connections differs: an event loop accepts them itself, or gRPC binds for itself, or a
parent accepts them and carries them to others. So a server says how each kind of address is claimed
(``Claims``); the order in which that happens, and what is done with all of them together, is here.
"""

from __future__ import annotations

import contextlib
import os
import socket
from abc import ABC, abstractmethod
from collections.abc import MutableMapping, Sequence

from neve.serving.addresses import InheritedAddress, TcpAddress, UnixAddress, parse_listen_address
from neve.serving.sockets import (
    Host,
    PassedSocket,
    PassedSockets,
    TcpPort,
    UnixPath,
    cannot_listen,
    claim_ports,
    resolved,
)
from neve.telemetry import LOGGER

OWNER_ONLY = 0o600


class Listener(ABC):
    """One address, claimed."""

    def __init__(self, address: str, note: str = "") -> None:
        """``note`` is added to the address in the log."""
        self.address = address
        self.note = note

    def sockets(self, process: int) -> list[socket.socket]:
        """What connections are accepted from, bound: for a process, counted from 0. They stay ours, and
        those who listen elsewhere have none."""
        return []

    def publish(self) -> None:
        """Lets clients in: all that is needed to serve them is there."""
        return

    def withdraw(self) -> None:
        """Removes what others find it by. May be called at any time, and more than once."""
        return

    @abstractmethod
    def close(self) -> None:
        """Gives the address up. Connections that nobody has accepted get lost with the last process that
        has it."""


class TcpListener(Listener):
    """Ports, which processes bind for themselves."""

    def __init__(self, address: TcpAddress, hosts: Sequence[Host], note: str = "") -> None:
        self.ports: list[TcpPort] = claim_ports(address, hosts)
        super().__init__(str(TcpAddress(address.host, self.ports[0].port)), note)

    def close(self) -> None:
        for port in self.ports:
            port.close()


class BoundTcpListener(TcpListener):
    """Ports with a socket for each process, over which the kernel spreads connections."""

    def __init__(self, address: TcpAddress, processes: int, note: str = "") -> None:
        super().__init__(address, resolved(address), note)
        self._sockets: list[list[socket.socket]] = []
        try:
            for _ in range(processes):
                self._sockets.append([])
                for port in self.ports:
                    self._sockets[-1].append(port.bind())
        except OSError as error:
            self.close()
            raise cannot_listen(self.address, error) from error

    def sockets(self, process: int) -> list[socket.socket]:
        return self._sockets[process]

    def close(self) -> None:
        for each in (each for sockets in self._sockets for each in sockets):
            each.close()
        super().close()


class UnixListener(Listener):
    """A path whose socket the one process that serves it makes itself, at ``path.staging``."""

    def __init__(self, address: UnixAddress, mode: int, group: int | None, note: str = "") -> None:
        super().__init__(str(address), note)
        self.path = UnixPath(address, mode, group)

    def publish(self) -> None:
        self.path.publish()

    def withdraw(self) -> None:
        self.path.withdraw()

    def close(self) -> None:
        self.path.close()


class BoundUnixListener(UnixListener):
    """A path with one socket that all processes accept from."""

    def __init__(self, address: UnixAddress, mode: int, group: int | None, note: str = "") -> None:
        super().__init__(address, mode, group, note)
        try:
            self._socket = self.path.bind()
        except BaseException:
            self.path.close()
            raise

    def sockets(self, process: int) -> list[socket.socket]:
        return [self._socket]

    def close(self) -> None:
        self._socket.close()
        super().close()


class PassedListener(Listener):
    """A socket that systemd passed on; all processes accept from it."""

    def __init__(self, passed: PassedSocket) -> None:
        self.socket = passed.socket
        self.name = _socket_name(passed.socket)
        super().__init__(f"{self.name} (sd-listen)")

    @property
    def is_tcp(self) -> bool:
        """Whether others than this machine may reach it."""
        return self.socket.family != socket.AF_UNIX

    def sockets(self, process: int) -> list[socket.socket]:
        return [self.socket]

    def close(self) -> None:
        self.socket.close()


class Claims(ABC):
    """How a server claims addresses that it was given for one purpose. Raises ``InvalidRequest``,
    ``Conflict``, ``PermissionDenied``, ``Unavailable``."""

    @abstractmethod
    def tcp(self, address: TcpAddress) -> Listener:
        """A port."""

    @abstractmethod
    def unix(self, address: UnixAddress) -> Listener:
        """A path."""

    def passed(self, listener: PassedListener) -> None:
        """Looks at what systemd passed on; that is given up with all others if this raises."""
        return


class Listeners:
    """All addresses of a server. To be closed, after those who served have ended."""

    def __init__(
        self, wanted: Sequence[tuple[Claims, Sequence[str]]], environment: MutableMapping[str, str]
    ) -> None:
        """Claims addresses, as they are written. ``environment`` says what systemd passed on, and is left
        without it. Raises what the claims raise, and ``InvalidRequest``."""
        self._all: list[Listener] = []
        try:
            self._open(wanted, environment)
        except BaseException:
            self.close()
            raise

    def _open(
        self, wanted: Sequence[tuple[Claims, Sequence[str]]], environment: MutableMapping[str, str]
    ) -> None:
        parsed = [(claims, parse_listen_address(text)) for claims, texts in wanted for text in texts]
        inherited = [(claims, each) for claims, each in parsed if isinstance(each, InheritedAddress)]
        if inherited:
            passed = PassedSockets(environment)
            try:
                # Sockets with a name first: those without one take what is left.
                for claims, address in sorted(inherited, key=lambda item: item[1] == InheritedAddress()):
                    taken = [PassedListener(each) for each in passed.take(address)]
                    self._all += taken
                    for listener in taken:
                        claims.passed(listener)
            finally:
                if left := passed.close():
                    LOGGER.warning("sockets that systemd passed on and no address names: %s", ", ".join(left))
        for claims, each in parsed:
            if isinstance(each, TcpAddress):
                self._all.append(claims.tcp(each))
            elif isinstance(each, UnixAddress):
                self._all.append(claims.unix(each))

    def sockets(self, process: int) -> list[socket.socket]:
        """All that is accepted from; see ``Listener.sockets``."""
        return [each for listener in self._all for each in listener.sockets(process)]

    def publish(self) -> None:
        """Lets clients in, and logs where."""
        for listener in self._all:
            listener.publish()
        for listener in self._all:
            LOGGER.info("listening on %s%s", listener.address, listener.note)

    @property
    def status(self) -> str:
        """Where it listens, in a line."""
        return "listening on " + ", ".join(f"{each.address}{each.note}" for each in self._all)

    def withdraw(self) -> None:
        """Removes paths. May be called at any time, and more than once."""
        for listener in self._all:
            listener.withdraw()

    def close(self) -> None:
        """Gives all of it up. Can be called again."""
        with contextlib.ExitStack() as closing:
            for listener in self._all:
                closing.callback(listener.close)
        self._all = []


def _socket_name(listening: socket.socket) -> str:
    name = listening.getsockname()
    if listening.family == socket.AF_UNIX:
        return f"unix:{name}" if isinstance(name, str) else f"unix-abstract:{os.fsdecode(name[1:])}"
    return str(TcpAddress(name[0], name[1]))
