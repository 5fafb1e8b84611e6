"""TLS, from the sockets where clients come in to connections that speak HTTP.

The event loop could do that by itself. But it tells of no connection before its handshake has ended, so that
those that never end would count nowhere; and it would use one certificate for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable, Coroutine
from typing import Any

from neve.serving.renewed import Renewed
from neve.serving.sockets import BACKLOG
from neve.telemetry import LOGGER

LONGEST_SECONDS = 10.0
"""A handshake is two or three messages each way; a client on the other side of the world, and whose first
packet got lost, has done it long before."""

_SPARE_SECONDS = 1.0
"""How long nobody is let in when there is no descriptor left for one."""


class Handshakes:
    """Makes connections of those that come in. Belongs to the running event loop."""

    def __init__(
        self,
        context: Renewed[ssl.SSLContext],
        connection: Callable[[], asyncio.Protocol],
        has_room: Callable[[int], bool],
        idle_seconds: float,
    ) -> None:
        """``connection`` makes what speaks HTTP; ``has_room`` tells, by the number of handshakes that are
        under way, whether one more may begin."""
        self._context = context
        self._connection = connection
        self._has_room = has_room
        self._seconds = min(idle_seconds, LONGEST_SECONDS)
        self._listeners: list[socket.socket] = []
        self._accepting: set[asyncio.Task[None]] = set()
        self._shaking: set[asyncio.Task[None]] = set()

    def start(self, listener: socket.socket) -> None:
        """Begins to accept on a bound socket, which belongs to this now. Raises ``OSError``."""
        self._listeners.append(listener)
        listener.setblocking(False)
        listener.listen(BACKLOG)
        _keep(self._accepting, self._accept(listener))

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                client, _ = await loop.sock_accept(listener)
            except ConnectionError:
                continue  # Gone before his turn came.
            except OSError as error:
                LOGGER.warning("nobody can be let in for now: %s", error.strerror or error)
                await asyncio.sleep(_SPARE_SECONDS)
                continue
            if self._has_room(len(self._shaking)):
                _keep(self._shaking, self._shake(client))
            else:
                client.close()  # There is no telling him why: that would have to be encrypted.

    async def _shake(self, client: socket.socket) -> None:
        with contextlib.ExitStack() as stack:
            stack.callback(client.close)
            # Whoever fails is gone, or no client of ours: that is nothing to be told of.
            stack.enter_context(contextlib.suppress(OSError))
            context = self._context
            chosen = context.get() if context.is_current else await asyncio.to_thread(context.get)
            await asyncio.get_running_loop().connect_accepted_socket(
                self._connection,
                client,
                ssl=chosen,
                ssl_handshake_timeout=self._seconds,
                ssl_shutdown_timeout=self._seconds,
            )
            stack.pop_all()

    async def close(self) -> None:
        """Accepts nobody any more, and breaks off the handshakes under way."""
        for tasks in (self._accepting, self._shaking):
            for task in list(tasks):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for listener in self._listeners:
            listener.close()


def _keep(tasks: set[asyncio.Task[None]], coroutine: Coroutine[Any, Any, None]) -> None:
    task = asyncio.create_task(coroutine)
    tasks.add(task)
    task.add_done_callback(tasks.discard)
