"""What is staged and given up gives its space back; what others count on stays."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from neve.errors import DiskFull, Unavailable
from neve.packstore import appender, staging
from neve.packstore.frames import Record
from neve.packstore.pack import HEADER_SIZE
from neve.packstore.rebuild import rebuild_index
from neve.packstore.sessions import Session
from neve.packstore.store import PackStore
from tests.packstore.helpers import (
    BLOBS,
    TABLES,
    committed_lengths,
    contents,
    open_descriptors,
    opened,
    pack_paths,
    problems,
    put,
    record,
    records,
    set_name,
    stage,
)
from tests.packstore.many_puts import all_at_once
from tests.packstore.test_recovery import Camera

LITTLE = 50_000
"""What may wait, here, for each session."""


@pytest.fixture(autouse=True)
def apart_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "APART_FROM", LITTLE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(folder: Path) -> Iterator[PackStore]:
    """One with something in it."""
    with opened(folder) as store:
        put(store, records(0))
        yield store


def noise(size: int, seed: int = 0) -> Record:
    return record(random.Random(f"{seed} {size}").randbytes(size))


def stage_much(store: PackStore, session: Session, seed: int, count: int = 20) -> list[Record]:
    """More than may lie in common, a frame each."""
    made = [noise(10_000 + number, seed) for number in range(count)]
    for one in made:
        store.stage(BLOBS, [one], session)
    return made


def sizes(store: PackStore) -> list[int]:
    return [path.stat().st_size for path in pack_paths(store.path)]


def blocks(store: PackStore) -> int:
    """What the packs take of the disk."""
    return sum(path.stat().st_blocks for path in pack_paths(store.path))


def check_sizes(store: PackStore) -> None:
    """There is nothing behind what was committed."""
    lengths = store.index.pack_lengths()
    for path in pack_paths(store.path):
        assert path.stat().st_size == lengths.get(int(path.stem, 16), HEADER_SIZE)


def missing(store: PackStore, given: list[Record]) -> int:
    return len(store.missing(BLOBS, [one.key for one in given]))


@pytest.mark.parametrize("where", ["waiting", "apart", "in common"])
def test_what_is_given_up_gives_its_space_back(store: PackStore, where: str) -> None:
    before, blocks_before = sizes(store), blocks(store)
    count = 4 if where == "waiting" else 100
    with store.writer.session() as session:
        given = stage_much(store, session, 1, count)
        if where == "waiting":
            assert sizes(store) == before
        else:
            assert sum(sizes(store)) > sum(before) + count * 10_000
            assert blocks(store) > blocks_before
        if where == "in common":
            assert store.locate(BLOBS, [given[0].key])
            assert store.locate(BLOBS, [given[-1].key])
            more = stage_much(store, session, 2, 3)
            assert missing(store, more) == 3
    assert sum(sizes(store)) == sum(before) + (HEADER_SIZE if where != "waiting" else 0)
    assert blocks(store) <= blocks_before + 8
    check_sizes(store)
    assert missing(store, given) == count
    assert store.locate(BLOBS, [one.key for one in given]) == {}
    assert problems(store) == []
    put(store, given)
    assert missing(store, given) == 0
    assert problems(store) == []


def test_ending_again_does_nothing(store: PackStore) -> None:
    session = store.writer.begin()
    put(store, records(1))
    store.writer.end(session)
    other = store.writer.begin()
    store.stage(BLOBS, records(2), other)
    store.writer.end(session)
    store.writer.commit(other)
    assert missing(store, records(1, 2)) == 0


@pytest.mark.parametrize("count", [3, 20], ids=["waiting", "apart"])
def test_nobody_elses_commit_takes_it_along(store: PackStore, count: int) -> None:
    session = store.writer.begin()
    given = stage_much(store, session, 1, count)
    put(store, records(1))
    set_name(store, b"name", b"value")
    assert missing(store, given) == count
    store.writer.commit(session)
    assert missing(store, given) == 0
    store.writer.end(session)
    assert problems(store) == []
    check_sizes(store)


def test_others_go_on_while_an_upload_is_given_up(store: PackStore) -> None:
    """Theirs lies before, between and behind it."""
    with store.writer.session() as one, store.writer.session() as two:
        first = stage_much(store, one, 1, 30)
        with store.writer.session() as gone:
            lost = stage_much(store, gone, 2, 30)
            second = stage_much(store, two, 3, 30)
            first += stage_much(store, one, 4, 5)
            size = sum(sizes(store))
        assert sum(sizes(store)) < size - 20 * 10_000
        store.writer.commit(two)
        store.writer.commit(one)
    assert missing(store, first + second) == 0
    assert missing(store, lost) == len(lost)
    assert problems(store) == []
    check_sizes(store)


@pytest.mark.parametrize("count", [3, 20], ids=["waiting", "apart"])
@pytest.mark.parametrize("ends", ["with a commit", "given up"])
def test_what_another_session_has_found_stays(store: PackStore, count: int, ends: str) -> None:
    """And so does what was staged before it, to which it may refer."""
    before = sum(sizes(store))
    other = store.writer.begin()
    with store.writer.session() as session:
        kept = stage_much(store, session, 1, count)
        assert store.locate(BLOBS, [kept[-1].key], other).keys() == {kept[-1].key}
        given = kept + stage_much(store, session, 2, count)
    assert store.locate(BLOBS, [one.key for one in given], other).keys() == {one.key for one in kept}
    if ends == "with a commit":
        store.writer.commit(other)
        assert missing(store, kept) == 0
        assert contents(store).keys() == {one.key for one in records(0) + kept}
    store.writer.end(other)
    check_sizes(store)
    if ends == "given up":
        assert missing(store, given) == len(given)
        assert sum(sizes(store)) <= before + 2 * HEADER_SIZE
    assert problems(store) == []


def test_two_that_stage_the_same(store: PackStore) -> None:
    """One follows the other at some distance: there are no packs without end."""
    with store.writer.session() as ahead, store.writer.session() as behind:
        followed = [noise(20_000 + number) for number in range(40)]
        for place, one in enumerate(followed):
            store.stage(BLOBS, [one], ahead)
            if place >= 5:
                key = followed[place - 5].key
                assert store.locate(BLOBS, [key], behind).keys() == {key}
        assert len(sizes(store)) <= 2
        put(store, records(1))
        assert missing(store, followed) == 0
        store.writer.commit(ahead)
        late = stage_much(store, ahead, 1)
        put(store, records(2))
        assert missing(store, late) == len(late)
    assert missing(store, late) == len(late)
    check_sizes(store)


def test_what_was_found_before_it_was_given_up_counts_for_new_sessions_too(store: PackStore) -> None:
    staying = store.writer.begin()
    with store.writer.session() as session:
        store.stage(BLOBS, records(1), session)
        assert store.locate(BLOBS, [records(1)[0].key], staying)
    with store.writer.session() as late:
        assert store.locate(BLOBS, [records(1)[0].key], late)
        store.writer.end(staying)
        store.writer.commit(late)
    assert missing(store, records(1)) == 0


def test_a_postponed_commit_is_given_back_too(store: PackStore) -> None:
    before = sum(sizes(store))
    given: list[Record] = []

    def fail() -> None:
        with store.one_commit():
            with store.writer.session() as session:
                given.extend(stage_much(store, session, 1))
                store.writer.commit(session)
            # Its owner is done with it, the commit is not made yet.
            assert store.locate(BLOBS, [given[-1].key])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert missing(store, given) == len(given)
    assert sum(sizes(store)) == before + HEADER_SIZE
    with store.one_commit(), store.writer.session() as session:
        store.stage(BLOBS, given, session)
        store.writer.commit(session)
        assert missing(store, given) == len(given)
    assert missing(store, given) == 0
    check_sizes(store)


def test_all_that_is_staged_is_bounded(store: PackStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what several have apart; then everything is committed, and they go on."""
    monkeypatch.setattr(staging, "MAX_STAGED_BYTES", 300_000)
    sessions = [store.writer.begin() for _ in range(3)]
    given = [one for seed, session in enumerate(sessions) for one in stage_much(store, session, seed, 15)]
    assert missing(store, given) < 20
    for session in sessions:
        store.writer.commit(session)
        store.writer.end(session)
    assert missing(store, given) == 0
    assert problems(store) == []


