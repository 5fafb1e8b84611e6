"""Connections are carried as they are: both ways, to their ends, whatever one side does."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from neve.server.splice import Splicer
from neve.telemetry import LOGGER
from tests.logged import logged

MIB = 1 << 20


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


Handler = Callable[[socket.socket], None]


class Backend:
    """A server on a private socket: a thread for each connection."""

    def __init__(self, path: Path, handler: Handler) -> None:
        self.paths = {"use": str(path)}
        self.connections: list[socket.socket] = []
        self._handler = handler
        self._threads: list[threading.Thread] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(2048)
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError as error:
                if error.errno != errno.EMFILE:
                    return
                time.sleep(0.01)
                continue
            self.connections.append(connection)
            self._threads.append(threading.Thread(target=self._serve, args=(connection,)))
            self._threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            self._handler(connection)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        self._listener.close()
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()


def echo(connection: socket.socket) -> None:
    while data := connection.recv(MIB):
        connection.sendall(data)


def exactly(connection: socket.socket, size: int) -> bytes:
    """So many bytes, or fewer if the other side ends."""
    parts = b""
    while len(parts) < size and (part := connection.recv(size - len(parts))):
        parts += part
    return parts


def received(connection: socket.socket) -> bytes:
    """All that comes until the other side ends."""
    parts = []
    while part := connection.recv(MIB):
        parts.append(part)
    return b"".join(parts)


class Place:
    """A splicer with a listening socket, and what it takes to use it."""

    def __init__(self, folder: Path, family: str) -> None:
        self.folder = folder
        self.splicer = Splicer()
        self.backends: list[Backend] = []
        if family == "unix":
            self.listener = socket.socket(socket.AF_UNIX)
            self.listener.bind(str(folder / "listener"))
            self.listener.listen(2048)
        else:
            self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = self.listener.getsockname()
        self.splicer.add_listener(self.listener, "use")

    def backend(self, handler: Handler = echo) -> Backend:
        added = Backend(self.folder / f"backend{len(self.backends)}", handler)
        self.backends.append(added)
        self.splicer.add_backend(len(self.backends), added.paths)
        return added

    def connect(self, buffer: int | None = None) -> socket.socket:
        client = socket.socket(self.listener.family)
        client.settimeout(30)
        if buffer is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        try:
            client.connect(self.address)
        except OSError:
            client.close()
            raise
        return client

    def close(self) -> None:
        self.splicer.close(linger=0)
        for backend in self.backends:
            backend.close()


@pytest.fixture(params=["unix", "tcp"])
def place(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Place]:
    made = Place(tmp_path, request.param)
    yield made
    made.close()


@pytest.fixture
def unix(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path, "unix")
    yield made
    made.close()


def test_bulk_in_both_directions_at_once(place: Place) -> None:
    place.backend()
    clients = 4
    results: list[bool] = []

    def talk(seed: int) -> None:
        data = [os.urandom(seed + 1) * (MIB // (seed + 1)) for _ in range(4)] * 4
        with place.connect() as client:
            sent, got = hashlib.sha256(), hashlib.sha256()

            def send() -> None:
                for part in data:
                    sent.update(part)
                    client.sendall(part)
                client.shutdown(socket.SHUT_WR)

            sending = threading.Thread(target=send)
            sending.start()
            while part := client.recv(100_000):
                got.update(part)
            sending.join()
            results.append(sent.digest() == got.digest())

    threads = [threading.Thread(target=talk, args=(seed,)) for seed in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * clients
    until(lambda: place.splicer.connections == 0)


def test_many_small_messages(place: Place) -> None:
    place.backend()
    with place.connect() as client:
        for i in range(500):
            client.sendall(b"%03d" % i)
            assert exactly(client, 3) == b"%03d" % i


def test_half_closed_by_the_client(place: Place) -> None:
    """A request that ends with the end of the stream, and an answer after it."""

    def count(connection: socket.socket) -> None:
        size = len(received(connection))
        connection.sendall(b"%d" % size)

    place.backend(count)
    with place.connect() as client:
        client.sendall(bytes(3 * MIB))
        client.shutdown(socket.SHUT_WR)
        assert received(client) == b"%d" % (3 * MIB)
    until(lambda: place.splicer.connections == 0)


def test_half_closed_by_the_server(place: Place) -> None:
    got: list[int] = []

    def say_goodbye(connection: socket.socket) -> None:
        connection.sendall(b"goodbye")
        connection.shutdown(socket.SHUT_WR)
        got.append(len(received(connection)))

    place.backend(say_goodbye)
    with place.connect() as client:
        assert received(client) == b"goodbye"
        client.sendall(bytes(2 * MIB))
        client.shutdown(socket.SHUT_WR)
        until(lambda: got == [2 * MIB])
    until(lambda: place.splicer.connections == 0)


def test_last_words_arrive(place: Place) -> None:
    """A server that ends a connection while the client still sends: what it said before is heard."""

    def refuse(connection: socket.socket) -> None:
        connection.recv(1)
        connection.sendall(b"x" * MIB)

    place.backend(refuse)
    with place.connect() as client:
        client.sendall(b"a")
        heard = b""
        with contextlib.suppress(ConnectionError):
            while part := client.recv(MIB):
                heard += part
        assert len(heard) == MIB
    until(lambda: place.splicer.connections == 0)


def test_a_slow_reader_costs_no_memory(unix: Place) -> None:
    """What nobody takes is not read: the sender waits."""
    sent = 0

    def flood(connection: socket.socket) -> None:
        nonlocal sent
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        while True:
            sent += connection.send(bytes(65536))

    unix.backend(flood)
    with unix.connect(buffer=65536) as client, unix.connect() as other:
        progress = [-1]

        def stalled() -> bool:
            before, progress[0] = progress[0], sent
            time.sleep(0.05)
            return before == sent

        until(lambda: stalled() and stalled())
        # Two connections; for each the buffers of its sockets, and one chunk.
        assert sent < 2 * 16 * MIB
        for each in (client, other):
            assert len(exactly(each, 8 * MIB)) == 8 * MIB


def test_others_go_on_beside_a_slow_reader(place: Place) -> None:
    place.backend()
    with place.connect() as slow, place.connect() as quick:
        slow.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                slow.send(bytes(MIB))
        quick.sendall(b"hello")
        assert exactly(quick, 5) == b"hello"


def test_many_idle_connections(unix: Place) -> None:
    unix.backend()
    with contextlib.ExitStack() as stack:
        stack.enter_context(many_descriptors(5000))
        clients = [stack.enter_context(unix.connect()) for _ in range(1000)]
        until(lambda: unix.splicer.connections == 1000)
        thread = next(t for t in threading.enumerate() if t.name == "neve-splice")
        assert thread.native_id is not None
        before = cpu_ticks(thread.native_id)
        time.sleep(0.3)
        assert cpu_ticks(thread.native_id) - before <= 2
        for client in clients[::100]:
            client.sendall(b"x")
            assert client.recv(1) == b"x"
    until(lambda: unix.splicer.connections == 0)


@contextlib.contextmanager
def many_descriptors(count: int) -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limits[1] < count:
        pytest.skip(f"a process may have {limits[1]} descriptors only")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(limits[0], count), limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def cpu_ticks(thread: int) -> int:
    fields = Path(f"/proc/self/task/{thread}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_the_least_busy_worker_is_chosen(unix: Place) -> None:
    backends = [unix.backend() for _ in range(3)]

    def counts() -> list[int]:
        return [len(backend.connections) for backend in backends]

    clients = [unix.connect() for _ in range(9)]
    until(lambda: counts() == [3, 3, 3])
    # Those of one worker end: the next ones are its.
    mine = {backends[1].connections[i].getpeername() for i in range(3)}
    assert len(mine) == 1
    for connection in backends[1].connections:
        connection.shutdown(socket.SHUT_RDWR)
    until(lambda: unix.splicer.connections == 6)
    clients += [unix.connect() for _ in range(3)]
    until(lambda: counts() == [3, 6, 3])
    for client in clients:
        client.close()


def test_a_dead_worker_is_passed_over(unix: Place, tmp_path: Path) -> None:
    unix.splicer.add_backend("dead", {"use": str(tmp_path / "nobody")})
    backend = unix.backend()
    for _ in range(3):
        with unix.connect() as client:
            client.sendall(b"hello")
            assert exactly(client, 5) == b"hello"
    assert len(backend.connections) == 3


def test_connections_break_with_their_worker(place: Place) -> None:
    backend = place.backend()
    with place.connect() as client:
        client.sendall(b"hello")
        assert exactly(client, 5) == b"hello"
        place.splicer.remove_backend(1)
        # It goes on while it is there.
        client.sendall(b"hello")
        assert exactly(client, 5) == b"hello"
        backend.close()
        assert client.recv(1) == b""
    until(lambda: place.splicer.connections == 0)


def test_without_workers_clients_wait(place: Place) -> None:
    with place.connect() as client:
        client.sendall(b"hello")
        time.sleep(0.05)
        assert place.splicer.connections == 0
        place.backend()
        assert exactly(client, 5) == b"hello"


def test_a_worker_that_answers_later(unix: Place, tmp_path: Path) -> None:
    unix.splicer.add_backend(1, {"use": str(tmp_path / "backend0")})
    with logged() as messages, unix.connect() as first, unix.connect() as second:
        until(lambda: bool(messages))
        for client in (first, second):
            client.sendall(b"hello")
        time.sleep(0.25)
        unix.backend()
        for client in (first, second):
            assert exactly(client, 5) == b"hello"
    assert len(messages) == 1
    assert "no worker can be reached" in messages[0]


@pytest.mark.parametrize("left", [0, 1])
def test_no_descriptors_left(unix: Place, left: int) -> None:
    unix.backend()
    waiting = [socket.socket(socket.AF_UNIX) for _ in range(4)]
    with unix.connect() as first, logged() as messages:
        first.sendall(b"hello")
        assert exactly(first, 5) == b"hello"
        with only_descriptors(left):
            for client in waiting:
                client.settimeout(30)
                client.connect(unix.address)
                client.sendall(b"hello")
            until(lambda: bool(messages))
            time.sleep(0.25)
            first.sendall(b"hello")
            assert exactly(first, 5) == b"hello"
        for client in waiting:
            assert exactly(client, 5) == b"hello"
            client.close()
    assert len(messages) == 1


@contextlib.contextmanager
def only_descriptors(left: int) -> Iterator[None]:
    """In the block, this process can open no more than that."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 8, limits[1]))
    taken = []
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        for _ in range(left):
            os.close(taken.pop())
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for descriptor in taken:
            os.close(descriptor)


