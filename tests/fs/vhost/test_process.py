"""``neve virtiofs`` as a process: real requests through shared memory, signals, and its socket."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import neve

from .driver import NEXT, Descriptor
from .frontend import IN_HEADER, MEMORY_BYTES, OUT_HEADER, PATIENCE, FrontEnd, u64, wait_until

LOOKUP, FORGET, GETATTR, READ, INIT, DESTROY, WRITE = 1, 2, 3, 15, 26, 38, 16
CONTENT = b"contents of a file\n" * 40


class Running(NamedTuple):
    process: subprocess.Popen[bytes]
    socket: Path
    log: Path
    name: bytes

    def lines(self) -> list[str]:
        return self.log.read_text().splitlines()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, bytes]:
    folder = tmp_path_factory.mktemp("store")
    (folder / "file").write_bytes(CONTENT)
    url = f"local://{folder}/store"
    with neve.open(url) as opened:
        return url, opened.import_path(folder / "file").store_path.base_name.encode()


@contextlib.contextmanager
def started(store: tuple[str, bytes], folder: Path, *options: str) -> Iterator[Running]:
    path, log = folder / "fs.sock", folder / "log"
    command = [sys.executable, "-m", "neve.cli", "virtiofs", str(path), "--store", store[0], *options]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stderr=output)
    try:
        wait_until(lambda: b"listening on" in log.read_bytes() or process.poll() is not None, "it listens")
        yield Running(process, path, log, store[1])
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def running(store: tuple[str, bytes], tmp_path: Path) -> Iterator[Running]:
    with started(store, tmp_path) as running_:
        yield running_


class Kernel:
    """As much of a kernel as it takes to ask for something."""

    def __init__(self, front_end: FrontEnd) -> None:
        self._front_end = front_end
        self._unique = 0

    def ask(self, opcode: int, node: int = 1, body: bytes = b"", room: int = 1000) -> tuple[int, bytes]:
        """The error and the body of the answer."""
        self._unique += 2
        raw = IN_HEADER.pack(IN_HEADER.size + len(body), opcode, self._unique, node, 0, 0, 1, 0) + body
        self._front_end.make(1, raw, room)
        self._front_end.kick(1)
        ((_, found),) = self._front_end.answers(1)
        length, error, unique = OUT_HEADER.unpack_from(found)
        assert (length, unique) == (len(found), self._unique)
        return -error, found[OUT_HEADER.size :]

    def init(self) -> None:
        error, body = self.ask(INIT, 0, struct.pack("<IIII", 7, 38, 1 << 20, 0) + bytes(48))
        assert error == 0
        assert struct.unpack_from("<II", body) == (7, 38)

    def lookup(self, name: bytes) -> int:
        error, body = self.ask(LOOKUP, 1, name + b"\0")
        assert error == 0
        return int(struct.unpack_from("<Q", body)[0])

    def read(self, node: int, offset: int, size: int) -> bytes:
        body = struct.pack("<QQIIQII", 0, offset, size, 0, 0, 0, 0)
        error, content = self.ask(READ, node, body)
        assert error == 0
        return content


def test_a_file_is_read(running: Running) -> None:
    with FrontEnd(str(running.socket)) as front_end:
        front_end.set_up()
        kernel = Kernel(front_end)
        kernel.init()
        node = kernel.lookup(running.name)
        assert kernel.read(node, 0, 100) == CONTENT[:100]
        assert kernel.read(node, len(CONTENT) - 50, 100) == CONTENT[-50:]
        assert kernel.ask(LOOKUP, 1, b"nothing\0") == (errno.ENOENT, b"")
        assert kernel.ask(WRITE, node, bytes(40) + b"x")[0] == errno.EROFS
        assert kernel.ask(999)[0] == errno.ENOSYS
        assert kernel.ask(GETATTR, 12345, bytes(16))[0] != 0
        # A guest that reboots knows nothing of before, not even how to say goodbye.
        for ring in (0, 1):
            front_end.stop_ring(ring)
            front_end.drivers[ring].reset()
        front_end.start()
        kernel.init()
        assert kernel.read(kernel.lookup(running.name), 0, 100) == CONTENT[:100]
        assert kernel.ask(DESTROY) == (0, b"")


def test_an_answer_that_is_longer_than_its_room(running: Running) -> None:
    with FrontEnd(str(running.socket)) as front_end:
        front_end.set_up()
        kernel = Kernel(front_end)
        kernel.init()
        node = kernel.lookup(running.name)
        body = struct.pack("<QQIIQII", 0, 0, 600, 0, 0, 0, 0)
        assert kernel.ask(READ, node, body, room=300) == (errno.EIO, b"")


def test_it_outlives_hostile_guests_and_front_ends(running: Running) -> None:
    with FrontEnd(str(running.socket)) as front_end:
        front_end.set_up()
        Kernel(front_end).init()
        front_end.drivers[1].describe(0, [Descriptor(1 << 60, 40, NEXT, 0)])
        front_end.drivers[1].offer(0)
        front_end.kick(1)
        wait_until(lambda: "is stopped" in running.lines()[-1], "the queue is stopped")
        front_end.set_memory([(0, MEMORY_BYTES * 2, 0, 0)])
        assert front_end.ended()
    with FrontEnd(str(running.socket)) as front_end:
        front_end.send(2, u64(0))
        front_end.settled()
        front_end.send_raw(os.urandom(12))
        assert front_end.ended()
    test_a_file_is_read(running)
    lines = [line for line in running.lines() if line.startswith("neve: warning: ")]
    assert len(lines) == 3
    assert "queue 1 of the guest is stopped: 40 bytes at guest address 0x1000000000000000" in lines[0]
    assert f"process {os.getpid()} is disconnected: memory at guest address 0x0: 2097152 bytes" in lines[1]
    assert f"process {os.getpid()} is disconnected: " in lines[2]
    wait_until(lambda: "has gone" in running.lines()[-1], "the end is noticed")
    assert running.process.poll() is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("connected", [False, True])
def test_a_signal_ends_it(running: Running, number: int, connected: bool) -> None:
    with contextlib.ExitStack() as stack:
        if connected:
            front_end = stack.enter_context(FrontEnd(str(running.socket)))
            front_end.set_up()
            Kernel(front_end).init()
        running.process.send_signal(number)
        assert running.process.wait(PATIENCE) == 0
    assert not running.socket.exists()
    assert running.lines()[0] == f"neve: listening on unix:{running.socket}"
    assert running.lines()[1:] == [f"neve: virtio-fs: process {os.getpid()} is connected"] * connected


def test_a_socket_that_was_left_behind_is_replaced(store: tuple[str, bytes], tmp_path: Path) -> None:
    with started(store, tmp_path) as first:
        first.process.kill()
        first.process.wait()
        assert first.socket.exists()
        with started(store, tmp_path) as second, FrontEnd(str(second.socket)) as front_end:
            front_end.set_up()
            Kernel(front_end).init()


def test_a_socket_where_somebody_listens_is_refused(store: tuple[str, bytes], running: Running) -> None:
    command = [sys.executable, "-m", "neve.cli", "virtiofs", str(running.socket), "--store", store[0]]
    with FrontEnd(str(running.socket)) as front_end:
        front_end.set_up()
        result = subprocess.run(command, capture_output=True, timeout=PATIENCE, text=True)
        assert result.returncode == 1
        assert result.stderr == f"neve: something is already listening on unix:{running.socket}\n"
        Kernel(front_end).init()


def test_the_socket_is_for_its_owner(running: Running) -> None:
    assert stat.S_IMODE(running.socket.stat().st_mode) == 0o600


def test_the_root_is_listed_and_the_socket_shared_if_so_told(
    store: tuple[str, bytes], tmp_path: Path
) -> None:
    options = ["--list-root", "--socket-group", "0", "--threads", "2", "--no-show-xattr"]
    with started(store, tmp_path, *options) as running, FrontEnd(str(running.socket)) as front_end:
        assert stat.S_IMODE(running.socket.stat().st_mode) == 0o660
        front_end.set_up()
        kernel = Kernel(front_end)
        kernel.init()
        listing = kernel.ask(28, 1, struct.pack("<QQIIQII", 0, 0, 900, 0, 0, 0, 0))
        assert running.name in listing[1]


def test_a_store_that_is_not_there(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "neve.cli", "virtiofs", str(tmp_path / "s")]
    command += ["--store", f"local://{tmp_path}/none"]
    result = subprocess.run(command, capture_output=True, timeout=PATIENCE, text=True)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert os.listdir(tmp_path) == []


def test_the_tag_is_told(store: tuple[str, bytes], tmp_path: Path) -> None:
    with started(store, tmp_path, "--tag", "packages") as running, socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE)
        client.connect(str(running.socket))
        client.sendall(struct.pack("=IIIIII", 24, 1, 12 + 36, 0, 36, 0) + bytes(36))
        assert client.recv(100)[24:] == b"packages".ljust(36, b"\0")


def test_a_store_that_hangs(tmp_path: Path) -> None:
    """What needs no store is answered, the guest can reboot, and a signal ends it."""
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "silent"))
        silent.listen()
        url = f"grpc+unix://{tmp_path}/silent"
        with started((url, b""), tmp_path) as running, FrontEnd(str(running.socket)) as front_end:
            front_end.set_up()
            kernel = Kernel(front_end)
            kernel.init()
            name = b"0" * 32 + b"-name\0"
            raw = IN_HEADER.pack(IN_HEADER.size + len(name), LOOKUP, 77, 1, 0, 0, 1, 0) + name
            front_end.make(1, raw, 200, 1)
            error, attributes = kernel.ask(GETATTR, 1, bytes(16))
            assert (error, len(attributes)) == (0, 104)
            # The ring stops within its time, and the one request has an answer.
            assert front_end.stop_ring(1) == 3
            assert front_end.answers(1) == [(1, OUT_HEADER.pack(OUT_HEADER.size, -errno.EIO, 77))]
            running.process.send_signal(signal.SIGTERM)
            assert running.process.wait(PATIENCE) == 0
            assert not running.socket.exists()
