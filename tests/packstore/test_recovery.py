"""What a crash leaves at every point of a commit, and that opening the store brings it into order."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from neve.packstore import appender, pack
from neve.packstore.frames import Record
from neve.packstore.index import Index
from neve.packstore.layout import PACKS_DIR, pack_name
from neve.packstore.rebuild import rebuild_index
from neve.packstore.staging import APART_FROM
from neve.packstore.store import PackStore
from tests.packstore.helpers import (
    BLOBS,
    NAMES,
    TABLES,
    committed_lengths,
    contents,
    data_file,
    opened,
    pack_paths,
    problems,
    put,
    record,
    records,
    set_name,
)

State = dict[bytes, bytes | None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@dataclass
class Image:
    """The folder as a process that died here would have left it."""

    folder: Path
    steps_done: int
    unsynced: dict[str, int]
    """By pack: where the bytes begin that a power failure may lose."""


class Camera:
    """Takes an image before and after everything that changes the folder."""

    def __init__(self, folder: Path, images: Path) -> None:
        self._folder = folder
        self._images = images
        self.taken: list[Image] = []
        self.steps_done = 0
        self._synced: dict[str, int] = {}

    def take(self) -> None:
        image = self._images / str(len(self.taken))
        shutil.copytree(self._folder, image)
        unsynced = {path.name: self._synced.get(path.name, 0) for path in pack_paths(self._folder)}
        self.taken.append(Image(image, self.steps_done, unsynced))

    def watch(self, patch: pytest.MonkeyPatch) -> None:
        for name in ("pwritev", "ftruncate", "fdatasync"):
            patch.setattr(os, name, self._watched(getattr(os, name)))
        write = Index.write

        @contextlib.contextmanager
        def watched_write(index: Index) -> Iterator[object]:
            with write(index) as txn:
                yield txn
                self.take()
            self.take()

        patch.setattr(Index, "write", watched_write)

    def _watched(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(fd: int, *arguments: Any) -> Any:
            self.take()
            result = function(fd, *arguments)
            name = os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))
            if function.__name__ == "fdatasync":
                self._synced[name] = os.fstat(fd).st_size
            self.take()
            return result

        return call


def put_several(store: PackStore, given: list[Record], name: bytes, value: bytes) -> None:
    """Each in a frame of its own, and a name along with them."""
    with store.one_commit():
        with store.writer.session() as session:
            for one in given:
                store.stage(BLOBS, [one], session)
            store.writer.commit(session)
        set_name(store, name, value)


def steps() -> list[Callable[[PackStore], object]]:
    noise = random.Random(1)
    return [
        lambda store: put(store, [record(b"first")]),
        lambda store: put(store, [record(noise.randbytes(300)) for _ in range(5)]),
        lambda store: set_name(store, b"name", b"one"),
        lambda store: set_name(store, b"name", b"two"),
        lambda store: put_several(
            store, [record(noise.randbytes(3000)) for _ in range(6)], b"other", b"three"
        ),
        lambda store: store.delete_many(BLOBS, [record(b"first").key]),
        lambda store: put(store, [record(b"first"), record(noise.randbytes(5000))]),
        lambda store: set_name(store, b"name", None),
    ]


def walk_through(folder: Path, images: Path, patch: pytest.MonkeyPatch) -> tuple[list[State], list[Image]]:
    """The state after each step, and the images taken in between."""
    camera = Camera(folder, images)
    states: list[State] = [{}]
    with opened(folder) as store, patch.context() as watching:
        camera.watch(watching)
        for step in steps():
            step(store)
            states.append(contents(store))
            camera.steps_done += 1
    return states, camera.taken


def check_image(image: Image, states: list[State]) -> None:
    """What was acknowledged is there, what was not is there wholly or not at all, and nothing dangles."""
    allowed = states[image.steps_done : image.steps_done + 2]
    with opened(image.folder, read_only=True) as store:
        assert contents(store) in allowed
    with opened(image.folder) as store:
        found = contents(store)
        # Of a commit to several packs, blobs may be there already; changes are in the last one.
        assert found in allowed or allowed[0].items() < found.items() < allowed[1].items()
        assert problems(store) == []
        put(store, records(99))
        assert contents(store) == found | {records(99)[0].key: records(99)[0].data}
        assert problems(store) == []
    lengths = committed_lengths(image.folder)
    for path in pack_paths(image.folder):
        pack_id = int(path.stem, 16)
        assert path.stat().st_size == lengths.get(pack_id, pack.HEADER_SIZE)
    assert rebuild_index(image.folder, TABLES).problems == []
    with opened(image.folder) as store:
        assert contents(store) == found | {records(99)[0].key: records(99)[0].data}
        assert problems(store) == []


@pytest.mark.parametrize("limit", [appender.PACK_LIMIT, 4000], ids=["one-pack", "many-packs"])
def test_a_kill_at_any_point(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(appender, "PACK_LIMIT", limit)
    states, images = walk_through(folder, tmp_path / "images", monkeypatch)
    assert len(images) > 70
    for image in images:
        check_image(image, states)


def test_a_power_failure_at_any_point(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what was not synced some sectors are on the disk and some are not."""
    states, images = walk_through(folder, tmp_path / "images", monkeypatch)
    noise = random.Random(7)
    damaged = 0
    for image in images:
        for name, start in image.unsynced.items():
            path = image.folder / PACKS_DIR / name
            data = bytearray(path.read_bytes())
            for sector in range(start, len(data), 512):
                if noise.random() < 0.5:
                    end = min(sector + 512, len(data))
                    damaged += any(data[sector:end])
                    data[sector:end] = bytes(end - sector)
            path.write_bytes(data)
        check_image(image, states)
    assert damaged > 20


