"""The pack format: what is written is read, and what is damaged is stepped over."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neve.errors import Corrupt
from neve.packstore import pack
from neve.packstore.frames import Record, encode_frame
from tests.packstore.helpers import KEY, flip, record, records

HEADER = pack.encode_header(7, KEY)

u32 = st.integers(0, 2**32 - 1)


def frame_bytes(given: list[Record], seq: int = 0, key: bytes = KEY) -> bytes:
    frame = encode_frame(1, given, key, seq)
    return frame.head + frame.entries + frame.payload


FRAMES = [
    frame_bytes(records(1, 2, 3)),
    frame_bytes([record(os.urandom(3000))]),
    frame_bytes([Record(pack.TOMBSTONE, b"key", b"")], seq=4),
    pack.commit_mark(4, KEY),
    frame_bytes([record(b"")]),
    pack.commit_mark(2**63, KEY),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "00000007.pack"
    path.write_bytes(HEADER + b"".join(FRAMES))
    return path


def scan(path: Path, key: bytes = KEY) -> list[pack.Frame | pack.Damage]:
    with path.open("rb", buffering=0) as file:
        return list(pack.scan(file.fileno(), key))


def starts() -> Iterator[int]:
    """Where the frames begin, and where the last one ends."""
    at = len(HEADER)
    yield at
    for frame in FRAMES:
        at += len(frame)
        yield at


def test_what_is_written_is_read(path: Path) -> None:
    found = scan(path)
    assert [frame.offset for frame in found if isinstance(frame, pack.Frame)] == list(starts())[:-1]
    frames = [frame for frame in found if isinstance(frame, pack.Frame)]
    kinds = [pack.DATA, pack.DATA, pack.DATA, pack.COMMIT, pack.DATA, pack.COMMIT]
    assert [frame.kind for frame in frames] == kinds
    assert [frame.seq for frame in frames] == [0, 0, 4, 4, 0, 2**63]
    assert [entry.key for entry in frames[0].entries] == [one.key for one in records(1, 2, 3)]
    assert [entry.length for entry in frames[0].entries] == [len(one.data) for one in records(1, 2, 3)]
    assert [entry.start for entry in frames[0].entries] == [0, 180, 360]
    assert frames[2].entries == (pack.Entry(1, pack.TOMBSTONE, b"key", 0, 0),)
    with path.open("rb") as file:
        assert all(pack.payload_intact(file.fileno(), frame) for frame in frames)


@given(
    st.lists(
        st.tuples(
            st.integers(0, 8), st.integers(0, 255), st.binary(min_size=1, max_size=255), st.integers(0, 9)
        )
    )
)
def test_entries(entries: list[tuple[int, int, bytes, int]]) -> None:
    encoded = pack.encode_entries(entries)
    found = pack.entry_places(encoded, 3)
    assert found.keys() == {key for table, _, key, _ in entries if table == 3}
    start = 0
    expected = {}
    for table, tag, key, length in entries:
        if table == 3:
            expected[key] = (tag, start, length)
        start += length
    assert found == expected


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 255), st.binary(min_size=32, max_size=32), u32)),
    st.integers(-1, 1),
    st.integers(-1, 1),
)
def test_entries_of_digests(
    entries: list[tuple[int, int, bytes, int]], more_entries: int, more_bytes: int
) -> None:
    """They are read by a way of their own; what makes no sense in them makes none there either."""
    encoded = pack.encode_entries(entries)
    count, size = len(entries) + more_entries, sum(entry[3] for entry in entries) + more_bytes
    found = pack._decode_entries(encoded, count, size)
    makes_sense = (
        more_entries == 0
        and (more_bytes >= 0 or not entries)
        and all(table in pack.TABLES for table, *_ in entries)
    )
    assert (found is not None) == makes_sense
    starts = accumulate([entry[3] for entry in entries], initial=0)
    if found is not None:
        assert list(found) == [
            (table, tag, key, start, length)
            for (table, tag, key, length), start in zip(entries, starts, strict=False)
        ]


def test_the_header(path: Path) -> None:
    pack.check_header(HEADER + b"more", 7, KEY, "p")
    for data, pack_id, key, why in [
        (HEADER[:-1], 7, KEY, "truncated"),
        (b"", 7, KEY, "truncated"),
        (HEADER, 8, KEY, "pack 7, the name says 8"),
        (HEADER, 7, bytes(32), "another store"),
        (b"x" + HEADER[1:], 7, KEY, "not a pack"),
    ]:
        with pytest.raises(Corrupt, match=why):
            pack.check_header(data, pack_id, key, "p")


def test_any_bit_of_the_header_counts() -> None:
    for bit in range(len(HEADER) * 8):
        damaged = bytearray(HEADER)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Corrupt):
            pack.check_header(bytes(damaged), 7, KEY, "p")


@pytest.mark.parametrize("number", range(len(FRAMES)))
def test_a_damaged_head_is_stepped_over(path: Path, number: int) -> None:
    intact = scan(path)
    start, end = list(starts())[number : number + 2]
    head_and_entries = len(FRAMES[number])
    if number < 2 or number == 4:
        frame = intact[number]
        assert isinstance(frame, pack.Frame)
        head_and_entries -= frame.stored_len
    expected = [*intact[:number], pack.Damage(start, end), *intact[number + 1 :]]
    for bit in range(start * 8, (start + head_and_entries) * 8, 37):
        flip(path, bit)
        assert scan(path) == expected
        flip(path, bit)


def test_a_damaged_payload_shows(path: Path) -> None:
    frame = scan(path)[1]
    assert isinstance(frame, pack.Frame)
    for bit in range(frame.payload_offset * 8, frame.end * 8, 997):
        flip(path, bit)
        assert scan(path)[1] == frame
        with path.open("rb") as file:
            assert not pack.payload_intact(file.fileno(), frame)
        flip(path, bit)


def test_cut_off_anywhere(path: Path) -> None:
    whole, ends = scan(path), list(starts())
    for size in range(len(HEADER), ends[-1], 11):
        os.truncate(path, ends[-1])
        path.write_bytes((HEADER + b"".join(FRAMES))[:size])
        complete = sum(end <= size for end in ends[1:])
        rest = [pack.Damage(ends[complete], size)] if ends[complete] < size else []
        assert scan(path) == [*whole[:complete], *rest]


@pytest.mark.parametrize(
    "wrong",
    [
        *({"count": 2}, {"count": 4}, {"count": 0}, {"count": 2**32 - 1}, {"raw_len": 10}),
        *({"kind": 0}, {"kind": 3}, {"kind": pack.COMMIT}, {"codec": 2}, {"codec": 255}, {"seq": 2**63 + 1}),
        *({"table": 0}, {"table": 9}, {"table": 255}, {"key": 0}),
    ],
    ids=str,
)
def test_nonsense_with_right_checksums_is_no_frame(wrong: dict[str, int], path: Path) -> None:
    payload = b"the contents"

    def written(*, table: int = 1, key: int = 3, **head: int) -> list[pack.Frame | pack.Damage]:
        entries = pack.encode_entries([(table, 1, bytes(key), 5), (table, 1, bytes(key), 6), (1, 1, b"k", 1)])
        right = {"kind": pack.DATA, "codec": pack.RAW, "seq": 0, "count": 3, "raw_len": len(payload)}
        encoded = pack.encode_head(KEY, **(right | head), entries=entries, payload=payload)
        path.write_bytes(HEADER + encoded + entries + payload)
        return scan(path)

    assert isinstance(written()[0], pack.Frame)
    assert written(**wrong) == [pack.Damage(len(HEADER), path.stat().st_size)]


def test_a_magic_across_blocks_is_found(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [pack.Damage(len(HEADER), len(HEADER) + 100), *scan(path)]
    for step in (5, 7, 64, 101):
        monkeypatch.setattr(pack, "_SCAN_STEP", step)
        path.write_bytes(HEADER + b"N" * 99 + b"v" + b"".join(FRAMES))
        found = scan(path)
        assert found[0] == expected[0]
        assert len(found) == len(expected)


def test_only_frames_of_this_store_count(path: Path) -> None:
    """A blob may look like frames, and behind a damaged head everything is looked through."""
    forged = frame_bytes([Record(1, b"key", b"forged")], seq=2**40, key=bytes(32))
    payload = os.urandom(500) + forged + pack.commit_mark(2**41, bytes(32)) + os.urandom(500)
    path.write_bytes(HEADER + frame_bytes([record(payload)]) + FRAMES[0])
    start = len(HEADER)
    flip(path, start * 8)
    end = start + len(frame_bytes([record(payload)]))
    assert scan(path)[0] == pack.Damage(start, end)
    assert len(scan(path)) == 2
    assert scan(path, bytes(31) + b"x") == [pack.Damage(start, path.stat().st_size)]
