from __future__ import annotations

import itertools
import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neve.nix import base32, references
from neve.nix.references import ReferenceScanner
from neve.nix.store_path import InvalidStorePath

RANDOM = random.Random(4)
ALPHABET = base32.ALPHABET.encode()
CANDIDATES = [RANDOM.randbytes(20) for _ in range(40)]
# Digests that are hard to tell apart: they differ in one character, or are shifted, or all the same.
NEAR = [
    base32.decode(text)
    for text in (
        "0" * 32,
        "0" * 31 + "1",
        "1" + "0" * 31,
        "01" * 16,
        "10" * 16,
        "0123456789abcdfghijklmnpqrsvwxyz",
        "123456789abcdfghijklmnpqrsvwxyz0",
        "z" * 32,
    )
]


def text(digest: bytes) -> bytes:
    return base32.encode(digest).encode()


def naive(digests: list[bytes], content: bytes) -> set[bytes]:
    return {digest for digest in digests if text(digest) in content}


def scanned(digests: list[bytes], pieces: list[bytes]) -> set[bytes]:
    scanner = ReferenceScanner(digests)
    for piece in pieces:
        scanner.feed(piece)
    return scanner.found()


def split(content: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(content), *(cut % (len(content) + 1) for cut in cuts)})
    return [content[a:b] for a, b in itertools.pairwise(places)]


def alphabet_text(size: int) -> st.SearchStrategy[bytes]:
    return st.binary(max_size=size).map(lambda data: bytes(ALPHABET[byte % 32] for byte in data))


def contents(digests: list[bytes]) -> st.SearchStrategy[bytes]:
    """Mentions, cut short or not, among filling of several kinds."""
    mention = st.sampled_from(digests).map(text)
    part = st.one_of(
        mention,
        st.tuples(mention, st.integers(0, 32)).map(lambda cut: cut[0][cut[1] :]),
        st.tuples(mention, st.integers(0, 32)).map(lambda cut: cut[0][: cut[1]]),
        st.binary(max_size=60),
        alphabet_text(60),
        st.sampled_from([b"\0" * 50, b"0" * 40, b"z" * 70, b"/nix/store/", b"-name\n", b"\n"]),
    )
    return st.lists(part, max_size=30).map(b"".join)


