"""Staged frames and whose they are."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from neve.packstore.appender import OpenPack, lock_pack
from neve.packstore.location import Location, make_place
from neve.packstore.sessions import Portion, Session, StagedFrame, give_back_apart

SIZE = 100


@pytest.fixture
def packs(tmp_path: Path) -> Iterator[list[OpenPack]]:
    """Two empty ones."""
    opened = []
    for number in (1, 2):
        path = tmp_path / str(number)
        path.touch()
        found = lock_pack(path, number)
        assert found is not None
        opened.append(found)
    yield opened
    for one in opened:
        one.close()


def frame(session: Session, held: OpenPack, keys: Sequence[bytes], tag: int = 1) -> StagedFrame:
    offset = held.append(bytes(SIZE))
    placed = [Location(tag, make_place(held.id, offset + 10), 0, 90, 90, 10, n, 1) for n in range(len(keys))]
    return StagedFrame(session, held, offset, SIZE, 1, keys, placed)


def sizes(packs: Sequence[OpenPack]) -> list[int]:
    for one in packs:
        assert os.fstat(one.fd).st_size == one.end
    return [one.end for one in packs]


def test_what_is_found() -> None:
    assert Portion().find(1, [b"a"]) == {}


def test_the_higher_tag_counts_and_then_the_first(packs: list[OpenPack]) -> None:
    session = Session(0)
    low, high = frame(session, packs[0], [b"a", b"b"]), frame(session, packs[0], [b"a"], tag=2)
    again = frame(session, packs[0], [b"a", b"b"])
    portion = Portion([low, high, again])
    assert portion.find(1, [b"a", b"b", b"c"]) == {b"a": high.placed[0], b"b": low.placed[1]}
    assert portion.find(2, [b"a"]) == {}
    assert (portion.records, portion.bytes) == (5, 3 * SIZE)
    joined = Portion([again])
    joined.join(portion)
    assert joined.find(1, [b"a", b"b"]) == {b"a": high.placed[0], b"b": again.placed[1]}


def test_the_end_is_given_back_once_its_session_has_ended(packs: list[OpenPack]) -> None:
    first, second = Session(0), Session(0)
    frames = [frame(who, packs[0], [key]) for who, key in ((first, b"a"), (second, b"b"), (second, b"c"))]
    portion = Portion(frames)
    first.ended = True
    # It lies in the middle: nobody can cut it out.
    assert portion.given_back(nobody_left=False) is portion
    assert sizes(packs) == [3 * SIZE, 0]
    first.ended, second.ended = False, True
    left = portion.given_back(nobody_left=False)
    assert sizes(packs) == [SIZE, 0]
    assert left.frames == frames[:1]
    assert left.find(1, [b"a", b"b", b"c"]).keys() == {b"a"}
    first.ended = True
    assert left.given_back(nobody_left=False).frames == []
    assert sizes(packs) == [0, 0]


def test_what_stood_for_another_record_does_so_no_more(packs: list[OpenPack]) -> None:
    alive, gone = Session(0), Session(0)
    chunk, blob = frame(alive, packs[0], [b"a"]), frame(gone, packs[0], [b"a"], tag=2)
    portion = Portion([chunk, blob])
    assert portion.find(1, [b"a"])[b"a"].tag == 2
    gone.ended = True
    assert portion.given_back(nobody_left=False).find(1, [b"a"]) == {b"a": chunk.placed[0]}


def test_what_somebody_counts_on_stays(packs: list[OpenPack]) -> None:
    gone, other = Session(0), Session(0)
    frames = [frame(gone, packs[0], [key]) for key in (b"a", b"b", b"c")]
    portion = Portion(frames)
    portion.count_on(portion.find(1, [b"b"]).values(), other)
    portion.count_on(portion.find(1, [b"c"]).values(), gone)
    gone.ended = True
    left = portion.given_back(nobody_left=False)
    assert left.frames == frames[:2]
    assert sizes(packs) == [2 * SIZE, 0]
    assert left.given_back(nobody_left=False) is left
    assert left.given_back(nobody_left=True).frames == []
    assert sizes(packs) == [0, 0]


def test_several_packs(packs: list[OpenPack]) -> None:
    alive, gone = Session(0), Session(0)
    owners = [(alive, packs[0]), (gone, packs[0]), (gone, packs[1]), (gone, packs[1])]
    portion = Portion([frame(who, held, [b"%d" % n]) for n, (who, held) in enumerate(owners)])
    gone.ended = True
    assert len(portion.given_back(nobody_left=False).frames) == 1
    assert sizes(packs) == [SIZE, 0]


def test_a_pack_that_cannot_be_cut(packs: list[OpenPack], tmp_path: Path) -> None:
    """What lies in it stays staged, and so does what came before."""
    gone = Session(0)
    frames = [frame(gone, held, [b"%d" % n]) for n, held in enumerate((packs[0], packs[1], packs[0]))]
    gone.ended = True
    writable, packs[1].fd = packs[1].fd, os.open(tmp_path / "2", os.O_RDONLY)
    left = Portion(frames).given_back(nobody_left=True)
    assert left.frames == frames[:2]
    assert [one.end for one in packs] == [SIZE, SIZE]
    os.close(packs[1].fd)
    packs[1].fd = writable
    assert left.given_back(nobody_left=True).frames == []
    assert sizes(packs) == [0, 0]


def test_a_pack_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "pack"
    path.write_bytes(bytes(50))
    held = lock_pack(path, 1)
    assert held is not None
    session = Session(0)
    session.packs = [held]
    session.apart.add(frame(session, held, [b"a"]))
    own, portion = session.leave()
    assert own == [held]
    assert session.leave()[0] == []
    assert session.apart.frames == []
    give_back_apart(own, portion)
    assert path.stat().st_size == 50
    again = lock_pack(path, 1)
    assert again is not None
    again.close()