def test_rebuilding_keeps_what_was_acknowledged_at_any_point(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states, images = walk_through(folder, tmp_path / "images", monkeypatch)
    for image in images[::2]:
        data_file(image.folder).unlink(missing_ok=True)
        rebuild_index(image.folder, TABLES)
        before, after = states[image.steps_done], states[min(image.steps_done + 1, len(states) - 1)]
        with opened(image.folder) as store:
            found = contents(store)
            assert problems(store) == []
        # Blobs that were on their way may be there, nothing else.
        for key in found.keys() | before.keys() | after.keys():
            if not (len(key) == 32 and key in found):
                assert found.get(key) in (before.get(key), after.get(key))


# Tails.


def append_frames(folder: Path, data: bytes) -> None:
    with pack_paths(folder)[-1].open("ab") as file:
        file.write(data)


def mark_of(store: PackStore, distance: int) -> bytes:
    return pack.commit_mark(store.index.last_seq() + distance, store.key)


def frame_of(store: PackStore, data: bytes) -> bytes:
    from neve.packstore.frames import encode_frame

    frame = encode_frame(BLOBS.id, [record(data)], store.key)
    return frame.head + frame.entries + bytes(frame.payload)


def change_of(store: PackStore, name: bytes, value: bytes | None, distance: int) -> bytes:
    from neve.packstore.frames import Record, encode_frame
    from neve.packstore.store import seal

    tag, data = (pack.TOMBSTONE, b"") if value is None else (1, seal(NAMES.id, name, value))
    seq = store.index.last_seq() + distance
    frame = encode_frame(NAMES.id, [Record(tag, name, data)], store.key, seq)
    return frame.head + frame.entries + bytes(frame.payload)


def test_a_transaction_that_the_index_has_lost_is_repeated(folder: Path) -> None:
    """A damaged meta page makes LMDB go back to the state before."""
    with opened(folder) as store:
        put(store, records(1))
        set_name(store, b"kept", b"value")
        set_name(store, b"gone", b"value")
        index = data_file(folder).read_bytes()
        before = contents(store)
    with opened(folder) as store:
        set_name(store, b"kept", b"changed")
        set_name(store, b"gone", None)
        put(store, records(2))
        after = contents(store)
    data_file(folder).write_bytes(index)
    with opened(folder, read_only=True) as store:
        assert contents(store) == before
        assert any("newer than the index" in what for what in problems(store))
    with opened(folder) as store:
        assert contents(store) == after
        assert problems(store) == []
        set_name(store, b"next", b"value")
    rebuild_index(folder, TABLES)
    with opened(folder) as store:
        assert contents(store) == after | {b"next": b"value"}


@pytest.fixture
def in_two_packs(folder: Path) -> tuple[Path, State, State]:
    """A transaction in two packs that the index does not know: its first pack, and the states around it."""
    with opened(folder) as store:
        put(store, records(1))
        noise = random.Random(1)
        with store.writer.session() as session:
            store.stage(BLOBS, [record(noise.randbytes(APART_FROM)) for _ in range(2)], session)
            put(store, records(2))
            index = data_file(folder).read_bytes()
            before = contents(store)
            with store.writer.session() as small:
                store.stage(BLOBS, records(3), small)
                assert store.locate(BLOBS, [records(3)[0].key], session)
            store.writer.commit(session)
        after = contents(store)
    data_file(folder).write_bytes(index)
    first, _ = pack_paths(folder)
    return first, before, after


def test_part_of_a_transaction_does_not_become_visible(
    folder: Path, in_two_packs: tuple[Path, State, State]
) -> None:
    """Its first pack is held by somebody, who is just dying; what lies in the second may refer to that."""
    first, before, after = in_two_packs
    sizes = [path.stat().st_size for path in pack_paths(folder)]
    held = appender.lock_pack(first, int(first.stem, 16))
    assert held is not None
    with opened(folder) as store:
        assert contents(store) == before
    assert [path.stat().st_size for path in pack_paths(folder)] == sizes
    held.close()
    with opened(folder) as store:
        assert contents(store) == after
        assert problems(store) == []


def test_part_of_a_transaction_that_never_was_is_dropped(
    folder: Path, in_two_packs: tuple[Path, State, State]
) -> None:
    first, before, _ = in_two_packs
    held = appender.lock_pack(first, int(first.stem, 16))
    assert held is not None
    with opened(folder) as store:
        put(store, records(4))
        found = contents(store)
    assert found == before | {records(4)[0].key: records(4)[0].data}
    held.close()
    with opened(folder) as store:
        assert contents(store) == found
        assert problems(store) == []
    lengths = committed_lengths(folder)
    for path in pack_paths(folder):
        assert path.stat().st_size == lengths.get(int(path.stem, 16), pack.HEADER_SIZE)


def test_a_transaction_that_never_was_is_dropped(folder: Path) -> None:
    """Its number has been given out again since."""
    with opened(folder) as store:
        put(store, records(1))
        set_name(store, b"name", b"acknowledged")
        before = contents(store)
        tail = frame_of(store, b"late") + change_of(store, b"name", b"void", 0) + mark_of(store, 0)
    size = pack_paths(folder)[-1].stat().st_size
    append_frames(folder, tail)
    with opened(folder) as store:
        assert contents(store) == before
        assert problems(store) == []
    assert pack_paths(folder)[-1].stat().st_size == size


@pytest.mark.parametrize("rest", [b"", b"torn", bytes(1000), b"NvFr" * 50])
def test_tails_without_a_mark_are_reclaimed(folder: Path, rest: bytes) -> None:
    with opened(folder) as store:
        put(store, records(1))
        before = contents(store)
        tail = frame_of(store, b"staged") + change_of(store, b"name", b"value", 1)
    size = pack_paths(folder)[-1].stat().st_size
    append_frames(folder, tail + rest)
    with opened(folder, read_only=True) as store:
        assert contents(store) == before
        assert problems(store) == []
    with opened(folder) as store:
        assert contents(store) == before
        assert pack_paths(folder)[-1].stat().st_size == size


def test_tails_of_all_dead_writers_are_reclaimed(folder: Path) -> None:
    """And what one transaction has left in several packs becomes visible together."""
    with opened(folder) as store:
        put(store, records(1))
        tails = [
            frame_of(store, b"in one") + mark_of(store, 2),
            change_of(store, b"first", b"value", 1) + mark_of(store, 1),
            frame_of(store, b"in three") + mark_of(store, 2) + b"torn",
        ]
        key = store.key
    for number, tail in enumerate(tails, start=2):
        path = folder / PACKS_DIR / pack_name(number)
        path.write_bytes(pack.encode_header(number, key) + tail)
    with opened(folder) as store:
        assert len(contents(store)) == 4
        assert problems(store) == []
    lengths = committed_lengths(folder)
    assert {int(path.stem, 16): path.stat().st_size for path in pack_paths(folder)} == lengths


def test_a_creator_that_died_at_once(folder: Path) -> None:
    with opened(folder) as store:
        put(store, records(1))
        key = store.key
    for number, data in enumerate(
        [b"", pack.encode_header(3, key)[:20], pack.encode_header(4, key)], start=2
    ):
        (folder / PACKS_DIR / pack_name(number)).write_bytes(data)
    with opened(folder) as store:
        assert problems(store) == []
        put(store, records(2))
        assert len(contents(store)) == 2
    for path in pack_paths(folder):
        pack_id = int(path.stem, 16)
        pack.check_header(path.read_bytes(), pack_id, key, str(path))


def test_a_damaged_pack_is_left_alone(folder: Path) -> None:
    """Nothing is appended to it, nothing cut off."""
    with opened(folder) as store:
        put(store, records(1))
    [path] = pack_paths(folder)
    data = bytearray(path.read_bytes())
    data[20] ^= 1
    path.write_bytes(bytes(data) + b"tail")
    with opened(folder) as store:
        put(store, records(2))
        assert len(contents(store)) == 2
        assert any("belongs to another store" in what for what in problems(store))
    assert path.read_bytes() == bytes(data) + b"tail"
    assert len(pack_paths(folder)) == 2


def test_a_pack_that_another_process_holds_is_left_alone(folder: Path) -> None:
    with opened(folder) as store:
        put(store, records(1))
        tail = frame_of(store, b"staged")
    append_frames(folder, tail)
    [path] = pack_paths(folder)
    size = path.stat().st_size
    held = appender.lock_pack(path, 1)
    assert held is not None
    try:
        with opened(folder) as store:
            put(store, records(2))
            assert problems(store) == []
        assert path.stat().st_size == size
        assert len(pack_paths(folder)) == 2
    finally:
        held.close()
    with opened(folder):
        assert path.stat().st_size < size


def test_a_created_pack_that_somebody_else_has_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between making the file and locking it: adopted, written to, and let go again."""
    with opened(folder) as store:
        lock = appender.lock_pack
        key = store.key

        def late(path: Path, pack_id: int) -> appender.OpenPack | None:
            if path.stat().st_size == 0 and pack_id == 1:
                path.write_bytes(pack.encode_header(1, key) + b"somebody's frames")
            return lock(path, pack_id)

        monkeypatch.setattr(appender, "lock_pack", late)
        put(store, records(1))
        assert [path.name for path in pack_paths(folder)] == [pack_name(1), pack_name(2)]
        assert pack_paths(folder)[0].read_bytes().endswith(b"somebody's frames")
        assert len(contents(store)) == 1


def test_names_of_packs_are_never_used_again(folder: Path) -> None:
    with opened(folder) as store:
        put(store, records(1))
    pack_paths(folder)[0].unlink()
    with opened(folder) as store:
        put(store, records(2))
    assert [path.name for path in pack_paths(folder)] == [pack_name(2)]
