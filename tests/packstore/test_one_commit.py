"""What a thread stores within a block is committed at its end, by one commit."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from neve.errors import NeveError
from neve.packstore.frames import Record
from neve.packstore.store import PackStore, TableTransaction
from tests.packstore.helpers import BLOBS, NAMES, contents, opened, put, record, set_name


@pytest.fixture
def store(tmp_path: Path) -> Iterator[PackStore]:
    with opened(tmp_path / "store") as store:
        put(store, [record(b"first")])
        yield store


@pytest.fixture
def syncs(store: PackStore, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with each sync of a pack."""
    synced: list[int] = []
    fdatasync = os.fdatasync

    def counted(fd: int) -> None:
        synced.append(fd)
        fdatasync(fd)

    monkeypatch.setattr(os, "fdatasync", counted)
    return synced


def there(store: PackStore, *given: Record) -> list[bool]:
    found = contents(store)
    return [one.key in found for one in given]


def test_commits_are_made_at_the_end(store: PackStore, syncs: list[int]) -> None:
    one, two = record(b"one"), record(b"two")
    with store.one_commit():
        put(store, [one])
        put(store, [two])
        assert there(store, one, two) == [False, False]
        assert not syncs
    assert there(store, one, two) == [True, True]
    assert len(syncs) == 1


def test_nothing_to_commit(store: PackStore, syncs: list[int]) -> None:
    with store.one_commit():
        pass
    assert not syncs


def test_an_error_commits_nothing(store: PackStore, syncs: list[int]) -> None:
    one = record(b"one")

    def fail() -> None:
        with store.one_commit():
            put(store, [one])
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert there(store, one) == [False]
    assert not syncs
    put(store, [record(b"two")])  # The block is over: this one is committed at once.
    assert len(syncs) == 1


def test_a_session_that_outlives_the_block(store: PackStore) -> None:
    """Its owner ends it, not the block; what is staged behind its commit waits for the next."""
    one, two, three = record(b"one"), record(b"two"), record(b"three")
    with store.writer.session() as session:
        with store.one_commit():
            store.stage(BLOBS, [one], session)
            store.writer.commit(session)
            store.stage(BLOBS, [two], session)
        assert there(store, one, two) == [True, False]
        store.stage(BLOBS, [three], session)
        store.writer.commit(session)
    assert there(store, one, two, three) == [True, True, True]


def test_blocks_within_blocks(store: PackStore, syncs: list[int]) -> None:
    one, two = record(b"one"), record(b"two")
    with store.one_commit():
        with store.one_commit():
            put(store, [one])
        assert there(store, one) == [False]
        put(store, [two])
    assert there(store, one, two) == [True, True]
    assert len(syncs) == 1


def test_an_update_takes_along_what_was_staged(store: PackStore, syncs: list[int]) -> None:
    one = record(b"one")
    with store.one_commit():
        put(store, [one])
        set_name(store, b"name", b"value")
        assert there(store, one) == [True]
    assert store.get(NAMES, b"name") == b"value"
    assert len(syncs) == 1


def test_other_threads_are_not_kept_waiting(store: PackStore) -> None:
    one, two = record(b"one"), record(b"two")
    with store.one_commit():
        put(store, [one])
        other = threading.Thread(target=put, args=(store, [two]))
        other.start()
        other.join()
        # Whoever commits takes along what others have staged.
        assert there(store, one, two) == [True, True]


def fail_a_commit(store: PackStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread commits, and the disk fails: all that is staged is given up."""

    def failing(_fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def commit() -> None:
        with pytest.raises(NeveError):
            put(store, [record(b"other")])

    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", failing)
        thread = threading.Thread(target=commit)
        thread.start()
        thread.join()


def name_it(store: PackStore) -> None:
    set_name(store, b"name", b"value")


def do_nothing(_store: PackStore) -> None:
    return


@pytest.mark.parametrize("then", [name_it, do_nothing])
def test_what_was_given_up_is_not_promised(
    store: PackStore, monkeypatch: pytest.MonkeyPatch, then: Callable[[PackStore], None]
) -> None:
    one = record(b"one")

    def put_and_fail() -> None:
        with store.one_commit():
            put(store, [one])
            fail_a_commit(store, monkeypatch)
            then(store)

    with pytest.raises(NeveError, match="failed"):
        put_and_fail()
    assert there(store, one) == [False]
    assert store.get(NAMES, b"name") is None


def test_updates_elsewhere_are_not_concerned(store: PackStore, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_a_commit(store, monkeypatch)

    def change(transaction: TableTransaction) -> None:
        transaction.put(NAMES, Record(1, b"name", b"value"))

    with store.one_commit():
        store.update(change)
    assert store.get(NAMES, b"name") == b"value"
