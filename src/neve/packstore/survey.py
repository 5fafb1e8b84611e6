"""How much of each pack is in use: by the entries of the index, without reading the packs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from neve.packstore.index import Index
from neve.packstore.location import Location, pack_of
from neve.packstore.pack import HEADER_SIZE, TABLES

PAGE = 10_000

_ENTRY_BYTES = 7
"""What a record takes in the entry table of its frame, beside its key."""


@dataclass
class Survey:
    """Bytes in use, by pack. A record of a compressed frame has its share of that."""

    live: dict[int, float] = field(default_factory=dict)

    def add(self, entries: Iterable[tuple[bytes, Location]]) -> None:
        live = self.live
        for key, (_, place, _, stored_len, raw_len, _, _, length) in entries:
            size = _ENTRY_BYTES + len(key) + (stored_len * length / raw_len if raw_len else 0)
            pack_id = pack_of(place)
            live[pack_id] = live.get(pack_id, 0) + size

    def dead(self, lengths: dict[int, int]) -> dict[int, int]:
        """Bytes not in use of packs with these committed lengths."""
        return {
            pack_id: max(0, round(length - HEADER_SIZE - self.live.get(pack_id, 0)))
            for pack_id, length in lengths.items()
        }


def record_bytes(key: bytes, location: Location) -> float:
    """What a record takes of its pack, in bytes."""
    share = location.stored_len * location.length / location.raw_len if location.raw_len else 0
    return _ENTRY_BYTES + len(key) + share


def survey(index: Index) -> Survey:
    """The packs as they are in use now."""
    found = Survey()
    for table in TABLES:
        after = b""
        while page := index.page(table, after, PAGE):
            after = page[-1][0]
            found.add(page)
    return found


def packs_in_use(index: Index, packs: set[int]) -> dict[int, tuple[int, bytes]]:
    """Those of ``packs`` that entries point to, with a table and a key of one such entry."""
    found: dict[int, tuple[int, bytes]] = {}
    for table in TABLES:
        after = b""
        while page := index.page(table, after, PAGE):
            after = page[-1][0]
            for key, location in page:
                if (pack_id := pack_of(location.place)) in packs:
                    found.setdefault(pack_id, (table, key))
    return found
