"""Peers that misbehave below gRPC: servers that speak no HTTP/2, and a way to a good one that breaks."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import struct
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from neve.testing.servers import running_daemon
from tests.server.raw import reach, soon

_READ_BYTES = 65536


def _listening(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    return listener


class _Acceptor:
    """Gives every connection to ``serve``, in a thread of its own; closes all of them at the end."""

    def __init__(self, path: str, serve: Callable[[socket.socket], None]) -> None:
        self._serve = serve
        self._listener = _listening(path)
        self._connections: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, name="test-accept", daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._connections.append(connection)
                thread = threading.Thread(target=self._one, args=[connection], name="test-serve", daemon=True)
                self._threads.append(thread)
                thread.start()

    def _one(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            self._serve(connection)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join()
        for connection in self._connections:
            end(connection)
        for thread in self._threads:
            thread.join()


def end(connection: socket.socket) -> None:
    """Ends both directions; threads that wait for it wake up."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def raw_server(serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that does with each connection what ``serve`` does; its address as a store's."""
    with tempfile.TemporaryDirectory(prefix="neve-") as folder:
        acceptor = _Acceptor(f"{folder}/socket", serve)
        try:
            yield f"grpc+unix://{folder}/socket"
        finally:
            acceptor.close()


def silent(connection: socket.socket) -> None:
    """Takes everything and never answers."""
    while connection.recv(_READ_BYTES):
        pass


def closing(connection: socket.socket) -> None:
    """Hangs up at once."""
    end(connection)


def garbage(connection: socket.socket) -> None:
    """Answers with what is no HTTP/2."""
    connection.sendall(bytes(range(256)) * 16)
    silent(connection)


def http1(connection: socket.socket) -> None:
    """Answers like a web server of old."""
    connection.recv(_READ_BYTES)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
    end(connection)


class Proxy:
    """A way to the server at the socket ``target``, which breaks when it is told to."""

    def __init__(self, path: str, target: str) -> None:
        self.url = f"grpc+unix://{path}"
        self.target = f"unix:{path}"
        self._backend = target
        self._acceptor = _Acceptor(path, self._carry)
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._room: dict[str, float] = {"up": float("inf"), "down": float("inf")}
        self._held_from = {"up": float("inf"), "down": float("inf")}
        self.hold = threading.Event()
        """Unset, nothing goes through any more."""
        self.hold.set()
        self.carried = {"up": 0, "down": 0}
        """Bytes so far: to the server, and from it."""

    def cut_after(self, direction: str, size: int) -> None:
        """Hangs up when ``size`` more bytes have gone ``up`` or ``down``."""
        self._room[direction] = self.carried[direction] + size

    def hold_after(self, direction: str, size: int) -> None:
        """Unsets ``hold`` when ``size`` more bytes have gone ``up`` or ``down``."""
        self._held_from[direction] = self.carried[direction] + size

    def mend(self) -> None:
        """Lets everything through again, for connections made from now on."""
        self._room = {"up": float("inf"), "down": float("inf")}

    def reset(self) -> None:
        """Resets all connections: what is on its way is lost."""
        for pair in self._pairs:
            for connection in pair:
                with contextlib.suppress(OSError):
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                end(connection)

    def _carry(self, client: socket.socket) -> None:
        server = socket.socket(socket.AF_UNIX)
        try:
            server.connect(self._backend)
            self._pairs.append((client, server))
            up = threading.Thread(target=self._copy, args=[client, server, "up"], name="test-up", daemon=True)
            up.start()
            self._copy(server, client, "down")
            up.join()
        finally:
            server.close()

    def _copy(self, source: socket.socket, target: socket.socket, direction: str) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(_READ_BYTES):
                if self.carried[direction] + len(data) > self._held_from[direction]:
                    self._held_from[direction] = float("inf")
                    self.hold.clear()
                self.hold.wait()
                if self.carried[direction] + len(data) > self._room[direction]:
                    break
                self.carried[direction] += len(data)
                target.sendall(data)
        end(source)
        end(target)

    def close(self) -> None:
        self.hold.set()
        self._acceptor.close()


@contextlib.contextmanager
def proxy(target: str) -> Iterator[Proxy]:
    """A way to the server at ``target`` (as gRPC takes it: ``unix:/path``)."""
    with tempfile.TemporaryDirectory(prefix="neve-") as folder:
        way = Proxy(f"{folder}/socket", target.removeprefix("unix:"))
        try:
            yield way
        finally:
            way.close()


# What may be left behind.

_STAYING = ("neve-rpc-watch",)
_OF_DAEMONS = (
    "neve-daemon",
    "neve-work",
    "neve-ingest",
    "neve-commit",
    "neve-pack",
    "neve-read",
    "neve-fetch",
)


def our_threads(*, daemon: bool = False) -> set[threading.Thread]:
    """The threads of neve that are running, but for the one that ends silent calls, which stays a moment;
    and with ``daemon``, but for those that a daemon keeps as long as it lives."""
    staying = _STAYING + (_OF_DAEMONS if daemon else ())
    threads = (thread for thread in threading.enumerate() if thread.name.startswith("neve-"))
    return {thread for thread in threads if not thread.name.startswith(staying)}


def open_files() -> list[str]:
    """The sockets, pipes and spool files that this process has open."""
    names = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            names.append(os.readlink(f"/proc/self/fd/{name}"))
    return sorted(
        name for name in names if name.startswith(("socket:", "pipe:")) or name.endswith("(deleted)")
    )


@functools.cache
def _warm_up() -> object:
    """Has the gRPC library open what it keeps, as long as what is returned here lives."""
    with (
        tempfile.TemporaryDirectory() as folder,
        running_daemon("memory://", folder=Path(folder)) as daemon,
        daemon.channel() as channel,
    ):
        reach(channel)
        return daemon


@contextlib.contextmanager
def nothing_left(*, daemon: bool = False) -> Iterator[None]:
    """What the block starts and opens must be gone soon after it. With ``daemon`` there is one in this
    process, which goes on."""
    _warm_up()
    threads, files = our_threads(daemon=daemon), open_files()
    yield
    soon(lambda: our_threads(daemon=daemon) <= threads and len(open_files()) <= len(files))
    assert {thread.name for thread in our_threads(daemon=daemon) - threads} == set()
    assert len(open_files()) <= len(files), (files, open_files())


def temporary_files(store: Path) -> list[Path]:
    """What lies in the folder of an embedded store where uploads are spooled."""
    return [path for path in store.rglob("tmp/**/*") if path.is_file()]
