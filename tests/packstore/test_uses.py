"""What a process has answered to be there, and a sweep that is under way meanwhile."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from neve.errors import DiskFull, PermissionDenied, Unavailable
from neve.packstore import notes, uses
from neve.packstore.dates import last_used
from neve.packstore.gate import Gate, collection_lock
from neve.packstore.notes import MAX_LASTING, PERIOD, NotesReader, encode_head, encode_notes
from neve.packstore.store import PackStore, Table
from neve.packstore.uses import Uses
from tests.packstore.helpers import contents, opened, put, records

KEYS = [bytes((number,)) * 32 for number in range(8)]
THINGS = Table(1, "things", lambda tag, key, data: True, collected=True)
DATED = Table(3, "dated", collected=True, dated=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(folder: Path) -> Iterator[PackStore]:
    with opened(folder) as store:
        yield store


@pytest.fixture
def lasting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Uses, "lasting", True)


def reader(store: PackStore, grace: float = 3600) -> NotesReader:
    """As a collection makes one."""
    with store.uses.sweeping(begins=True):
        return NotesReader(store.path, grace)


def promise(store: PackStore, *keys: bytes, table: int = 1) -> None:
    assert store.uses.promise(table, lambda: keys, lambda found: found) == keys


def files(store: PackStore) -> list[Path]:
    return sorted((store.path / "uses").glob("*.uses"))


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def leave(store: PackStore, name: str, *keys: bytes, lasting: bool = False) -> Path:
    """A file of a process that has ended."""
    path = store.path / "uses" / f"{name}.uses"
    path.write_bytes(encode_head(lasting=lasting) + encode_notes((1, key) for key in keys))
    return path


def test_what_is_found_is_noted_once(store: PackStore) -> None:
    promise(store, *KEYS[:2])
    promise(store, KEYS[0], KEYS[2])
    assert files(store)[0].stat().st_size == 64 + 3 * 33
    promise(store, *KEYS[:3])
    assert files(store)[0].stat().st_size == 64 + 3 * 33
    found = reader(store)
    assert found.news() == {1: set(KEYS[:3])}
    assert found.news() == {}


def test_what_is_not_found_is_not_noted(store: PackStore) -> None:
    promise(store)
    assert files(store) == []


def test_a_short_key_is_filled_up(store: PackStore) -> None:
    promise(store, b"k" * 20, table=3)
    assert reader(store).news() == {3: {b"k" * 20 + bytes(12)}}


def test_what_is_stored_is_noted_before_it_is_there(store: PackStore) -> None:
    store.note(THINGS, KEYS[:1])
    store.note(Table(2, "others"), KEYS[1:2])
    assert reader(store).news() == {}
    put(store, records(1))
    assert reader(store).news() == {1: {KEYS[0]}}


def test_after_a_collection_has_begun_all_is_noted_anew(store: PackStore) -> None:
    promise(store, KEYS[0])
    found = reader(store)
    assert found.news() == {1: {KEYS[0]}}
    promise(store, KEYS[0])
    assert found.news() == {1: {KEYS[0]}}
    promise(store, KEYS[0])
    assert found.news() == {}


def test_many_are_forgotten_and_noted_again(store: PackStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uses, "_MAX_NOTED", 2)
    promise(store, *KEYS[:3])
    promise(store, *KEYS[:3])
    assert files(store)[0].stat().st_size == 64 + 6 * 33


# Sweeps.


def test_who_asks_during_a_sweep_waits_for_its_end(store: PackStore) -> None:
    """What the sweep drops is not answered to be there."""
    there = set(KEYS[:2])
    asked, answers = threading.Event(), []

    def look_up() -> set[bytes]:
        asked.set()
        return set(there)

    thread = threading.Thread(
        target=lambda: answers.append(store.uses.promise(1, look_up, lambda found: found))
    )
    with store.uses.sweeping():
        thread.start()
        assert asked.wait(60)
        there.remove(KEYS[0])
        thread.join(0.05)
        assert not answers
    thread.join(60)
    assert answers == [{KEYS[1]}]
    assert reader(store).news()[1] >= {KEYS[1]}


def test_a_sweep_between_note_and_look_makes_it_look_again(store: PackStore) -> None:
    there = set(KEYS[:2])
    looks = []

    def look_up() -> set[bytes]:
        looks.append(set(there))
        if len(looks) == 2:
            with store.uses.sweeping():
                there.clear()
        return looks[-1]

    assert store.uses.promise(1, look_up, lambda found: found) == set()
    assert len(looks) > 2


def test_a_sweep_that_was_killed_keeps_nobody_waiting(store: PackStore) -> None:
    gate = Gate(store.path / "uses")
    with gate.closed():
        odd = gate.signs()
    gate._set(odd)
    promise(store, KEYS[0])
    assert gate.signs().sweeps % 2 == 0
    gate.close()


def test_one_collection_at_a_time(store: PackStore) -> None:
    with (
        collection_lock(store.path),
        pytest.raises(Unavailable, match="is under way"),
        collection_lock(store.path),
    ):
        pass
    with collection_lock(store.path):
        pass


# What counts.


@pytest.mark.root
def test_notes_of_root_belong_to_who_the_store_belongs_to(folder: Path) -> None:
    """Else its owner could not read them, and not collect."""
    with opened(folder) as store:
        os.chown(folder / "uses", 65534, 65533)
        promise(store, KEYS[0])
        (path,) = files(store)
        assert (path.stat().st_uid, path.stat().st_gid) == (65534, 65533)


def test_own_notes_end_with_the_process(folder: Path) -> None:
    with opened(folder) as store:
        promise(store, KEYS[0])
        assert len(files(store)) == 1
    with opened(folder) as store:
        assert files(store) == []


def test_during_a_collection_nothing_is_removed(folder: Path) -> None:
    store = PackStore.open(folder)
    found = reader(store)
    with collection_lock(folder):
        promise(store, KEYS[0])
        store.close()
        assert found.news() == {1: {KEYS[0]}}
    with opened(folder) as store:
        assert reader(store).news() == {}
        assert files(store) == []


def test_what_a_dead_process_has_noted_counts_no_more(store: PackStore) -> None:
    leave(store, "dead", KEYS[0])
    leave(store, "torn")
    (store.path / "uses" / "torn.uses").write_bytes(b"neve")
    assert reader(store).news() == {}
    assert files(store) == []


def test_a_living_process_counts_however_old_its_file_is(store: PackStore) -> None:
    path = leave(store, "alive", KEYS[0])
    age(path, MAX_LASTING * 2)
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert reader(store).news() == {1: {KEYS[0]}}


@pytest.mark.parametrize(("old", "grace", "counts"), [(10, 3600, True), (3600 + PERIOD + 10, 3600, False)])
def test_what_a_server_has_noted_counts_for_the_grace(
    store: PackStore, old: float, grace: float, counts: bool
) -> None:
    age(leave(store, "server", KEYS[0], lasting=True), old)
    assert reader(store, grace).news() == ({1: {KEYS[0]}} if counts else {})
    assert len(files(store)) == 1


def test_a_clock_that_is_put_forward_does_not_shorten_the_grace(store: PackStore, lasting: None) -> None:
    """As at boot on a machine that forgets the time; since then counts what the kernel counts."""
    promise(store, KEYS[0])
    (path,) = files(store)
    store.uses._end_file()
    age(path, 30 * 365 * 86_400)
    assert reader(store).news() == {1: {KEYS[0]}}
    assert path.exists()


def test_one_put_back_does_not_either(store: PackStore) -> None:
    path = leave(store, "served", KEYS[0], lasting=True)
    age(path, -30 * 365 * 86_400)
    assert reader(store).news() == {1: {KEYS[0]}}


def test_without_grace_only_what_comes_counts(store: PackStore, lasting: None) -> None:
    promise(store, KEYS[0])
    path = leave(store, "server", KEYS[1], lasting=True)
    found = reader(store, 0)
    assert found.news() == {}
    promise(store, KEYS[0])
    with path.open("ab") as file:
        file.write(encode_notes([(1, KEYS[2])])[:20])
    assert found.news() == {1: {KEYS[0]}}
    with path.open("ab") as file:
        file.write(encode_notes([(1, KEYS[2])])[20:])
    assert found.news() == {1: {KEYS[2]}}


def test_old_files_of_servers_are_removed(store: PackStore) -> None:
    age(leave(store, "old", KEYS[0], lasting=True), MAX_LASTING + PERIOD + 10)
    leave(store, "new", KEYS[0], lasting=True)
    promise(store, KEYS[1])
    assert [path.name for path in files(store) if "-" not in path.name] == ["new.uses"]


def test_a_server_begins_a_new_file_from_time_to_time(
    store: PackStore, lasting: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    promise(store, KEYS[0])
    monkeypatch.setattr(uses, "PERIOD", -1.0)
    promise(store, KEYS[0])
    monkeypatch.undo()
    assert len(files(store)) == 2
    assert reader(store).news() == {1: {KEYS[0]}}


def test_it_does_so_too_if_it_only_stores(
    store: PackStore, lasting: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And dates are not written within the transaction, but the next time somebody asks."""
    store.uses.note(1, [KEYS[0]])
    store.uses.note(3, [KEYS[1]], dated=True)
    store.uses.flush()
    monkeypatch.setattr(uses, "PERIOD", -1.0)
    store.uses.note(1, [KEYS[2]])
    store.uses.flush()
    assert len(files(store)) == 2
    assert last_used(store.index) == {}
    monkeypatch.setattr(uses, "PERIOD", PERIOD)
    promise(store, KEYS[3])
    assert set(last_used(store.index)) == {KEYS[1]}