def test_what_waits_in_memory_is_bounded(store: PackStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """In all sessions together: who comes with a whole frame when others hold much gets a pack at once."""
    monkeypatch.setattr(staging, "MAX_WAITING_BYTES", 100_000)
    monkeypatch.setattr(staging, "FRAME_TARGET", 10_000)
    before = sizes(store)
    sessions = [store.writer.begin() for _ in range(4)]
    given = [one for seed, session in enumerate(sessions) for one in stage_much(store, session, seed, 3)]
    assert sum(sizes(store)) > sum(before) + 20_000
    for session in sessions[:2]:
        store.writer.commit(session)
    assert missing(store, given) == 6
    for session in sessions:
        store.writer.end(session)
    check_sizes(store)
    assert missing(store, given) == 6


def test_little_needs_no_pack_of_its_own_when_others_hold_much(
    store: PackStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "MAX_WAITING_BYTES", 100_000)
    sessions = [store.writer.begin() for _ in range(3)]
    for seed, session in enumerate(sessions):
        stage_much(store, session, seed, 4)
    before = len(sizes(store))
    for number in range(5):
        put(store, [noise(1000, number)])
        assert store.find(BLOBS, [noise(1000, number).key])
    assert len(sizes(store)) == before
    for session in sessions:
        store.writer.end(session)
    check_sizes(store)


def test_open_packs_are_bounded(store: PackStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many sessions have staged much: those that come late stage in common."""
    monkeypatch.setattr(staging, "MAX_PACKS", 4)
    before = open_descriptors()
    sessions = [store.writer.begin() for _ in range(10)]
    given = [stage_much(store, session, seed) for seed, session in enumerate(sessions)]
    assert len(sizes(store)) == 4
    assert open_descriptors() <= before + 4
    store.writer.commit(sessions[0])
    assert missing(store, given[0]) == 0
    assert missing(store, given[1]) == len(given[1])
    for session in sessions[1:]:
        store.writer.end(session)
    check_sizes(store)
    assert problems(store) == []


def test_a_commit_of_nothing_lets_go_of_packs(store: PackStore) -> None:
    """What others have found was given up by all: its packs are free for the next."""
    with store.writer.session():
        for seed in range(3):
            with store.writer.session() as session:
                given = stage_much(store, session, seed)
                assert store.locate(BLOBS, [given[0].key])
    count, held = len(sizes(store)), open_descriptors()
    store.writer.commit()
    assert open_descriptors() == held - (count - 1)


def test_what_waits_when_the_disk_gets_full(store: PackStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """What did not get onto the disk goes on waiting, and goes there with the next commit."""
    session = store.writer.begin()
    given = stage_much(store, session, 1, 4)
    pwritev, calls = os.pwritev, []

    def full(*arguments: Any) -> int:
        calls.append(arguments)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwritev(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", full)
        with pytest.raises(DiskFull, match="disk full"):
            store.writer.commit(session)
    assert missing(store, given) == 4
    assert len(store.locate(BLOBS, [one.key for one in given], session)) == 4
    store.writer.commit(session)
    assert missing(store, given) == 0
    store.writer.end(session)
    assert problems(store) == []
    check_sizes(store)


def test_packs_that_are_full(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(appender, "PACK_LIMIT", 30_000)
    with opened(folder) as store:
        put(store, records(0))
        with store.writer.session() as staying:
            stayed = stage_much(store, staying, 1, 8)
            with store.writer.session() as session:
                given = stage_much(store, session, 2, 8)
            assert missing(store, given) == 8
            store.writer.commit(staying)
        with store.writer.session() as session:
            stage_much(store, session, 3, 8)
        check_sizes(store)
        assert missing(store, stayed) == 0
        expected = contents(store)
    rebuild_index(folder, TABLES)
    with opened(folder) as store:
        assert contents(store) == expected


def test_a_session_with_several_packs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(appender, "PACK_LIMIT", 30_000)
    with opened(folder) as store:
        put(store, records(0))
        before = contents(store)
        with store.writer.session() as session:
            stage_much(store, session, 1)
            assert len(session.packs) > 3
        assert contents(store) == before
        check_sizes(store)
        count = len(sizes(store))
        with store.writer.session() as session, store.writer.session() as other:
            given = stage_much(store, session, 1)
            assert store.locate(BLOBS, [given[2].key], other)
            more = stage_much(store, session, 2, 3)
            store.writer.commit(other)
        assert missing(store, given + more) == 0
        # Those that were given back were used again.
        assert len(sizes(store)) <= count + 1
        check_sizes(store)
        expected = contents(store)
    rebuild_index(folder, TABLES)
    with opened(folder) as store:
        assert contents(store) == expected
        assert problems(store) == []


def test_what_cannot_be_written_is_not_counted_on(store: PackStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another session has it, and no room for it: then this one has to store it itself."""

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with store.writer.session() as other:
        with store.writer.session() as session:
            [one] = given = stage_much(store, session, 1, 1)
            with monkeypatch.context() as patch:
                patch.setattr(os, "pwritev", full)
                assert store.locate(BLOBS, [one.key], other) == {}
                with pytest.raises(DiskFull):
                    stage_much(store, session, 2, 1)
        store.stage(BLOBS, given, other)
        store.writer.commit(other)
    assert missing(store, given) == 0
    check_sizes(store)


def test_a_failed_commit_gives_back_what_lies_apart(
    store: PackStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = store.writer.begin()
    given = stage_much(store, session, 1)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", full)
        with pytest.raises(DiskFull):
            put(store, records(1))
    check_sizes(store)
    for what in (lambda: stage_much(store, session, 2), lambda: store.writer.commit(session)):
        with pytest.raises(DiskFull):
            what()
    put(store, given)
    store.writer.end(session)
    check_sizes(store)
    assert missing(store, given) == 0


def test_closing_gives_back(folder: Path) -> None:
    with opened(folder) as store:
        put(store, records(0))
        before = sizes(store)
        stage_much(store, store.writer.begin(), 1)
        stage(store, records(2))
    assert [path.stat().st_size for path in pack_paths(folder)] == [*before, HEADER_SIZE]


@pytest.mark.parametrize("count", [2, 20])
def test_nothing_is_promised_after_closing(folder: Path, count: int) -> None:
    """It has been given up, wherever it was."""
    with opened(folder) as store:
        session = store.writer.begin()
        given = stage_much(store, session, 1, count)
    with pytest.raises(Unavailable, match="closed"):
        store.writer.commit(session)
    with pytest.raises(Unavailable, match="closed"):
        store.stage(BLOBS, given, session)
    store.writer.end(session)
    with opened(folder) as store:
        assert missing(store, given) == count


def test_a_child_closes_what_another_thread_has_locked(store: PackStore) -> None:
    """That thread is the parent's only, and would never let go."""
    with store.writer._staging.append_lock:
        child = os.fork()
        if not child:
            signal.alarm(60)
            with contextlib.suppress(BaseException):
                store.close()
                os._exit(0)
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    put(store, records(1))


def test_a_child_gives_nothing_back(store: PackStore) -> None:
    with store.writer.session() as session:
        given = stage_much(store, session, 1)
        size = sum(sizes(store))
        child = os.fork()
        if child == 0:
            store.writer.end(session)
            store.writer.close()
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert sum(sizes(store)) == size
        store.writer.commit(session)
    assert missing(store, given) == 0
    assert problems(store) == []


def test_later_records_never_come_without_earlier_ones(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session's records lie in common and apart, and another's refer to them; a crash at any point."""
    camera = Camera(folder, tmp_path / "images")
    with opened(folder) as store, monkeypatch.context() as watching:
        put(store, records(0))
        camera.watch(watching)
        with store.writer.session() as one, store.writer.session() as two, store.writer.session() as three:
            chain = stage_much(store, one, 1, 8)
            assert store.locate(BLOBS, [chain[-1].key], two)
            chain += stage_much(store, two, 2, 8)
            chain += stage_much(store, two, 3, 2)
            assert store.locate(BLOBS, [chain[-1].key], three)
            stage_much(store, one, 4, 8)
            chain += stage_much(store, three, 5, 3)
            store.writer.commit(three)
    assert len(camera.taken) > 60
    seen = set()
    for image in camera.taken:
        with opened(image.folder) as store:
            found = [one.key in contents(store) for one in chain]
            seen.add(sum(found))
            assert found == sorted(found, reverse=True)
            assert problems(store) == []
            check_sizes(store)
        assert rebuild_index(image.folder, TABLES).problems == []
    # The commit is of several packs: a crash in between leaves the records of the first ones.
    assert {0, len(chain)} < seen


class Walk:
    """Random sessions. Each record names one that it refers to, which its session has staged or found."""

    def __init__(self, store: PackStore, seed: int) -> None:
        self.store = store
        self.numbers = random.Random(seed)
        self.refers: dict[bytes, bytes] = {}
        self.promised: set[bytes] = set()
        self.known: list[bytes] = []
        self._sessions: list[tuple[Session, list[bytes]]] = []

    def step(self) -> None:
        action = self.numbers.random()
        if not self._sessions or (action < 0.05 and len(self._sessions) < 6):
            self._sessions.append((self.store.writer.begin(), []))
            return
        session, reachable = self.numbers.choice(self._sessions)
        if action < 0.75:
            self._stage(session, reachable)
        elif action < 0.85:
            wanted = self.numbers.sample(self.known, min(3, len(self.known)))
            reachable += self.store.locate(BLOBS, wanted, session)
        else:
            self._end(session, reachable, commit=action < 0.91)

    def _stage(self, session: Session, reachable: list[bytes]) -> None:
        before = self.numbers.choice(reachable) if reachable else bytes(32)
        made = record(before + self.numbers.randbytes(self.numbers.choice([10, 3000, 12_000])))
        self.store.stage(BLOBS, [made], session)
        self.refers[made.key] = before
        self.known.append(made.key)
        reachable.append(made.key)

    def _end(self, session: Session, reachable: list[bytes], *, commit: bool) -> None:
        if commit:
            self.store.writer.commit(session)
            self.promised |= set(reachable)
        self._sessions.remove((session, reachable))
        self.store.writer.end(session)

    def finish(self) -> None:
        for session, reachable in list(self._sessions):
            self._end(session, reachable, commit=False)

    def check(self) -> set[bytes]:
        """The keys that are there: all that were promised, and what they refer to."""
        found = contents(self.store).keys() - {records(0)[0].key}
        assert self.promised <= found
        assert {self.refers[key] for key in found} - {bytes(32)} <= found
        return found


@pytest.mark.parametrize("seed", range(4))
def test_a_random_walk(folder: Path, seed: int) -> None:
    with opened(folder) as store:
        put(store, records(0))
        walk = Walk(store, seed)
        for number in range(600):
            walk.step()
            if number % 50 == 0:
                walk.check()
        walk.finish()
        check_sizes(store)
        found = walk.check()
        assert len(found) < len(walk.known)
        assert problems(store) == []
    rebuild_index(folder, TABLES)
    with opened(folder) as store:
        assert contents(store).keys() == found | {records(0)[0].key}


def test_many_threads(folder: Path) -> None:
    """Some commit and some give up, all the time, and they stage some of the same."""
    shared = [noise(9000 + number) for number in range(30)]
    lost: list[Record] = []
    kept: list[Record] = []

    with opened(folder) as store:
        put(store, records(0))

        def work(number: int) -> None:
            numbers = random.Random(number)
            for turn in range(12):
                mine = [noise(11_000 + n, 100 * number + turn) for n in range(numbers.randrange(1, 15))]
                with store.writer.session() as session:
                    wanted = [*mine, *numbers.sample(shared, 3)]
                    there = store.locate(BLOBS, [one.key for one in wanted], session)
                    for one in wanted:
                        if one.key not in there:
                            store.stage(BLOBS, [one], session)
                    if numbers.random() < 0.4:
                        store.writer.commit(session)
                        assert missing(store, wanted) == 0
                        kept.extend(wanted)
                    else:
                        lost.extend(mine)

        all_at_once(work, 8)
        check_sizes(store)
        assert missing(store, kept) == 0
        assert missing(store, lost) > 0
        assert problems(store) == []
        found = contents(store)
        before = sizes(store)
    rebuild_index(folder, TABLES)
    with opened(folder) as store:
        assert contents(store) == found
        assert sizes(store) == before
    assert committed_lengths(folder)


def test_a_commit_and_an_end_at_once(store: PackStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session ends while another's commit is in its sync: what the commit took stays, its end waits."""
    held, go_on = threading.Event(), threading.Event()
    fdatasync = os.fdatasync

    def slow(fd: int) -> None:
        held.set()
        assert go_on.wait(60)
        fdatasync(fd)

    gone = store.writer.begin()
    given = stage_much(store, gone, 1, 2)
    assert store.locate(BLOBS, [given[0].key])
    monkeypatch.setattr(os, "fdatasync", slow)
    leader = threading.Thread(target=put, args=[store, records(1)])
    leader.start()
    assert held.wait(60)
    ender = threading.Thread(target=store.writer.end, args=[gone])
    ender.start()
    assert ender.is_alive()
    go_on.set()
    leader.join()
    ender.join()
    # Committed along with the other's: visible, and whole.
    assert missing(store, given + records(1)) == 0
    assert problems(store) == []
    check_sizes(store)
