"""Sets of digests in little memory, against Python's."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from neve.store.gc import digest_set
from neve.store.gc.digest_set import DigestSet
from tests.disks import fill_up, small_disk


@pytest.mark.parametrize("recent", [1, 4, 256])
@pytest.mark.parametrize("in_file", [False, True])
def test_like_a_set(recent: int, in_file: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(digest_set, "_MIN_RECENT", recent)
    monkeypatch.setattr(digest_set, "_MAX_RECENT", 2)
    monkeypatch.setattr(digest_set, "_MIN_IN_FILE", 48)
    monkeypatch.setattr(digest_set, "_MIN_MAP", 4096)
    noise = random.Random(recent)
    known = [noise.randbytes(32) for _ in range(3000)]
    digests, expected = DigestSet(tmp_path if in_file else None), set[bytes]()
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
    digests.close()


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


@pytest.mark.root
def test_without_room_for_a_file_it_goes_on_in_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(digest_set, "_MIN_IN_FILE", 48)
    noise = random.Random(3)
    known = [noise.randbytes(32) for _ in range(60_000)]
    with small_disk(tmp_path / "disk", 2_000_000) as disk:
        fill_up(disk / "full", leave=300_000)
        digests = DigestSet(disk)
        for start in range(0, len(known), 500):
            assert len(digests.add_new(known[start : start + 500])) == 500
        assert len(digests) == len(known)
        assert digests.add_new(known) == []
        assert all(digest in digests for digest in known)
        assert noise.randbytes(32) not in digests
        digests.close()
