"""Gives out figures on addresses of their own, for servers that do not speak HTTP themselves.

One thread, in the process that has the addresses. It knows just enough of HTTP for who collects figures:
one request on a connection, a bounded number of connections, and a few seconds for each.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import threading
from collections.abc import Callable, Sequence

from neve.serving.metrics import CONTENT_TYPE
from neve.serving.sockets import BACKLOG
from neve.telemetry import LOGGER

MAX_HEAD_BYTES = 16 * 1024
"""Of a request. Those who collect send some hundred bytes."""

MAX_CONNECTIONS = 64
"""At once; one more is closed. There are two or three who collect, each every few seconds."""

_SECONDS = 10.0
"""That a connection may take in all."""

_REQUEST = re.compile(rb"([A-Z]{1,20}) ([^ ]+) HTTP/1\.[01]\r\n")
_TEXT = b"text/plain; charset=utf-8"


def answer_to(head: bytes, text: Callable[[], bytes]) -> bytes:
    """What to send to whoever sent a request that has this head; ``text`` makes the figures."""
    match = _REQUEST.match(head)
    if match is None:
        return _answer(b"400 Bad Request", _TEXT, b"this is no HTTP request\n")
    method, target = match[1], match[2].partition(b"?")[0]
    if method not in (b"GET", b"HEAD"):
        return _answer(b"405 Method Not Allowed", _TEXT, b"only GET and HEAD\n", b"allow: GET, HEAD\r\n")
    if target != b"/metrics":
        answer = _answer(b"404 Not Found", _TEXT, b"there is only /metrics\n")
    else:
        try:
            answer = _answer(b"200 OK", CONTENT_TYPE, text())
        except Exception:
            LOGGER.exception("the figures cannot be made")
            answer = _answer(b"500 Internal Server Error", _TEXT, b"the figures cannot be made\n")
    return answer if method == b"GET" else answer[: answer.index(b"\r\n\r\n") + 4]


def _answer(status: bytes, kind: bytes, body: bytes, more: bytes = b"") -> bytes:
    return (
        b"HTTP/1.1 %s\r\ncontent-type: %s\r\ncontent-length: %d\r\nconnection: close\r\n%s\r\n"
        % (status, kind, len(body), more)
    ) + body


class MetricsServer:
    """Answers on sockets that are bound, until it is closed."""

    def __init__(self, sockets: Sequence[socket.socket], text: Callable[[], bytes]) -> None:
        """The sockets stay the caller's, and open until after ``close``."""
        self._sockets = sockets
        self._text = text
        self._open = 0
        self._loop = asyncio.new_event_loop()
        self._over = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="neve-metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Returns when nobody is answered any more. A second time it does nothing."""
        with contextlib.suppress(RuntimeError):  # The loop is closed already.
            self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        servers = []
        for each in self._sockets:
            start = asyncio.start_unix_server if each.family == socket.AF_UNIX else asyncio.start_server
            servers.append(
                await start(self._converse, sock=each.dup(), limit=MAX_HEAD_BYTES, backlog=BACKLOG)
            )
        await self._over.wait()
        for server in servers:
            server.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._open < MAX_CONNECTIONS:
            self._open += 1
            try:
                async with asyncio.timeout(_SECONDS):
                    head = await reader.readuntil(b"\r\n\r\n")
                    writer.write(answer_to(head, self._text))
                    writer.close()
                    await writer.wait_closed()
            except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError) as error:
                LOGGER.debug("a request for figures failed: %s", type(error).__name__)
            finally:
                self._open -= 1
        # Not closed: it would stay until somebody has read the rest of the answer.
        writer.transport.abort()
