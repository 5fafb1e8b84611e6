"""Where a cache listens: the sockets that its processes inherit.

A port has a socket for each process, and the kernel spreads connections over them; a path, and what systemd
passed on, has one that all of them accept from.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass

from neve.serving.addresses import TcpAddress, UnixAddress
from neve.serving.listeners import (
    OWNER_ONLY,
    BoundTcpListener,
    BoundUnixListener,
    Claims,
    Listener,
    PassedListener,
)
from neve.serving.listeners import Listeners as AllListeners

DEFAULT_ADDRESS = "[::1]:8080"


@dataclass(frozen=True, kw_only=True)
class ListenOptions:
    """What the command line says about it."""

    addresses: Sequence[str] = (DEFAULT_ADDRESS,)
    socket_mode: int = OWNER_ONLY
    socket_group: int | None = None


class _Claims(Claims):
    def __init__(self, options: ListenOptions, processes: int, tcp_note: str) -> None:
        self._options = options
        self._processes = processes
        self._tcp_note = tcp_note

    def tcp(self, address: TcpAddress) -> Listener:
        return BoundTcpListener(address, self._processes, self._tcp_note)

    def unix(self, address: UnixAddress) -> Listener:
        return BoundUnixListener(address, self._options.socket_mode, self._options.socket_group)

    def passed(self, listener: PassedListener) -> None:
        listener.note = self._tcp_note if listener.is_tcp else ""


class Listeners(AllListeners):
    """All addresses of a cache."""

    def __init__(
        self, options: ListenOptions, processes: int, environment: MutableMapping[str, str], *, tls: bool
    ) -> None:
        """Claims them for so many processes; ``tls`` is what TCP is said to speak."""
        self._processes = processes
        claims = _Claims(options, processes, " (TLS)" if tls else "")
        super().__init__([(claims, options.addresses)], environment)

    def all_descriptors(self) -> list[int]:
        """What processes inherit, those of each other included."""
        found = [each.fileno() for process in range(self._processes) for each in self.sockets(process)]
        return list(dict.fromkeys(found))
