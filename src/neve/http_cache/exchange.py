"""A request and its answer, on the way through the server.

Thin over ASGI: what it adds is that a client who is gone is an exception, what is counted, and who is
expected to do something next (the client, or we), which ``pace`` needs to know.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from neve.errors import InvalidRequest, LimitExceeded, Unavailable, Unsupported
from neve.http_cache.statuses import Header

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

EXTENSION = "neve"
"""Where in the extensions of the scope our protocol puts itself, as ``connection``."""

TEXT: Header = (b"content-type", b"text/plain; charset=utf-8")

_CLOSE: Header = (b"connection", b"close")
_LINGER_SECONDS = 5.0
"""How long a client who is refused may take to notice, while what he still sends is thrown away. If the
connection was closed at once, he might never see why."""


_LONG_BYTES = 64 * 1024
"""Of a body that may be on its way for a while. Who has been sent all of an answer is paced no more, and has
as long for it as for his next request."""


class ClientGoneError(Exception):
    """The client is gone. Nobody is told."""


class Held:
    """What all short bodies together take of memory. Belongs to the event loop."""

    def __init__(self, limit: int) -> None:
        self._left = limit
        self._limit = limit

    def take(self, size: int) -> None:
        """Raises ``Unavailable`` if there is no room for so many bytes more."""
        if size > self._left:
            raise Unavailable(f"small files hold {self._limit} bytes of memory already (max_held_bytes)")
        self._left -= size

    def give_back(self, size: int) -> None:
        self._left += size


class Exchange:
    """One request, and what was answered so far."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, held: Held) -> None:
        self.scope = scope
        self._receive = receive
        self._send = send
        self._held = held
        self._holds = 0
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.query: bytes = scope["query_string"]
        self.status = 0
        """Of the answer; 0: there is none yet."""
        self.sent = 0
        """Bytes of the body that were handed to the connection."""
        self.received = 0
        self.is_answered = False
        """Whether all of the answer was handed to the connection."""
        self._has_more = announces_body(scope["headers"])
        self.began = time.perf_counter()
        # For the pacing.
        self.connection: Any = scope.get("extensions", {}).get(EXTENSION, {}).get("connection")
        self.moved = 0
        self.since = time.monotonic()
        self.busy = 0
        self.busy_since = 0.0

    @property
    def is_head(self) -> bool:
        """Whether only the head of the answer is wanted."""
        return self.method == "HEAD"

    @property
    def is_write(self) -> bool:
        """Whether it is there to change something."""
        return self.method not in ("GET", "HEAD")

    @property
    def has_body(self) -> bool:
        """Whether the client sends something, or still has to."""
        return self._has_more

    def header(self, name: bytes) -> str | None:
        """The value of a header (its name in lower case); several become a list, as RFC 9110 has it."""
        values = [value for key, value in self.scope["headers"] if key == name]
        return b", ".join(values).decode("latin-1") if values else None

    # Receiving.

    async def receive(self) -> Message:
        """The next message of the client. Raises ``ClientGoneError``."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        self._has_more = message.get("more_body", False)
        size = len(message["body"])
        self.received += size
        self.moved += size
        return message

    async def body(self) -> AsyncIterator[bytes]:
        """The body in pieces. Raises ``ClientGoneError`` if it breaks off."""
        while self._has_more:
            message = await self.receive()
            if message["body"]:
                yield message["body"]

    async def whole_body(self, limit: int, what: str) -> bytes:
        """All of a short body, which counts as held until ``end``. Raises ``LimitExceeded`` and
        ``Unavailable``."""
        self.check_length(limit, what)
        pieces: list[bytes] = []
        async for piece in self.body():
            if self.received > limit:
                raise _too_long(limit, what)
            self.hold(len(piece))
            pieces.append(piece)
        return b"".join(pieces)

    def hold(self, size: int) -> None:
        """Counts so many bytes more as held until ``end``. Raises ``Unavailable``."""
        self._held.take(size)
        self._holds += size

    def end(self) -> None:
        """Nothing of it is needed any more."""
        self._held.give_back(self._holds)
        self._holds = 0

    def check_length(self, limit: int, what: str) -> None:
        """Raises ``LimitExceeded`` if the client says that the body is longer than ``limit``."""
        text = self.header(b"content-length")
        # The parser has refused what is no number.
        if text is not None and text.isdecimal() and int(text) > limit:
            raise _too_long(limit, what)

    def check_transfer(self) -> None:
        """Raises ``Unsupported`` if the body comes in another form than in chunks: the parser knows what to
        make of that, and leaves it as it is."""
        coding = self.header(b"transfer-encoding")
        if coding is not None and coding.strip().lower() != "chunked":
            raise Unsupported(f"the Transfer-Encoding {coding[:40]} is not known")

    def content_encoding(self) -> str | None:
        """How the body is encoded; None: it is not."""
        encoding = (self.header(b"content-encoding") or "").strip().lower()
        return None if encoding in ("", "identity") else encoding

    # Sending.

    async def start(self, status: int, headers: Sequence[Header]) -> None:
        """Sends the head of the answer."""
        self.status = status
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def send(self, data: bytes | bytearray, *, more: bool) -> None:
        """Sends a piece of the body; returns when the next one may come. Raises ``ClientGoneError``."""
        await self._send({"type": "http.response.body", "body": data, "more_body": more})
        self.is_answered = not more
        self.sent += len(data)
        self.moved += len(data)
        if more and self.is_gone():
            raise ClientGoneError

    async def drained(self) -> None:
        """Returns when little of what was sent waits for the client. Raises ``ClientGoneError``."""
        if self.connection is not None:
            await self.connection.flow.drain()
            if self.is_gone():
                raise ClientGoneError

    async def answer(self, status: int, body: bytes, headers: Sequence[Header]) -> None:
        """Sends all of a short answer, without its body if that is not wanted. If the client has more to
        send, that is of no interest any more."""
        head = [*headers, (b"content-length", b"%d" % len(body))]
        if self.is_head:
            body = b""
        if not self._has_more:
            await self.start(status, head)
            if len(body) > _LONG_BYTES:
                await self.send(body, more=True)
                body = b""  # The end follows when most of it has gone.
            await self.send(body, more=False)
            return
        await self.start(status, [*head, _CLOSE])
        await self.send(body, more=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_SECONDS):
                while self._has_more:
                    await self.receive()
        await self.send(b"", more=False)

    async def answer_head(self, status: int, headers: Sequence[Header]) -> None:
        """Answers without a body."""
        await self.start(status, headers)
        await self.send(b"", more=False)

    async def answer_line(self, status: int, line: str) -> None:
        """Answers with a line of text."""
        await self.answer(status, line.encode() + b"\n", [TEXT])

    async def pass_on(self, app: Any, scope: Scope) -> None:
        """Has another ASGI application answer; until it begins to, it is at work."""
        beginning = contextlib.ExitStack()

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                beginning.close()
                self.status = message["status"]
            else:
                self.is_answered = not message.get("more_body", False)
                self.sent += len(message.get("body", b""))
                self.moved += len(message.get("body", b""))
            await self._send(message)

        with beginning:
            beginning.enter_context(self.working())
            await app(scope, self._receive, send)

    # The connection.

    def is_gone(self) -> bool:
        """Whether the connection is known to be closed."""
        return self.connection is not None and self.connection.transport.is_closing()

    def break_off(self) -> None:
        """Ends the connection in the middle of an answer, so that nobody takes that for complete."""
        if self.connection is not None:
            self.connection.break_off()

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """While we work for a client, it is not his turn to be quick."""
        if not self.busy:
            self.busy_since = time.monotonic()
        self.busy += 1
        try:
            yield
        finally:
            self.busy -= 1
            if not self.busy:
                # The window is as much longer. It does not begin anew: messages of a byte would do for that.
                self.since += time.monotonic() - self.busy_since


def announces_body(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a body follows a head; names are in lower case."""
    for name, value in headers:
        if name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0")):
            return True
    return False


