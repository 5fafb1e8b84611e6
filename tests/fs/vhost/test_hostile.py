"""Front-ends and guests that are broken or mean: one line in the log, and the next one is served."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import random
import re
import select
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from neve.fs.vhost.device import DeviceOptions
from neve.fs.vhost.messages import Feature, Request
from tests.logged import logged

from .driver import INDIRECT, NEXT, WRITE, Descriptor, chained
from .frontend import (
    ECHO,
    GUEST,
    HOLD,
    MEMORY_BYTES,
    PATIENCE,
    QUEUE_SIZE,
    USER,
    FrontEnd,
    Serving,
    memfd,
    request,
    serving,
    u32,
    u64,
    wait_until,
)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Serving]:
    """It must serve a decent front-end afterwards, and have lost no descriptor."""
    with serving(tmp_path) as serving_:
        files = len(os.listdir("/proc/self/fd"))
        yield serving_
        with FrontEnd(serving_.path) as front_end:
            front_end.set_up()
            front_end.converse(1, 1)
        wait_until(lambda: len(os.listdir("/proc/self/fd")) == files, "descriptors are closed")


# Guests.

OUTSIDE = GUEST + MEMORY_BYTES
IN = Descriptor(GUEST + 0x80000, 40)
OUT = Descriptor(GUEST + 0x80000, 64, WRITE)


@pytest.mark.parametrize(
    ("descriptors", "reason"),
    [
        ([IN._replace(flags=NEXT, next=0)], "a chain of more than 1024 descriptors"),
        ([IN._replace(flags=NEXT, next=QUEUE_SIZE)], "descriptor 16 in a table of 16"),
        (chained([OUT, IN]), "a readable descriptor behind a writable one"),
        ([Descriptor(OUTSIDE - 1, 40)], f"40 bytes at guest address {OUTSIDE - 1:#x}: outside of the memory"),
        (chained([IN, Descriptor(OUTSIDE - 8, 9, WRITE)]), "outside of the memory"),
        (chained([IN, Descriptor(0, 0xFFFF0000, WRITE)]), "outside of the memory"),
        (chained([IN, Descriptor(0, 0xFFFFFFFF, WRITE)]), "a chain of more than 4294967295 bytes"),
        (chained([IN, Descriptor((1 << 64) - 8, 16, WRITE)]), "outside of the memory"),
        ([Descriptor(GUEST, 0xFFFF0)], "a request of more than 131072 bytes"),
        ([Descriptor(GUEST, 17, INDIRECT)], "an indirect table of 17 bytes"),
        ([Descriptor(OUTSIDE, 16, INDIRECT)], "outside of the memory"),
        ([IN._replace(size=39)], "a request of 39 bytes, shorter than its head"),
        ([OUT], "a request of 0 bytes, shorter than its head"),
    ],
)
def test_bad_requests_end_the_queue(served: Serving, descriptors: list[Descriptor], reason: str) -> None:
    with FrontEnd(served.path) as front_end, logged(logging.WARNING) as lines:
        front_end.set_up()
        front_end.drivers[1].describe(0, descriptors)
        front_end.drivers[1].offer(0)
        front_end.kick(1)
        assert select.select([front_end.error], [], [], PATIENCE)[0]
        (line,) = lines
        assert line.startswith("virtio-fs: queue 1 of the guest is stopped: ")
        assert reason in line
        # Nothing is taken from it any more; the other queue works, and this one after a reboot.
        front_end.kick(1)
        front_end.converse(0, 1)
        front_end.stop_ring(1)
        front_end.drivers[1].reset()
        front_end.start_ring(1)
        front_end.converse(1, 2)
        assert len(lines) == 1


def test_a_head_out_of_range(served: Serving) -> None:
    with FrontEnd(served.path) as front_end, logged(logging.WARNING) as lines:
        front_end.set_up()
        front_end.drivers[1].offer(40000)
        front_end.kick(1)
        assert select.select([front_end.error], [], [], PATIENCE)[0]
    assert "descriptor 40000 in a table of 16" in lines[0]


def test_more_requests_than_places(served: Serving) -> None:
    with FrontEnd(served.path) as front_end, logged(logging.WARNING) as lines:
        front_end.set_up()
        front_end.drivers[1].available_index = 17
        front_end.kick(1)
        assert select.select([front_end.error], [], [], PATIENCE)[0]
    assert "17 requests are available, in a queue of 16" in lines[0]


def test_the_same_request_again_before_it_was_answered(served: Serving) -> None:
    with FrontEnd(served.path) as front_end, logged(logging.WARNING) as lines:
        front_end.set_up()
        front_end.make(1, request(HOLD, 1), 16)
        front_end.drivers[1].offer(0)
        front_end.kick(1)
        assert select.select([front_end.error], [], [], PATIENCE)[0]
        assert "request 0 is made again before it was answered" in lines[0]
        served.handlers[0].release()
        assert front_end.drivers[1].answered() == []


def test_an_answer_over_the_rings_themselves(served: Serving) -> None:
    """The guest may have its own memory destroyed; whatever the rings say then, nobody else is hurt."""
    with FrontEnd(served.path) as front_end:
        front_end.set_up()
        for ring in (0, 1):
            front_end.make(ring, request(ECHO, 1, os.urandom(900)))
            ring_bytes = front_end.drivers[ring].buffers - ring * FrontEnd.RING_BYTES
            target = Descriptor(GUEST + ring * FrontEnd.RING_BYTES, ring_bytes, WRITE)
            front_end.drivers[ring].describe(1, [Descriptor(IN.address, 940 - 16, NEXT, 2), target])
            front_end.kick(ring)
        front_end.settled()


def test_random_guests(served: Serving) -> None:
    """Rings of random bytes, most of them near to what would be right."""
    rng = random.Random(20261126)
    with FrontEnd(served.path) as front_end:
        front_end.set_up()
        for _ in range(150):
            driver = front_end.drivers[1]
            for index in range(QUEUE_SIZE):
                flags = rng.choice([0, NEXT, NEXT, WRITE, NEXT | WRITE, INDIRECT, rng.randrange(65536)])
                size = rng.choice([40, 64, 16 * rng.randrange(20), rng.randrange(1 << 32)])
                address = (GUEST + rng.randrange(-64, MEMORY_BYTES + 64)) % (1 << 64)
                driver.describe(index, [Descriptor(address, size, flags, rng.randrange(QUEUE_SIZE + 1))])
            driver.offer(*(rng.randrange(QUEUE_SIZE + 1) for _ in range(rng.randrange(QUEUE_SIZE))))
            front_end.kick(1)
            front_end.stop_ring(1)
            driver.reset()
            front_end.start_ring(1)
            for place in range(0x80000, 0x80000 + 4096, 512):
                front_end.memory[place : place + 40] = request(rng.choice([ECHO, 26]), rng.randrange(99))
        front_end.settled()


def test_a_guest_that_changes_its_mind_all_the_time(served: Serving) -> None:
    """What was checked is what is used, and not what the guest has made of it meanwhile."""
    done = threading.Event()

    def scribble(front_end: FrontEnd) -> None:
        rng = random.Random(20261128)
        driver = front_end.drivers[1]
        values = [b"\0\0", b"\1\0", b"\2\0", b"\3\0", b"\4\0", b"\xff\xff", b"\x10\0", b"\x40\0"]
        while not done.is_set():
            place = rng.randrange(FrontEnd.RING_BYTES, driver.buffers + 100) & ~1
            front_end.memory[place : place + 2] = rng.choice(values)

    with FrontEnd(served.path) as front_end:
        front_end.set_up()
        scribbler = threading.Thread(target=scribble, args=(front_end,))
        scribbler.start()
        try:
            for number in range(150):
                for head in range(4):
                    front_end.make(1, request(ECHO, number, b"x" * 30), 100, head)
                front_end.kick(1)
                front_end.stop_ring(1)
                front_end.drivers[1].reset()
                front_end.start_ring(1)
            front_end.settled()
            # The other queue has seen nothing of all that.
            front_end.converse(0, 1)
        finally:
            done.set()
            scribbler.join()


# Front-ends.

Attack = Callable[[FrontEnd], None]


def message(number: int, payload: bytes = b"", files: int = 0, flags: int = 1) -> Attack:
    """Sends one message with so many descriptors."""
    return lambda front_end: front_end.send(number, payload, [front_end.memfd] * files, flags)


def after_start(attack: Attack) -> Attack:
    def started(front_end: FrontEnd) -> None:
        front_end.set_up()
        attack(front_end)

    return started


def half_a_message(front_end: FrontEnd) -> None:
    front_end.send_raw(u32(Request.SET_FEATURES, 1, 8) + b"1234", [front_end.memfd] * 4)
    front_end.socket.shutdown(socket.SHUT_WR)


def half_a_head(front_end: FrontEnd) -> None:
    front_end.send_raw(b"1234567")
    front_end.socket.shutdown(socket.SHUT_WR)


def many_descriptors(front_end: FrontEnd) -> None:
    front_end.send(Request.SET_OWNER, b"", [front_end.memfd] * 60)


def descriptors_in_every_piece(front_end: FrontEnd) -> None:
    for byte in u32(Request.SET_FEATURES, 1, 8):
        front_end.send_raw(bytes([byte]), [front_end.memfd])


def event(number: Request, kind: Callable[[], int], *, memory: bool = True) -> Attack:
    def attack(front_end: FrontEnd) -> None:
        front_end.set_up() if memory else None
        file = kind()
        front_end.send(number, u64(1), [file])
        os.close(file)

    return attack


def a_pipe() -> int:
    reader, writer = os.pipe()
    os.close(writer)
    return reader


def ring_at(descriptors: int, available: int, used: int) -> Attack:
    def attack(front_end: FrontEnd) -> None:
        front_end.set_up((0,))
        front_end.send(Request.SET_VRING_NUM, u32(1, 16))
        front_end.send(Request.SET_VRING_ADDR, u32(1, 0) + u64(descriptors, used, available, 0))
        front_end.send(Request.SET_VRING_KICK, u64(1), [front_end.kicks[1]])

    return attack


def memory(*regions: tuple[int, int, int, int], kind: Callable[[], int] | None = None) -> Attack:
    def attack(front_end: FrontEnd) -> None:
        if kind is not None:
            front_end.replace_memory(kind())
        front_end.set_memory(regions)

    return attack


def flood(front_end: FrontEnd) -> None:
    """Asks and asks, and never reads an answer."""
    front_end.socket.settimeout(None)
    try:
        while True:
            front_end.send(Request.GET_FEATURES)
    except OSError:
        return


ALL = (GUEST, MEMORY_BYTES, USER, 0)


@pytest.mark.parametrize(
    ("attack", "reason"),
    [
        (message(99), "request 99 is not supported here"),
        (message(Request.SET_FEATURES, b"1234567"), "SET_FEATURES with 7 bytes instead of 8"),
        (message(Request.SET_FEATURES, u64(0), 1), "SET_FEATURES with 1 descriptors instead of 0"),
        (message(Request.SET_MEM_TABLE, u32(1, 0) + u64(*ALL), 0), "with 0 descriptors instead of 1"),
        (message(Request.SET_MEM_TABLE, u32(1, 0) + u64(*ALL), 2), "with 2 descriptors instead of 1"),
        (message(Request.SET_OWNER, flags=2), "a message of version 2"),
        (message(Request.SET_OWNER, bytes(5000)), "SET_OWNER with 5000 bytes"),
        (message(Request.SET_FEATURES, u64(1)), "features 0x1, which were not offered"),
        (message(Request.SET_FEATURES, u64(Feature.VERSION_1 | 1 << 34)), "features 0x400000000, which"),
        (message(Request.SET_PROTOCOL_FEATURES, u64(1 << 9)), "protocol features 0x200, which were not"),
        (message(Request.GET_CONFIG, u32(0, 4, 0) + bytes(4)), "GET_CONFIG, which was not offered"),
        (message(Request.SET_VRING_NUM, u32(9, 16)), "SET_VRING_NUM for queue 9, the last one is 8"),
        (message(Request.GET_VRING_BASE, u32(0xFFFFFFFF, 0)), "GET_VRING_BASE for queue 4294967295"),
        (message(Request.SET_VRING_KICK, u64(0x101)), "SET_VRING_KICK without a descriptor"),
        (message(Request.SET_VRING_CALL, u64(200), 1), "SET_VRING_CALL for queue 200"),
        (half_a_message, "ends in the middle of a message"),
        (half_a_head, "ends in the middle of a message"),
        (many_descriptors, "a message with more than 8 descriptors"),
        (descriptors_in_every_piece, "a message with more than 8 descriptors"),
        (flood, "the front-end does not read replies"),
        (event(Request.SET_VRING_KICK, memfd), "the descriptor of an event is no eventfd"),
        (event(Request.SET_VRING_KICK, a_pipe), "the descriptor of an event is no eventfd"),
        (event(Request.SET_VRING_CALL, memfd), "the descriptor of an event is no eventfd"),
        (event(Request.SET_VRING_ERR, a_pipe), "the descriptor of an event is no eventfd"),
        (
            event(Request.SET_VRING_KICK, lambda: os.eventfd(0), memory=False),
            "SET_VRING_KICK before there is memory",
        ),
        (
            after_start(message(Request.SET_VRING_NUM, u32(1, 8))),
            "SET_VRING_NUM for queue 1, which is running",
        ),
        (
            after_start(message(Request.SET_VRING_BASE, u32(1, 8))),
            "SET_VRING_BASE for queue 1, which is running",
        ),
        (
            after_start(message(Request.SET_VRING_ADDR, u32(1, 0) + u64(0, 0, 0, 0))),
            "at user address 0x0: not in one region",
        ),
        (after_start(memory((GUEST, 4096, USER + 4096, 0))), "not in one region of the memory"),
        (ring_at(0, 0, 0), "at user address 0x0: not in one region"),
        (ring_at(USER + MEMORY_BYTES - 255 + 15, USER, USER), "not in one region"),
        (ring_at(USER, USER + 257, USER + 512), "of available is no multiple of 2"),
        (ring_at(GUEST, GUEST + 256, GUEST + 512), "not in one region"),
        (memory((GUEST, MEMORY_BYTES + 1, USER, 0)), "in a file of 1048576"),
        (memory((GUEST, MEMORY_BYTES, USER, 1)), "in a file of 1048576"),
        (memory((GUEST, (1 << 64) - 1, USER, 0)), "in a file of 1048576"),
        (memory((GUEST, 4096, USER, (1 << 64) - 4096)), "in a file of 1048576"),
        (memory((GUEST, 0, USER, 0)), f"the region at {GUEST:#x} is empty"),
        (memory((GUEST, 0, USER, 100)), f"the region at {GUEST:#x} is empty"),
        (memory(ALL, (GUEST + 4096, 4096, USER - 4096, 0)), "two regions share the guest address"),
        (memory(ALL, (GUEST - 4096, 4096, USER + 4096, 0)), "two regions share the user address"),
        (memory(((1 << 64) - 4096, 8192, USER, 0)), "goes beyond all addresses"),
        (memory(ALL, kind=a_pipe), "its descriptor is no file of memory"),
        (memory(ALL, kind=lambda: os.eventfd(0)), "its descriptor is no file of memory"),
        (memory(ALL, kind=lambda: os.open("/", os.O_RDONLY)), "its descriptor is no file of memory"),
        (memory(ALL, kind=lambda: os.open("/dev/zero", os.O_RDWR)), "its descriptor is no file of memory"),
        (memory(ALL, kind=lambda: os.open(__file__, os.O_RDONLY)), "could shrink, and cannot be sealed"),
        (
            memory(ALL, kind=lambda: memfd(seals=fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_WRITE)),
            "cannot be mapped: .*Operation not permitted",
        ),
        (memory(ALL, kind=lambda: memfd(seals=fcntl.F_SEAL_SEAL)), "could shrink, and cannot be sealed"),
    ],
)
def test_bad_front_ends_are_disconnected(served: Serving, attack: Attack, reason: str) -> None:
    with FrontEnd(served.path) as front_end, logged(logging.WARNING) as lines:
        with contextlib.suppress(BrokenPipeError):  # It may be found out before it is through.
            attack(front_end)
        assert front_end.ended()
        wait_until(lambda: lines, "it is told")
    (line,) = lines
    assert line.startswith(f"virtio-fs: process {os.getpid()} is disconnected: ")
    assert re.search(reason, line)


def test_a_ring_without_anything(served: Serving) -> None:
    with FrontEnd(served.path) as front_end, logged(logging.WARNING) as lines:
        front_end.set_memory()
        front_end.send(Request.SET_VRING_KICK, u64(3), [front_end.kicks[0]])
        assert front_end.ended()
        wait_until(lambda: lines, "it is told")
    assert "queue 3 is started without a size or an address" in lines[0]


def test_memory_is_sealed_if_it_is_not_yet(served: Serving) -> None:
    with FrontEnd(served.path, seals=0) as front_end:
        front_end.set_up()
        front_end.converse(1, 1)
        with pytest.raises(PermissionError):
            os.ftruncate(front_end.memfd, 4096)


def test_memory_that_may_shrink_can_be_allowed(tmp_path: Path) -> None:
    with serving(tmp_path, DeviceOptions(unsealed_memory=True)) as served, FrontEnd(served.path) as front_end:
        front_end.replace_memory(memfd(seals=fcntl.F_SEAL_SEAL))
        front_end.set_memory()
        front_end.settled()


def test_regions_need_not_begin_with_a_page(served: Serving) -> None:
    with FrontEnd(served.path) as front_end:
        start = 4096 + 48
        front_end.set_memory([(GUEST + start, MEMORY_BYTES - start - 5, USER + start, start)])
        front_end.start_ring(1)
        front_end.send(Request.SET_FEATURES, u64(Feature.VERSION_1))
        front_end.converse(1, 1)


def test_events_that_cannot_be_counted_any_more(served: Serving) -> None:
    with FrontEnd(served.path) as front_end:
        front_end.set_up()
        front_end.settled()
        with contextlib.suppress(BlockingIOError):  # A guest may be woken for nothing.
            os.eventfd_read(front_end.calls[1])
        os.eventfd_write(front_end.calls[1], (1 << 64) - 2)
        front_end.converse(1, 1)


def test_random_front_ends(served: Serving) -> None:
    rng = random.Random(20261127)
    for _ in range(150):
        with FrontEnd(served.path) as front_end:
            if rng.random() < 0.5:
                front_end.set_up()
            try:
                for _ in range(rng.randrange(1, 12)):
                    number = rng.choice([*Request, rng.randrange(1 << 32)])
                    if number == Request.GET_VRING_BASE:
                        continue
                    payload = rng.choice(
                        [b"", u64(rng.choice([0, 1, 2, 256, 1 << 32])), u32(1, 16), rng.randbytes(40)]
                    )
                    kinds = [front_end.memfd, front_end.kicks[0], front_end.calls[1]]
                    files = [rng.choice(kinds) for _ in range(rng.choice([0, 0, 1, 1, 2]))]
                    front_end.send(number, payload, files, rng.choice([1, 1, 1, 9, rng.randrange(1 << 32)]))
                    front_end.kick(1)
            except (BrokenPipeError, ConnectionResetError):
                continue
