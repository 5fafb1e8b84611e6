"""PackStore: opening, staging, committing, reading, and what is left when something fails."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from neve.errors import (
    Corrupt,
    DiskFull,
    InvalidRequest,
    LimitExceeded,
    NotFound,
    PermissionDenied,
    Unavailable,
    Unsupported,
)
from neve.packstore import appender, index, pack, reader, staging, writer
from neve.packstore.frames import Packed
from neve.packstore.index import Index
from neve.packstore.layout import INDEX_DIR, PACKS_DIR
from neve.packstore.pack import RAW
from neve.packstore.rebuild import rebuild_index
from neve.packstore.store import PackStore, check_path, seal, unseal
from tests.packstore.helpers import (
    BLOBS,
    NAMES,
    TABLES,
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


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(folder: Path) -> Iterator[PackStore]:
    with opened(folder) as store:
        yield store


def failing(error: int) -> Callable[..., int]:
    def fail(*_: object) -> int:
        raise OSError(error, os.strerror(error))

    return fail


# Opening.


def test_two_opens_give_one_store(folder: Path, tmp_path: Path) -> None:
    one = PackStore.open(folder)
    (tmp_path / "link").symlink_to(folder)
    two = PackStore.open(tmp_path / "link")
    assert two is one
    one.close()
    put(two, records(1))
    assert PackStore.open(folder, read_only=True) is one
    one.close()
    two.close()
    three = PackStore.open(folder, read_only=True)
    assert three is not one
    with pytest.raises(Unsupported, match="is open read-only in this process"):
        PackStore.open(folder)
    assert three.get(BLOBS, records(1)[0].key) == records(1)[0].data
    three.close()


def test_opening_and_closing_leaves_nothing_behind(folder: Path) -> None:
    with opened(folder) as store:
        put(store, records(*range(50)))
    gc.collect()
    before = open_descriptors(), threading.active_count()
    for number in range(20):
        with opened(folder, read_only=number % 2 == 0) as store:
            assert len(contents(store)) == 50 + number // 2
            if not store.read_only:
                put(store, records(100 + number))
        with pytest.raises(NotFound):
            PackStore.open(folder / "packs", create=False)
    assert (open_descriptors(), threading.active_count()) == before


def test_opening_from_many_threads(folder: Path) -> None:
    errors: list[BaseException] = []

    def work() -> None:
        try:
            for number in range(20):
                with opened(folder) as store:
                    put(store, records(number))
                    assert store.get(BLOBS, records(number)[0].key)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_read_only_takes_nothing(folder: Path) -> None:
    with opened(folder) as store:
        put(store, records(1))
    with opened(folder, read_only=True) as store:
        for write in (
            lambda: stage(store, records(2)),
            lambda: set_name(store, b"x", b"y"),
            lambda: store.delete_many(BLOBS, []),
        ):
            with pytest.raises(PermissionDenied, match="is open read-only"):
                write()
        assert problems(store) == []


def test_an_index_that_is_gone_is_not_made_anew(folder: Path) -> None:
    with opened(folder) as store:
        put(store, records(1, 2))
        before = contents(store)
    for gone in ("data.mdb", None):
        if gone is None:
            shutil.rmtree(folder / INDEX_DIR)
        else:
            (folder / INDEX_DIR / gone).unlink()
        for read_only in (False, True):
            with pytest.raises(Corrupt, match="the index is missing; run: neve verify --rebuild-index"):
                PackStore.open(folder, read_only=read_only)
        rebuild_index(folder, TABLES)
        with opened(folder) as store:
            assert contents(store) == before
            assert problems(store) == []


def test_packs_that_are_gone(folder: Path) -> None:
    with opened(folder) as store:
        put(store, records(1, 2))
        set_name(store, b"name", b"value")
    for path in pack_paths(folder):
        path.unlink()
    with opened(folder) as store:
        for table, key in ((BLOBS, records(1)[0].key), (NAMES, b"name")):
            with pytest.raises(Corrupt, match=key.hex()):
                store.get(table, key)
        assert any("is missing" in what for what in problems(store))
        put(store, records(3))
        assert store.get(BLOBS, records(3)[0].key) == records(3)[0].data
    shutil.rmtree(folder / PACKS_DIR)
    with pytest.raises(NotFound, match=PACKS_DIR):
        PackStore.open(folder)


def test_a_store_from_before_a_fork(store: PackStore) -> None:
    put(store, records(1))
    child = os.fork()
    if child == 0:
        status = 1
        with contextlib.suppress(BaseException):
            uses: list[Callable[[], object]] = [
                lambda: store.get(BLOBS, records(1)[0].key),
                lambda: put(store, records(2)),
                lambda: set_name(store, b"x", b"y"),
            ]
            for use in uses:
                with pytest.raises(Unavailable, match="opened before a fork"):
                    use()
            with opened(store.path) as own:
                assert own is not store
                put(own, records(3))
                assert len(contents(own)) == 2
            status = 0
        os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    put(store, records(2))
    assert len(contents(store)) == 3
    assert problems(store) == []


@pytest.mark.parametrize("path", ["", "relative/path"])
def test_paths_that_no_store_can_have(path: str) -> None:
    with pytest.raises(InvalidRequest):
        check_path(path)
    with pytest.raises(InvalidRequest, match="root cannot be a store"):
        check_path("/")
    with pytest.raises(LimitExceeded):
        check_path("/" + "x" * 4000)
    assert check_path("/srv/neve") == Path("/srv/neve")


# Staging and committing.


def test_what_is_staged_is_seen_by_nobody(store: PackStore) -> None:
    staged = records(1, 2)
    stage(store, staged)
    keys = [one.key for one in staged]
    assert store.missing(BLOBS, keys) == keys
    assert not store.find(BLOBS, keys)
    assert not store.find_near(BLOBS, keys)
    assert store.page(BLOBS, b"", 10) == []
    assert store.locate(BLOBS, keys).keys() == set(keys)
    store.writer.commit()
    assert store.missing(BLOBS, keys) == []
    assert store.locate(BLOBS, keys) == store.find(BLOBS, keys)
    assert [store.get(BLOBS, key) for key in keys] == [one.data for one in staged]
    assert store.find_near(BLOBS, keys).keys() == set(keys)


def test_what_was_not_committed_is_given_up(folder: Path) -> None:
    with opened(folder) as store:
        put(store, records(1))
        size = pack_paths(folder)[0].stat().st_size
        stage(store, records(2))
    with opened(folder) as store:
        assert store.missing(BLOBS, [records(2)[0].key])
        assert pack_paths(folder)[0].stat().st_size == size
        assert problems(store) == []


def test_whoever_stages_too_much_commits(store: PackStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "MAX_STAGED_RECORDS", 100)
    stage(store, records(*range(50)))
    assert store.index.count(BLOBS.id) == 0
    stage(store, records(*range(50, 110)))
    assert store.index.count(BLOBS.id) == 110
    monkeypatch.setattr(staging, "MAX_STAGED_BYTES", 1000)
    stage(store, [record(os.urandom(2000))])
    assert store.index.count(BLOBS.id) == 111


def test_the_higher_tag_wins_whoever_comes_first(store: PackStore) -> None:
    for tags in ((1, 2), (2, 1)):
        key = record(b"%d%d" % tags).key
        for tag in tags:
            stage(store, [record(b"%d%d" % tags, tag)])
        store.writer.commit()
        assert store.find(BLOBS, [key])[key].tag == 2
        put(store, [record(b"%d%d" % tags, 1)])
        assert store.find(BLOBS, [key])[key].tag == 2
        put(store, [record(b"%d%d" % tags, 3)])
        assert store.find(BLOBS, [key])[key].tag == 3


def test_packs_are_changed_when_full(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(appender, "PACK_LIMIT", 50_000)
    with opened(folder) as store:
        for number in range(40):
            stage(store, [record(os.urandom(10_000))])
            if number % 7 == 0:
                set_name(store, b"name %d" % number, b"value")
        store.writer.commit()
        before = contents(store)
        assert len(before) == 46
        assert len(pack_paths(folder)) >= 7
        assert problems(store) == []
    with opened(folder) as store:
        put(store, records(1))
        assert contents(store) == before | {records(1)[0].key: records(1)[0].data}
    rebuild_index(folder, TABLES)
    with opened(folder) as store:
        assert contents(store) == before | {records(1)[0].key: records(1)[0].data}


def test_a_pack_whose_maker_died_early_gets_a_durable_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []

    def dying(_: Path) -> None:
        raise Unavailable("died here")

    with opened(folder) as store:
        with monkeypatch.context() as patch:
            patch.setattr(appender, "sync_directory", dying)
            with pytest.raises(Unavailable, match="died here"):
                put(store, records(1))
        monkeypatch.setattr(appender, "sync_directory", synced.append)
        put(store, records(1))
        assert len(pack_paths(folder)) == 1
        assert synced == [folder / PACKS_DIR]
    # Afterwards it is.
    with opened(folder) as store:
        put(store, records(2))
        assert len(pack_paths(folder)) == 1
    assert synced == [folder / PACKS_DIR]


def test_a_commit_that_makes_the_index_grow_is_written_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first attempt has its frames and marks in the pack already; they must not stay there."""
    monkeypatch.setattr(index, "INITIAL_MAP", 128 * 1024)
    with opened(folder) as store:
        small = store.index._map_size()
        for number in range(1000):
            put(store, records(number))
            set_name(store, b"%d" % number, b"value")
        assert store.index._map_size() > small
        with pack_paths(folder)[0].open("rb") as file:
            frames = [frame for frame in pack.scan(file.fileno(), store.key) if isinstance(frame, pack.Frame)]
        keys = [entry.key for frame in frames for entry in frame.entries]
        assert len(keys) == len(set(keys)) == 2000
        marks = [frame.seq for frame in frames if frame.kind == pack.COMMIT]
        assert marks == sorted(set(marks))
        assert len(marks) == 2000


