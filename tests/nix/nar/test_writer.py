"""What the encoder refuses, and what it passes on uncopied."""

from __future__ import annotations

import hashlib
import pickle
import re

import pytest

from neve.errors import InvalidRequest
from neve.nix.nar import NarEncoder, NarHasher, NarTreeError
from neve.tree import END_FILE, LEAVE_DIRECTORY, BeginFile, Data, EnterDirectory, Event, File, Symlink

ROOT = EnterDirectory(b"")
F = File(b"f", False, b"x")


def encode(events: list[Event]) -> bytes:
    encoder = NarEncoder()
    nar = b"".join(encoder.encode(events))
    encoder.finish()
    return nar


def hash_one_by_one(events: list[Event]) -> tuple[int, bytes]:
    hasher = NarHasher()
    for event in events:
        hasher.feed([event])
    return hasher.result()


# events, path, part of the problem
WRONG: list[tuple[list[Event], bytes, str]] = [
    ([], b"", "there are no events"),
    ([ROOT], b"", "the end of the directory is missing"),
    ([ROOT, EnterDirectory(b"d"), F], b"d", "the end of the directory is missing"),
    ([F, F], b"", "a second root follows it"),
    ([ROOT, LEAVE_DIRECTORY, F], b"", "a second root follows it"),
    ([LEAVE_DIRECTORY], b"", "a directory ends that was not entered"),
    ([ROOT, LEAVE_DIRECTORY, LEAVE_DIRECTORY], b"", "a directory ends that was not entered"),
    ([ROOT, F, F], b"f", "expected a name greater than 'f'"),
    ([ROOT, F, EnterDirectory(b"e")], b"e", "expected a name greater than 'f'"),
    ([ROOT, File(b"", False, b"")], b"", "expected a name of 1 to 255 bytes"),
    ([ROOT, File(b"n" * 256, False, b"")], b"n" * 256, "expected a name of 1 to 255 bytes"),
    ([ROOT, Symlink(b"..", b"t")], b"..", "expected a name without '/'"),
    ([ROOT, BeginFile(b"a/b", False, 1)], b"a/b", "expected a name without '/'"),
    ([ROOT, EnterDirectory(b"d"), EnterDirectory(b"\0")], b"d/\0", "expected a name without '/'"),
    ([ROOT, Symlink(b"l", b"")], b"l", "expected a target of 1 to 4095 bytes, found ''"),
    ([Symlink(b"", b"a\0")], b"", "expected a target without NUL"),
    ([Data(b"x")], b"", "contents come without a file"),
    ([END_FILE], b"", "a file ends that was not begun"),
    ([ROOT, BeginFile(b"b", False, 9), Data(b"12345678"), END_FILE], b"b", "only 8 of its 9 bytes came"),
    (
        [ROOT, BeginFile(b"b", False, 9), Data(b"12345"), Data(b"67890")],
        b"b",
        "more contents come than",
    ),
    ([ROOT, BeginFile(b"b", False, 9), F], b"b", "another node follows before the end of the file"),
    ([ROOT, BeginFile(b"b", False, 9), LEAVE_DIRECTORY], b"b", "a directory ends that was not entered"),
    ([ROOT, BeginFile(b"b", False, 9), Data(b"1")], b"b", "8 of its 9 bytes and its end are missing"),
    ([BeginFile(b"", False, 9), F], b"", "another node follows before the end of the file"),
    ([BeginFile(b"", False, -1)], b"", "expected a size of 0"),
    ([BeginFile(b"", False, 2**63)], b"", "expected a size of 0"),
]


@pytest.mark.parametrize(("events", "path", "problem"), WRONG)
def test_events_that_are_no_tree_are_refused(events: list[Event], path: bytes, problem: str) -> None:
    with pytest.raises(NarTreeError) as caught:
        encode(events)
    assert isinstance(caught.value, InvalidRequest)
    assert caught.value.path == path
    assert problem in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    with pytest.raises(NarTreeError, match=re.escape(problem)):
        hash_one_by_one(events)


def test_depth_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neve.nix.nar.writer.MAX_DEPTH", 2)
    NarEncoder().encode([ROOT, EnterDirectory(b"1")])
    with pytest.raises(NarTreeError, match="more than 2 directories"):
        NarEncoder().encode([ROOT, EnterDirectory(b"1"), EnterDirectory(b"2")])


def test_contents_are_passed_on_uncopied() -> None:
    whole, part = b"w" * 5000, b"p" * 5000
    pieces = NarEncoder().encode(
        [ROOT, File(b"a", True, whole), BeginFile(b"b", False, 5000), Data(part), END_FILE]
    )
    assert any(piece is whole for piece in pieces)
    assert any(piece is part for piece in pieces)


def test_the_hasher_keeps_the_order_of_small_and_large_pieces() -> None:
    events: list[Event] = [
        ROOT,
        File(b"a", False, b"a" * 100),
        File(b"b", False, b"b" * 200_000),
        File(b"c", False, b"c" * 100),
        BeginFile(b"d", False, 600_000),
        Data(b"d" * 300_000),
        Data(b"e" * 300_000),
        END_FILE,
        *[File(b"e%d" % i, False, b"e" * 90_000) for i in range(10, 40)],
        LEAVE_DIRECTORY,
    ]
    nar = encode(events)
    hasher = NarHasher()
    for at in range(0, len(events), 4):
        hasher.feed(events[at : at + 4])
    assert hasher.result() == (len(nar), hashlib.sha256(nar).digest())
