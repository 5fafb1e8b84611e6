"""One process of the daemon: its handlers, its health, how it starts and stops."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import grpc
from grpc_health.v1 import health, health_pb2

from neve.errors import Unavailable
from neve.server.calls import MAX_ASIDE, Calls
from neve.server.figures import Figures
from neve.server.handlers import ADMIN_NAME, ServiceHandlers
from neve.server.limits import Limits
from neve.server.reflection import SERVICE_NAMES, add_reflection
from neve.store.services import Services

_HEALTH: Any = health_pb2.DESCRIPTOR.services_by_name["Health"]

_BEYOND_THE_LIMIT = 64 + 4 * MAX_ASIDE
"""Calls that the library lets in beyond our own limit: a few to be refused by name, and those of health
(two methods) and reflection (two versions)."""

_KEEPALIVE_MS = 30_000
_KEEPALIVE_TIMEOUT_MS = 20_000
_MIN_PING_INTERVAL_MS = 10_000
"""Clients may ask this often whether the connection lives, also while no call is open."""


class Binding(NamedTuple):
    """Where a process listens."""

    address: str
    """As gRPC takes it: ``unix:/path`` or ``host:port``."""
    credentials: grpc.ServerCredentials | None = None
    """For TLS."""
    admin: bool = False
    """Whether whoever connects here may administer the store."""


class Daemon:
    """The gRPC servers of one process over one store. Belongs to one event loop.

    ``stop`` must be awaited, and does not close the store.
    """

    def __init__(
        self,
        services: Services,
        limits: Limits | None = None,
        *,
        read_only: bool = False,
        figures: Figures | None = None,
    ) -> None:
        self._limits = limits or Limits()
        self._calls = Calls(self._limits, figures)
        self.pulse = self._calls.pulse
        self._handlers = ServiceHandlers(services, self._calls, read_only=read_only)
        self._health: list[health.aio.HealthServicer] = []
        self._servers: list[grpc.aio.Server] = []
        self._pacing: asyncio.Task[None] | None = None

    async def start(self, bindings: Sequence[Binding]) -> list[int]:
        """Listens; returns the port of each binding (1 for a socket). Raises ``Unavailable`` naming it."""
        self._pacing = asyncio.create_task(self._calls.pace())
        ports: dict[int, int] = {}
        for admin in (False, True):
            chosen = {i: binding for i, binding in enumerate(bindings) if binding.admin is admin}
            if chosen:
                ports |= await self._start_server(chosen, admin)
        return [ports[i] for i in range(len(bindings))]

    async def _start_server(self, bindings: Mapping[int, Binding], admin: bool) -> dict[int, int]:
        limit = self._limits.max_concurrent_calls
        server = grpc.aio.server(
            options=_options(self._limits),
            maximum_concurrent_rpcs=limit + _BEYOND_THE_LIMIT,
        )
        self._servers.append(server)
        names = self._handlers.register(server, admin=admin)
        status = health.aio.HealthServicer()
        self._health.append(status)
        server.add_generic_rpc_handlers(self._calls.handler(_HEALTH, status, aside=True))
        add_reflection(server, self._calls, names)
        ports = {i: _listen(server, binding) for i, binding in bindings.items()}
        await server.start()
        for name in ["", *names, *SERVICE_NAMES, health.SERVICE_NAME]:
            if admin or name != ADMIN_NAME:  # Elsewhere it answers nothing but that it must not.
                await status.set(name, health_pb2.HealthCheckResponse.SERVING)
        return ports

    async def stop(self, grace: float | None = None) -> None:
        """Refuses new calls and answers NOT_SERVING while those in flight finish, for ``grace`` seconds
        at most (None: however long it takes); then ends."""
        self._calls.draining = True
        for status in self._health:
            await status.enter_graceful_shutdown()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                await self._calls.drained()
        for server in self._servers:
            await server.stop(0)
        if self._pacing is not None:
            self._pacing.cancel()
        await asyncio.to_thread(self._calls.close)


def _listen(server: grpc.aio.Server, binding: Binding) -> int:
    try:
        if binding.credentials is None:
            return server.add_insecure_port(binding.address)
        return server.add_secure_port(binding.address, binding.credentials)
    except RuntimeError as error:
        raise Unavailable(f"cannot listen on {binding.address}: {error}") from error


def _options(limits: Limits) -> list[tuple[str, int]]:
    return [
        ("grpc.max_concurrent_streams", limits.max_concurrent_calls + _BEYOND_THE_LIMIT),
        ("grpc.max_receive_message_length", limits.max_message_bytes),
        ("grpc.max_send_message_length", limits.max_message_bytes),
        ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", _MIN_PING_INTERVAL_MS),
        ("grpc.so_reuseport", 1),
    ]