def test_a_record_of_nothing(store: PackStore) -> None:
    put(store, [record(b""), *records(1)])
    set_name(store, b"empty", b"")
    assert store.get(BLOBS, record(b"").key) == store.get(NAMES, b"empty") == b""


def test_many_descriptors_are_not_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "_MAX_OPEN_PACKS", 3)
    monkeypatch.setattr(appender, "PACK_LIMIT", 1000)
    with opened(folder) as store:
        for number in range(30):
            put(store, [record(os.urandom(2000))])
            if number == 3:
                before = open_descriptors()
        assert len(pack_paths(folder)) == 30
        threads = [threading.Thread(target=contents, args=[store]) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(contents(store)) == 30
        assert open_descriptors() <= before + 3


# Failures.


@pytest.mark.parametrize("call", ["fdatasync", "pwritev"])
@pytest.mark.parametrize(("code", "kind"), [(errno.EIO, Unavailable), (errno.ENOSPC, DiskFull)])
def test_a_failed_commit_promises_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int, kind: type[Exception]
) -> None:
    with opened(folder) as store:
        put(store, records(1))
        set_name(store, b"name", b"before")
        before = contents(store)
        size = pack_paths(folder)[0].stat().st_size
        other = store.writer.begin()
        if call == "fdatasync":
            stage(store, records(2))
        with monkeypatch.context() as patch:
            patch.setattr(os, call, failing(code))
            with pytest.raises(kind):
                put(store, records(3))
            with pytest.raises(kind):
                set_name(store, b"name", b"after")
        # Whoever had staged before the failure is told so, with the failure's class.
        with pytest.raises(kind):
            store.writer.commit(other)
        assert contents(store) == before
        assert pack_paths(folder)[0].stat().st_size == size
        assert store.locate(BLOBS, [one.key for one in records(2, 3)]) == {}
        put(store, records(2, 3))
        set_name(store, b"name", b"after")
        after = contents(store)
        assert len(after) == 4
        assert problems(store) == []
    assert rebuild_index(folder, TABLES).problems == []
    with opened(folder) as store:
        assert contents(store) == after


