"""What the reader refuses, how it says so, and what it costs."""

from __future__ import annotations

import itertools
import pickle
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neve.errors import InvalidRequest
from neve.nix.nar import NarEncoder, NarError, NarReader, grammar
from neve.nix.nar.grammar import CLOSE, CONTENTS, DIRECTORY, ENTRY, EXECUTABLE, MAGIC, NODE, REGULAR, SYMLINK
from neve.testing.strategies import trees
from neve.tree import LEAVE_DIRECTORY, WHOLE_FILE_LIMIT, Data, EnterDirectory, Event, File, Symlink

from .cases import load_bad_nars, outcome, read, slices, strings

BAD = load_bad_nars()
FILE = REGULAR + CONTENTS + strings(b"x") + CLOSE


def entry(name: bytes, node: bytes = FILE) -> bytes:
    return ENTRY + strings(name) + NODE + node + CLOSE


def directory(*entries: bytes) -> bytes:
    return DIRECTORY + b"".join(entries) + CLOSE


def length(value: int) -> bytes:
    return value.to_bytes(8, "little")


@pytest.mark.parametrize("name", BAD)
def test_bad_nars_are_refused(name: str) -> None:
    message = outcome([BAD[name]])
    assert isinstance(message, str)
    assert outcome(slices(BAD[name], 1)) == message


def into(name: bytes) -> bytes:
    """An entry up to its node."""
    return ENTRY + strings(name) + NODE


# what is right, what is wrong from its first byte on, path, expected, found
WRONG = [
    (strings(b"(") + length(4), b"kind" + bytes(4), b"", "'type'", "'kind'"),
    (strings(b"("), strings(b"typ"), b"", "'type'", "a string of 3 bytes"),
    (strings(b"(", b"type"), strings(b"fifo"), b"", "'regular', 'symlink' or 'directory'", "of 4 bytes"),
    (REGULAR + EXECUTABLE[:-8], strings(b"1"), b"", "the empty string", "a string of 1 bytes"),
    (REGULAR + EXECUTABLE, EXECUTABLE, b"", "'contents' after 'executable'", "a string of 10 bytes"),
    (REGULAR, CLOSE, b"", "'contents' or 'executable'", "a string of 1 bytes"),
    (REGULAR + CONTENTS, length(2**63), b"", "the contents of a file", f"a string of {2**63} bytes"),
    (REGULAR + CONTENTS + length(3) + b"abc", b"\0\0\1\0\0", b"", "zeros as padding", "00 00 01 00 00"),
    (SYMLINK, strings(b""), b"", "a target of 1 to 4095 bytes", "a string of 0 bytes"),
    (SYMLINK + length(2), b"a\0" + bytes(6), b"", "a target without NUL", r"'a\x00'"),
    (DIRECTORY + length(1), REGULAR[8:], b"", "'entry' or ')'", "'('"),
    (DIRECTORY + ENTRY + length(3), b"a/b" + bytes(5), b"", "a name without '/'", "'a/b'"),
    (DIRECTORY + entry(b"b") + ENTRY + length(1), b"a" + bytes(7), b"", "a name greater than 'b'", "'a'"),
    (DIRECTORY + into(b"d") + FILE[:-16], NODE, b"d", "')' of a node", "a string of 4 bytes"),
    (DIRECTORY + into(b"d") + FILE, NODE, b"d", "')' of an entry", "a string of 4 bytes"),
    (DIRECTORY + into(b"d") + length(1), CLOSE[8:], b"d", "'(' of a node", "')'"),
    (DIRECTORY + into(b"d") + DIRECTORY + into(b"e") + DIRECTORY, NODE, b"d/e", "'entry' or ')'", "4 bytes"),
    (DIRECTORY + entry(b"b") + into(b"b\xff") + SYMLINK, strings(b""), b"b\xff", "a target of", "0 bytes"),
    (DIRECTORY + into(b"l") + SYMLINK + length(2), b"a\0" + bytes(6), b"l", "without NUL", r"'a\x00'"),
    (DIRECTORY + into(b"l") + SYMLINK, strings(b"t" * 4096), b"l", "1 to 4095 bytes", "of 4096 bytes"),
    (DIRECTORY + ENTRY, strings(b""), b"", "a name of 1 to 255 bytes", "a string of 0 bytes"),
    (DIRECTORY + ENTRY + length(1) + b"a", b"\1" * 7, b"", "zeros as padding", "01 01 01 01 01 01 01"),
    (FILE, b"\0", b"", "the end of the archive", "more bytes"),
    (directory(entry(b"a")), CLOSE, b"", "the end of the archive", "more bytes"),
]


