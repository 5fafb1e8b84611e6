"""Split virtqueues over guest memory, from the device's side. Without I/O.

Three tables in memory that the guest shares (Virtio 1.1, 2.6; ``linux/virtio_ring.h``), all little-endian:

==============  ===================================================  ==================
descriptors     address, length, flags, next: 16 bytes each          the guest writes
available ring  flags, index, then heads of chains: 16 bits each     the guest writes
used ring       flags, index (16 bits), then head and length (32)    we write
==============  ===================================================  ==================

A request is a chain of descriptors: first those that we may read, then those that we may write. A chain may
end in a descriptor of a table of more descriptors (an indirect one).

**Nothing is believed.** The guest may change each byte at each moment. So an entry is copied and then looked
at; the copy decides. Indices out of range, chains without end, readable parts behind writable ones, ranges
outside of the memory, and more requests than the queue has places raise ``BadQueue`` or ``OutsideMemory``:
the guest's driver is broken, or wants to break us.

**Order.** What must not be torn (the two indices and the entries of the used ring) is read and written
through casts of views, which are single moves of the native width; parsing bytes with a fixed order would
read byte by byte. The guest's index is read before what it covers, and ours is written after what it
publishes. A machine like x86 keeps to that by itself; for others ``_Fence`` says it, as well as Python can.
What needs more even on x86, and each side looking at the other's flags before it decides not to notify does,
is not offered: each side always notifies (no EVENT_IDX; flags are ignored and never set).
"""

from __future__ import annotations

import itertools
import struct
import threading
from array import array
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from neve.errors import InvalidRequest
from neve.fs.vhost.memory import GuestMemory

MAX_CHAIN = 1024
"""Descriptors in one chain. Drivers keep to the size of the queue, which QEMU bounds by this number; a
request of FUSE with a megabyte of single pages has about 260. For loops this is the end."""
MAX_CHAIN_BYTES = (1 << 32) - 1
"""All of a chain: the length that the used ring tells has 32 bits."""

_DESCRIPTOR = struct.Struct("<QIHH")
_NEXT, _WRITE, _INDIRECT = 1, 2, 4
_INDICES = 1 << 16
_FLAGS_AND_INDEX_BYTES = 4
_INDEX = 1
"""Position of an index in a ring, in units of 16 bits."""


class BadQueue(InvalidRequest):
    """The guest has put something into a queue that no driver may."""


class Chain(NamedTuple):
    """One request of the guest: a copy of what it says, and where the answer may go.

    It holds on to no memory of the guest, so that it may wait for long.
    """

    head: int
    request: bytes
    spans: array[int]
    """Guest addresses and sizes in turn, all of them inside the memory when the chain was read."""

    @property
    def room(self) -> int:
        """How many bytes can be written."""
        return sum(self.spans[1::2])


class QueueAddresses(NamedTuple):
    """Where the parts of a queue are: user addresses."""

    descriptors: int
    available: int
    used: int


