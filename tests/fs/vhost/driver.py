"""The guest's side of a split queue, honest or not, over any memory."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from neve.fs.vhost.memory import GuestMemory, Region
from neve.fs.vhost.virtqueue import QueueAddresses

NEXT, WRITE, INDIRECT = 1, 2, 4


class Descriptor(NamedTuple):
    address: int
    size: int
    flags: int = 0
    next: int = 0

    def packed(self) -> bytes:
        return struct.pack("<QIHH", self.address, self.size, self.flags, self.next)


def chained(descriptors: Sequence[Descriptor], first: int = 0) -> list[Descriptor]:
    """The same, linked one to the next, if they are put into a table from ``first`` on."""
    last = len(descriptors) - 1
    return [
        d._replace(flags=d.flags | NEXT, next=first + i + 1) if i < last else d
        for i, d in enumerate(descriptors)
    ]


class Driver:
    """A queue in memory that begins at ``start``: tables first, and buffers from ``buffers`` on."""

    def __init__(self, memory: memoryview, size: int, start: int, guest: int, user: int) -> None:
        """``guest`` and ``user`` are the addresses of the first byte of ``memory``."""
        self.memory = memory
        self.size = size
        self._guest, self._user = guest, user
        self._table = start
        self._available = start + 16 * size
        self._used = (self._available + 4 + 2 * size + 3) // 4 * 4
        self.buffers = (self._used + 4 + 8 * size + 15) // 16 * 16
        self.seen = 0

    @property
    def addresses(self) -> QueueAddresses:
        places = (self._table, self._available, self._used)
        return QueueAddresses(*(self._user + place for place in places))

    def reset(self) -> None:
        """As a driver begins anew."""
        self.memory[self._table : self.buffers] = bytes(self.buffers - self._table)
        self.seen = 0

    def guest(self, place: int) -> int:
        """The guest address of a place in the memory."""
        return self._guest + place

    def describe(self, first: int, descriptors: Sequence[Descriptor]) -> None:
        """Puts descriptors into the table."""
        raw = b"".join(descriptor.packed() for descriptor in descriptors)
        at = self._table + 16 * first
        self.memory[at : at + len(raw)] = raw

    def offer(self, *heads: int) -> None:
        """Makes requests available."""
        index = self.available_index
        for number, head in enumerate(heads):
            at = self._available + 4 + 2 * ((index + number) % self.size)
            self.memory[at : at + 2] = struct.pack("<H", head)
        self.available_index = index + len(heads)

    @property
    def available_index(self) -> int:
        return self._u16(self._available + 2)

    @available_index.setter
    def available_index(self, index: int) -> None:
        self.memory[self._available + 2 : self._available + 4] = struct.pack("<H", index % 65536)

    @property
    def used_index(self) -> int:
        return self._u16(self._used + 2)

    def start_at(self, index: int) -> None:
        """As if so many requests had been made and answered."""
        self.available_index = index
        self.memory[self._used + 2 : self._used + 4] = struct.pack("<H", index)
        self.seen = index

    def answered(self) -> list[tuple[int, int]]:
        """Requests that have come back since the last time: head, and how many bytes were written."""
        found = []
        while self.seen != self.used_index:
            found.append(struct.unpack_from("<II", self.memory, self._used + 4 + 8 * (self.seen % self.size)))
            self.seen = (self.seen + 1) % 65536
        return [(head, length) for head, length in found]

    def _u16(self, at: int) -> int:
        value: int = struct.unpack_from("<H", self.memory, at)[0]
        return value


GUEST, USER = 0x40000000, 0x7F0000000000


def small_memory(size: int = 1 << 16) -> tuple[bytearray, GuestMemory]:
    """Memory of one region, and the bytes that it is."""
    raw = bytearray(size)
    return raw, GuestMemory([Region(GUEST, USER, memoryview(raw))])