@pytest.mark.parametrize(("right", "wrong", "path", "expected", "found"), WRONG)
def test_errors_say_where_and_what(
    right: bytes, wrong: bytes, path: bytes, expected: str, found: str
) -> None:
    for step, rest in itertools.product((1, 13, 2**30), (b"", CLOSE * 4)):
        with pytest.raises(NarError) as caught:
            read(slices(MAGIC + right + wrong + rest, step))
        error = caught.value
        assert isinstance(error, InvalidRequest)
        assert (error.path, error.offset) == (path, len(MAGIC + right))
        assert expected in error.expected
        assert found in error.found
        assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_the_message_shows_any_path() -> None:
    nar = MAGIC + DIRECTORY + into(b"n\xff\n" * 80) + DIRECTORY + into(b"\xc3\xa9") + REGULAR
    message = str(outcome([nar + NODE]))
    assert message.startswith(f"invalid NAR at byte {len(nar)}, in '...")
    assert r"n\xff\nn\xff\n/é': expected 'contents' or 'executable', found a string of 4 bytes" in message


def test_every_truncation_is_refused() -> None:
    nar = MAGIC + directory(
        entry(b"a"), entry(b"b", SYMLINK + strings(b"t") + CLOSE), entry(b"c", directory())
    )
    assert isinstance(outcome([nar]), list)
    for size in range(len(nar)):
        message = outcome([nar[:size]])
        assert isinstance(message, str)
        assert f"at byte {size}," in message
        assert "the end of the data" in message
        assert outcome(slices(nar[:size], 1)) == message


def test_missing_contents_are_counted() -> None:
    message = str(outcome([MAGIC + REGULAR + CONTENTS + length(100) + b"x" * 30]))
    assert "expected 70 more bytes of contents" in message


def test_an_error_sticks() -> None:
    reader = NarReader()
    with pytest.raises(NarError, match="nix-archive-1"):
        reader.feed(strings(b"nix-archive-2"))
    with pytest.raises(NarError, match="nix-archive-2"):
        reader.feed(MAGIC)
    with pytest.raises(NarError, match="nix-archive-2"):
        reader.close()
    assert not reader.done


def test_close_and_done() -> None:
    reader = NarReader()
    done = [(reader.feed(piece), reader.done)[1] for piece in slices(MAGIC + FILE, 8)]
    assert done == [False] * (len(done) - 1) + [True]
    reader.feed(b"")
    reader.close()
    reader.close()
    with pytest.raises(NarError):
        NarReader().close()


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_buffer_may_be_fed_and_reused(kind: type) -> None:
    nar = bytearray(MAGIC + directory(entry(b"a"), entry(b"b", SYMLINK + strings(b"t") + CLOSE)))
    events = NarReader().feed(kind(nar))
    nar[:] = bytes(len(nar))
    assert events == [EnterDirectory(b""), File(b"a", False, b"x"), Symlink(b"b", b"t"), LEAVE_DIRECTORY]
    assert all(type(event[0]) is bytes for event in events if event)


HUGE = [
    pytest.param(REGULAR + CONTENTS + length(2**62), None, id="contents"),
    pytest.param(REGULAR + CONTENTS + length(WHOLE_FILE_LIMIT), None, id="small contents"),
    pytest.param(SYMLINK + length(2**62), "a target of 1 to 4095 bytes", id="target"),
    pytest.param(SYMLINK + length(4096), "a target of 1 to 4095 bytes", id="target too long"),
    pytest.param(DIRECTORY + ENTRY + length(2**64 - 1), "a name of 1 to 255 bytes", id="name"),
    pytest.param(DIRECTORY + ENTRY + length(256), "a name of 1 to 255 bytes", id="name too long"),
    pytest.param(length(2**62), "'nix-archive-1'", id="token"),
]


