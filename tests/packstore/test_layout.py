"""The folder of a store: what may become one, what is one, and who may have it open."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from neve.errors import Corrupt, InvalidRequest, NotFound, Unavailable
from neve.packstore import layout
from neve.packstore.layout import STORE_FILE, StoreLock, create, read_description
from neve.packstore.store import PackStore
from tests.packstore.helpers import flip, opened, put, record


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


def no_index(folder: Path) -> None:
    """Where the index does not matter."""


def change(folder: Path, **changes: object) -> None:
    document = json.loads((folder / STORE_FILE).read_bytes())
    (folder / STORE_FILE).write_text(json.dumps(document | changes))


def test_a_new_store(folder: Path) -> None:
    create(folder / "deep" / "down", {"rule": "x"}, no_index)
    description = read_description(folder / "deep" / "down")
    assert description.settings == {"rule": "x"}
    assert len(description.key) == 32
    create(folder / "deep" / "down", {"rule": "y"}, no_index)
    assert read_description(folder / "deep" / "down") == description
    create(folder / "other", {}, no_index)
    assert read_description(folder / "other").key != description.key


def test_a_new_mount_may_become_a_store(folder: Path) -> None:
    (folder / "lost+found").mkdir(parents=True)
    create(folder, {}, no_index)
    read_description(folder)


def test_only_one_creator_wins(folder: Path) -> None:
    ready = threading.Barrier(8)

    def work(number: int) -> bytes:
        ready.wait()
        create(folder, {"number": number}, no_index)
        return read_description(folder).key

    with ThreadPoolExecutor(8) as threads:
        assert len(set(threads.map(work, range(8)))) == 1


@pytest.mark.parametrize("length", [0, 100, 4096])
def test_nothing_of_a_creator_that_died_is_kept(folder: Path, length: int) -> None:
    """Half of an index, wherever it was made, would be taken for a damaged one."""
    left = [folder / "index", folder / "index" / "new"]
    for one in left:
        one.mkdir(parents=True)
        (one / "data.mdb").write_bytes(b"x" * length)
        (one / "lock.mdb.17.tmp").touch()
    (folder / f".{STORE_FILE}.17.tmp").write_text("{")
    with opened(folder) as store:
        put(store, [record(b"x")])
    assert sorted(os.listdir(folder)) == ["index", "lock", "packs", "store.json", "tmp", "uses"]
    assert sorted(os.listdir(folder / "index")) == ["data.mdb", "lock.mdb"]


def test_no_store_without_an_index(folder: Path) -> None:
    def fail(_: Path) -> None:
        raise Unavailable("no index today")

    with pytest.raises(Unavailable, match="no index today"):
        create(folder, {}, fail)
    assert not layout.is_store(folder)
    assert os.listdir(folder / "index") == []
    with opened(folder) as store:
        put(store, [record(b"x")])


def test_a_folder_of_something_else_is_refused(folder: Path) -> None:
    folder.mkdir()
    (folder / "thesis.tex").touch()
    with pytest.raises(InvalidRequest, match=r"is not a neve store and not empty .*'thesis\.tex'"):
        PackStore.open(folder)
    assert os.listdir(folder) == ["thesis.tex"]


def test_a_file_is_refused(folder: Path) -> None:
    folder.write_bytes(b"")
    for read_only, create_missing in ((False, True), (False, False), (True, False)):
        with pytest.raises(InvalidRequest, match="is not a folder"):
            PackStore.open(folder, read_only=read_only, create=create_missing)
    with pytest.raises(InvalidRequest, match="store is not a folder"):
        PackStore.open(folder / "below")


@pytest.mark.parametrize("read_only", [False, True])
def test_opening_makes_no_store_unasked(folder: Path, read_only: bool) -> None:
    with pytest.raises(NotFound, match="is not a neve store"):
        PackStore.open(folder, read_only=read_only, create=False)
    folder.mkdir()
    with pytest.raises(NotFound, match="is not a neve store"):
        PackStore.open(folder, read_only=read_only, create=False)
    assert os.listdir(folder) == []


def test_a_newer_version_is_refused(folder: Path) -> None:
    PackStore.open(folder).close()
    # Whatever else a newer one says, and checks in another way.
    (folder / STORE_FILE).write_text(json.dumps({"format": "neve-store", "version": 2, "check": [1]}))
    for read_only in (False, True):
        with pytest.raises(InvalidRequest, match=r"format version 2, this neve knows version 1: use a newer"):
            PackStore.open(folder, read_only=read_only)


def test_an_older_version_is_refused_and_the_way_out_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it will be when there is a second one."""
    PackStore.open(folder).close()
    monkeypatch.setattr(layout, "VERSION", 2)
    with pytest.raises(InvalidRequest, match=r"version 1, this neve knows version 2: serve it .*neve mirror"):
        PackStore.open(folder)
    PackStore.open(folder.with_name("new")).close()
    assert read_description(folder.with_name("new"))


