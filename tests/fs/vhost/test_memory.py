"""The guest's memory: what is inside, what is not, and what lies on the border of two regions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neve.fs.vhost.memory import GuestMemory, OutsideMemory, Region

TOP = (1 << 64) - 16


def region(guest: int, size: int, user: int | None = None, fill: int = 0) -> Region:
    return Region(guest, guest + 0x10000 if user is None else user, memoryview(bytearray([fill]) * size))


@pytest.fixture
def memory() -> GuestMemory:
    """Two regions that touch, one behind a gap, and one at the end of all addresses."""
    return GuestMemory(
        [
            region(0x3000, 0x10, 0x7000, 3),
            region(0x1000, 0x10, 0x5000, 1),
            region(0x1010, 0x10, 0x9000, 2),
            region(TOP, 16, 0xA000, 4),
        ]
    )


@pytest.mark.parametrize(
    ("address", "size", "pieces"),
    [
        (0x1000, 0x10, [b"\1" * 16]),
        (0x1000, 0x20, [b"\1" * 16, b"\2" * 16]),
        (0x100F, 2, [b"\1", b"\2"]),
        (0x1010, 1, [b"\2"]),
        (0x101F, 1, [b"\2"]),
        (0x3004, 4, [b"\3" * 4]),
        (TOP, 16, [b"\4" * 16]),
        (0x1000, 0, []),
        (0xDEAD0000, 0, []),
    ],
)
def test_inside(memory: GuestMemory, address: int, size: int, pieces: list[bytes]) -> None:
    assert [bytes(piece) for piece in memory.guest(address, size)] == pieces


@pytest.mark.parametrize(
    ("address", "size"),
    [
        (0, 1),
        (0xFFF, 1),
        (0xFFF, 2),
        (0x1000, 0x21),
        (0x1020, 1),
        (0x101F, 2),
        (0x2FFF, 2),
        (0x1000, 0x2010),
        (0x300F, 2),
        (0x1000, 0xFFFFFFFF),
        (TOP, 17),
        (TOP + 15, 2),
        (TOP + 15, 0xFFFFFFFF),
    ],
)
def test_outside(memory: GuestMemory, address: int, size: int) -> None:
    with pytest.raises(OutsideMemory, match=f"{size} bytes at guest address {address:#x}: outside"):
        memory.guest(address, size)


def test_views_are_the_memory(memory: GuestMemory) -> None:
    memory.guest(0x1001, 1)[0][0] = 77
    assert bytes(memory.user(0x5000, 3)) == b"\1\x4d\1"


@pytest.mark.parametrize(("address", "size"), [(0x4FFF, 1), (0x5000, 17), (0x500F, 2), (0x6000, 1), (0, 1)])
def test_user_addresses_must_be_in_one_region(memory: GuestMemory, address: int, size: int) -> None:
    with pytest.raises(OutsideMemory, match=f"user address {address:#x}: not in one region"):
        memory.user(address, size)


@pytest.mark.parametrize(
    ("regions", "reason"),
    [
        ([region(0, 0)], "the region at 0x0 is empty"),
        ([region(0, 2), region(1, 2, 0x20000)], "share the guest address 0x1"),
        ([region(0, 2), region(8, 2, 0x10001)], "share the user address 0x10001"),
        ([region(TOP, 17, 0)], "the region at guest address 0xfffffffffffffff0 goes beyond"),
        ([region(0, 17, TOP)], "the region at user address 0xfffffffffffffff0 goes beyond"),
    ],
)
def test_bad_regions(regions: list[Region], reason: str) -> None:
    with pytest.raises(OutsideMemory, match=reason):
        GuestMemory(regions)


@given(
    st.lists(st.tuples(st.integers(0, 100), st.integers(1, 20)), min_size=1, max_size=5),
    st.integers(0, 130),
    st.integers(0, 60),
)
def test_like_a_dictionary_of_bytes(places: list[tuple[int, int]], address: int, size: int) -> None:
    known: dict[int, int] = {}
    regions = []
    for number, (start, length) in enumerate(places):
        if not known.keys() & set(range(start, start + length)):
            content = bytearray((number * 31 + i) % 256 for i in range(length))
            known.update(zip(range(start, start + length), content, strict=True))
            regions.append(Region(start, 1000 * (number + 1), memoryview(content)))
    memory = GuestMemory(regions)
    wanted = [known.get(a) for a in range(address, address + size)]
    try:
        found = b"".join(memory.guest(address, size))
    except OutsideMemory:
        assert None in wanted
    else:
        assert list(found) == wanted
