"""What services ask of the rows of a table: by key, in pages, put if absent, replace, delete; and ages.

A row was used when it was written, and when somebody was told that it is there: he may count on it. That is
noted at most once an hour, by writing the cell anew, if it is still the same. Who puts takes the server's
time; who notes a use or deletes what is old goes by his own clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Any, TypeVar

from neve.bigtable.address import Target
from neve.bigtable.client import Client
from neve.bigtable.messages import (
    MAX_CELL_BYTES,
    Cell,
    Condition,
    Row,
    Wanted,
    check_request,
    delete_cells,
    mutate_request,
    read_request,
    set_cell,
    shown,
    unchanged,
)
from neve.errors import LimitExceeded, NeveError, PermissionDenied, Unavailable
from neve.telemetry import LOGGER

T = TypeVar("T")

FRESH_SECONDS = 3600
"""How much older than it is told to be a row's last use may be."""

ATTEMPTS = 100
"""How often a row is changed anew that others have changed in the meantime."""

_PARALLEL = 16
"""Changes with a condition on the way at once, each of which is one call for one row."""

_KEYS_AT_ONCE = 512
_BYTES_AT_ONCE = 4 * 1024 * 1024
"""Keys, and bytes of values, in one request."""


class BigTable:
    """The rows of one family. Owns one use of the connections."""

    def __init__(self, target: Target, client: Client | None = None) -> None:
        self.target = target
        self._client = Client.open(target) if client is None else client
        self._pool = ThreadPoolExecutor(_PARALLEL, thread_name_prefix="neve-bigtable")
        self._is_closed = False

    def close(self) -> None:
        """Can be called again."""
        if not self._is_closed:
            self._is_closed = True
            self._pool.shutdown(cancel_futures=True)
            self._client.close()

    # Reading.

    def get(self, keys: Sequence[bytes], *, values: bool = True) -> Iterator[Row]:
        """The rows that are there, in the order of their keys for each portion that is asked for."""
        for start in range(0, len(keys), _KEYS_AT_ONCE):
            yield from self._of_keys(sorted(set(keys[start : start + _KEYS_AT_ONCE])), values)

    def _of_keys(self, keys: list[bytes], values: bool) -> Iterator[Row]:
        def request(last: bytes, count: int) -> Any:
            rest = [key for key in keys if key > last]
            return self._read_request(Wanted(keys=rest, values=values)) if rest else None

        return self._client.read(self.target, request)

    def scan(self, wanted: Wanted) -> Iterator[Row]:
        """Rows in the order of their keys."""

        def request(last: bytes, count: int) -> Any:
            if wanted.limit and count >= wanted.limit:
                return None
            rest = wanted._replace(after=last or wanted.after, limit=max(0, wanted.limit - count))
            return self._read_request(rest)

        return self._client.read(self.target, request)

    def _read_request(self, wanted: Wanted) -> Any:
        target = self.target
        return read_request(target.table_path, target.app_profile, target.family, wanted)

    # Writing.

    def insert(self, key: bytes, value: bytes) -> bool:
        """Puts a row if there is none; whether there was none."""
        self.check_writable()
        check_length(key, value)
        return not self._change(key, Condition(present=False), set_cell(self.target.family, key, value))

    def insert_many(self, rows: Sequence[tuple[bytes, bytes]]) -> None:
        """Puts each of these rows, if there is none of its key."""
        self.in_parallel(lambda row: self.insert(*row), rows)

    def use_or_put(self, key: bytes, value: bytes) -> None:
        """Puts a row, of which every writer would write the same, unless it is there and fresh."""
        self.check_writable()
        check_length(key, value)
        since = _micros(time.time() - FRESH_SECONDS)
        condition = Condition(present=False, since=since)
        self._change(key, condition, set_cell(self.target.family, key, value))

    def use_or_put_many(self, rows: Sequence[tuple[bytes, bytes]]) -> None:
        """The same for many rows, at once."""
        self.check_writable()
        for key, value in rows:
            check_length(key, value)
        self.in_parallel(self._use_or_put_group, list(_groups(rows)))

    def _use_or_put_group(self, rows: Sequence[tuple[bytes, bytes]]) -> None:
        since = _micros(time.time() - FRESH_SECONDS)
        fresh = {
            row.key
            for row in self.get([key for key, _ in rows], values=False)
            if len(row.cells) == 1 and row.cells[0].qualifier == row.key and row.cells[0].micros >= since
        }
        changes = [(key, set_cell(self.target.family, key, value)) for key, value in rows if key not in fresh]
        if changes:
            self._mutate(changes)

    def put(self, key: bytes, value: bytes) -> None:
        """Puts a row in place of whatever is there, and later than that: who is about to replace what he has
        read must see that it has changed."""
        self.check_writable()
        check_length(key, value)
        for _ in range(ATTEMPTS):
            row = next(self.get([key]), None)
            if row is None:
                if self.insert(key, value):
                    return
            elif len(row.cells) != 1 or row.cells[0].qualifier != key:
                self._mutate([(key, set_cell(self.target.family, key, value))])
                return
            elif self.replace(row.cells[0], value):
                return
        raise Unavailable(f"{self.target.shown}: others change row {shown(key)} all the time")

    def replace(self, cell: Cell, value: bytes) -> bool:
        """Puts another value where ``cell`` is, if it still is; whether it was."""
        self.check_writable()
        check_length(cell.key, value)
        # Later than the one before in any case, as that tells them apart.
        micros = max(_micros(time.time()), cell.micros + 1000)
        return self._change(cell.key, unchanged(cell), set_cell(self.target.family, cell.key, value, micros))

    def note_used(self, cells: Sequence[Cell]) -> None:
        """Notes that somebody was told of these. Where nothing can be written that is not worth a failure."""
        if self.target.reads_only:
            return
        before = _micros(time.time() - FRESH_SECONDS)
        stale = [cell for cell in cells if cell.micros < before]
        try:
            self.in_parallel(lambda cell: self.replace(cell, cell.value), stale)
        except PermissionDenied as error:
            LOGGER.debug("it is not noted that rows are in use: %s", error)
        except NeveError as error:
            LOGGER.warning("it is not noted that rows are in use: %s", error)

    def delete(self, keys: Sequence[bytes], unused_for: float | None = None) -> int:
        """Deletes rows, or of them those that nobody has used in the last ``unused_for`` seconds; returns how
        many."""
        self.check_writable()
        changes = delete_cells(self.target.family)
        different = sorted(set(keys))
        if unused_for is not None:
            condition = Condition(before=max(1000, _micros(time.time() - unused_for)))
            return sum(self.in_parallel(lambda key: self._change(key, condition, changes), different))
        count = 0
        for start in range(0, len(different), _KEYS_AT_ONCE):
            there = [row.key for row in self.get(different[start : start + _KEYS_AT_ONCE], values=False)]
            if there:
                self._mutate([(key, changes) for key in there])
            count += len(there)
        return count

    def _change(self, key: bytes, condition: Condition, changes: Sequence[Any]) -> bool:
        """Makes changes if the condition holds. Whether the newest cell was as it says."""
        target = self.target
        request = check_request(target.table_path, target.app_profile, target.family, key, condition, changes)
        return self._client.check_and_mutate(target, request)

    def _mutate(self, rows: Sequence[tuple[bytes, Sequence[Any]]]) -> None:
        request = mutate_request(self.target.table_path, self.target.app_profile, rows)
        self._client.mutate(self.target, request)

    def in_parallel(self, do: Callable[[Any], T], items: Sequence[Any]) -> list[T]:
        """``do`` with each item, some at the same time. What ``do`` calls may call this with one item only:
        its thread must not wait for others that may all be waiting."""
        if len(items) == 1:
            return [do(items[0])]
        results: list[T] = []
        try:
            for start in range(0, len(items), _KEYS_AT_ONCE):
                results += self._pool.map(do, items[start : start + _KEYS_AT_ONCE])
        except (RuntimeError, CancelledError) as error:
            if self._is_closed:  # What the pool says then.
                raise Unavailable(f"{self.target.shown}: the connection is closed") from error
            raise
        return results

    def check_writable(self) -> None:
        """Raises ``PermissionDenied`` if the address says that this is only read."""
        if self.target.reads_only:
            raise PermissionDenied(f"{self.target.shown} is read-only, as its address says")


def _groups(rows: Sequence[tuple[bytes, bytes]]) -> Iterator[Sequence[tuple[bytes, bytes]]]:
    """Rows in portions for one request each."""
    start = size = 0
    for end, (_, value) in enumerate(rows):
        if end > start and (size + len(value) > _BYTES_AT_ONCE or end - start == _KEYS_AT_ONCE):
            yield rows[start:end]
            start, size = end, 0
        size += len(value)
    if rows:
        yield rows[start:]


def check_length(key: bytes, value: bytes) -> None:
    """Raises ``LimitExceeded`` if a value is too long for a cell."""
    if len(value) > MAX_CELL_BYTES:
        raise LimitExceeded(
            f"row {shown(key)}: {len(value)} bytes are over the limit of {MAX_CELL_BYTES} bytes for a cell"
        )


def age_of(cell: Cell) -> float:
    """How many seconds ago it was used: that, or up to ``FRESH_SECONDS`` less."""
    return max(0.0, time.time() - cell.micros / 1e6)


def _micros(seconds: float) -> int:
    return int(seconds * 1000) * 1000
