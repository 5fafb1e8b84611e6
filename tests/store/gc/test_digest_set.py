"""Sets of digests in little memory, against Python's."""

from __future__ import annotations

import random

import pytest

from neve.store.gc import digest_set
from neve.store.gc.digest_set import DigestSet


@pytest.mark.parametrize("recent", [1, 4, 256])
def test_like_a_set(recent: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digest_set, "_MIN_RECENT", recent)
    noise = random.Random(recent)
    known = [noise.randbytes(32) for _ in range(3000)]
    digests, expected = DigestSet(), set[bytes]()
    for _ in range(60):
        some = noise.choices(known, k=100)
        new = digests.add_new(some)
        assert set(new) == set(some) - expected
        assert len(new) == len(set(new))
        expected.update(some)
        assert len(digests) == len(expected)
        asked = sorted(noise.sample(known, 200))
        assert digests.absent(asked) == [digest for digest in asked if digest not in expected]
        assert [digest in digests for digest in asked] == [digest in expected for digest in asked]


def test_an_empty_one() -> None:
    digests = DigestSet()
    assert len(digests) == 0
    assert digests.absent([]) == []
    assert digests.absent([bytes(32), b"\xff" * 32]) == [bytes(32), b"\xff" * 32]
    assert bytes(32) not in digests


def test_it_takes_little_memory() -> None:
    """Less than half of what a set takes."""
    import tracemalloc

    tracemalloc.start()
    try:
        digests = DigestSet()
        for number in range(200):
            noise = random.Random(number)
            digests.add_new([noise.randbytes(32) for _ in range(1000)])
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size / len(digests) < 60
