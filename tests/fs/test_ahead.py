"""The rules for what is fetched ahead."""

from __future__ import annotations

import random

from neve.fs.ahead import (
    FIRST_NEIGHBOURS,
    MOST_BELOW,
    MOST_NEIGHBOURS,
    Looks,
    Neighbours,
    ReadWalks,
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


# Directories that are listed, and then their files are read.


def test_who_reads_what_he_lists_is_expected_to_go_on() -> None:
    reads = ReadWalks()
    reads.listed(2, 1, has_files=True)
    reads.made(100, 110, 2, 1)
    assert not reads.will_read(2)
    reads.read(105)
    assert reads.will_read(2)
    assert reads.is_sure(2)
    for child in range(3, 3 + 100):
        first = 100 * child
        reads.listed(child, 2, has_files=True)
        reads.made(first, first + 50, child, 2)
        assert reads.will_read(child)
        if not reads.is_sure(child):  # Else the kernel may have got all of it, and does not ask.
            reads.read(first + 49)


def test_who_reads_nothing_any_more_is_expected_to_have_stopped() -> None:
    reads = ReadWalks()
    reads.listed(2, 1, has_files=True)
    reads.made(100, 110, 2, 1)
    reads.read(100)
    expected = 0
    for child in range(3, 23):
        reads.listed(child, 2, has_files=True)
        reads.made(100 * child, 100 * child + 50, child, 2)
        expected += reads.will_read(child)
    assert 0 < expected < 6


def test_nor_is_it_expected_all_over_a_deep_tree_any_more() -> None:
    reads = ReadWalks()
    reads.listed(2, 1, has_files=True)
    reads.made(100, 110, 2, 1)
    reads.read(100)
    expected, number, left = 0, 2, [(2, 1)] * 5
    while left:
        parent, depth = left.pop()
        number += 1
        reads.listed(number, parent, has_files=True)
        expected += reads.will_read(number)
        left += [(number, depth + 1)] * (5 if depth < 5 else 0)
    assert number > 3000
    assert 0 < expected <= 16
    reads.made(200, 210, number, 2)
    reads.read(200)
    assert reads.will_read(number)  # Until it is seen again.


def test_who_reads_down_a_deep_tree_is_expected_to_go_on() -> None:
    reads = ReadWalks()
    reads.listed(2, 1, has_files=True)
    reads.made(100, 110, 2, 1)
    reads.read(100)
    for number in range(3, 300):
        reads.listed(number, number - 1, has_files=True)
        reads.made(100 * number, 100 * number + 50, number, number - 1)
        assert reads.will_read(number)
        if not reads.is_sure(number):
            reads.read(100 * number)


def test_directories_without_files_say_nothing_about_who_reads() -> None:
    reads = ReadWalks()
    reads.listed(2, 1, has_files=True)
    reads.made(100, 110, 2, 1)
    reads.read(100)
    for child in range(3, 103):
        reads.listed(child, 2, has_files=False)
        assert reads.is_sure(child)


def test_files_that_no_listing_told_of_say_nothing() -> None:
    reads = ReadWalks()
    reads.listed(2, 1, has_files=True)
    reads.made(100, 110, 2, 1)
    for number in (99, 110):
        reads.read(number)
    assert not reads.will_read(2)


def test_walks_are_remembered_in_bounded_memory() -> None:
    reads = ReadWalks()
    for number in range(2, 20_000):
        reads.listed(number, number - 1, has_files=True)
        reads.made(10 * number, 10 * number + 10, number, number - 1)
        reads.read(10 * number)
    assert len(reads._trust) < 2000
    assert len(reads._ranges) < 100


def test_who_looks_at_what_he_lists_is_expected_to_go_on_for_a_while() -> None:
    looks = Looks()
    assert not looks.will_look(10, 1)
    looks.looked_up(10, 1)
    # In the same directory, and in those beside it; not elsewhere.
    assert looks.will_look(10, 1)
    assert looks.will_look(11, 1)
    assert not looks.will_look(20, 2)
    listed = 0
    while looks.will_look(12, 1):
        listed += 1
        assert listed < 1000
    assert listed > 10
    looks.looked_up(12, 1)
    assert looks.will_look(13, 1)


def test_looks_are_forgotten_in_time() -> None:
    looks = Looks()
    for number in range(2, 5000):
        looks.looked_up(number, 1)
    assert not looks.will_look(2, 0)
    assert looks.will_look(4999, 0)
    assert looks.will_look(6000, 1)