def test_a_power_failure_makes_notes_uncertain(
    store: PackStore, lasting: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(store, "torn", KEYS[0], lasting=True)
    promise(store, KEYS[1])
    assert reader(store).is_certain
    monkeypatch.setattr(notes, "boot_id", lambda: b"another")
    assert not reader(store).is_certain
    assert reader(store, 0).is_certain
    age(store.path / "uses" / "torn.uses", 3600 + PERIOD + 10)
    store.uses._end_file()
    assert reader(store).is_certain


# Dates.


def test_dates_go_to_the_index_at_the_end(folder: Path) -> None:
    key, before = b"p" * 20, int(time.time())
    with opened(folder) as store:
        store.uses.promise(3, lambda: [key], lambda found: found, dated=True)
        assert last_used(store.index) == {}
    with opened(folder) as store:
        assert before <= last_used(store.index)[key] <= time.time()


def test_a_date_never_goes_back(store: PackStore) -> None:
    from neve.packstore.dates import forget_used, note_used

    note_used(store.index, [KEYS[0], KEYS[1]], 200)
    note_used(store.index, [KEYS[0]], 100)
    assert last_used(store.index) == {KEYS[0]: 200, KEYS[1]: 200}
    store.index.run(lambda txn: forget_used(txn, [KEYS[0], KEYS[2]]))
    assert last_used(store.index) == {KEYS[1]: 200}


# Troubles.


def test_without_room_for_a_note_nothing_is_promised(
    store: PackStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    promise(store, KEYS[0])
    before = files(store)[0].read_bytes()

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(DiskFull):
        promise(store, KEYS[1])
    found = store.uses.promise(1, lambda: [KEYS[1]], lambda found: found, reading=True)
    assert found == [KEYS[1]]
    store.note(THINGS, [KEYS[2]])
    with pytest.raises(DiskFull):
        put(store, records(1))
    assert contents(store) == {}
    monkeypatch.undo()
    assert files(store)[0].read_bytes() == before
    promise(store, KEYS[1])
    assert reader(store).news() == {1: set(KEYS[:3])}


@pytest.mark.parametrize("at_once", [1, 10, 32, 33, 50])
def test_a_disk_that_takes_less_than_it_is_given(
    store: PackStore, lasting: None, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:at_once]))
    promise(store, *KEYS[:3])
    promise(store, KEYS[3])
    [path] = files(store)
    monkeypatch.setattr(uses, "PERIOD", -1)
    promise(store, KEYS[4])
    monkeypatch.undo()
    assert path.read_bytes()[64:] == encode_notes((1, key) for key in sorted_as_noted(path)) + notes.END_NOTE
    assert reader(store).news() == {1: set(KEYS[:5])}


