"""Putting rows together from the chunks that a server sends, whatever those are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from google.cloud.bigtable_v2.types import bigtable

from neve.bigtable import messages
from neve.bigtable.messages import Cell, Row, RowReader, escaped
from neve.errors import Corrupt, Unavailable

Answer: Any = bigtable.ReadRowsResponse.pb()


def chunk(
    value: bytes = b"",
    *,
    key: bytes = b"",
    column: bytes | None = None,
    micros: int = 0,
    size: int = 0,
    commit: bool = False,
    reset: bool = False,
) -> Any:
    made = Answer.CellChunk(row_key=key, value=value, timestamp_micros=micros, value_size=size)
    if column is not None:
        made.qualifier.value = column
        made.family_name.value = "f"
    if commit:
        made.commit_row = True
    if reset:
        made.reset_row = True
    return made


def read(chunks: Sequence[Any], at_once: int) -> list[Row]:
    """The rows of chunks that come so many in an answer."""
    reader = RowReader()
    rows: list[Row] = []
    for start in range(0, len(chunks), at_once):
        rows += reader.feed(Answer(chunks=chunks[start : start + at_once]))
    reader.finish()
    return rows


ONE = [chunk(b"v", key=b"k", column=b"k", micros=5, commit=True)]
CASES = {
    "nothing": ([], []),
    "one": (ONE, [Row(b"k", [Cell(b"k", b"k", b"v", 5)])]),
    "empty value": (
        [chunk(key=b"k", column=b"k", commit=True)],
        [Row(b"k", [Cell(b"k", b"k", b"", 0)])],
    ),
    "in parts": (
        [
            chunk(b"ab", key=b"k", column=b"k", micros=5, size=5),
            chunk(b"cd", size=5),
            chunk(b"e", commit=True),
        ],
        [Row(b"k", [Cell(b"k", b"k", b"abcde", 5)])],
    ),
    "two columns": (
        [chunk(b"1", key=b"k", column=b"a"), chunk(b"2", key=b"k", column=b"b"), chunk(b"3", commit=True)],
        [Row(b"k", [Cell(b"k", b"a", b"1", 0), Cell(b"k", b"b", b"2", 0), Cell(b"k", b"b", b"3", 0)])],
    ),
    "two rows": (
        [*ONE, chunk(b"w", key=b"l", column=b"l", commit=True)],
        [Row(b"k", [Cell(b"k", b"k", b"v", 5)]), Row(b"l", [Cell(b"l", b"l", b"w", 0)])],
    ),
    "taken back": (
        [chunk(b"x", key=b"k", column=b"k", size=9), chunk(reset=True), *ONE],
        [Row(b"k", [Cell(b"k", b"k", b"v", 5)])],
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("at_once", [1, 2, 100])
def test_rows(name: str, at_once: int) -> None:
    chunks, rows = CASES[name]
    assert read(chunks, at_once) == rows


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        ([chunk(b"v", column=b"k", commit=True)], "begins without a row"),
        ([chunk(b"v", key=b"k", commit=True)], "has a value without a column"),
        ([chunk(b"v", key=b"k", column=b"k")], "ends within a row"),
        (
            [chunk(b"v", key=b"k", column=b"k"), chunk(b"w", key=b"l", column=b"l")],
            "begins a row befor",
        ),
        ([chunk(b"v", key=b"k", column=b"k", size=9, commit=True)], "ends a row within a value"),
    ],
)
def test_streams_that_are_none(chunks: Sequence[Any], message: str) -> None:
    with pytest.raises(Unavailable, match=f"the server's answer {message}"):
        read(chunks, 1)


def test_values_have_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is said to be longer is not waited for, and neither is what does not say so."""
    for chunks in (
        [chunk(b"v", key=b"k", column=b"k", size=2**31 - 1)],
        [chunk(b"v" * 60, key=b"k", column=b"k", size=1), chunk(b"v" * 60, size=1)],
    ):
        monkeypatch.setattr(messages, "_MAX_READ_BYTES", 100)
        with pytest.raises(Corrupt, match="row 'k' has a value of more than"):
            read(chunks, 1)


def test_of_many_columns_some_are_told() -> None:
    cells = [chunk(b"v", key=b"k", column=b"%d" % number) for number in range(1000)]
    [row] = read([*cells, chunk(b"v", key=b"k", column=b"z" * 1000, commit=True)], 10)
    with pytest.raises(Corrupt, match="must have one of its own name") as refused:
        _ = row.cell
    assert len(str(refused.value)) < 1000


@pytest.mark.parametrize(
    ("text", "pattern"),
    [(b"a_Z9", b"a_Z9"), (b"a.b", rb"a\.b"), (b"\0", rb"\x00"), (b"\xff\n", b"\xff\\\n"), (b"", b"")],
)
def test_what_a_regular_expression_is_to_match(text: bytes, pattern: bytes) -> None:
    assert escaped(text) == pattern
