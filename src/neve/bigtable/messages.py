"""Requests to Bigtable, and what its answers hold. No I/O.

An answer to ReadRows is a stream of *chunks*: each begins a row, a column or a cell, or goes on with the
value of the last one; the last chunk of a row commits it, and any may take back what there was of the row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from google.cloud.bigtable_v2.types import bigtable, data

from neve.errors import Corrupt, Unavailable

MAX_CELL_BYTES = 10 * 1024 * 1024
"""Longest value in a cell: what Bigtable recommends, and all software of this layout keeps to."""

_MAX_READ_BYTES = 100 * 1024 * 1024
"""Longest value that is taken from a server; Bigtable itself has no longer ones."""

_MAX_CELLS = 16
"""Cells of a row that are looked at, to tell what is wrong with a row that has more than one."""

_MAX_COMPARED = 8 * 1024
"""Longest value that goes into a condition, twice: Bigtable takes filters of 20 KiB. A longer one is known by
its ends, and its time, which is another with each change of a row that is there."""

_ENDS = 1024
"""Bytes of each end; in a regular expression they may take four times as much."""

# The messages of protobuf itself: those of the library around them are slow.
_ReadRows: Any = bigtable.ReadRowsRequest.pb()
_CheckAndMutateRow: Any = bigtable.CheckAndMutateRowRequest.pb()
_MutateRows: Any = bigtable.MutateRowsRequest.pb()
_RowFilter: Any = data.RowFilter.pb()
_Mutation: Any = data.Mutation.pb()

SERVER_TIME = -1
"""In place of microseconds: the time at which the server makes the change."""


class Cell(NamedTuple):
    """The newest value of a column."""

    key: bytes
    qualifier: bytes
    value: bytes
    micros: int
    """When it was written, in microseconds since 1970, a whole number of milliseconds."""


class Row(NamedTuple):
    key: bytes
    cells: Sequence[Cell]

    @property
    def cell(self) -> Cell:
        """The one cell that a row has. Raises ``Corrupt`` if it is not as it must be."""
        if len(self.cells) != 1 or self.cells[0].qualifier != self.key:
            qualifiers = b", ".join(cell.qualifier[:100] for cell in self.cells)
            raise Corrupt(
                f"row {shown(self.key)} has the columns {shown(qualifiers)}, must have one of its own name"
            )
        return self.cells[0]


def shown(text: bytes) -> str:
    """A key for a message, whoever has written it."""
    return ascii(text[:300].decode("latin-1"))


class RowReader:
    """Puts rows together. Raises ``Unavailable`` for what is no such stream, ``Corrupt`` for long values."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        """As before any chunk of a row."""
        self._key = b""
        self._cells: list[Cell] = []
        self._qualifier: bytes | None = None
        self._value: list[bytes] | None = None
        """The parts of a value that is not complete."""
        self._size = 0
        self._micros = 0

    def feed(self, answer: Any) -> Iterator[Row]:
        """The rows that an answer completes."""
        for chunk in answer.chunks:
            if chunk.reset_row:
                self._begin()
                continue
            self._take(chunk)
            if chunk.commit_row:
                if self._value is not None:
                    raise _odd("ends a row within a value")
                row = Row(self._key, self._cells)
                self._begin()
                yield row

    def _take(self, chunk: Any) -> None:
        if chunk.row_key and chunk.row_key != self._key:
            if self._key:
                raise _odd("begins a row before the end of another")
            self._key = chunk.row_key
        if not self._key:
            raise _odd("begins without a row")
        if self._value is None:
            if chunk.HasField("qualifier"):
                self._qualifier = chunk.qualifier.value
            if self._qualifier is None:
                raise _odd("has a value without a column")
            self._value, self._size, self._micros = [], 0, chunk.timestamp_micros
        self._value.append(chunk.value)
        self._size += len(chunk.value)
        if max(self._size, chunk.value_size) > _MAX_READ_BYTES:
            raise Corrupt(f"row {shown(self._key)} has a value of more than {_MAX_READ_BYTES} bytes")
        if not chunk.value_size:
            if len(self._cells) < _MAX_CELLS:
                self._cells.append(
                    Cell(self._key, self._qualifier or b"", b"".join(self._value), self._micros)
                )
            self._value = None

    def finish(self) -> None:
        """Raises ``Unavailable`` if the stream has ended within a row."""
        if self._key:
            raise _odd("ends within a row")


def _odd(what: str) -> Unavailable:
    return Unavailable(f"the server's answer {what}")


# Filters.


def _chain(*filters: Any) -> Any:
    return filters[0] if len(filters) == 1 else _RowFilter(chain=_RowFilter.Chain(filters=filters))


def escaped(text: bytes) -> bytes:
    """A regular expression, as RE2 has them, that matches ``text`` and nothing else."""
    # What is no word is quoted: NUL in its own way, and bytes above 127 as they are.
    quoted = (
        b"\\x00" if byte == 0 else b"\\%c" % byte if byte < 128 and not _is_word(byte) else b"%c" % byte
        for byte in text
    )
    return b"".join(quoted)


def _is_word(byte: int) -> bool:
    return chr(byte).isalnum() or byte == ord("_")


def newest(family: str) -> Any:
    """The newest cell of each column of the family."""
    return _chain(
        _RowFilter(family_name_regex_filter=escaped(family.encode()).decode()),
        _RowFilter(cells_per_column_limit_filter=1),
    )


class Wanted(NamedTuple):
    """Which rows are asked for, and what of them."""

    keys: Sequence[bytes] = ()
    after: bytes = b""
    """If no ``keys`` are given: those greater than this ..."""
    before: bytes = b""
    """... and smaller than this, if it is not empty."""
    pattern: bytes = b""
    """A regular expression that all of a key must match."""
    holding: bytes = b""
    """Bytes that a value must hold."""
    values: bool = True
    limit: int = 0
    """Most rows; 0: all."""


def read_request(table: str, profile: str, family: str, wanted: Wanted) -> Any:
    """The ReadRows request."""
    filters = [newest(family)]
    if wanted.pattern:
        filters.insert(0, _RowFilter(row_key_regex_filter=wanted.pattern))
    if wanted.holding:
        filters.append(_RowFilter(value_regex_filter=rb"\C*" + escaped(wanted.holding) + rb"\C*"))
    if not wanted.values:
        filters.append(_RowFilter(strip_value_transformer=True))
    request = _ReadRows(
        table_name=table, app_profile_id=profile, rows_limit=wanted.limit, filter=_chain(*filters)
    )
    if wanted.keys:
        request.rows.row_keys.extend(wanted.keys)
    else:
        rows = request.rows.row_ranges.add()
        if wanted.after:
            rows.start_key_open = wanted.after
        if wanted.before:
            rows.end_key_open = wanted.before
    return request


# Changes.


def set_cell(family: str, key: bytes, value: bytes, micros: int = SERVER_TIME) -> list[Any]:
    """Changes after which a row has this cell in its column, and nothing else in the family."""
    cell = _Mutation.SetCell(family_name=family, column_qualifier=key, value=value, timestamp_micros=micros)
    return [*delete_cells(family), _Mutation(set_cell=cell)]


def delete_cells(family: str) -> list[Any]:
    """Changes after which a row has nothing in the family."""
    return [_Mutation(delete_from_family=_Mutation.DeleteFromFamily(family_name=family))]


def mutate_request(table: str, profile: str, rows: Sequence[tuple[bytes, Sequence[Any]]]) -> Any:
    """The MutateRows request."""
    request = _MutateRows(table_name=table, app_profile_id=profile)
    for key, mutations in rows:
        request.entries.add(row_key=key, mutations=mutations)
    return request


class Condition(NamedTuple):
    """What must hold for the newest cell of a row for it to be changed."""

    present: bool = True
    """That there is one; or that there is none, of which the following is said."""
    value: bytes | None = None
    ends: tuple[bytes, bytes] | None = None
    """What its value begins and ends with."""
    since: int = 0
    """Written at this time (microseconds), or later ..."""
    before: int = 0
    """... and before this one, if it is not 0."""


def unchanged(cell: Cell) -> Condition:
    """That the row still has this cell."""
    condition = Condition(since=cell.micros, before=cell.micros + 1000)
    if len(cell.value) <= _MAX_COMPARED:
        return condition._replace(value=cell.value)
    return condition._replace(ends=(cell.value[:_ENDS], cell.value[-_ENDS:]))


def check_request(
    table: str, profile: str, family: str, key: bytes, condition: Condition, mutations: Sequence[Any]
) -> Any:
    """The CheckAndMutateRow request that makes changes if a condition holds."""
    filters = [newest(family)]
    if condition.since or condition.before:
        limits = {"start_timestamp_micros": condition.since, "end_timestamp_micros": condition.before}
        filters.append(_RowFilter(timestamp_range_filter=data.TimestampRange.pb()(**limits)))
    if condition.value is not None:
        same = {"start_value_closed": condition.value, "end_value_closed": condition.value}
        filters.append(_RowFilter(value_range_filter=data.ValueRange.pb()(**same)))
    if condition.ends is not None:
        begin, end = map(escaped, condition.ends)
        filters.append(_RowFilter(value_regex_filter=begin + rb"\C*" + end))
    changes = {"true_mutations" if condition.present else "false_mutations": mutations}
    return _CheckAndMutateRow(
        table_name=table, app_profile_id=profile, row_key=key, predicate_filter=_chain(*filters), **changes
    )
