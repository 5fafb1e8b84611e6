"""The guest's memory: what lies at an address, and that nothing else does. Without I/O.

The front-end has two addresses for each region of it: *guest* addresses, which descriptors of the guest use,
and *user* addresses (of the front-end's process), which it uses itself to say where rings are. An address is
of no use but as a key here: what is not wholly inside the regions is refused.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from typing import NamedTuple

from neve.errors import InvalidRequest

_ADDRESSES = 1 << 64


class OutsideMemory(InvalidRequest):
    """A range that is not wholly in the guest's memory, or a region that cannot be."""


class Region(NamedTuple):
    """A stretch of memory that is in one piece for the guest, the front-end and us."""

    guest_address: int
    user_address: int
    memory: memoryview
    """Its bytes, writable; all of it."""

    @property
    def guest_end(self) -> int:
        return self.guest_address + len(self.memory)


class GuestMemory:
    """The regions. Immutable: another memory table makes another one.

    The views that it hands out are of the guest's own bytes, which change whenever the guest pleases: what
    decides something is to be copied first and looked at once.
    """

    def __init__(self, regions: Iterable[Region]) -> None:
        """Raises ``OutsideMemory`` for regions that are empty, overlap, or reach beyond all addresses."""
        self._regions = sorted(regions, key=lambda region: region.guest_address)
        self._starts = [region.guest_address for region in self._regions]
        for region in self._regions:
            if not region.memory:
                raise OutsideMemory(f"the region at {region.guest_address:#x} is empty")
        _check_apart("guest", [(r.guest_address, len(r.memory)) for r in self._regions])
        _check_apart("user", sorted((r.user_address, len(r.memory)) for r in self._regions))

    def guest(self, address: int, size: int) -> list[memoryview]:
        """The ``size`` bytes at a guest address, in as many pieces as regions they lie in; none for
        none. Raises ``OutsideMemory``."""
        pieces: list[memoryview] = []
        index = bisect.bisect_right(self._starts, address) - 1
        at, left = address, size
        while left:
            region = self._regions[index] if 0 <= index < len(self._regions) else None
            if region is None or not region.guest_address <= at < region.guest_end:
                raise OutsideMemory(f"{size} bytes at guest address {address:#x}: outside of the memory")
            start = at - region.guest_address
            piece = region.memory[start : start + left]
            pieces.append(piece)
            at += len(piece)
            left -= len(piece)
            index += 1
        return pieces

    def user(self, address: int, size: int) -> memoryview:
        """The ``size`` bytes at a user address, which must lie in one region. Raises ``OutsideMemory``."""
        for region in self._regions:
            start = address - region.user_address
            if start >= 0 and start + size <= len(region.memory):
                return region.memory[start : start + size]
        raise OutsideMemory(f"{size} bytes at user address {address:#x}: not in one region of the memory")


def _check_apart(kind: str, ranges: Iterable[tuple[int, int]]) -> None:
    """Ranges (start and size) in order, none of which may touch the next one or the end of all addresses."""
    end = 0
    for start, size in ranges:
        if start < end:
            raise OutsideMemory(f"two regions share the {kind} address {start:#x}")
        end = start + size
        if end > _ADDRESSES:
            raise OutsideMemory(f"the region at {kind} address {start:#x} goes beyond all addresses")
