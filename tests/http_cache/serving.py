"""A binary cache that runs: in a thread of this process, or as ``neve serve``."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx

from neve.http_cache.limits import Limits
from neve.http_cache.metrics import LAYOUT
from neve.http_cache.process import Share, serve
from neve.http_cache.settings import Settings
from neve.serving.metrics import SharedRows
from neve.serving.process import Course
from neve.serving.stopping import Stop
from neve.store.services import Services

SECONDS = 90
"""More than anything takes on the slowest machine."""


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def client_of(url: str, **options: Any) -> httpx.Client:
    """A client that follows nothing, takes nothing from the environment, and asks for no compression."""
    headers = {"accept-encoding": "identity", **options.pop("headers", {})}
    return httpx.Client(base_url=url, timeout=SECONDS, trust_env=False, headers=headers, **options)


class Served:
    """A cache, from outside."""

    def __init__(self, port: int, services: Services) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.services = services
        self.http = client_of(self.url)

    def connect(self) -> socket.socket:
        """A connection for who speaks HTTP himself."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=SECONDS)

    def raw(self, request: bytes) -> bytes:
        """All that comes back on a connection of its own until that ends."""
        with self.connect() as connection:
            with contextlib.suppress(ConnectionError):  # He may be turned away before he is done.
                connection.sendall(request)
            return all_of(connection)

    def _get(self, path: str) -> str:
        """A page, on a connection of its own: one that is kept may be closed at any time."""
        answer = self.raw(f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
        return answer.decode()

    def is_fine(self) -> bool:
        """Whether it answers."""
        return self._get("/healthz").startswith("HTTP/1.1 200 ")

    def metric(self, line: str) -> float:
        """A figure by its name and labels."""
        for found in self._get("/metrics").splitlines():
            name, _, value = found.rpartition(" ")
            if name == line:
                return float(value)
        return 0.0


def all_of(connection: socket.socket) -> bytes:
    """What comes on a connection until it ends, also if it is reset."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


@contextlib.contextmanager
def serving(
    services: Services, *, limits: dict[str, Any] | None = None, pages: Sequence[Any] = (), **settings: Any
) -> Iterator[Served]:
    """Serves ``services`` in a thread; they stay the caller's. ``pages`` are routes."""
    settings.setdefault("insecure_allow_upload", True)
    settings.setdefault("grace", 5.0)
    chosen = Settings(limits=Limits(**(limits or {})), **settings)
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    stop, ready = Stop(), threading.Event()
    failures: list[BaseException] = []
    rows = SharedRows(LAYOUT, 1)

    def run() -> None:
        try:
            share = Share(sockets=[listener], rows=rows, row=0)
            course = Course(stop=stop, ready=ready.set, stopping=lambda: None)
            serve(services, chosen, share, lambda *_: pages, course)
        except BaseException as error:
            failures.append(error)
        finally:
            ready.set()

    before = sys.getswitchinterval()
    thread = threading.Thread(target=run, name="cache")
    thread.start()
    try:
        assert ready.wait(SECONDS)
        if not failures:
            served = Served(port, services)
            with served.http:
                yield served
    finally:
        stop.request()
        thread.join()
        rows.close()
        listener.close()
        sys.setswitchinterval(before)
    if failures:
        raise failures[0]


class Process:
    """A running ``neve serve``."""

    def __init__(
        self, store: Path | str, *arguments: str, listen: str = "127.0.0.1:0", **options: Any
    ) -> None:
        self.log: list[str] = []
        url = store if isinstance(store, str) else f"local://{store}"
        command = [sys.executable, "-m", "neve.cli", "--log-level", "debug", "serve"]
        command += ["-l", listen, "--store", url, *arguments]
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("LISTEN_", "NEVE_"))
        }
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env=environment, **options
        )
        self._reading = threading.Thread(target=self._read)
        self._reading.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line.rstrip("\n"))

    def says(self, pattern: str, count: int = 1) -> list[re.Match[str]]:
        """Waits until so many lines match."""
        found: list[re.Match[str]] = []

        def there() -> bool:
            found[:] = [match for line in self.log if (match := re.search(pattern, line))]
            return len(found) >= count or self.process.poll() is not None

        until(there)
        assert len(found) >= count, self.log
        return found

    @property
    def address(self) -> str:
        """Where it listens, once it does."""
        return self.says(r"listening on (\S+)")[0][1]

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    def client(self, **options: Any) -> httpx.Client:
        return client_of(self.url, **options)

    def workers(self) -> list[int]:
        """The processes that it has started."""
        pid = self.process.pid
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
        return sorted(int(child) for child in text.split())

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Sends a signal and waits; the exit code."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        code = self.process.wait(timeout=SECONDS)
        self._reading.join()
        assert self.process.stderr is not None
        self.process.stderr.close()
        return code


@contextlib.contextmanager
def process(store: Path | str, *arguments: str, **options: Any) -> Iterator[Process]:
    """``neve serve`` over ``store``, killed at the end if it still runs."""
    started = Process(store, *arguments, **options)
    try:
        yield started
    finally:
        if started.process.poll() is None:
            started.process.kill()
            started.wait()
