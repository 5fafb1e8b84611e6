"""The rules for what is fetched ahead."""

from __future__ import annotations

import random

from neve.fs.ahead import (
    FIRST_NEIGHBOURS,
    MOST_BELOW,
    MOST_NEIGHBOURS,
    Neighbours,
    Streams,
    Walks,
)

MIB = 1 << 20
SIZE = 100 * MIB


def test_who_reads_in_order_has_everything_fetched_once() -> None:
    streams = Streams()
    fetched = MIB  # The first read fetches itself.
    for start in range(0, SIZE, MIB):
        assert start < fetched
        ahead = streams.read("file", start, start + MIB, SIZE)
        if ahead is not None:
            assert ahead[0] == fetched
            assert ahead[0] < ahead[1] <= SIZE
            assert ahead[1] - start <= 10 * MIB
            fetched = ahead[1]
    assert fetched == SIZE
    assert streams.is_in_order("file", SIZE)


def test_small_disorder_is_order() -> None:
    """A kernel that reads ahead has several requests under way."""
    streams = Streams()
    fetched = MIB
    for start in range(0, SIZE // 2, 2 * MIB):
        for one in (start + MIB, start):
            ahead = streams.read("file", one, one + MIB, SIZE)
            if ahead is not None:
                fetched = max(fetched, ahead[1])
    assert fetched > SIZE // 2
    assert streams.is_in_order("file", SIZE // 2)


def test_who_jumps_has_nothing_fetched() -> None:
    streams = Streams()
    rng = random.Random(1)
    fetched = 0
    for _ in range(100):
        start = rng.randrange(10 * MIB, SIZE)
        ahead = streams.read("file", start, start + 4096, SIZE)
        fetched += ahead[1] - ahead[0] if ahead else 0
    assert fetched < 20 * MIB
    streams.read("file", 5 * MIB, 5 * MIB + 4096, SIZE)
    assert not streams.is_in_order("file", 5 * MIB + 4096)


def test_files_that_are_not_read_any_more_are_forgotten() -> None:
    streams = Streams()
    for number in range(1000):
        streams.read(number, 0, MIB, SIZE)
    assert len(streams._files) < 100
    assert streams.is_in_order(999, MIB)
    assert not streams.is_in_order(0, MIB)


def test_several_who_read_one_file_in_different_places() -> None:
    streams = Streams()
    places = [number * SIZE // 5 for number in range(5)]
    fetched = [start + 2 * MIB for start in places]  # It takes two reads to see an order.
    for step in range(0, SIZE // 5 - 2 * MIB, MIB):
        for reader, place in enumerate(places):
            start = place + step
            assert start < fetched[reader]
            ahead = streams.read("file", start, start + MIB, SIZE)
            if ahead is not None:
                assert ahead[0] <= fetched[reader]
                fetched[reader] = ahead[1]
    for place in places:
        assert streams.is_in_order("file", place + SIZE // 5 - 2 * MIB)


def test_readers_of_one_file_that_are_gone_are_forgotten() -> None:
    streams = Streams()
    for number in range(1000):
        streams.read("file", number * 3 * MIB, number * 3 * MIB + MIB, 3000 * MIB)
    assert len(streams._files["file"]) < 20


def test_neighbours_that_are_read_in_order() -> None:
    neighbours = Neighbours()
    at_hand: set[int] = set()
    misses = 0
    widest = 0
    for number in range(100, 3000):
        if number in at_hand:
            window = neighbours.used(number)
        else:
            misses += 1
            window = neighbours.missed(number)
            assert window.start == number
        if window is not None:
            at_hand.update(range(*window))
            widest = max(widest, window.stop - window.start)
            assert window.start < window.middle < window.stop
    assert misses == 1
    assert widest == MOST_NEIGHBOURS
    assert max(at_hand) < 3000 + 2 * MOST_NEIGHBOURS


def test_neighbours_that_are_read_with_gaps() -> None:
    neighbours = Neighbours()
    window = neighbours.missed(100)
    for _ in range(20):
        following = neighbours.missed(window.stop + 5)
        assert following.stop - following.start in (MOST_NEIGHBOURS, 2 * (window.stop - window.start))
        window = following


def test_neighbours_that_are_read_anyhow() -> None:
    neighbours = Neighbours()
    rng = random.Random(3)
    total = 0
    for _ in range(1000):
        window = neighbours.missed(rng.randrange(1_000_000))
        total += window.stop - window.start
    assert total < 1010 * FIRST_NEIGHBOURS
    assert neighbours.used(1_000_001) is None


def test_several_who_read_neighbours() -> None:
    neighbours = Neighbours()
    misses = 0
    at_hand: set[int] = set()
    for step in range(500):
        for reader in range(4):
            number = reader * 1_000_000 + step
            window = neighbours.used(number) if number in at_hand else neighbours.missed(number)
            misses += number not in at_hand
            at_hand.update(range(*window) if window else ())
    assert misses == 4


def test_the_more_is_listed_the_more_is_fetched_below() -> None:
    walks = Walks()
    first = walks.listed(2, 1)
    deeper = [walks.listed(number, number - 1) for number in range(3, 6)]
    assert [first, *deeper] == sorted([first, *deeper])
    beside = [walks.listed(number, 2) for number in range(10, 30)]
    assert beside[-1] == MOST_BELOW
    # Somewhere else it begins anew, and all of it is forgotten some day.
    assert walks.listed(5_000, 4_999) == first
    for number in range(10_000, 20_000, 2):
        walks.listed(number + 1, number)
    assert len(walks._listed) < 2000
