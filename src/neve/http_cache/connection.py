"""One connection of a client: uvicorn's protocol, with bounds on what comes before a request is known.

The parser takes heads of any length and any number of requests at once, and waits for them as long as a
client likes. Whoever sends a long head, or many requests without waiting for answers, gets no further
here; those who send nothing are found by ``Server`` (``is_idle``).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from typing import TYPE_CHECKING

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from neve.http_cache.exchange import EXTENSION, announces_body

if TYPE_CHECKING:
    from uvicorn._types import (
        ASGI3Application,
        ASGIReceiveCallable,
        ASGISendCallable,
        ASGISendEvent,
        Scope,
    )
    from uvicorn.config import Config
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
    from uvicorn.server import ServerState

MAX_HEAD_BYTES = 64 * 1024
"""Of a request: its line and headers. An address takes 6 KB at most (``routes.MAX_NODE_BYTES``), what
browsers and proxies add is less than that."""

MAX_HEADERS = 200
"""Lines of a head. Each takes some hundred bytes as objects, however short it is."""

MAX_WAITING = 64
"""Requests that are sent before the one in front of them is answered. curl, and so Nix, sends none."""

_NO_LINGER = struct.pack("ii", 1, 0)


class _HeadTooLongError(Exception):
    """For the parser: it passes on that something was raised."""


class _TooManyError(Exception):
    """The same."""


class _AmbiguousError(Exception):
    """The same: somebody before us may have read it in another way."""


class Connection(HttpToolsProtocol):
    """A connection that is counted, and known to the exchanges on it."""

    def __init__(
        self, config: Config, state: ServerState, loop: asyncio.AbstractEventLoop, most: int
    ) -> None:
        """``most``: connections at once; one more than that is turned away."""
        super().__init__(config, state, {}, loop)
        self._most = most
        self._unfinished = False
        """Whether a head has begun and not ended."""
        self._bore_fruit = False
        """Whether a piece of data has brought more than a part of a head, or of what stands around a body."""
        self._fruitless_bytes = 0
        """What has come since in pieces that have not."""
        self._lines = 0
        self._bytes = 0
        self._too_long = False
        self._waiting_since: float | None = None
        self._has_host = False
        self._ends_answer = False
        """Whether an answer has begun whose end is that of the connection."""

    # As an asyncio protocol.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._waiting_since = time.monotonic()
        super().connection_made(transport)
        if len(self.connections) > self._most:
            self._say(503, "too many connections (max_connections)")

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self._bore_fruit = False
        super().data_received(data)
        if self._bore_fruit or self.transport.is_closing():
            return
        # The parser keeps what it has of a line, however long that gets, also behind a body.
        self._fruitless_bytes += len(data)
        if self._fruitless_bytes > MAX_HEAD_BYTES:
            self._too_long = True
            self.send_400_response("")

    # What the parser calls.

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= MAX_WAITING:
            raise _TooManyError
        self._unfinished = True
        self._waiting_since = time.monotonic()
        self._fruitless_bytes = self._lines = self._bytes = 0
        self._bore_fruit = True
        super().on_message_begin()
        self.scope["extensions"] = {EXTENSION: {"connection": self}}

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value))
        if not self._unfinished:
            return  # It is a trailer, which must not pass for a part of the head.
        if name.lower() == b"host":
            if self._has_host:
                raise _AmbiguousError
            self._has_host = True
        super().on_header(name, value)

    def _count(self, size: int) -> None:
        self._lines += 1
        self._bytes += size
        if self._lines > MAX_HEADERS or self._bytes > MAX_HEAD_BYTES:
            self._too_long = True
            raise _HeadTooLongError

    def on_headers_complete(self) -> None:
        self._unfinished = self._has_host = False
        self._bore_fruit = True
        self._fruitless_bytes = 0
        self._waiting_since = None
        # There is no other protocol to change to, but the parser takes what follows for one.
        changes = self.parser.should_upgrade()
        if changes and announces_body(self.headers):
            raise _AmbiguousError
        super().on_headers_complete()
        if changes:
            self.cycle.keep_alive = False

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        if cycle.scope["http_version"] != "1.1":
            app = self._unframed(cycle, app)
        super()._start_asgi_task(cycle, app)

    def _unframed(self, cycle: RequestResponseCycle, app: ASGI3Application) -> ASGI3Application:
        """``app`` for those who know no chunks: an answer without a length ends with the connection."""

        async def answer(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
            async def unframed(message: ASGISendEvent) -> None:
                if message["type"] == "http.response.start":
                    names = [name.lower() for name, _ in message.get("headers", ())]
                    if b"content-length" not in names:
                        self._ends_answer = True
                        cycle.chunked_encoding = cycle.keep_alive = False
                elif self._ends_answer and message["type"] == "http.response.body":
                    # Whatever comes is as long as was to be expected.
                    cycle.expected_content_length = len(message.get("body", b""))
                await send(message)

            await app(scope, receive, unframed)

        return answer

    def on_body(self, body: bytes) -> None:
        self._bore_fruit = True
        self._fruitless_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._bore_fruit = True
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.response_complete:  # Else another request waits.
            self._waiting_since = time.monotonic()

    # Ends.

    def send_400_response(self, msg: str) -> None:
        """Is called for what the parser does not understand."""
        if self.cycle is not None and not self.cycle.response_complete:
            # In the middle of an answer, a line about something else would pass for a part of it.
            self.transport.abort()
        elif self._too_long:
            self._say(
                431, f"the head of a request has more than {MAX_HEAD_BYTES} bytes or {MAX_HEADERS} lines"
            )
        else:
            self._say(400, "this is no HTTP request")

    def _say(self, status: int, line: str) -> None:
        body = line.encode() + b"\n"
        head = (
            f"HTTP/1.1 {status} \r\ncontent-type: text/plain; charset=utf-8\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()

    def break_off(self) -> None:
        """Ends it in the middle of an answer, so that nobody takes that for complete."""
        if self._ends_answer:
            with contextlib.suppress(OSError):
                # With nothing to wait for, the end is a reset, which is no end of an answer.
                self.transport.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER
                )
        self.transport.abort()

    def is_idle(self, now: float, seconds: float) -> bool:
        """Whether the client has been expected to send a head, or the rest of it, for so long."""
        answered = self.cycle is None or self.cycle.response_complete
        return answered and self._waiting_since is not None and now - self._waiting_since >= seconds