def test_stop_accepting(place: Place) -> None:
    place.backend()
    with place.connect() as client:
        client.sendall(b"hello")
        assert exactly(client, 5) == b"hello"
        place.splicer.stop_accepting()

        def refused() -> bool:
            try:
                place.connect().close()
            except (ConnectionRefusedError, ConnectionResetError):
                return True
            return False

        until(refused)
        client.sendall(b"hello")
        assert exactly(client, 5) == b"hello"


def test_close_lets_what_is_on_its_way_arrive(unix: Place) -> None:
    backend = unix.backend(lambda connection: connection.sendall(bytes(8 * MIB)))
    with unix.connect() as client:
        assert client.recv(1)
        until(lambda: len(backend.connections) == 1)
        got: list[bytes] = []
        reading = threading.Thread(target=lambda: got.append(received(client)))
        reading.start()
        unix.splicer.close(linger=30)
        reading.join()
        assert len(got[0]) == 8 * MIB - 1


def test_close_does_not_wait_for_ever(unix: Place) -> None:
    unix.backend()
    with unix.connect() as client:
        client.sendall(b"hello")
        assert exactly(client, 5) == b"hello"
        unix.splicer.close(linger=0.05)
        assert client.recv(1) == b""
    unix.splicer.close()
    unix.splicer.remove_backend("any")
    assert not any(t.name == "neve-splice" for t in threading.enumerate())


def test_descriptors_are_given_back(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for i in range(3):
        (tmp_path / str(i)).mkdir()
        made = Place(tmp_path / str(i), "unix")
        made.backend()
        clients = [made.connect() for _ in range(20)]
        until(lambda made=made: made.splicer.connections == 20)  # type: ignore[misc]
        for client in clients:
            client.close()
        made.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_failure_of_the_thread_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = threading.Event()
    monkeypatch.setattr(LOGGER, "disabled", True)
    splicer = Splicer(failed.set)
    splicer._do(lambda: 1 / 0)
    assert failed.wait(30)
    splicer.close()
