"""The other side of the device: a front-end with the memory of a guest, honest or not, and requests of
FUSE."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Self

from neve.fs.vhost.device import DeviceOptions
from neve.fs.vhost.messages import Feature, ProtocolFeature, Request
from neve.fs.vhost.ring import Reply
from neve.fs.vhost.server import Server

from .driver import WRITE, Descriptor, Driver, chained

PATIENCE = 30.0
MEMORY_BYTES = 1 << 20
QUEUE_SIZE = 16
GUEST, USER = 0x100000, 0x7F1200000000
IN_HEADER, OUT_HEADER = struct.Struct("<IIQQIIII"), struct.Struct("<IiQ")

ECHO, HOLD, SILENT, RAISE, TWICE = 1001, 1002, 1003, 1004, 1005
"""Opcodes of no file system, which ``Answers`` knows."""


def wait_until(condition: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.002)


def request(opcode: int, unique: int, body: bytes = b"") -> bytes:
    return IN_HEADER.pack(IN_HEADER.size + len(body), opcode, unique, 1, 0, 0, 0, 0) + body


def answer(unique: int, body: bytes = b"", error: int = 0) -> bytes:
    return OUT_HEADER.pack(OUT_HEADER.size + len(body), -error, unique) + body


class Answers:
    """A handler that does what the opcode says."""

    def __init__(self) -> None:
        self.held: list[tuple[bytes, Reply]] = []
        self.requests: list[bytes] = []
        self.closed = False

    def handle(self, request: bytes | memoryview, reply: Reply, /) -> None:
        raw = bytes(request)
        self.requests.append(raw)
        _, opcode, unique, *_ = IN_HEADER.unpack_from(raw)
        if opcode == HOLD:
            self.held.append((raw, reply))
        elif opcode == SILENT:
            reply([])
        elif opcode == RAISE:
            raise ZeroDivisionError("on purpose")
        else:
            whole = answer(unique, raw[IN_HEADER.size :])
            reply([whole[:16], memoryview(whole)[16:]])
            if opcode == TWICE:
                reply([answer(unique + 1)])

    def release(self) -> None:
        """Answers what was held, in a thread of its own, as a backend would."""
        held, self.held = self.held, []
        for raw, reply in held:
            _, _, unique, *_ = IN_HEADER.unpack_from(raw)
            thread = threading.Thread(target=reply, args=([answer(unique, raw[IN_HEADER.size :])],))
            thread.start()
            thread.join()

    def close(self) -> None:
        self.closed = True


class Serving(NamedTuple):
    """A server that runs in a thread, and the handlers that it has made."""

    path: str
    handlers: list[Answers]
    server: Server


@contextlib.contextmanager
def serving(folder: Path, options: DeviceOptions | None = None) -> Iterator[Serving]:
    handlers: list[Answers] = []

    def handler() -> Answers:
        handlers.append(Answers())
        return handlers[-1]

    path = str(folder / "fs.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        server = Server(listener, options)
        thread = threading.Thread(target=server.run, args=(handler,))
        thread.start()
        try:
            yield Serving(path, handlers, server)
        finally:
            server.stop()
            thread.join(PATIENCE)
            assert not thread.is_alive()
            server.close()


def memfd(size: int = MEMORY_BYTES, seals: int = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW) -> int:
    file = os.memfd_create("guest", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(file, size)
    if seals:
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, seals)
    return file


def u32(*numbers: int) -> bytes:
    return struct.pack(f"={len(numbers)}I", *numbers)


def u64(*numbers: int) -> bytes:
    return struct.pack(f"={len(numbers)}Q", *numbers)


class FrontEnd:
    """A connection to a device, and memory with rings in it: one after the other, each with its buffers."""

    RING_BYTES = 1 << 16

    def __init__(self, path: str, *, seals: int = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE)
        try:
            self.socket.connect(path)
        except BaseException:
            self.socket.close()
            raise
        self.memfd = memfd(seals=seals)
        self.mapping = mmap.mmap(self.memfd, MEMORY_BYTES)
        self.memory = memoryview(self.mapping)
        self.kicks = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(3)]
        self.calls = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(3)]
        self.error = os.eventfd(0, os.EFD_NONBLOCK)
        self.drivers = [
            Driver(self.memory, QUEUE_SIZE, i * self.RING_BYTES, GUEST, USER) for i in range(len(self.kicks))
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self.memory.release()
        self.mapping.close()

    def close(self) -> None:
        self.socket.close()
        if self.memfd >= 0:
            for file in (self.memfd, self.error, *self.kicks, *self.calls):
                os.close(file)
            self.memfd = -1

    def replace_memory(self, file: int) -> None:
        """Sends this from now on, which belongs to the front-end then."""
        os.dup2(file, self.memfd)
        os.close(file)

    # Messages.

    def send(self, number: int, payload: bytes = b"", files: Sequence[int] = (), flags: int = 1) -> None:
        self.send_raw(u32(number, flags, len(payload)) + payload, files)

    def send_raw(self, raw: bytes, files: Sequence[int] = ()) -> None:
        socket.send_fds(self.socket, [raw], files)

    def received(self, number: int) -> bytes:
        """The payload of the reply to a request."""
        head = self._exactly(12)
        assert head[:8] == u32(number, 5), head
        return self._exactly(int.from_bytes(head[8:], "little"))

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self.socket.recv(size - len(data))
            assert part, "the connection has ended"
            data += part
        return data

    def ask(self, number: int, payload: bytes = b"") -> bytes:
        self.send(number, payload)
        return self.received(number)

    def number(self, request: int) -> int:
        return int.from_bytes(self.ask(request), "little")

    def ended(self) -> bool:
        """Waits for the device to hang up. Replies that are on the way do not matter."""
        try:
            while self.socket.recv(4096):
                pass
        except ConnectionResetError:
            pass
        return True

    # What QEMU does.

    def set_up(self, rings: Sequence[int] = (0, 1)) -> None:
        """From the first message to working rings."""
        assert self.number(Request.GET_FEATURES) == int(
            Feature.VERSION_1 | Feature.RING_INDIRECT_DESC | Feature.PROTOCOL_FEATURES
        )
        offered = self.number(Request.GET_PROTOCOL_FEATURES)
        assert offered & ProtocolFeature.REPLY_ACK
        self.send(Request.SET_PROTOCOL_FEATURES, u64(offered))
        self.send(Request.SET_OWNER)
        self.start(rings)

    def start(self, rings: Sequence[int] = (0, 1)) -> None:
        """As often as a guest's driver begins."""
        self.send(Request.SET_FEATURES, u64(Feature.VERSION_1 | Feature.PROTOCOL_FEATURES))
        self.set_memory()
        for ring in rings:
            self.start_ring(ring)

    def set_memory(self, regions: Sequence[tuple[int, int, int, int]] | None = None) -> None:
        """Regions as guest address, size, user address and offset."""
        table = regions or [(GUEST, MEMORY_BYTES, USER, 0)]
        payload = u32(len(table), 0) + b"".join(u64(*region) for region in table)
        self.send(Request.SET_MEM_TABLE, payload, [self.memfd] * len(table))

    def start_ring(self, ring: int, base: int = 0) -> None:
        addresses = self.drivers[ring].addresses
        self.send(Request.SET_VRING_NUM, u32(ring, QUEUE_SIZE))
        self.send(Request.SET_VRING_BASE, u32(ring, base))
        payload = u32(ring, 0) + u64(addresses.descriptors, addresses.used, addresses.available, 0)
        self.send(Request.SET_VRING_ADDR, payload)
        self.send(Request.SET_VRING_CALL, u64(ring), [self.calls[ring]])
        self.send(Request.SET_VRING_ERR, u64(ring), [self.error])
        self.send(Request.SET_VRING_KICK, u64(ring), [self.kicks[ring]])
        self.send(Request.SET_VRING_ENABLE, u32(ring, 1))

    def stop_ring(self, ring: int) -> int:
        """The base that the ring stopped at."""
        found, base = struct.unpack("=II", self.ask(Request.GET_VRING_BASE, u32(ring, 0)))
        assert found == ring
        return int(base)

    def settled(self) -> None:
        """Returns when all messages so far have been handled."""
        self.number(Request.GET_FEATURES)

    # What the guest does.

    def make(self, ring: int, raw: bytes, room: int = 0, head: int = 0) -> None:
        """A request at a place of its own for each head: in two descriptors, and room in two more."""
        driver = self.drivers[ring]
        place = driver.buffers + head * 2048
        self.memory[place : place + len(raw)] = raw
        target = self.target(ring, head)
        self.memory[target : target + room] = bytes(room)
        at = driver.guest(place)
        descriptors = [Descriptor(at, 16), Descriptor(at + 16, len(raw) - 16)]
        if room:
            half = room // 2
            goal = driver.guest(target)
            descriptors += [Descriptor(goal, half, WRITE), Descriptor(goal + half, room - half, WRITE)]
        driver.describe(4 * head, chained(descriptors, 4 * head))
        driver.offer(4 * head)

    def target(self, ring: int, head: int = 0) -> int:
        """Where the answer to a request goes."""
        return self.drivers[ring].buffers + head * 2048 + 1024

    def kick(self, ring: int) -> None:
        os.eventfd_write(self.kicks[ring], 1)

    def answers(self, ring: int, count: int = 1) -> list[tuple[int, bytes]]:
        """The next answers: the head, and what was written. Waits for them, and for the guest to be woken."""
        found: list[tuple[int, bytes]] = []
        while len(found) < count:
            assert select.select([self.calls[ring]], [], [], PATIENCE)[0], "the guest is not woken"
            os.eventfd_read(self.calls[ring])
            for head, length in self.drivers[ring].answered():
                at = self.target(ring, head // 4)
                found.append((head // 4, bytes(self.memory[at : at + length])))
        return found

    def converse(self, ring: int, unique: int, body: bytes = b"ping") -> None:
        """A request and its answer."""
        self.make(ring, request(ECHO, unique, body), 16 + len(body))
        self.kick(ring)
        assert self.answers(ring) == [(0, answer(unique, body))]
