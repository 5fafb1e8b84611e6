"""A server of HTTP that does what it is told to, be it right or wrong, over real sockets."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from neve.testing.servers import Certificates

_SETTLE_SECONDS = 60


@dataclass
class Exchange:
    """A request, and the connection on which to answer it."""

    path: str
    """With the query, as it was sent."""
    headers: Mapping[str, str]
    """Names in lower case."""
    _connection: socket.socket

    def send(self, data: bytes) -> None:
        self._connection.sendall(data)

    def wait_until_gone(self) -> None:
        """Returns when the client has closed the connection."""
        with contextlib.suppress(OSError):
            while self._connection.recv(4096):
                pass

    def reset(self) -> None:
        """Ends the connection the hard way."""
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._connection.close()


Answer = Callable[[Exchange], bool]
"""Tells whether the connection stays open for another request."""


def head(status: int, length: int | None = None, **headers: str) -> bytes:
    """The beginning of an answer; ``_`` in names stands for ``-``."""
    lines = [f"HTTP/1.1 {status} Whatever"]
    if length is not None:
        lines.append(f"Content-Length: {length}")
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def plain(body: bytes, status: int = 200, **headers: str) -> Answer:
    """A proper answer."""

    def answer(exchange: Exchange) -> bool:
        exchange.send(head(status, len(body), **headers) + body)
        return True

    return answer


def status(code: int, **headers: str) -> Answer:
    return plain(b"no such luck\n", code, **headers)


def redirect(location: str, code: int = 302) -> Answer:
    return status(code, Location=location)


def silent(before: bytes = b"") -> Answer:
    """Sends ``before``, and then nothing for as long as anybody listens."""

    def answer(exchange: Exchange) -> bool:
        exchange.send(before)
        exchange.wait_until_gone()
        return False

    return answer


def dripping(data: bytes, start: int = 0, seconds: float = 0.02) -> Answer:
    """Sends what is behind ``start`` byte by byte, with a pause after each."""

    def answer(exchange: Exchange) -> bool:
        with contextlib.suppress(OSError):
            exchange.send(data[:start])
            for at in range(start, len(data)):
                exchange.send(data[at : at + 1])
                time.sleep(seconds)
        return False

    return answer


def breaking(data: bytes, *, hard: bool = True) -> Answer:
    """Sends ``data`` and ends the connection, with a reset or as if all was said."""

    def answer(exchange: Exchange) -> bool:
        exchange.send(data)
        if hard:
            exchange.reset()
        return False

    return answer


def endless(data: bytes, before: bytes) -> Answer:
    """Sends ``before``, and then ``data`` for as long as anybody listens."""

    def answer(exchange: Exchange) -> bool:
        with contextlib.suppress(OSError):
            exchange.send(before)
            while True:
                exchange.send(data)
        return False

    return answer


@dataclass
class Server:
    """Answers by path, each time with the next answer of a list, the last of them again and again.

    What has no answer gets ``otherwise``.
    """

    certificates: Certificates | None = None
    routes: dict[str, list[Answer]] = field(default_factory=dict)
    otherwise: Answer = field(default_factory=lambda: status(404))
    requests: list[Exchange] = field(default_factory=list)
    """All that came, in order."""
    held: threading.Semaphore | None = None
    """If it is set: each answer waits for it."""

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._threads: list[threading.Thread] = []
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._acceptor = threading.Thread(target=self._accept, name="test-http-accept", daemon=True)
        self._acceptor.start()

    @property
    def url(self) -> str:
        host = "127.0.0.1" if self.certificates is None else "localhost"
        scheme = "http" if self.certificates is None else "https"
        return f"{scheme}://{host}:{self._listener.getsockname()[1]}"

    def serve(self, files: Mapping[str, bytes], prefix: str = "") -> None:
        """Answers with these files, below ``prefix``."""
        for name, contents in files.items():
            self.routes[f"{prefix}/{name}"] = [plain(contents)]

    def paths(self) -> list[str]:
        """What was asked for, in order."""
        return [request.path for request in self.requests]

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                thread = threading.Thread(
                    target=self._one, args=[connection], name="test-http-serve", daemon=True
                )
                with self._lock:
                    self._connections.add(connection)
                    self._threads.append(thread)
                thread.start()

    def _one(self, connection: socket.socket) -> None:
        try:
            with contextlib.suppress(OSError):
                self._serve(self._secured(connection))
        finally:
            with self._lock:
                self._connections.discard(connection)
            connection.close()

    def _secured(self, connection: socket.socket) -> socket.socket:
        if self.certificates is None:
            return connection
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificates.server_certificate, self.certificates.server_key)
        return context.wrap_socket(connection, server_side=True)

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as stream:
            while line := stream.readline():
                headers: dict[str, str] = {}
                while (field := stream.readline().strip()) and b":" in field:
                    name, _, value = field.partition(b":")
                    headers[name.decode().lower()] = value.strip().decode()
                exchange = Exchange(line.split()[1].decode(), headers, connection)
                if not self._answer(exchange)(exchange):
                    return

    def _answer(self, exchange: Exchange) -> Answer:
        with self._lock:
            self.requests.append(exchange)
            answers = self.routes.get(exchange.path, [self.otherwise])
            answer = answers[0]
            if len(answers) > 1:
                self.routes[exchange.path] = answers[1:]
        if self.held is not None:
            self.held.acquire()
        return answer

    def settle(self) -> None:
        """Returns when no connection is left. Fails if a client keeps one."""
        deadline = time.monotonic() + _SETTLE_SECONDS
        with self._lock:
            threads, self._threads = self._threads, []
        for thread in threads:
            thread.join(max(0, deadline - time.monotonic()))
            assert not thread.is_alive(), "a client keeps its connection"

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._acceptor.join()
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.settle()


@contextlib.contextmanager
def running_server(certificates: Certificates | None = None) -> Iterator[Server]:
    server = Server(certificates)
    try:
        yield server
    finally:
        server.close()