def _too_long(limit: int, what: str) -> LimitExceeded:
    return LimitExceeded(f"{what} is longer than the limit of {limit} bytes")


def query_parameter(query: bytes, name: str) -> str | None:
    """The value of a parameter, if it is there once. Raises ``InvalidRequest`` if more often."""
    if not query:
        return None
    from urllib.parse import parse_qsl

    try:
        pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True, max_num_fields=100)
    except ValueError as error:
        raise InvalidRequest("the query has too many parameters") from error
    values = [value for key, value in pairs if key == name]
    if len(values) > 1:
        raise InvalidRequest(f"the parameter {name} is given {len(values)} times")
    return values[0] if values else None


async def pace(exchanges: set[Exchange], idle_seconds: float, min_bytes: int) -> None:
    """Breaks off exchanges with clients that do not move; runs until it is cancelled."""
    while True:
        await asyncio.sleep(idle_seconds / 10)
        now = time.monotonic()
        for exchange in list(exchanges):
            if exchange.busy or now - exchange.since < idle_seconds:
                continue
            if exchange.connection is None or exchange.is_gone():
                continue
            # What still waits in our buffer has not gone to anybody.
            waiting = exchange.connection.transport.get_write_buffer_size()
            if exchange.moved - waiting < min_bytes:
                exchange.break_off()
            exchange.moved, exchange.since = waiting, now