class _Fence:
    """Keeps what is before a call before what is after it: giving a lock back and taking it again does, on
    every machine (a release, and then an acquisition that sees it)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __call__(self) -> None:
        with self._lock:
            pass
        with self._lock:
            pass


class SplitQueue:
    """The device's side of one queue. Not thread-safe."""

    def __init__(
        self,
        memory: GuestMemory,
        size: int,
        addresses: QueueAddresses,
        base: int,
        limit: int = MAX_CHAIN_BYTES,
    ) -> None:
        """``size`` is a power of two; ``base`` is the index of the next request; ``limit`` bounds the length
        of a request. Raises ``OutsideMemory`` and ``BadQueue`` (for addresses that are not aligned)."""
        self._memory = memory
        self._size = size
        self._limit = limit
        for name, address, alignment in zip(addresses._fields, addresses, (16, 2, 4), strict=True):
            if address % alignment:
                raise BadQueue(f"the address {address:#x} of {name} is no multiple of {alignment}")
        self._table = memory.user(addresses.descriptors, size * _DESCRIPTOR.size)
        self._available = memory.user(addresses.available, _FLAGS_AND_INDEX_BYTES + 2 * size).cast("H")
        used = memory.user(addresses.used, _FLAGS_AND_INDEX_BYTES + 8 * size)
        self._used_index = used[:_FLAGS_AND_INDEX_BYTES].cast("H")
        self._used = used[_FLAGS_AND_INDEX_BYTES:].cast("I")
        self._fence = _Fence()
        self.next_available = base
        # Nobody but the device writes it, and it goes on from where an earlier device stopped.
        self._next_used = self._used_index[_INDEX]

    def pop(self) -> Chain | None:
        """The next request, or None if there is none. Raises ``BadQueue`` and ``OutsideMemory``; the queue
        is not to be asked again then."""
        waiting = (self._available[_INDEX] - self.next_available) % _INDICES
        if waiting == 0:
            return None
        if waiting > self._size:
            raise BadQueue(f"{waiting} requests are available, in a queue of {self._size}")
        self._fence()
        head = self._available[2 + self.next_available % self._size]
        chain = self._chain(head)
        self.next_available = (self.next_available + 1) % _INDICES
        return chain

    def answer(self, chain: Chain, parts: Iterable[memoryview]) -> None:
        """Writes into a request, which has room for it, and gives it back."""
        spans = zip(chain.spans[::2], chain.spans[1::2], strict=True)
        pieces = itertools.chain.from_iterable(itertools.starmap(self._memory.guest, spans))
        self._push(chain.head, scatter(pieces, parts))

    def _push(self, head: int, written: int) -> None:
        place = 2 * (self._next_used % self._size)
        self._used[place] = head
        self._used[place + 1] = written
        self._next_used = (self._next_used + 1) % _INDICES
        self._fence()
        self._used_index[_INDEX] = self._next_used

    def _chain(self, head: int) -> Chain:
        """Follows the descriptors from ``head`` on."""
        readable, writable = _Readable(self._limit), array("Q")
        total = 0
        for address, size, flags in self._descriptors(head):
            total += size
            if total > MAX_CHAIN_BYTES:
                raise BadQueue(f"a chain of more than {MAX_CHAIN_BYTES} bytes")
            pieces = self._memory.guest(address, size)
            if flags & _WRITE:
                _extend(writable, address, size)
            elif writable:
                raise BadQueue("a readable descriptor behind a writable one")
            else:
                readable.extend(pieces)
        return Chain(head, readable.joined(), writable)

    def _descriptors(self, head: int) -> Iterator[tuple[int, int, int]]:
        """Address, size and flags of those of a chain that stand for memory."""
        table, index = self._table, head
        found = 0
        while found < MAX_CHAIN:
            count = len(table) // _DESCRIPTOR.size
            if index >= count:
                raise BadQueue(f"descriptor {index} in a table of {count}")
            at = index * _DESCRIPTOR.size
            address, size, flags, index = _DESCRIPTOR.unpack(bytes(table[at : at + _DESCRIPTOR.size]))
            if not flags & _INDIRECT:
                found += 1
                yield address, size, flags
                if not flags & _NEXT:
                    return
            elif table is not self._table or flags & _NEXT:
                raise BadQueue("an indirect descriptor in an indirect table, or not at the end")
            else:
                table, index = self._indirect(address, size), 0
        raise BadQueue(f"a chain of more than {MAX_CHAIN} descriptors")

    def _indirect(self, address: int, size: int) -> memoryview:
        """A copy of a table of descriptors."""
        if not size or size % _DESCRIPTOR.size or size > MAX_CHAIN * _DESCRIPTOR.size:
            raise BadQueue(f"an indirect table of {size} bytes")
        return memoryview(b"".join(self._memory.guest(address, size)))


class _Readable:
    """Pieces of a request, as long as they are not more than ``limit`` bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._left = limit
        self._pieces: list[memoryview] = []

    def extend(self, pieces: list[memoryview]) -> None:
        self._pieces += pieces
        self._left -= sum(map(len, pieces))
        if self._left < 0:
            raise BadQueue(f"a request of more than {self._limit} bytes")

    def joined(self) -> bytes:
        """A copy."""
        return b"".join(self._pieces)


def _extend(spans: array[int], address: int, size: int) -> None:
    """Adds a span; one that goes on where the last one ends makes that longer."""
    if not size:
        return
    if spans and spans[-2] + spans[-1] == address:
        spans[-1] += size
    else:
        spans.extend((address, size))


def scatter(views: Iterable[memoryview], parts: Iterable[memoryview]) -> int:
    """Writes ``parts`` one after the other into ``views``, which must have room for all; the number of
    bytes."""
    written = 0
    targets = iter(views)
    target = memoryview(b"")
    for part in parts:
        while part:
            if not target:
                target = next(targets)
            size = min(len(target), len(part))
            target[:size] = part[:size]
            target, part = target[size:], part[size:]
            written += size
    return written