def test_what_belongs_to_records_that_were_given_up_is_not_staged(
    store: PackStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = store.writer.begin()
    store.stage(BLOBS, records(1), session)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", failing(errno.ENOSPC))
        with pytest.raises(DiskFull):
            put(store, records(2))
    [late] = records(3)
    packed = Packed(late.data, len(late.data), RAW)
    with pytest.raises(DiskFull):
        store.stage(BLOBS, [late], session)
    with pytest.raises(DiskFull):
        store.stage_packed(BLOBS, [late], packed, session)
    put(store, records(4))
    assert contents(store).keys() == {records(4)[0].key}
    assert problems(store) == []


def test_nothing_that_was_given_up_is_taken_for_staged(
    store: PackStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looked at while the leader of the failed commit has not told the others yet."""
    keys = [records(1)[0].key]
    seen: list[object] = []
    give_up = writer.Writer._give_up

    def looked_at(self: writer.Writer, failure: BaseException) -> None:
        # The sync failed, so what is committed was taken over from what is staged.
        seen.append(store.locate(BLOBS, keys).keys() == set(keys))
        give_up(self, failure)
        seen.append(store.locate(BLOBS, keys))

    monkeypatch.setattr(writer.Writer, "_give_up", looked_at)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", failing(errno.EIO))
        with pytest.raises(Unavailable):
            put(store, records(1))
    assert seen == [True, {}]


def test_an_index_that_fails_to_commit(store: PackStore, monkeypatch: pytest.MonkeyPatch) -> None:
    put(store, records(1))
    write = Index.write

    @contextlib.contextmanager
    def failing_write(self: Index) -> Iterator[object]:
        with write(self) as txn:
            yield txn
            raise Unavailable("the index failed at the very end")

    with monkeypatch.context() as patch:
        patch.setattr(Index, "write", failing_write)
        with pytest.raises(Unavailable, match="at the very end"):
            put(store, records(2))
        with pytest.raises(Unavailable, match="at the very end"):
            set_name(store, b"name", b"value")
    assert len(contents(store)) == 1
    put(store, records(2))
    assert len(contents(store)) == 2
    assert problems(store) == []


def test_an_index_that_only_seems_to_fail(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The transaction has happened when the failure is told: what it points to must stay."""
    write = Index.write

    @contextlib.contextmanager
    def failing_write(self: Index) -> Iterator[object]:
        with write(self) as txn:
            yield txn
        raise Unavailable("lost the answer")

    with opened(folder) as store:
        put(store, records(1))
        with monkeypatch.context() as patch:
            patch.setattr(Index, "write", failing_write)
            with pytest.raises(Unavailable, match="lost the answer"):
                put(store, records(2))
        assert problems(store) == []
        assert len(contents(store)) == 2
        put(store, records(3))
        assert problems(store) == []
    with opened(folder) as store:
        assert len(contents(store)) == 3


def test_followers_are_told_of_the_leaders_failure(store: PackStore, monkeypatch: pytest.MonkeyPatch) -> None:
    put(store, records(0))
    started, go_on = threading.Event(), threading.Event()

    def late(_: int) -> None:
        started.set()
        assert go_on.wait(60)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    outcomes: list[BaseException | None] = []

    def work(number: int) -> None:
        try:
            set_name(store, b"%d" % number, b"value")
            outcomes.append(None)
        except BaseException as error:
            outcomes.append(error)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", late)
        threads = [threading.Thread(target=work, args=[number]) for number in range(5)]
        for thread in threads:
            thread.start()
        assert started.wait(60)
        go_on.set()
        for thread in threads:
            thread.join()
    assert len(outcomes) == 5
    assert all(isinstance(outcome, DiskFull) for outcome in outcomes)
    assert len(contents(store)) == 1
    set_name(store, b"name", b"value")


# Seals.


def test_seals() -> None:
    sealed = seal(3, b"key", b"data")
    assert unseal(3, b"key", sealed) == b"data"
    assert unseal(3, b"key", seal(3, b"key", memoryview(b""))) == b""
    tries = [(4, b"key", sealed), (3, b"kez", sealed), (3, b"key", sealed[:-1]), (3, b"key", b"")]
    tries += [(3, b"key", bytes([*sealed[:n], sealed[n] ^ 1, *sealed[n + 1 :]])) for n in range(len(sealed))]
    for table, key, wrong in tries:
        with pytest.raises(Corrupt, match=key.hex()):
            unseal(table, key, wrong)


# On media that cannot be written.

READER = """
import sys
from pathlib import Path
import lmdb.verify
from neve.errors import PermissionDenied
from tests.packstore.helpers import contents, opened, problems
import os
if os.geteuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
folder = Path(sys.argv[1])
try:
    opened(folder).__enter__()
except PermissionDenied:
    print("denied")
with opened(folder, read_only=True) as store:
    print(len(contents(store)), problems(store), store.index._registered)
"""


def test_a_folder_without_write_permission() -> None:
    """Root may write everywhere, so this is looked at as somebody else."""
    outer = Path(tempfile.mkdtemp(prefix="neve-test-"))
    try:
        folder = outer / "store"
        with opened(folder) as store:
            put(store, records(1, 2))
            set_name(store, b"name", b"value")
        for path in [folder, *folder.rglob("*")]:
            path.chmod(0o555 if path.is_dir() else 0o444)
        outer.chmod(0o755)
        command = [sys.executable, "-c", READER, str(folder)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert done.stdout == "denied\n3 [] False\n", done.stderr
    finally:
        for path in outer.rglob("*"):
            if path.is_dir():
                path.chmod(0o755)
        shutil.rmtree(outer)
