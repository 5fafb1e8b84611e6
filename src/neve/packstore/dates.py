"""When records of a dated table were last used: seconds since 1970, beside the counters of the index.

They are not in the packs: with a new index, time begins anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from neve.packstore.index import Index
from neve.packstore.index_writer import IndexWriter

_PREFIX = b"used:"

_AT_ONCE = 20_000
"""Dates that are noted by one transaction: others wait for it, some tens of milliseconds."""

_AHEAD = 86_400
"""Seconds that a date may lie in the future. With more, the clock was wrong when it was noted."""


def note_used(index: Index, keys: Iterable[bytes], now: int) -> None:
    """Durable on return. A date never goes back."""
    keys = list(keys)
    for start in range(0, len(keys), _AT_ONCE):
        part = keys[start : start + _AT_ONCE]

        def note(txn: IndexWriter, part: Sequence[bytes] = part) -> None:
            for key in part:
                if txn.counter(_PREFIX + key) < now:
                    txn.set_counter(_PREFIX + key, now)

        index.run(note)


def last_used(index: Index) -> dict[bytes, int]:
    """The dates of all keys that have one."""
    return {name.removeprefix(_PREFIX): date for name, date in index.counters(_PREFIX).items()}


def forget_used(txn: IndexWriter, keys: Iterable[bytes]) -> None:
    for key in keys:
        txn.drop_counter(_PREFIX + key)


def mend_dates(index: Index, used: dict[bytes, int], now: int) -> None:
    """Sets dates far in the future to ``now``, in ``used`` and in the index: what was used once while the
    clock was wrong would stay for good."""
    wrong = [key for key, date in used.items() if date > now + _AHEAD]
    used.update(dict.fromkeys(wrong, now))

    def mend(txn: IndexWriter) -> None:
        for key in wrong:
            txn.set_counter(_PREFIX + key, now)

    if wrong:
        index.run(mend)
