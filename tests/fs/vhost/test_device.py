"""A device and an honest front-end: requests, stopping, rebooting, going away."""

from __future__ import annotations

import errno
import gc
import logging
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from neve.fs.vhost import device as device_module
from neve.fs.vhost import ring as ring_module
from neve.fs.vhost.device import MAX_REQUEST_QUEUES, DeviceOptions
from neve.fs.vhost.messages import Feature, ProtocolFeature, Request
from neve.fs.vhost.ring import Ring
from neve.fs.vhost.server import Server
from neve.fs.vhost.virtqueue import Chain
from tests.logged import logged

from .driver import GUEST as DRIVER_GUEST
from .driver import USER as DRIVER_USER
from .driver import Descriptor, Driver, small_memory
from .frontend import (
    ECHO,
    GUEST,
    HOLD,
    MEMORY_BYTES,
    PATIENCE,
    RAISE,
    SILENT,
    TWICE,
    USER,
    Answers,
    FrontEnd,
    Serving,
    answer,
    request,
    serving,
    u32,
    u64,
    wait_until,
)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Serving]:
    with serving(tmp_path) as serving_:
        yield serving_


@pytest.fixture
def front_end(served: Serving) -> Iterator[FrontEnd]:
    with FrontEnd(served.path) as front_end:
        front_end.set_up()
        front_end.settled()
        yield front_end


def held(served: Serving, count: int = 1) -> None:
    wait_until(lambda: len(served.handlers[-1].held) == count, "requests are held")


def test_requests_on_every_queue(front_end: FrontEnd) -> None:
    for number in range(40):
        front_end.converse(number % 2, 100 + number, bytes([number]) * number)


def test_several_requests_at_once(front_end: FrontEnd) -> None:
    for head in range(4):
        front_end.make(1, request(ECHO, head, b"x" * head), 16 + head, head)
    front_end.kick(1)
    assert front_end.answers(1, 4) == [(head, answer(head, b"x" * head)) for head in range(4)]


def test_answers_come_when_they_come(served: Serving, front_end: FrontEnd) -> None:
    front_end.make(1, request(HOLD, 7, b"late"), 20, 1)
    front_end.kick(1)
    held(served)
    front_end.converse(1, 8)
    front_end.converse(0, 9)
    served.handlers[0].release()
    assert front_end.answers(1) == [(1, answer(7, b"late"))]


def test_requests_without_an_answer(front_end: FrontEnd) -> None:
    front_end.make(0, request(SILENT, 1))
    front_end.make(0, request(SILENT, 2), 16, 1)
    front_end.make(0, request(ECHO, 3), 0, 2)
    front_end.kick(0)
    assert front_end.answers(0, 3) == [(0, b""), (1, b""), (2, b"")]


def test_an_answer_for_which_there_is_no_room(front_end: FrontEnd) -> None:
    front_end.make(1, request(ECHO, 1, b"too long"), 23)
    front_end.make(1, request(ECHO, 2), 15, 1)
    front_end.kick(1)
    assert front_end.answers(1, 2) == [(0, answer(1, error=errno.EIO)), (1, b"")]


def test_a_second_answer_is_not_given(front_end: FrontEnd) -> None:
    front_end.make(1, request(TWICE, 5), 16)
    front_end.kick(1)
    assert front_end.answers(1) == [(0, answer(5))]
    front_end.converse(1, 6)


def test_a_handler_that_fails_costs_one_request(front_end: FrontEnd) -> None:
    with logged(logging.ERROR) as lines:
        front_end.make(1, request(RAISE, 5), 16)
        front_end.kick(1)
        assert front_end.answers(1) == [(0, answer(5, error=errno.EIO))]
    assert lines == ["internal error, please report it"]
    front_end.converse(1, 6)


def test_stopping_waits_for_what_is_in_flight(served: Serving, front_end: FrontEnd) -> None:
    front_end.make(1, request(HOLD, 7), 16)
    front_end.kick(1)
    held(served)
    front_end.send(Request.GET_VRING_BASE, u32(1, 0))
    # The answer to the message does not come before that to the request.
    assert select.select([front_end.socket], [], [], 0.05)[0] == []
    served.handlers[0].release()
    assert front_end.received(Request.GET_VRING_BASE) == u32(1, 1)
    assert front_end.answers(1) == [(0, answer(7))]


def test_stopping_does_not_wait_for_ever(
    served: Serving, front_end: FrontEnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_module, "DRAIN_SECONDS", 0.01)
    front_end.start_ring(2)  # From then on it counts.
    front_end.make(1, request(HOLD, 7), 32, 0)
    front_end.make(1, request(HOLD, 8), 0, 1)
    front_end.kick(1)
    held(served, 2)
    assert front_end.stop_ring(1) == 2
    # A paused guest goes on later: it has an answer.
    assert front_end.answers(1, 2) == [(0, answer(7, error=errno.EIO)), (1, b"")]
    before = bytes(front_end.memory)
    served.handlers[0].release()
    assert bytes(front_end.memory) == before
    front_end.start_ring(1, 2)
    front_end.converse(1, 9)