def test_numbers_of_the_gate_come_whole(store: PackStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the disk takes half: else what was answered before a collection would not be noted anew."""
    promise(store, KEYS[0])
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: real(fd, data[:8], offset))
    found = reader(store)
    promise(store, KEYS[0])
    assert found.news() == {1: {KEYS[0]}}
    assert Gate(store.path / "uses").signs() == (2, 1)


def sorted_as_noted(path: Path) -> list[bytes]:
    """The keys ``KEYS[:4]``: those that are noted at once come in any order."""
    data = path.read_bytes()
    return sorted(KEYS[:4], key=data.index)


def test_what_could_not_even_be_cut_off_is_later(store: PackStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fails for a while, in the middle of a note."""
    promise(store, KEYS[0])
    real, taken = os.write, [50]

    def some(fd: int, data: bytes) -> int:
        if not taken:
            raise OSError(5, "Input/output error")
        return real(fd, data[: taken.pop()])

    def broken(fd: int, length: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "write", some)
    monkeypatch.setattr(os, "ftruncate", broken)
    with pytest.raises(Unavailable):
        promise(store, KEYS[1], KEYS[2])
    monkeypatch.undo()
    promise(store, KEYS[3])
    found = reader(store).news()[1]
    assert found >= {KEYS[0], KEYS[3]}
    assert found <= set(KEYS[:4])


def test_a_store_that_is_only_read_promises_nothing(folder: Path) -> None:
    PackStore.open(folder).close()
    with opened(folder, read_only=True) as store:
        assert store.missing(THINGS, KEYS) == KEYS
        assert store.promise(DATED, KEYS) == {}
        with pytest.raises(PermissionDenied):
            _ = store.uses


def test_a_child_notes_nothing_for_its_parent(store: PackStore) -> None:
    promise(store, KEYS[0])
    child = os.fork()
    if child == 0:
        promise(store, KEYS[1])
        store.uses.note(1, [KEYS[2]])
        store.uses.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    promise(store, KEYS[3])
    assert reader(store).news() == {1: {KEYS[0], KEYS[3]}}
