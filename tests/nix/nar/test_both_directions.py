"""One table for both directions: reader and writer, whole and in pieces, against archives made by Nix."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neve.nix.nar import NarEncoder, NarError, NarHasher, NarReader
from neve.testing.strategies import trees
from neve.tree import LEAVE_DIRECTORY, WHOLE_FILE_LIMIT, EnterDirectory, Event, File

from .cases import Case, join_data, load_trees, nix32, read, slices

CASES = load_trees()
cases = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])


def encode(events: list[Event]) -> bytes:
    encoder = NarEncoder()
    nar = b"".join(encoder.encode(events))
    encoder.finish()
    return nar


@cases
def test_writer_writes_what_nix_wrote(case: Case) -> None:
    nar = encode(case.events)
    assert case.nar in (nar, None)
    assert len(nar) == case.nar_size
    assert nix32(hashlib.sha256(nar).digest()) == case.nar_sha256_nix32


@cases
def test_writer_gives_the_same_bytes_event_by_event(case: Case) -> None:
    encoder = NarEncoder()
    pieces = [piece for event in case.events for piece in encoder.encode([event])]
    encoder.finish()
    assert b"".join(pieces) == encode(case.events)


@cases
def test_hasher(case: Case) -> None:
    hasher = NarHasher()
    for at in range(0, len(case.events), 3):
        hasher.feed(case.events[at : at + 3])
    size, digest = hasher.result()
    assert (size, nix32(digest)) == (case.nar_size, case.nar_sha256_nix32)


@cases
@pytest.mark.parametrize("step", [1, 7, 8, 1000, 2**30])
def test_reader_in_slices(case: Case, step: int) -> None:
    assert read(slices(case.nar or encode(case.events), step)) == case.events


@cases
def test_reader_refuses_a_trailing_byte(case: Case) -> None:
    nar = case.nar or encode(case.events)
    for pieces in ([nar + b"\0"], [nar, b"x"]):
        with pytest.raises(NarError, match="expected the end of the archive") as caught:
            read(pieces)
        assert caught.value.offset == len(nar)


@given(trees(), st.integers(1, 300))
def test_round_trip(events: list[Event], step: int) -> None:
    nar = encode(events)
    assert read([nar]) == events
    assert read(slices(nar, step)) == events
    hasher = NarHasher()
    hasher.feed(events)
    assert hasher.result() == (len(nar), hashlib.sha256(nar).digest())


@settings(max_examples=10, deadline=None)
@given(trees(max_leaves=4, large_files=True), st.integers(1000, 2**21))
def test_round_trip_of_large_files(events: list[Event], step: int) -> None:
    nar = encode(events)
    assert read([nar]) == join_data(events)
    assert read(slices(nar, step)) == join_data(events)
    hasher = NarHasher()
    for event in events:
        hasher.feed([event])
    assert hasher.result() == (len(nar), hashlib.sha256(nar).digest())


@pytest.mark.parametrize("excess", [-1, 0])
def test_a_file_of_up_to_the_limit_comes_whole(excess: int) -> None:
    events: list[Event] = [
        EnterDirectory(b""),
        File(b"f", True, b"\x01" * (WHOLE_FILE_LIMIT + excess)),
        LEAVE_DIRECTORY,
    ]
    nar = encode(events)
    assert NarReader().feed(nar) == events
    assert read(slices(nar, 100_000)) == events


@pytest.mark.parametrize("step", [1, 4096, 2**30])
def test_deep_nesting(step: int) -> None:
    depth = 5000
    events: list[Event] = [EnterDirectory(b"d" if level else b"") for level in range(depth)]
    events += [File(b"f", False, b"x"), *[LEAVE_DIRECTORY] * depth]
    nar = encode(events)
    assert read(slices(nar, step)) == events
