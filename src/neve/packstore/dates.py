"""When records of a dated table were last used: seconds since 1970, beside the counters of the index.

They are not in the packs: with a new index, time begins anew.
"""

from __future__ import annotations

from collections.abc import Iterable

from neve.packstore.index import Index
from neve.packstore.index_writer import IndexWriter

_PREFIX = b"used:"


def note_used(index: Index, keys: Iterable[bytes], now: int) -> None:
    """Durable on return. A date never goes back."""
    keys = list(keys)

    def note(txn: IndexWriter) -> None:
        for key in keys:
            if txn.counter(_PREFIX + key) < now:
                txn.set_counter(_PREFIX + key, now)

    index.run(note)


def last_used(index: Index) -> dict[bytes, int]:
    """The dates of all keys that have one."""
    return {name.removeprefix(_PREFIX): date for name, date in index.counters(_PREFIX).items()}


def forget_used(txn: IndexWriter, keys: Iterable[bytes]) -> None:
    for key in keys:
        txn.drop_counter(_PREFIX + key)
