"""Accepts connections in one process, hands their requests to the application, and ends with grace.

uvicorn's protocol without its server: that would take the signals of the process, and knows one kind of
socket only.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Sequence
from email.utils import formatdate

import uvicorn
from uvicorn.server import ServerState

from neve.errors import Unavailable
from neve.http_cache.app import CacheApp
from neve.http_cache.connection import Connection
from neve.http_cache.exchange import pace
from neve.http_cache.handshakes import Handshakes
from neve.http_cache.settings import Settings
from neve.serving.sockets import BACKLOG
from neve.serving.tls import Tls, renewed_context

_TICK_SECONDS = 1.0
"""How often the date of answers is set, and connections are looked at."""
_CHECK_SECONDS = 0.02


class Server:
    """Serves ``app`` on sockets. Belongs to the running event loop."""

    def __init__(self, app: CacheApp, settings: Settings) -> None:
        """Raises ``InvalidRequest`` if the certificate cannot be used."""
        self._app = app
        self._limits = settings.limits
        self._handshakes = None if settings.tls is None else self._encrypting(settings.tls)
        self._state = ServerState()
        self._servers: list[asyncio.Server] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._config = uvicorn.Config(
            app,
            http=Connection,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            # What it has to say of strangers who send rubbish is not for the log.
            log_level=logging.CRITICAL,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=max(1, int(self._limits.idle_seconds)),
        )
        self._config.load()

    async def start(self, sockets: Sequence[socket.socket]) -> None:
        """Begins to accept on sockets that are bound; they belong to the server now. Raises
        ``Unavailable``."""
        self._tick()
        loop = asyncio.get_running_loop()
        for each in sockets:
            try:
                if each.family == socket.AF_UNIX:
                    started = await loop.create_unix_server(self._connection, sock=each, backlog=BACKLOG)
                elif self._handshakes is None:
                    started = await loop.create_server(self._connection, sock=each, backlog=BACKLOG)
                else:
                    self._handshakes.start(each)
                    continue
            except OSError as error:
                raise Unavailable(f"cannot listen: {error.strerror or error}") from error
            self._servers.append(started)
        self._tasks = [
            asyncio.create_task(self._ticks()),
            asyncio.create_task(pace(self._app.exchanges, self._limits.idle_seconds, self._limits.min_bytes)),
        ]

    def _connection(self) -> Connection:
        return Connection(self._config, self._state, asyncio.get_running_loop(), self._limits.max_connections)

    def _encrypting(self, tls: Tls) -> Handshakes:
        def has_room(under_way: int) -> bool:
            return len(self._state.connections) + under_way < self._limits.max_connections

        return Handshakes(renewed_context(tls), self._connection, has_room, self._limits.idle_seconds)

    async def _ticks(self) -> None:
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            self._tick()

    def _tick(self) -> None:
        self._state.default_headers = [(b"date", formatdate(time.time(), usegmt=True).encode())]
        now = time.monotonic()
        for connection in list(self._state.connections):
            if isinstance(connection, Connection) and connection.is_idle(now, self._limits.idle_seconds):
                connection.transport.abort()

    async def stop(self, grace: float) -> None:
        """Accepts nobody any more, and returns when requests in flight have ended; those that have not
        after ``grace`` seconds are broken off. What serves them is at an end too."""
        self._app.is_stopping = True
        for server in self._servers:
            server.close()
        if self._handshakes is not None:
            await self._handshakes.close()
        for connection in list(self._state.connections):
            connection.shutdown()
        deadline = time.monotonic() + grace
        while self._state.tasks and time.monotonic() < deadline:
            await asyncio.sleep(_CHECK_SECONDS)
        for task in list(self._state.tasks):
            task.cancel()
        # Whoever works in a thread waits for it.
        while self._state.tasks:
            await asyncio.sleep(_CHECK_SECONDS)
        for task in self._tasks:
            task.cancel()
        await self._flushed(deadline)
        for connection in list(self._state.connections):
            connection.transport.abort()

    async def _flushed(self, deadline: float) -> None:
        """Returns when what was answered has left, too."""
        with contextlib.suppress(RuntimeError):  # A transport that was closed in between.
            while time.monotonic() < deadline and any(
                connection.transport.get_write_buffer_size() for connection in self._state.connections
            ):
                await asyncio.sleep(_CHECK_SECONDS)