@pytest.mark.parametrize(("body", "refused"), HUGE)
def test_a_claimed_length_is_not_believed(body: bytes, refused: str | None) -> None:
    tracemalloc.start()
    try:
        reader = NarReader()
        data = (b"" if refused == "'nix-archive-1'" else MAGIC) + body
        if refused is None:
            reader.feed(data)
            reader.feed(b"x" * 100)
        else:
            with pytest.raises(NarError, match=refused):
                reader.feed(data)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_memory_is_bounded_whatever_the_size_of_a_file() -> None:
    size, step = 32 << 20, 700_000
    piece = bytes(step)
    tracemalloc.start()
    try:
        reader = NarReader()
        reader.feed(MAGIC + REGULAR + CONTENTS + length(size))
        seen = 0
        for at in range(0, size, step):
            data = [event.data for event in reader.feed(piece[: size - at]) if isinstance(event, Data)]
            assert max(map(len, data)) <= WHOLE_FILE_LIMIT
            seen += sum(map(len, data))
        assert tracemalloc.get_traced_memory()[1] < 3 * step
    finally:
        tracemalloc.stop()
    assert seen == size
    reader.feed(CLOSE)
    reader.close()


def test_depth_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neve.nix.nar.reader.MAX_DEPTH", 3)
    nested = directory(entry(b"1", directory(entry(b"2", directory()))))
    assert isinstance(outcome([MAGIC + nested]), list)
    message = outcome([MAGIC + directory(entry(b"0", nested))])
    assert "in '0/1/2': expected at most 3 directories" in str(message)
    assert outcome(slices(MAGIC + directory(entry(b"0", nested)), 1)) == message


@pytest.mark.parametrize(
    "name", [b"n" * 255, bytes(range(1, 47)), bytes(range(48, 256)), b"...", b"\xff\xfe"]
)
def test_odd_names(name: bytes) -> None:
    expected = [EnterDirectory(b""), File(name, False, b"x"), LEAVE_DIRECTORY]
    for step in (1, 2**30):
        assert read(slices(MAGIC + directory(entry(name)), step)) == expected


LENGTHS = st.sampled_from([0, 1, 2, 8, 255, 256, 2**62]).map(length)
TOKENS = st.sampled_from([CLOSE, ENTRY, NODE, EXECUTABLE, bytes(8)])


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """An archive with up to three damages, many of them near to valid."""
    encoder = NarEncoder()
    nar = b"".join(encoder.encode(draw(trees(max_leaves=6))))
    position = st.integers(0, len(nar))
    for _ in range(draw(st.integers(0, 3))):
        start, stop = sorted((draw(position), draw(position)))
        word = start & ~7
        damages = [
            nar[:start],
            nar[:start] + nar[stop:],
            nar[:stop] + nar[start:],
            nar[:start] + draw(st.binary(min_size=1, max_size=9)) + nar[start:],
            nar[:start] + draw(st.binary(min_size=1, max_size=1)) + nar[start + 1 :],
            nar[:word] + draw(LENGTHS) + nar[word + 8 :],
            nar[:word] + draw(TOKENS) + nar[word:],
            nar[:word] + nar[word + 8 :],
        ]
        nar = draw(st.sampled_from(damages))
    return nar


@settings(max_examples=200, deadline=None)
@given(damaged(), st.integers(2, 400))
def test_both_ways_agree_whatever_comes(nar: bytes, step: int) -> None:
    whole = outcome([nar])
    assert outcome(slices(nar, 1)) == whole
    assert outcome(slices(nar, step)) == whole


@given(st.binary(max_size=100))
def test_garbage_is_refused(garbage: bytes) -> None:
    assert isinstance(outcome([garbage]), str)
    assert isinstance(outcome([MAGIC + garbage]), str)


def test_every_state_has_its_lengths() -> None:
    assert set(grammar.LENGTHS) == set(grammar.State)


def test_what_is_read_can_be_written_again() -> None:
    nar = MAGIC + directory(entry(b"a", REGULAR + EXECUTABLE + CONTENTS + strings(b"y") + CLOSE), entry(b"b"))
    events: list[Event] = read([nar])
    assert b"".join(NarEncoder().encode(events)) == nar
