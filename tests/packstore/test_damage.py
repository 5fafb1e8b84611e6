"""Bits that flip and files that are cut off: never wrong data, always told, and rebuilding mends."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from neve.errors import Corrupt, NeveError, Unavailable
from neve.packstore import pack
from neve.packstore.check import pack_bytes, verify
from neve.packstore.frames import Record
from neve.packstore.rebuild import rebuild_index
from neve.packstore.store import PackStore
from tests.packstore.helpers import (
    BLOBS,
    NAMES,
    TABLES,
    contents,
    data_file,
    flip,
    opened,
    pack_paths,
    problems,
    put,
    record,
    records,
    set_name,
    stage,
)

State = dict[bytes, bytes | None]


def fill(folder: Path) -> State:
    """A store of one pack that has a frame of each kind."""
    noise = random.Random(3)
    with opened(folder) as store:
        put(store, records(*range(40)))
        put(store, [record(noise.randbytes(700)), record(noise.randbytes(300)), record(b"")])
        for number in range(3):
            set_name(store, b"name %d" % number, b"value " * 20)
        set_name(store, b"name 1", None)
        set_name(store, b"name 2", b"changed")
        store.delete_many(BLOBS, [one.key for one in records(1, 2)])
        put(store, records(1, 50))
        put(store, [record(noise.randbytes(2000))])
        return contents(store)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


def frames(path: Path, key: bytes) -> list[pack.Frame]:
    with path.open("rb") as file:
        return [found for found in pack.scan(file.fileno(), key) if isinstance(found, pack.Frame)]


def read_all(store: PackStore, expected: State) -> set[bytes]:
    """Asserts that every record is right or "corrupt"; returns the keys of those, which are told."""
    corrupt = set()
    for key, data in expected.items():
        try:
            assert store.get(BLOBS if len(key) == 32 else NAMES, key) == data
        except Corrupt as error:
            if key.hex() in str(error):
                corrupt.add(key)
    return corrupt


def check_rebuilt(folder: Path, expected: State, affected: set[bytes]) -> None:
    """All that was not in a damaged frame is there again."""
    rebuilt = rebuild_index(folder, TABLES)
    assert rebuilt.problems
    with opened(folder, read_only=True) as store:
        assert read_all(store, without(expected, affected)) == set()
        for key in affected & expected.keys():
            try:
                # A damaged deletion or change may bring back what was before.
                assert store.get(BLOBS if len(key) == 32 else NAMES, key) is None or key in expected
            except Corrupt:
                continue


def state(given: list[Record]) -> State:
    return {one.key: bytes(one.data) for one in given}


def without(state: State, keys: set[bytes]) -> State:
    return {key: data for key, data in state.items() if key not in keys}


def test_a_bit_flipped_anywhere_in_a_pack(folder: Path) -> None:
    expected = fill(folder)
    index = data_file(folder).read_bytes()
    [path] = pack_paths(folder)
    data = path.read_bytes()
    with opened(folder, read_only=True) as store:
        key = store.key
        assert problems(store) == []
    all_frames = frames(path, key)
    positions = range(0, len(data) * 8, len(data) * 8 // 400)
    corrupted: set[bytes] = set()
    for number, bit in enumerate(positions):
        path.write_bytes(data)
        flip(path, bit)
        hit = {
            entry.key
            for frame in all_frames
            if frame.offset <= bit // 8 < frame.end
            for entry in frame.entries
        }
        with opened(folder, read_only=True) as store:
            corrupt = read_all(store, expected)
            assert corrupt <= hit
            corrupted |= corrupt
            assert problems(store) != []
        if number % 5 == 0:
            check_rebuilt(folder, expected, hit)
            path.write_bytes(data)
            data_file(folder).write_bytes(index)
    assert len(corrupted) > 20


def test_a_store_with_a_damaged_pack_goes_on(folder: Path) -> None:
    expected = fill(folder)
    with opened(folder, read_only=True) as store:
        place = store.find(BLOBS, [record(b"").key, *expected])[records(5)[0].key].place
    flip(pack_paths(folder)[0], ((place & 0xFFFFFF) + 100) * 8)
    with opened(folder) as store:
        damaged = read_all(store, expected)
        assert len(damaged) > 10
        # What is stored again is not taken for there: the index has it.
        put(store, records(60))
        set_name(store, b"new", b"value")
        assert read_all(store, expected | state(records(60))) == damaged
        assert store.delete_many(BLOBS, sorted(damaged)) == len(damaged)
        put(store, records(*range(3, 40)))
        assert read_all(store, state(records(*range(3, 40)))) == set()


def test_a_frame_header_that_is_damaged_does_not_matter_to_readers(folder: Path) -> None:
    expected = fill(folder)
    [path] = pack_paths(folder)
    with opened(folder, read_only=True) as store:
        key = store.key
    for frame in frames(path, key):
        flip(path, frame.offset * 8 + 9)
    with opened(folder, read_only=True) as store:
        assert read_all(store, expected) == set()
        told = problems(store)
        assert any("damaged from byte" in what for what in told)


@pytest.mark.parametrize("share", [0, 10, 35, 60, 85, 99])
def test_a_pack_that_is_cut_off(folder: Path, share: int) -> None:
    expected = fill(folder)
    [path] = pack_paths(folder)
    with opened(folder, read_only=True) as store:
        key = store.key
        all_frames = frames(path, key)
    size = path.stat().st_size * share // 100
    os.truncate(path, size)
    lost = {entry.key for frame in all_frames if frame.end > size for entry in frame.entries}
    kept = {entry.key for frame in all_frames if frame.end <= size for entry in frame.entries}
    with opened(folder, read_only=True) as store:
        assert read_all(store, expected) <= lost
        assert any("is truncated" in what for what in problems(store))
    with opened(folder) as store:
        put(store, records(70))
        assert path.stat().st_size == size
        assert store.get(BLOBS, records(70)[0].key) == records(70)[0].data
    rebuilt = rebuild_index(folder, TABLES)
    assert bool(rebuilt.problems) == (size < pack.HEADER_SIZE or size not in {f.end for f in all_frames})
    with opened(folder) as store:
        found = contents(store)
        assert {key: data for key, data in expected.items() if key in kept - lost}.items() <= found.items()
        assert records(70)[0].key in found


def test_a_torn_tail_is_no_damage(folder: Path) -> None:
    expected = fill(folder)
    [path] = pack_paths(folder)
    for tail in (b"x", bytes(100), path.read_bytes()[70:170]):
        size = path.stat().st_size
        with path.open("ab") as file:
            file.write(tail)
        with opened(folder, read_only=True) as store:
            assert problems(store) == []
            assert contents(store) == expected
        rebuild_index(folder, TABLES)
        with opened(folder, read_only=True) as store:
            assert problems(store) == []
            assert contents(store) == expected
        with opened(folder) as store:
            assert contents(store) == expected
        assert path.stat().st_size == size


def test_rebuilding_needs_the_store_for_itself(folder: Path) -> None:
    fill(folder)
    for read_only in (False, True):
        with opened(folder, read_only=read_only), pytest.raises(Unavailable, match="another process has it"):
            rebuild_index(folder, TABLES)
    rebuild_index(folder, TABLES)


def test_a_rebuild_that_fails_leaves_the_old_index(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = fill(folder)

    def fail(*_: object) -> bool:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(pack, "payload_intact", fail)
        with pytest.raises(ZeroDivisionError):
            rebuild_index(folder, TABLES)
    assert sorted(os.listdir(folder)) == ["index", "lock", "packs", "store.json", "tmp", "uses"]
    with opened(folder) as store:
        assert contents(store) == expected


def test_a_good_copy_wins_over_a_damaged_one(folder: Path) -> None:
    [one] = records(1)
    with opened(folder) as store:
        for _ in range(2):
            stage(store, [one])
        store.writer.commit()
        place = store.find(BLOBS, [one.key])[one.key].place
        flip(pack_paths(folder)[0], (place & 0xFFFFFF) * 8 + 40)
    with opened(folder) as store, pytest.raises(Corrupt):
        store.get(BLOBS, one.key)
    assert rebuild_index(folder, TABLES).problems
    with opened(folder) as store:
        assert store.get(BLOBS, one.key) == one.data


def test_progress_is_told_in_bytes(folder: Path) -> None:
    fill(folder)
    told: list[int] = []
    with opened(folder) as store:
        report = verify(store, TABLES, told.append)
    assert 0 < report.stored_bytes == sum(told) <= pack_bytes(folder)
    assert report.records == {"blobs": 44, "names": 2}
    assert 0 < report.dead_bytes < report.stored_bytes
    again: list[int] = []
    assert rebuild_index(folder, TABLES, again.append).records == report.records
    assert sum(again) == sum(told)


# The index.


def sample(data: bytes, count: int) -> list[int]:
    """Bits all over a data file, many of them in the heads of pages."""
    noise = random.Random(11)
    pages = len(data) // 4096
    bits = [(page * 4096 + noise.randrange(16 + 136)) * 8 + noise.randrange(8) for page in (0, 1) * count]
    bits += [
        (noise.randrange(pages) * 4096 + noise.randrange(40)) * 8 + noise.randrange(8)
        for _ in range(2 * count)
    ]
    bits += [noise.randrange(len(data) * 8) for _ in range(2 * count)]
    return bits


def test_a_bit_flipped_anywhere_in_the_index(folder: Path) -> None:
    """Never wrong data, never a dead process, and if something is missing, it is told."""
    with opened(folder) as store:
        for start in range(0, 600, 60):
            put(store, records(*range(start, start + 60)))
        for number in range(60):
            set_name(store, b"name %d" % number, b"value")
        store.delete_many(BLOBS, [one.key for one in records(*range(30))])
        expected = contents(store)
    data = data_file(folder).read_bytes()
    bits = sample(data, 25)
    done = subprocess.run(
        [sys.executable, "-m", "tests.packstore.flipped_index", str(folder)],
        input="\n".join(map(str, bits)),
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    answers = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert len(answers) == len(set(bits)), done.stderr
    assert {bit: answer for bit, answer in answers.items() if answer not in ("same", "told")} == {}
    assert list(answers.values()).count("told") > 10
    for bit in bits[::15]:
        data_file(folder).write_bytes(data)
        flip(data_file(folder), bit)
        assert rebuild_index(folder, TABLES).problems == []
        with opened(folder) as store:
            assert contents(store) == expected
            assert problems(store) == []


@pytest.mark.parametrize("share", [0, 1, 30, 60, 95])
def test_an_index_that_is_cut_off(folder: Path, share: int) -> None:
    expected = fill(folder)
    os.truncate(data_file(folder), data_file(folder).stat().st_size * share // 100)
    for read_only in (False, True):
        with pytest.raises(Corrupt, match=r"run: neve verify --rebuild-index"):
            PackStore.open(folder, read_only=read_only)
    rebuild_index(folder, TABLES)
    with opened(folder) as store:
        assert contents(store) == expected


def test_an_entry_that_is_damaged(folder: Path) -> None:
    expected = fill(folder)
    [one] = records(7)
    data = data_file(folder).read_bytes()
    # Old pages have it too; in all of them the value follows the key.
    at = data.find(one.key)
    while at >= 0:
        flip(data_file(folder), (at + 32 + 5) * 8)
        at = data.find(one.key, at + 1)
    with opened(folder) as store:
        assert read_all(store, expected) == {one.key}
        with pytest.raises(Corrupt, match=one.key.hex()):
            store.page(BLOBS, b"", 1000)
        assert any(one.key.hex() in what for what in problems(store))
        with pytest.raises(Corrupt, match=one.key.hex()):
            store.locate(BLOBS, [one.key])
    assert rebuild_index(folder, TABLES).problems == []
    with opened(folder) as store:
        assert contents(store) == expected


def test_rubbish_instead_of_an_index(folder: Path) -> None:
    expected = fill(folder)
    for rubbish in (b"x" * 100_000, bytes(100_000), os.urandom(50_000), b"\n"):
        data_file(folder).write_bytes(rubbish)
        with pytest.raises(NeveError, match="rebuild-index"):
            PackStore.open(folder)
        rebuild_index(folder, TABLES)
        with opened(folder) as store:
            assert contents(store) == expected


def test_what_others_commit_while_a_store_is_verified_is_no_damage(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(folder)
    with opened(folder) as store:
        set_name(store, b"name", b"old")
        lengths, look = store.index.pack_lengths, store.index.audit_page
        replaced = False

        def replace_behind() -> dict[int, int]:
            nonlocal replaced
            found = lengths()
            if not replaced:
                replaced = True
                set_name(store, b"name", b"new")
            return found

        def commit_and_look(table: int, after: bytes, limit: int) -> list[tuple[bytes, bytes, bool]]:
            set_name(store, b"another", after)
            return look(table, after, limit)

        monkeypatch.setattr(store.index, "pack_lengths", replace_behind)
        monkeypatch.setattr(store.index, "audit_page", commit_and_look)
        assert problems(store) == []