def test_rings_have_one_time_to_stop_in(
    served: Serving, front_end: FrontEnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guest with many queues does not wait for each of them."""
    given: list[float] = []
    stop = Ring.stop

    def noting(ring: Ring, seconds: float) -> int:
        given.append(seconds)
        return stop(ring, seconds)

    monkeypatch.setattr(Ring, "stop", noting)
    monkeypatch.setattr(device_module, "DRAIN_SECONDS", 0.01)
    front_end.start_ring(2)
    for ring in (0, 1):
        front_end.make(ring, request(HOLD, ring), 16)
        front_end.kick(ring)
    held(served, 2)
    assert [front_end.stop_ring(ring) for ring in (0, 1, 2)] == [1, 1, 0]
    assert given == [0.01, 0, 0]
    for ring in (0, 1):
        assert front_end.answers(ring) == [(0, answer(ring, error=errno.EIO))]
    front_end.start_ring(1, 1)
    front_end.stop_ring(1)
    assert given[3:] == [0.01]


def test_a_reset_does_not_wait_for_what_is_in_flight(
    served: Serving, front_end: FrontEnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_module, "DRAIN_SECONDS", 2 * PATIENCE)
    front_end.start_ring(2)
    front_end.make(1, request(HOLD, 7), 16)
    front_end.kick(1)
    held(served)
    front_end.send(Request.RESET_DEVICE)
    front_end.settled()
    # The handler may keep its request for ever, which is small now.
    gc.collect()
    assert [list(chain.spans) for chain in gc.get_objects() if isinstance(chain, Chain)] == [[]]
    before = bytes(front_end.memory)
    served.handlers[0].release()
    assert bytes(front_end.memory) == before
    # All is as at the beginning: a ring has no size any more.
    front_end.send(Request.SET_VRING_KICK, u64(1), [front_end.kicks[1]])
    assert front_end.ended()


def test_a_guest_that_begins_anew_all_the_time_piles_nothing_up(
    served: Serving, front_end: FrontEnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ring_module, "MAX_UNANSWERED", 3)
    monkeypatch.setattr(device_module, "DRAIN_SECONDS", 0)
    front_end.start_ring(2)
    for boot in range(3):
        front_end.make(1, request(HOLD, boot), 16)
        front_end.kick(1)
        held(served, boot + 1)
        front_end.stop_ring(1)
        front_end.answers(1)
        front_end.drivers[1].reset()
        front_end.start_ring(1)
    front_end.make(1, request(ECHO, 8), 16)
    front_end.kick(1)
    assert front_end.answers(1) == [(0, answer(8, error=errno.EIO))]
    front_end.make(1, request(SILENT, 9))
    front_end.kick(1)
    assert front_end.answers(1) == [(0, b"")]
    served.handlers[0].release()
    front_end.converse(1, 10)
    front_end.converse(0, 11)


def test_a_long_answer_ends_the_turn_of_its_ring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring_module, "_TURN_SECONDS", 0)
    raw, memory = small_memory()
    driver = Driver(memoryview(raw), 16, 0, DRIVER_GUEST, DRIVER_USER)
    raw[0x8000:0x8028] = request(SILENT, 1)
    for head in range(3):
        driver.describe(head, [Descriptor(DRIVER_GUEST + 0x8000, 40)])
    driver.offer(0, 1, 2)
    answers = Answers()
    ring = Ring(1, answers, set())
    ring.size, ring.addresses, ring.enabled = 16, driver.addresses, True
    ring.start(memory)
    for count in (1, 2, 3):
        assert ring.restless
        ring.turn()
        assert len(answers.requests) == count
    ring.turn()
    assert not ring.restless
    ring.drop()


def test_a_guest_that_is_paused_goes_on_where_it_was(front_end: FrontEnd) -> None:
    front_end.converse(1, 1)
    assert front_end.stop_ring(1) == 1
    front_end.make(1, request(ECHO, 2), 16)
    front_end.kick(1)
    front_end.settled()
    assert front_end.drivers[1].answered() == []
    front_end.start_ring(1, 1)
    assert front_end.answers(1) == [(0, answer(2))]


def test_a_guest_that_reboots(served: Serving, front_end: FrontEnd) -> None:
    for boot in range(3):
        front_end.converse(0, boot)
        front_end.converse(1, boot)
        assert [front_end.stop_ring(ring) for ring in (0, 1)] == [1, 1]
        for driver in front_end.drivers:
            driver.reset()
        front_end.start()
    assert len(served.handlers) == 1


def test_rings_that_are_off(front_end: FrontEnd) -> None:
    front_end.send(Request.SET_VRING_ENABLE, u32(1, 0))
    front_end.settled()
    front_end.make(1, request(ECHO, 2), 16)
    front_end.kick(1)
    front_end.converse(0, 1)
    front_end.settled()
    assert front_end.drivers[1].answered() == []
    front_end.send(Request.SET_VRING_ENABLE, u32(1, 1))
    assert front_end.answers(1) == [(0, answer(2))]


@pytest.mark.parametrize("reset", [Request.RESET_OWNER, Request.RESET_DEVICE])
def test_a_reset_switches_rings_off(front_end: FrontEnd, reset: Request) -> None:
    front_end.send(reset)
    front_end.settled()
    front_end.make(1, request(ECHO, 2), 16)
    front_end.kick(1)
    front_end.settled()
    assert front_end.drivers[1].answered() == []
    assert front_end.stop_ring(1) == 0
    front_end.start_ring(1)
    assert front_end.answers(1) == [(0, answer(2))]


def test_an_old_front_end_without_protocol_features(served: Serving) -> None:
    with FrontEnd(served.path) as front_end:
        front_end.send(Request.SET_OWNER)
        front_end.send(Request.SET_FEATURES, u64(Feature.VERSION_1))
        front_end.set_memory()
        addresses = front_end.drivers[1].addresses
        front_end.send(Request.SET_VRING_NUM, u32(1, 16))
        payload = u32(1, 0) + u64(addresses.descriptors, addresses.used, addresses.available, 0)
        front_end.send(Request.SET_VRING_ADDR, payload)
        front_end.send(Request.SET_VRING_KICK, u64(1), [front_end.kicks[1]])
        front_end.send(Request.SET_VRING_CALL, u64(1), [front_end.calls[1]])
        front_end.converse(1, 1)


def test_memory_is_replaced_while_rings_run(served: Serving, front_end: FrontEnd) -> None:
    front_end.make(1, request(HOLD, 7), 16, 1)
    front_end.kick(1)
    held(served)
    half = MEMORY_BYTES // 2
    front_end.set_memory([(GUEST, half, USER, 0), (GUEST + half, half, USER + half, half)])
    front_end.settled()
    front_end.converse(1, 8)
    served.handlers[0].release()
    assert front_end.answers(1) == [(1, answer(7))]


def test_what_is_not_there_any_more_is_not_written(served: Serving, front_end: FrontEnd) -> None:
    place = MEMORY_BYTES - 16
    driver = front_end.drivers[1]
    front_end.make(1, request(HOLD, 7), 16)
    raw = struct.pack("<Q", driver.guest(place))
    table = driver.addresses.descriptors - USER
    front_end.memory[table + 32 : table + 40] = raw
    front_end.kick(1)
    held(served)
    front_end.set_memory([(GUEST, MEMORY_BYTES - 4096, USER, 0)])
    front_end.settled()
    with logged(logging.WARNING) as lines:
        served.handlers[0].release()
    assert "queue 1 of the guest is stopped: " in lines[0]
    assert "outside of the memory" in lines[0]
    assert bytes(front_end.memory[place:]) == bytes(16)
    front_end.converse(0, 1)


def test_a_front_end_that_goes_with_requests_in_flight(served: Serving) -> None:
    front_end = FrontEnd(served.path)
    front_end.set_up()
    front_end.make(1, request(HOLD, 7), 16)
    front_end.kick(1)
    held(served)
    before = bytes(front_end.memory)
    with logged() as lines:
        front_end.close()
        gone = f"virtio-fs: process {os.getpid()} has gone"
        wait_until(lambda: gone in lines, "the end is noticed")
    served.handlers[0].release()
    assert bytes(front_end.memory) == before
    wait_until(lambda: served.handlers[0].closed, "the handler is closed")
    with FrontEnd(served.path) as another:
        another.set_up()
        another.converse(1, 8)
    assert len(served.handlers) == 2


def mappings(front_end: FrontEnd) -> int:
    """How often the guest's memory is mapped in this process: once by the test itself."""
    inode = os.fstat(front_end.memfd).st_ino
    lines = Path("/proc/self/maps").read_text().splitlines()
    return sum(line.split()[4] == str(inode) and "memfd:guest" in line for line in lines)


def test_the_memory_is_given_back(served: Serving, front_end: FrontEnd) -> None:
    front_end.make(1, request(HOLD, 7), 16)
    front_end.kick(1)
    held(served)
    assert mappings(front_end) == 2
    front_end.set_memory()
    front_end.settled()
    assert mappings(front_end) == 2
    front_end.socket.close()
    # Even though a backend still hangs in a request.
    wait_until(lambda: mappings(front_end) == 1, "the memory is unmapped")


def test_one_front_end_at_a_time(served: Serving, front_end: FrontEnd) -> None:
    with logged(logging.WARNING) as lines, socket.socket(socket.AF_UNIX) as second:
        second.settimeout(PATIENCE)
        second.connect(served.path)
        assert second.recv(1) == b""
    assert lines == [f"virtio-fs: process {os.getpid()} is refused: there is a front-end already"]
    front_end.converse(1, 1)


def test_front_ends_one_after_the_other(served: Serving) -> None:
    for number in range(10):
        with FrontEnd(served.path) as front_end:
            front_end.set_up()
            front_end.converse(1, number)


def test_whoever_only_knocks_is_not_talked_about(served: Serving) -> None:
    with logged() as lines:
        for _ in range(3):
            with socket.socket(socket.AF_UNIX) as probe:
                probe.connect(served.path)
        with FrontEnd(served.path) as front_end:
            front_end.set_up()
            wait_until(lambda: lines, "it is told")
            assert lines == [f"virtio-fs: process {os.getpid()} is connected"]


def test_acknowledgements(served: Serving) -> None:
    with FrontEnd(served.path) as front_end:
        front_end.send(Request.SET_PROTOCOL_FEATURES, u64(ProtocolFeature.REPLY_ACK))
        front_end.send(Request.SET_OWNER, flags=9)
        assert front_end.received(Request.SET_OWNER) == u64(0)
        front_end.send(Request.GET_QUEUE_NUM, flags=9)
        assert front_end.received(Request.GET_QUEUE_NUM) == u64(1 + MAX_REQUEST_QUEUES)
        front_end.send(Request.SET_FEATURES, u64(1), flags=9)
        assert front_end.received(Request.SET_FEATURES) == u64(1)
        assert front_end.ended()


def test_acknowledgements_that_were_not_agreed_upon(served: Serving) -> None:
    with FrontEnd(served.path) as front_end:
        front_end.send(Request.SET_OWNER, flags=9)
        front_end.settled()


def test_the_configuration_space(tmp_path: Path) -> None:
    space = b"store".ljust(36, b"\0") + u32(MAX_REQUEST_QUEUES)
    with serving(tmp_path, DeviceOptions(tag=b"store")) as served, FrontEnd(served.path) as front_end:
        assert front_end.number(Request.GET_PROTOCOL_FEATURES) & ProtocolFeature.CONFIG
        for offset, size in ((0, 40), (36, 4), (0, 256), (38, 1), (40, 4)):
            front_end.send(Request.GET_CONFIG, u32(offset, size, 0) + bytes(size))
            expected = space[offset : offset + size].ljust(size, b"\0")
            assert front_end.received(Request.GET_CONFIG) == u32(offset, size, 0) + expected
        front_end.send(Request.GET_CONFIG, u32(41, 1, 0) + b"\0")
        assert front_end.received(Request.GET_CONFIG) == u32(41, 0, 0)
        front_end.send(Request.SET_CONFIG, u32(0, 1, 0) + b"x")
        assert front_end.ended()


def test_messages_that_come_in_pieces(served: Serving) -> None:
    with FrontEnd(served.path) as front_end:
        raw = u32(Request.SET_OWNER, 1, 0) + u32(Request.SET_FEATURES, 1, 8) + u64(Feature.VERSION_1)
        for byte in raw + u32(Request.GET_FEATURES, 1, 0):
            front_end.send_raw(bytes([byte]))
        assert front_end.received(Request.GET_FEATURES)


def test_stopping_the_server_with_a_front_end(tmp_path: Path) -> None:
    with serving(tmp_path) as served:
        front_end = FrontEnd(served.path)
        front_end.set_up()
        front_end.make(1, request(HOLD, 7), 16)
        front_end.kick(1)
        held(served)
    assert served.handlers[0].closed
    assert front_end.ended()
    front_end.close()


def test_a_failure_of_ours_ends_one_connection(tmp_path: Path) -> None:
    handlers = iter([Answers()])
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "fs.sock"))
        listener.listen()
        server = Server(listener)
        calls: list[int] = []

        def make() -> Answers:
            calls.append(1)
            if len(calls) == 1:
                raise ZeroDivisionError("on purpose")
            return next(handlers)

        thread = threading.Thread(target=server.run, args=(make,))
        thread.start()
        try:
            with logged(logging.ERROR) as lines, FrontEnd(str(tmp_path / "fs.sock")) as front_end:
                assert front_end.ended()
                deadline = time.monotonic() + PATIENCE
                while not lines and time.monotonic() < deadline:
                    time.sleep(0.01)  # It is told after that.
            assert lines == ["internal error, please report it"]
            with FrontEnd(str(tmp_path / "fs.sock")) as front_end:
                front_end.set_up()
                front_end.converse(1, 1)
        finally:
            server.stop()
            thread.join(PATIENCE)
            server.close()
