"""What the front-end of a virtual machine says, and what its guest has written to memory."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from collections.abc import Sequence

from neve.errors import InvalidRequest, Unavailable
from neve.fs.vhost.device import Device, DeviceOptions
from neve.fs.vhost.memory import OutsideMemory
from neve.fs.vhost.messages import (
    HEADER_BYTES,
    BadMessage,
    Header,
    Request,
    parse_header,
    parse_payload,
)
from neve.fs.vhost.ring import Reply
from neve.fs.vhost.virtqueue import BadQueue, SplitQueue
from tests.fs.vhost.driver import GUEST, USER, Driver, small_memory
from tests.fuzz.target import Bound, Target

_SIZE = 16
_MEMORY_BYTES = 1 << 16


def _message(data: bytes) -> None:
    header = parse_header(data[:HEADER_BYTES].ljust(HEADER_BYTES, b"\0"))
    for descriptors in (0, 1, 2):
        try:
            parse_payload(header.request, data[HEADER_BYTES:], descriptors)
        except BadMessage:
            continue
        return
    raise BadMessage("with no number of descriptors")


def _queue(data: bytes) -> None:
    """The first bytes of a guest's memory: the descriptors, the rings, and what lies behind them. Whatever is
    asked for is answered, as far as there is room; nothing outside of the memory is touched."""
    raw, memory = small_memory(_MEMORY_BYTES)
    driver = Driver(memoryview(raw), _SIZE, 0, GUEST, USER)
    raw[: len(data)] = data
    queue = SplitQueue(memory, _SIZE, driver.addresses, 0, 4096)
    for _ in range(_SIZE + 1):
        chain = queue.pop()
        if chain is None:
            return
        assert len(chain.request) <= 4096
        queue.answer(chain, [memoryview(bytes(min(chain.room, 100)))])
    raise AssertionError("more requests than places")


class _Echo:
    """Answers each request with what it says."""

    def handle(self, request: bytes | memoryview, reply: Reply, /) -> None:
        reply([bytes(request[:16]), bytes(request)])

    def close(self) -> None:
        return


def _descriptors(request: int, payload: bytes, memory: bytes, wanted: int) -> list[int]:
    """What comes with a message: memory, or events."""
    if request != Request.SET_MEM_TABLE:
        return [os.eventfd(0, os.EFD_CLOEXEC) for _ in range(wanted % 2)]
    files = []
    for _ in range(wanted):
        files.append(os.memfd_create("guest", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
        os.ftruncate(files[-1], _MEMORY_BYTES)
        os.pwrite(files[-1], memory, 0)
        fcntl.fcntl(files[-1], fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    return files


def _told(device: Device, request: int, payload: bytes, files: list[int]) -> None:
    try:
        device.handle(Header(request, True, len(payload)), payload, files)
    finally:
        for file in files:
            os.close(file)


def _device(data: bytes) -> None:
    """What is in the memory, with its length before it in two bytes; then messages: number, descriptors and
    length in a byte each."""
    end = 2 + int.from_bytes(data[:2], "little")
    memory, at = data[2:end][:_MEMORY_BYTES], end
    device = Device(_Echo(), DeviceOptions(tag=b"tag"))
    with contextlib.closing(device):
        while at + 3 <= len(data):
            request, descriptors, size = data[at : at + 3]
            payload = data[at + 3 : at + 3 + size]
            _told(device, request, payload, _descriptors(request, payload, memory, descriptors % 9))
            for ring in device.rings:
                if ring.running:
                    ring.turn()
            at += 3 + size


_NUMBERS = tuple(bytes((request, descriptors)) for request in Request for descriptors in (0, 1))
_ADDRESSES: Sequence[bytes] = [struct.pack("<Q", address) for address in (GUEST, USER, GUEST + _MEMORY_BYTES)]

TARGETS = (
    Target("vhost-message", _message, (BadMessage,), longest=1024),
    Target(
        "virtqueue",
        _queue,
        (BadQueue, OutsideMemory),
        memory=Bound(256 * 1024, 1024),
        steps=Bound(200_000, 1000),
        rounds=200,
        words=(*_ADDRESSES, b"\1\0", b"\2\0", b"\4\0", b"\5\0"),
    ),
    Target(
        "vhost-device",
        _device,
        (InvalidRequest, Unavailable),
        memory=Bound(1024 * 1024, 4096),
        steps=Bound(20_000, 400),
        rounds=100,
        words=(*_NUMBERS, *_ADDRESSES),
    ),
)
