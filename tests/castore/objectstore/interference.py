"""A proxy between a client and a server that speaks HTTP: it waits, refuses, breaks off, and counts."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

_SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
_HOP = frozenset(("connection", "transfer-encoding", "keep-alive", "content-length", "date", "server"))


class Request(NamedTuple):
    method: str
    path: str
    number: int
    """How many came before."""


class Fault(NamedTuple):
    """What is done with a request."""

    status: int | None = None
    """Answered at once, without asking the server."""
    body: bytes = _SLOW_DOWN
    cut: bool = False
    """The answer breaks off in the middle."""
    hangs: bool = False
    """Nothing is answered until the proxy ends."""


Plan = Callable[[Request], Fault | None]


class Proxy:
    """What has come by so far, and what is done with what comes."""

    def __init__(self, server: int, plan: Plan, delay: float) -> None:
        self.plan = plan
        self.delay = delay
        self.port = 0
        self.requests: list[Request] = []
        self.most_at_once = 0
        self.over = threading.Event()
        self._server = server
        self._at_once = 0
        self._lock = threading.Lock()
        self._connections = threading.local()

    def count(self, method: str) -> int:
        """How many requests of a method there were."""
        return sum(request.method == method for request in self.requests)

    def enter(self, method: str, path: str) -> Request:
        with self._lock:
            request = Request(method, path, len(self.requests))
            self.requests.append(request)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        return request

    def leave(self) -> None:
        with self._lock:
            self._at_once -= 1

    def ask(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, Any, bytes]:
        """The server's answer."""
        connection = getattr(self._connections, "it", None)
        for _ in range(2):
            if connection is None:
                connection = http.client.HTTPConnection("127.0.0.1", self._server, timeout=120)
            try:
                connection.request(method, path, body, headers)
                response = connection.getresponse()
                answer = response.status, response.headers, response.read()
                self._connections.it = connection
                return answer
            except (http.client.HTTPException, OSError):
                connection.close()
                connection = None
        raise AssertionError("the server does not answer")

    def forget(self) -> None:
        """Ends the connection to the server of this thread."""
        connection = getattr(self._connections, "it", None)
        if connection is not None:
            connection.close()


def _handler(proxy: Proxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def _any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            request = proxy.enter(self.command, self.path)
            try:
                fault = proxy.plan(request)
                if proxy.delay:
                    time.sleep(proxy.delay)
                if fault is not None and fault.hangs:
                    proxy.over.wait()
                    self.close_connection = True
                elif fault is not None and fault.status is not None:
                    self._send(fault.status, {}, fault.body)
                else:
                    status, headers, data = proxy.ask(self.command, self.path, body, dict(self.headers))
                    self._send(status, headers, data, cut=fault is not None and fault.cut)
            finally:
                proxy.leave()

        def _send(self, status: int, headers: Any, data: bytes, *, cut: bool = False) -> None:
            self.send_response_only(status)
            for name, value in headers.items():
                if name.lower() not in _HOP:
                    self.send_header(name, value)
            length = len(data)
            if self.command == "HEAD" and status == 200:
                length = int(headers.get("Content-Length") or 0)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data[: len(data) // 2] if cut else data)
            if cut:
                self.close_connection = True

        def finish(self) -> None:
            super().finish()
            proxy.forget()

        def log_message(self, *_: object) -> None:
            return

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _any  # noqa: N815

    return Handler


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, *_: object) -> None:
        """A client that goes away is none of a test's business."""


@contextmanager
def proxy_before(server: int, plan: Plan = lambda _: None, delay: float = 0) -> Iterator[Proxy]:
    """A proxy on a port of its own, before the ``server`` on that port."""
    proxy = Proxy(server, plan, delay)
    listening = _Server(("127.0.0.1", 0), _handler(proxy))
    proxy.port = listening.server_address[1]
    thread = threading.Thread(target=listening.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.over.set()
        listening.shutdown()
        listening.server_close()
        thread.join()