@pytest.fixture(params=["as it is", "first way", "second way", "dense words", "every position"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Small contents would never come to the second way, nor few candidates to its variants."""
    name: str = request.param
    if name != "as it is":
        monkeypatch.setattr(references, "_BYTES_PER_LOOK", 1e-9 if name == "first way" else 1 << 40)
    if name in ("dense words", "every position"):
        monkeypatch.setattr(references, "_MAX_WORDS", 40 * 8 if name == "dense words" else 1)
    if name == "first way":
        monkeypatch.setattr(ReferenceScanner, "_sweep", None)
    return name


@pytest.mark.usefixtures("way")
class TestEveryWay:
    @given(st.data(), st.lists(st.integers(0, 10_000), max_size=8), st.booleans())
    def test_like_the_naive_one(self, data: st.DataObject, cuts: list[int], near: bool) -> None:
        digests = NEAR if near else CANDIDATES
        content = data.draw(contents(digests))
        expected = naive(digests, content)
        assert scanned(digests, [content]) == expected
        assert scanned(digests, split(content, cuts)) == expected
        assert scanned(digests, [bytes([byte]) for byte in content]) == expected

    @pytest.mark.parametrize("filling", [b"\0", b" ", b"e", b"0", b"z", b"abc9"])
    def test_at_every_place(self, filling: bytes) -> None:
        digest = CANDIDATES[0]
        for before in range(90):
            content = (filling * before)[:before] + text(digest) + filling * 40
            assert scanned(CANDIDATES, [content]) == {digest}

    def test_at_either_end(self) -> None:
        content = text(CANDIDATES[1]) + b"zzz" * 100 + b" " * 100 + text(CANDIDATES[2])
        assert scanned(CANDIDATES, [content]) == set(CANDIDATES[1:3])
        assert scanned(CANDIDATES, [content[1:-1]]) == set()

    def test_found_may_be_asked_at_any_time(self) -> None:
        scanner = ReferenceScanner(CANDIDATES)
        assert scanner.found() == set()
        scanner.feed(text(CANDIDATES[0])[:20])
        assert scanner.found() == set()
        scanner.feed(text(CANDIDATES[0])[20:] + text(CANDIDATES[1]))
        assert scanner.found() == {CANDIDATES[0], CANDIDATES[1]}
        scanner.feed(b"z" + text(CANDIDATES[0]) + text(CANDIDATES[2])[:31])
        assert scanner.found() == {CANDIDATES[0], CANDIDATES[1]}
        scanner.feed(text(CANDIDATES[2])[31:])
        assert scanner.found() == set(CANDIDATES[:3])


LARGE = 3 * references._PIECE_BYTES + 12345


def fillings() -> dict[str, bytes]:
    numbers = random.Random(7)
    return {
        "zeros": bytes(LARGE),
        "noise": numbers.randbytes(LARGE),
        "alphabet": bytes(ALPHABET[byte & 31] for byte in numbers.randbytes(LARGE)),
        "hexadecimal": numbers.randbytes(LARGE // 2).hex().encode(),
        "one character": b"0" * LARGE,
        "other hashes": b"".join(text(numbers.randbytes(20)) + b"-x\n" for _ in range(LARGE // 35)),
    }


@pytest.mark.parametrize("kind", list(fillings()))
@pytest.mark.parametrize("piece", [1000, 100_000, LARGE])
def test_large_contents(kind: str, piece: int) -> None:
    content = bytearray(fillings()[kind])
    numbers = random.Random(len(kind))
    mentioned = CANDIDATES[::3]
    for digest in mentioned:
        place = numbers.randrange(len(content) - 32)
        content[place : place + 32] = text(digest)
    digests = [*CANDIDATES, *NEAR]
    expected = naive(digests, bytes(content))
    pieces = [bytes(content[start : start + piece]) for start in range(0, len(content), piece)]
    assert scanned(digests, pieces) == expected


def test_many_mentions_of_few() -> None:
    """Contents that consist of references are no reason to look at every byte again and again."""
    lines = b"".join(b"/nix/store/" + text(digest) + b"-name\n" for digest in CANDIDATES * 500)
    assert scanned([*CANDIDATES, *NEAR], [lines]) == set(CANDIDATES)


def test_candidates_that_share_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is found must not take the words of another with it."""
    monkeypatch.setattr(references, "_BYTES_PER_LOOK", 1 << 40)
    first, second = b"0123456789abcdf" + b"g" * 17, b"0123456789abcdf" + b"h" * 17
    digests = [base32.decode(first), base32.decode(second)]
    for content in (first + b"z" * 100 + second, second + first):
        assert scanned(digests, [content]) == set(digests)


def test_memory_views_are_not_kept() -> None:
    buffer = bytearray(text(CANDIDATES[0]))
    scanner = ReferenceScanner(CANDIDATES)
    scanner.feed(memoryview(buffer))
    buffer[:] = bytes(32)
    assert scanner.found() == {CANDIDATES[0]}
    wide = memoryview(struct.pack("<8I", *struct.unpack("<8I", text(CANDIDATES[1])))).cast("I")
    scanner.feed(wide)
    assert scanner.found() == set(CANDIDATES[:2])


def test_no_candidates() -> None:
    assert scanned([], [b"z" * 1000, text(CANDIDATES[0])]) == set()


def test_no_contents() -> None:
    assert scanned(CANDIDATES, []) == set()
    assert scanned(CANDIDATES, [b"", b""]) == set()


def test_repeated_candidates() -> None:
    assert scanned(CANDIDATES * 2, [text(CANDIDATES[0])]) == {CANDIDATES[0]}


@pytest.mark.parametrize("size", [0, 19, 21, 32])
def test_digests_of_another_length(size: int) -> None:
    with pytest.raises(InvalidStorePath, match=f"store path digest of {size} bytes, expected 20"):
        ReferenceScanner([CANDIDATES[0], bytes(size)])
