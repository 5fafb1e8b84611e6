"""Split queues: what an honest driver does works, what no driver may do is found, and nothing is touched
outside."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neve.fs.vhost.memory import GuestMemory, OutsideMemory, Region
from neve.fs.vhost.virtqueue import MAX_CHAIN, BadQueue, Chain, QueueAddresses, SplitQueue, scatter

from .driver import GUEST, INDIRECT, NEXT, USER, WRITE, Descriptor, Driver, chained, small_memory

SIZE = 16


class Side:
    """Both sides of one queue."""

    def __init__(self, size: int = SIZE, base: int = 0, limit: int = 4096) -> None:
        self.raw, self.memory = small_memory()
        self.driver = Driver(memoryview(self.raw), size, 0, GUEST, USER)
        self.driver.start_at(base)
        self.queue = SplitQueue(self.memory, size, self.driver.addresses, base, limit)
        self.place = self.driver.buffers

    def buffer(self, content: bytes | int) -> Descriptor:
        """A descriptor: of a copy of ``content``, or of so many bytes to be written."""
        place = self.place
        if isinstance(content, int):
            self.place += content + 8
            return Descriptor(GUEST + place, content, WRITE)
        self.raw[place : place + len(content)] = content
        self.place += len(content) + 8
        return Descriptor(GUEST + place, len(content))

    def content(self, descriptor: Descriptor) -> bytes:
        at = descriptor.address - GUEST
        return bytes(self.raw[at : at + descriptor.size])

    def table(self, descriptors: list[Descriptor]) -> Descriptor:
        """An indirect descriptor of a table of others."""
        raw = b"".join(d.packed() for d in descriptors)
        return self.buffer(raw)._replace(flags=INDIRECT)

    def popped(self) -> Chain:
        chain = self.queue.pop()
        assert chain is not None
        return chain


@pytest.fixture
def side() -> Side:
    return Side()


def views(*parts: bytes) -> list[memoryview]:
    return [memoryview(part) for part in parts]


def test_nothing_is_there(side: Side) -> None:
    assert side.queue.pop() is None
    assert side.driver.answered() == []


def test_a_request_and_its_answer(side: Side) -> None:
    targets = [side.buffer(3), side.buffer(5)]
    side.driver.describe(4, chained([side.buffer(b"head"), side.buffer(b"body"), *targets], 4))
    side.driver.offer(4)
    chain = side.popped()
    assert (chain.head, chain.request, chain.room) == (4, b"headbody", 8)
    assert side.queue.pop() is None
    assert side.driver.answered() == []
    side.queue.answer(chain, views(b"an", b"", b"swer"))
    assert side.driver.answered() == [(4, 6)]
    assert [side.content(target) for target in targets] == [b"ans", b"wer\0\0"]


def test_a_request_in_an_indirect_table(side: Side) -> None:
    target = side.buffer(4)
    # The descriptors of the table need not be in order.
    table = side.table([side.buffer(b"a")._replace(flags=NEXT, next=2), target, side.buffer(b"b")])
    raw = side.raw
    at = table.address - GUEST + 2 * 16 + 12
    raw[at : at + 4] = b"\1\0\1\0"  # NEXT, to 1
    side.driver.describe(0, [table])
    side.driver.offer(0)
    chain = side.popped()
    assert (chain.request, chain.room) == (b"ab", 4)
    side.queue.answer(chain, views(b"done"))
    assert side.content(target) == b"done"
    assert side.driver.answered() == [(0, 4)]


def test_an_indirect_descriptor_behind_a_plain_one(side: Side) -> None:
    inner = chained([side.buffer(b"b"), side.buffer(2)])
    side.driver.describe(0, chained([side.buffer(b"a"), side.table(inner)]))
    side.driver.offer(0)
    chain = side.popped()
    assert (chain.request, chain.room) == (b"ab", 2)


def test_the_longest_chain_may_be_in_an_indirect_table(side: Side) -> None:
    page = side.buffer(1)
    inner = chained([side.buffer(b"x"), *[page] * (MAX_CHAIN - 1)])
    side.driver.describe(0, [side.table(inner)])
    side.driver.offer(0)
    chain = side.popped()
    assert (chain.request, chain.room) == (b"x", MAX_CHAIN - 1)


def test_neighbouring_pages_are_one_span(side: Side) -> None:
    pages = [Descriptor(GUEST + 0x8000 + i * 16, 16, WRITE) for i in (0, 1, 2, 5)]
    side.driver.describe(0, chained([side.buffer(b"x"), *pages]))
    side.driver.offer(0)
    chain = side.popped()
    assert list(chain.spans) == [GUEST + 0x8000, 48, GUEST + 0x8050, 16]
    side.queue.answer(chain, views(bytes(range(64))))
    assert bytes(side.raw[0x8000:0x8030]) == bytes(range(48))
    assert bytes(side.raw[0x8050:0x8060]) == bytes(range(48, 64))


def test_empty_descriptors_are_nothing_wherever_they_point(side: Side) -> None:
    side.driver.describe(
        0, chained([Descriptor(0, 0), side.buffer(b"x"), Descriptor(1 << 63, 0, WRITE), side.buffer(1)])
    )
    side.driver.offer(0)
    chain = side.popped()
    assert (chain.request, chain.room) == (b"x", 1)


def test_answers_in_another_order(side: Side) -> None:
    for head in range(3):
        side.driver.describe(head, [side.buffer(bytes([head]))])
    side.driver.offer(2, 0, 1)
    chains = [side.popped() for _ in range(3)]
    assert [chain.request for chain in chains] == [b"\2", b"\0", b"\1"]
    for chain in reversed(chains):
        side.queue.answer(chain, [])
    assert side.driver.answered() == [(1, 0), (0, 0), (2, 0)]


def test_indices_go_round() -> None:
    side = Side(size=4, base=65534)
    for number in range(10):
        side.driver.describe(number % 4, [side.buffer(bytes([number]))])
        side.driver.offer(number % 4)
        chain = side.popped()
        assert chain.request == bytes([number])
        side.queue.answer(chain, [])
        assert side.driver.answered() == [(number % 4, 0)]
    assert side.queue.next_available == 8


def test_a_full_queue(side: Side) -> None:
    for head in range(SIZE):
        side.driver.describe(head, [side.buffer(bytes([head]))])
    side.driver.offer(*range(SIZE))
    assert [side.popped().head for _ in range(SIZE)] == list(range(SIZE))
    assert side.queue.pop() is None


def test_one_more_than_the_queue_has_places(side: Side) -> None:
    side.driver.available_index = SIZE + 1
    with pytest.raises(BadQueue, match="17 requests are available, in a queue of 16"):
        side.queue.pop()


def test_an_index_that_goes_back(side: Side) -> None:
    side.driver.available_index = 65535
    with pytest.raises(BadQueue, match="65535 requests are available"):
        side.queue.pop()


A, B = Descriptor(GUEST + 0x8000, 4), Descriptor(GUEST + 0x8000, 4, WRITE)
INSIDE_ONCE = [Descriptor(GUEST + 0x8000, 16, INDIRECT)]


@pytest.mark.parametrize(
    ("descriptors", "reason"),
    [
        ([A._replace(flags=NEXT, next=0)], "a chain of more than 1024 descriptors"),
        ([A._replace(flags=NEXT, next=1), A._replace(flags=NEXT, next=0)], "a chain of more than 1024"),
        ([A._replace(flags=NEXT, next=16)], "descriptor 16 in a table of 16"),
        ([A._replace(flags=NEXT, next=65535)], "descriptor 65535 in a table of 16"),
        (chained([B, A]), "a readable descriptor behind a writable one"),
        ([Descriptor(GUEST - 1, 2)], "outside of the memory"),
        ([Descriptor(GUEST + 0xFFFF, 2, WRITE)], "outside of the memory"),
        ([Descriptor(GUEST, 0xFFFFFFFF)], "outside of the memory"),
        ([Descriptor(GUEST, 0xFFFFFFFF, WRITE)], "outside of the memory"),
        ([Descriptor((1 << 64) - 1, 2)], "outside of the memory"),
        ([Descriptor(USER, 2)], "outside of the memory"),
        ([Descriptor(GUEST + 0x8000, 4097)], "a request of more than 4096 bytes"),
        (chained([Descriptor(GUEST + 0x8000, 4096), A]), "a request of more than 4096 bytes"),
        ([Descriptor(GUEST, 0, INDIRECT)], "an indirect table of 0 bytes"),
        ([Descriptor(GUEST, 24, INDIRECT)], "an indirect table of 24 bytes"),
        ([Descriptor(GUEST, 16 * (MAX_CHAIN + 1), INDIRECT)], "an indirect table of 16400 bytes"),
        ([Descriptor(GUEST, 0xFFFFFFF0, INDIRECT)], "an indirect table of 4294967280 bytes"),
        ([Descriptor(GUEST + 0x10000, 16, INDIRECT)], "outside of the memory"),
        ([Descriptor(GUEST + 0x8000, 16, INDIRECT | NEXT, 1), A], "not at the end"),
    ],
)
def test_chains_that_no_driver_makes(side: Side, descriptors: list[Descriptor], reason: str) -> None:
    before = bytes(side.raw)
    side.driver.describe(0, descriptors)
    side.driver.offer(0)
    with pytest.raises((BadQueue, OutsideMemory), match=reason):
        side.queue.pop()
    assert bytes(side.raw)[side.driver.buffers :] == before[side.driver.buffers :]


@pytest.mark.parametrize(
    ("inner", "reason"),
    [
        ([Descriptor(GUEST + 0x8000, 16, INDIRECT)], "an indirect descriptor in an indirect table"),
        ([A._replace(flags=NEXT, next=0)], "a chain of more than 1024 descriptors"),
        ([A._replace(flags=NEXT, next=1)], "descriptor 1 in a table of 1"),
        (chained([B, A]), "a readable descriptor behind a writable one"),
    ],
)
def test_indirect_tables_that_no_driver_makes(side: Side, inner: list[Descriptor], reason: str) -> None:
    side.driver.describe(0, [side.table(inner)])
    side.driver.offer(0)
    with pytest.raises(BadQueue, match=reason):
        side.queue.pop()


def test_a_head_out_of_range(side: Side) -> None:
    side.driver.offer(16)
    with pytest.raises(BadQueue, match="descriptor 16 in a table of 16"):
        side.queue.pop()


def test_a_chain_whose_length_does_not_fit_into_the_used_ring() -> None:
    raw = bytearray(1 << 12)
    driver = Driver(memoryview(raw), 16, 0, GUEST, USER)
    far = memoryview(raw)[:4096]
    memory = GuestMemory([Region(GUEST, USER, far)])
    driver.describe(0, [Descriptor(GUEST + 0x800, 16 * 17, INDIRECT)])
    big = chained([Descriptor(GUEST, 0x800, WRITE)] * 16 + [Descriptor(GUEST, 0xFFFFFFFF, WRITE)])
    raw[0x800 : 0x800 + 17 * 16] = b"".join(d.packed() for d in big)
    driver.offer(0)
    with pytest.raises(BadQueue, match="a chain of more than 4294967295 bytes"):
        SplitQueue(memory, 16, driver.addresses, 0).pop()


@pytest.mark.parametrize(
    ("addresses", "reason"),
    [
        (QueueAddresses(USER + 8, USER + 256, USER + 512), "of descriptors is no multiple of 16"),
        (QueueAddresses(USER, USER + 257, USER + 512), "of available is no multiple of 2"),
        (QueueAddresses(USER, USER + 256, USER + 510), "of used is no multiple of 4"),
        (QueueAddresses(USER + 0xFF10, USER + 256, USER + 512), "not in one region"),
        (QueueAddresses(USER, USER + 0xFFF0, USER + 512), "not in one region"),
        (QueueAddresses(USER, USER + 256, USER + 0xFFF0), "not in one region"),
        (QueueAddresses(0, 0, 0), "not in one region"),
        (QueueAddresses((1 << 64) - 16, USER, USER), "not in one region"),
    ],
)
def test_rings_that_cannot_be(addresses: QueueAddresses, reason: str) -> None:
    _, memory = small_memory()
    with pytest.raises((BadQueue, OutsideMemory), match=reason):
        SplitQueue(memory, 16, addresses, 0)


def test_a_chain_that_is_outside_after_the_memory_was_replaced(side: Side) -> None:
    side.driver.describe(0, [Descriptor(GUEST + 0xFFF0, 16, WRITE)])
    side.driver.offer(0)
    chain = side.popped()
    smaller = GuestMemory([Region(GUEST, USER, memoryview(side.raw)[:0xFFF8])])
    queue = SplitQueue(smaller, SIZE, side.driver.addresses, side.queue.next_available)
    with pytest.raises(OutsideMemory):
        queue.answer(chain, views(bytes(16)))
    assert side.driver.answered() == []


@given(st.lists(st.integers(1, 9), min_size=1), st.lists(st.binary(max_size=9)))
def test_scattering_is_writing_one_after_the_other(sizes: list[int], parts: list[bytes]) -> None:
    content = b"".join(parts)[: sum(sizes)]
    targets = [bytearray(size) for size in sizes]
    assert scatter(map(memoryview, targets), views(content[:3], content[3:])) == len(content)
    assert b"".join(targets) == content.ljust(sum(sizes), b"\0")


@settings(max_examples=300)
@given(st.integers(0, 1 << 62), st.integers(0, 3))
def test_whatever_is_in_memory_nothing_happens_outside(seed: int, shift: int) -> None:
    """A guest of random bytes, most of them near to what would be right, with walls around its memory."""
    rng = random.Random(seed)
    wall = bytes(rng.randbytes(64))
    raw = bytearray(wall + bytes(4096) + wall)
    inside = memoryview(raw)[64:-64]
    half = 2048 + 16 * shift
    memory = GuestMemory(
        [Region(GUEST, USER, inside[:half]), Region(GUEST + half, USER + 0x100000, inside[half:])]
    )
    driver = Driver(inside, 8, 0, GUEST, USER)
    for index in range(8):
        flags = rng.choice([0, NEXT, NEXT, WRITE, WRITE | NEXT, WRITE | NEXT, INDIRECT, rng.randrange(65536)])
        address = GUEST + rng.randrange(-8, 4104)
        size = rng.choice([16, 32, rng.randrange(300), rng.randrange(1 << 32)])
        driver.describe(index, [Descriptor(address & ((1 << 64) - 1), size, flags, rng.randrange(9))])
    driver.offer(*(rng.randrange(9) for _ in range(rng.randrange(10))))
    queue = SplitQueue(memory, 8, driver.addresses, 0, 1024)
    try:
        while (chain := queue.pop()) is not None:
            assert len(chain.request) <= 1024
            answer = rng.randbytes(rng.randrange(min(chain.room, 4096) + 1))
            queue.answer(chain, views(answer))
            # It may have been written over the rings themselves.
    except (BadQueue, OutsideMemory):
        pass
    assert raw[:64] == raw[-64:] == wall