@pytest.mark.parametrize("version", [0, -1, True, "1", 1.0, None])
def test_what_is_no_version(folder: Path, version: object) -> None:
    PackStore.open(folder).close()
    change(folder, version=version)
    with pytest.raises(InvalidRequest, match="does not describe a neve store"):
        PackStore.open(folder)


def test_a_damaged_description_is_refused(folder: Path) -> None:
    PackStore.open(folder).close()
    intact = (folder / STORE_FILE).read_bytes()
    undamaged = read_description(folder)
    for bit in range(0, len(intact) * 8, 7):
        flip(folder / STORE_FILE, bit)
        # White space between the fields may change.
        with contextlib.suppress(Corrupt, InvalidRequest):
            assert read_description(folder) == undamaged
        (folder / STORE_FILE).write_bytes(intact)
    bare = b'{"format": "neve-store", "version": 1}'
    for text in (b"", b"[]", b"{}", b'"neve-store"', intact[:50], b"\xff", bare):
        (folder / STORE_FILE).write_bytes(text)
        with pytest.raises((Corrupt, InvalidRequest)):
            PackStore.open(folder)
    (folder / STORE_FILE).write_text("[" * 100_000)
    with pytest.raises(Corrupt, match="cannot be read"):
        PackStore.open(folder)
    change_back = json.loads(intact)
    (folder / STORE_FILE).write_text(json.dumps(change_back | {"format": "other"}))
    with pytest.raises(InvalidRequest, match="does not describe a neve store"):
        PackStore.open(folder)


@pytest.mark.parametrize("key", ["settings", "key"])
@pytest.mark.parametrize("value", [None, [], "x", "00", 5])
def test_nonsense_with_a_right_checksum_is_refused(key: str, value: object, folder: Path) -> None:
    PackStore.open(folder).close()
    document = json.loads((folder / STORE_FILE).read_bytes()) | {key: value}
    change(folder, **{key: value, "check": layout._check_of(document)})
    with pytest.raises(Corrupt):
        PackStore.open(folder)


def test_packs_without_a_description_are_not_made_a_new_store(folder: Path) -> None:
    with opened(folder) as store:
        put(store, [record(b"x")])
    (folder / STORE_FILE).unlink()
    with pytest.raises(Corrupt, match="holds the packs of a neve store"):
        PackStore.open(folder)


def test_locks(folder: Path) -> None:
    create(folder, {}, no_index)
    shared = [StoreLock(folder, exclusive=False, read_only=read_only) for read_only in (False, True, False)]
    with pytest.raises(Unavailable, match="another process has it open"):
        StoreLock(folder, exclusive=True, read_only=False)
    for lock in shared:
        lock.close()
        lock.close()
    alone = StoreLock(folder, exclusive=True, read_only=False)
    for read_only in (False, True):
        with pytest.raises(Unavailable, match="its index is being rebuilt"):
            StoreLock(folder, exclusive=False, read_only=read_only)
    with pytest.raises(Unavailable):
        PackStore.open(folder)
    alone.close()
    PackStore.open(folder).close()


def test_writing_atomically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    layout.write_atomically(path, b"one")

    def broken(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="Input/output"):
        layout.write_atomically(path, b"two")
    assert path.read_bytes() == b"one"
    assert os.listdir(tmp_path) == ["file"]


def test_names_of_packs(tmp_path: Path) -> None:
    (tmp_path / "packs").mkdir()
    for name in (
        "00000010.pack",
        "0000000a.pack",
        "x.pack",
        "0000000b",
        "0000000g.pack",
        "00000001.pack.tmp",
    ):
        (tmp_path / "packs" / name).touch()
    assert layout.pack_ids(tmp_path) == [0x0A, 0x10]
    assert layout.pack_name(0x10) == "00000010.pack"
