"""What a collection drops, and what it leaves."""

from __future__ import annotations

import contextlib
import shutil
import time
from pathlib import Path

import pytest

import neve
from neve.castore.blobs.local_write import BLOBS
from neve.castore.digest import b3_digest
from neve.castore.directories.local import DIRECTORIES
from neve.castore.ingest.entries import Ingester
from neve.castore.ingest.filesystem import FilesystemWalk
from neve.castore.node import DirectoryNode, FileNode
from neve.errors import Corrupt, InvalidRequest, NotFound, PermissionDenied, Unavailable
from neve.library import Store
from neve.nix.store_path import StorePath
from neve.packstore import notes, reserve
from neve.packstore.check import pack_bytes
from neve.packstore.dates import last_used, note_used
from neve.packstore.gate import collection_lock
from neve.packstore.store import PackStore
from neve.packstore.uses import Uses
from neve.store.check import rebuild_index, verify_store
from neve.store.gc import sweep
from neve.store.gc.rules import DEFAULT_GRACE, Rules
from neve.store.importer import ImportOptions, import_nar
from neve.store.nar_nodes import Nar
from neve.store.path_info import NarDetails, PathInfo
from neve.store.pins import Pins
from neve.telemetry import Progress
from tests.disks import fill_up, free_bytes, small_disk
from tests.packstore.helpers import flip, pack_paths
from tests.store.gc.helpers import check, collect, counts, imported, make_tree, opened, paths


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[PathInfo]]:
    """A store with four trees, each imported by a use of the store of its own."""
    folder = tmp_path_factory.mktemp("template")
    found: list[PathInfo] = []
    for number in range(4):
        found += imported(folder / "store", folder / "trees", [number])
    return folder, found


@pytest.fixture
def trees(folder: Path, tmp_path: Path, template: tuple[Path, list[PathInfo]]) -> list[PathInfo]:
    """The path infos of a copy of that."""
    shutil.copytree(template[0] / "store", folder)
    (tmp_path / "trees").symlink_to(template[0] / "trees")
    return template[1]


def packs_of(store: Store) -> PackStore:
    assert store.services.packs is not None
    return store.services.packs


def only(tmp_path: Path, numbers: list[int]) -> tuple[int, int]:
    """What a store has in which nothing but these trees ever was."""
    alone = tmp_path / "alone"
    for path in (alone, tmp_path / "again"):
        shutil.rmtree(path, ignore_errors=True)
    imported(alone, tmp_path / "again", numbers)
    with opened(alone) as store:
        return counts(store)


def test_all_but_what_is_kept_goes(folder: Path, tmp_path: Path, trees: list[PathInfo]) -> None:
    with opened(folder) as store:
        report = collect(store, keep=[trees[1].store_path, trees[3].store_path])
        assert (report.paths_kept, report.paths_dropped) == (2, 2)
        assert report.problems == []
        assert report.blobs_dropped == 2 * 21
        assert report.chunks_dropped > 2
        assert report.content_bytes > 2 * 20 * 1000
        assert report.directories_dropped > 2
        assert report.fresh == 0
        assert paths(store) == {trees[1].store_path, trees[3].store_path}
        assert counts(store) == only(tmp_path, [1, 3])
        assert 0.9 * report.dead_bytes < report.given_back
        assert pack_bytes(folder) == report.pack_bytes - report.given_back
        check(store)
    rebuild_index(f"local://{folder}")
    with opened(folder) as store:
        assert paths(store) == {trees[1].store_path, trees[3].store_path}
        assert counts(store)[1] == only(tmp_path, [1, 3])[1]
        check(store)


def test_without_rules_only_what_no_path_reaches_goes(
    folder: Path, tmp_path: Path, trees: list[PathInfo]
) -> None:
    with opened(folder) as store:
        store.path_infos.delete_many([trees[0].digest])
    with opened(folder) as store:
        stray = store.blobs.put_many([b"nobody refers to this"])
    with opened(folder) as store:
        report = collect(store)
        assert (report.paths_kept, report.paths_dropped) == (3, 0)
        assert not packs_of(store).find(BLOBS, stray)
        assert counts(store) == only(tmp_path, [1, 2, 3])
        check(store)
        again = collect(store)
        assert (again.blobs_dropped, again.given_back) == (0, 0)


def test_a_dry_run_changes_nothing(folder: Path, trees: list[PathInfo]) -> None:
    before = {path: path.read_bytes() for path in pack_paths(folder)}
    with opened(folder) as store:
        seq = packs_of(store).index.last_seq()
        told = collect(store, keep=[trees[1].store_path], dry_run=True)
        assert told.dry_run
        assert packs_of(store).index.last_seq() == seq
        assert {path: path.read_bytes() for path in pack_paths(folder)} == before
        assert len(paths(store)) == 4
    with opened(folder) as store:
        done = collect(store, keep=[trees[1].store_path])
    for name in ("paths_dropped", "directories_dropped", "blobs_dropped", "chunks_dropped", "content_bytes"):
        assert getattr(told, name) == getattr(done, name), name
    assert abs(told.given_back - done.given_back) < 0.1 * done.given_back


def test_what_a_kept_path_refers_to_stays(folder: Path, tmp_path: Path, trees: list[PathInfo]) -> None:
    with opened(folder) as store:
        nar = b"".join(store.nar(trees[0].store_path))
        middle = StorePath.parse_base_name("0" * 32 + "-middle")
        top = StorePath.parse_base_name("1" * 32 + "-top")
        import_nar(store.services, [nar], store_path=middle, references=[trees[2].store_path, middle])
        import_nar(store.services, [nar], store_path=top, references=[middle])
    with opened(folder) as store:
        collect(store, keep=[top])
        assert paths(store) == {top, middle, trees[2].store_path}
        assert store.path_infos.referrers(trees[2].digest) == [middle.digest]
        check(store)
        assert counts(store) == only(tmp_path, [0, 2])
    with opened(folder) as store:
        collect(store, keep=[trees[2].store_path])
        assert paths(store) == {trees[2].store_path}
        assert store.path_infos.referrers(trees[2].digest) == []
        assert packs_of(store).index.count(5) == 0


def test_single_files_and_links(folder: Path, tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree", 1)
    (tmp_path / "empty").touch()
    with opened(folder) as store:
        kept = [
            store.import_path(path, ImportOptions(name=f"kept-{path.name}"))
            for path in (tree / "large", tree / "link", tree / "d0" / "e0" / "file-0", tmp_path / "empty")
        ]
        store.import_path(tree)
    with opened(folder) as store:
        assert collect(store, keep=[info.store_path for info in kept]).paths_dropped == 1
        assert counts(store)[1] == 0
        check(store)
        for info in kept:
            assert store.services.nar_nodes.nar(info.node) is not None


# What may be kept.


def test_a_path_to_keep_that_is_not_there(folder: Path, trees: list[PathInfo]) -> None:
    gone = StorePath.parse_base_name("2" * 32 + "-gone")
    other = StorePath(trees[0].store_path.digest, "another-name")
    with opened(folder) as store:
        for path in (gone, other):
            with pytest.raises(NotFound, match=r"is to be kept and is not in the store; nothing was dropped"):
                collect(store, keep=[trees[0].store_path, path])
        assert len(paths(store)) == 4
        report = collect(store, keep=[trees[0].store_path, gone], ignore_missing=True)
        assert report.paths_dropped == 3


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"keep": []}, "no store path is named"),
        ({"grace": -1}, "a grace of -1 seconds"),
        ({"grace": notes.MAX_LASTING + 1}, "it must be 0 to"),
        ({"keep_newer": -1.0}, "less than none"),
        ({"max_size": -1}, "less than none"),
    ],
)
def test_rules_that_are_none(rules: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        Rules(**rules)  # type: ignore[arg-type]


def test_pinned_paths_stay(folder: Path, trees: list[PathInfo]) -> None:
    with opened(folder) as store:
        Pins(packs_of(store)).add("two", [trees[2].store_path])
    with opened(folder) as store:
        collect(store, keep=[trees[1].store_path])
        assert paths(store) == {trees[1].store_path, trees[2].store_path}
        check(store)
    with opened(folder) as store:
        collect(store, only_pinned=True)
        assert paths(store) == {trees[2].store_path}
        Pins(packs_of(store)).remove("two")
    with opened(folder) as store:
        collect(store, only_pinned=True)
        assert paths(store) == set()
        assert counts(store) == (0, 0)


def test_what_was_used_lately_stays(folder: Path, trees: list[PathInfo]) -> None:
    now = int(time.time())
    with opened(folder) as store:
        index = packs_of(store).index
        assert set(last_used(index)) == {info.digest for info in trees}
        for days, info in enumerate(trees):
            index.run(
                lambda txn, days=days, info=info: txn.set_counter(  # type: ignore[misc]
                    b"used:" + info.digest, now - days * 86_400 - 100
                )
            )
        # Asking for it makes the oldest one the newest.
        assert store.path_infos.get(trees[3].digest) is not None
        collect(store, keep_newer=1.5 * 86_400)
        assert paths(store) == {trees[0].store_path, trees[1].store_path, trees[3].store_path}
        assert set(last_used(index)) == {trees[0].digest, trees[1].digest, trees[3].digest}
    with opened(folder) as store:
        index = packs_of(store).index
        assert last_used(index)[trees[3].digest] >= now
        report = collect(store, keep_newer=0, keep=[trees[0].store_path])
        assert report.paths_kept == 1


def test_what_has_no_date_counts_from_the_first_collection(folder: Path, trees: list[PathInfo]) -> None:
    rebuild_index(f"local://{folder}")
    with opened(folder) as store:
        index = packs_of(store).index
        assert last_used(index) == {}
        assert collect(store, keep_newer=60, dry_run=True).paths_dropped == 0
        assert last_used(index) == {}
        assert collect(store, keep_newer=60).paths_dropped == 0
        assert set(last_used(index)) == {info.digest for info in trees}


def test_what_a_process_has_had_for_long_counts_as_used_to_the_end(
    folder: Path, trees: list[PathInfo]
) -> None:
    """It may have asked for it once, weeks ago."""
    now = int(time.time())
    with opened(folder) as store:
        index = packs_of(store).index
        with opened(folder) as other:
            assert other.path_infos.get(trees[0].digest) is not None
            packs_of(store).uses._flush_dates()
            long_ago = now - 40 * 86_400
            for info in trees[:2]:
                index.run(lambda txn, info=info: txn.set_counter(b"used:" + info.digest, long_ago))  # type: ignore[misc]
            collect(store, keep_newer=30 * 86_400)
            assert trees[1].store_path not in paths(store)
            assert last_used(index)[trees[0].digest] >= now
    with opened(folder) as store:
        collect(store, keep_newer=30 * 86_400)
        assert trees[0].store_path in paths(store)


def test_a_date_far_in_the_future_is_none(folder: Path, trees: list[PathInfo]) -> None:
    """A clock that was wrong for a day must not keep what was used on it for good."""
    with opened(folder) as store:
        index = packs_of(store).index
        now = int(time.time())
        note_used(index, [trees[0].digest], now + 20 * 365 * 86_400)
        collect(store, keep_newer=60, dry_run=True)
        assert last_used(index)[trees[0].digest] > now + 86_400
        collect(store, keep_newer=60)
        assert now <= last_used(index)[trees[0].digest] <= time.time()
        assert trees[0].store_path in paths(store)


def test_the_least_used_go_when_there_is_too_much(folder: Path, trees: list[PathInfo]) -> None:
    with opened(folder) as store:
        packs = packs_of(store)
        now = int(time.time())
        for place, number in enumerate((2, 0, 3, 1)):
            note_used(packs.index, [trees[number].digest], now + 100 + place)
        full = pack_bytes(folder)
        assert collect(store, max_size=2 * full).paths_dropped == 0
        collect(store, max_size=full * 6 // 10)
        assert paths(store) == {trees[3].store_path, trees[1].store_path}
        assert pack_bytes(folder) <= full * 6 // 10
        check(store)
        # What is named stays in any case.
        collect(store, max_size=1, keep=[trees[3].store_path])
        assert paths(store) == {trees[3].store_path}


# The near part of a cache.


def test_contents_without_path_infos_are_bounded_and_not_emptied(
    tmp_path: Path, template: tuple[Path, list[PathInfo]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blobs and Directories come near as they are read, and no path info does."""
    monkeypatch.setattr("neve.store.gc.near._PORTION", 16)
    near, far = tmp_path / "near", f"local://{template[0]}/store"
    cache = f"cache://?near=local://{near}&far={far}"
    for info in template[1]:
        with neve.open(far, blob_service=cache, directory_service=cache) as store:
            assert len(b"".join(store.nar(info.store_path))) > 1_200_000
    full = pack_bytes(near)
    with opened(near) as store:
        before = counts(store)
        report = collect(store, max_size=full)
        assert (report.blobs_dropped, report.directories_dropped) == (0, 0)
        assert counts(store) == before
        report = collect(store, max_size=full // 2)
        assert report.blobs_dropped > 0
        assert 0.25 * full < pack_bytes(near) <= full // 2
        check(store)
        # What came last is there.
        node = template[1][3].node
        assert isinstance(node, DirectoryNode)
        assert store.directories.get(node.digest) is not None
    with neve.open(far, blob_service=cache, directory_service=cache) as store:
        for info in template[1]:
            assert info.nar is not None
            assert len(b"".join(store.nar(info.store_path))) == info.nar.size
    with opened(near) as store:
        collect(store, max_size=0)
        assert counts(store) == (0, 0)


# What is fresh.


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stores are opened by a server."""
    monkeypatch.setattr(Uses, "lasting", True)


def test_what_was_put_and_not_registered_yet_stays(folder: Path, tmp_path: Path) -> None:
    """Somebody stores contents, then Directories, then the path info, with a collection in between each."""
    tree = make_tree(tmp_path / "tree", 1)
    with opened(folder) as other, opened(folder) as store:
        with Ingester(other.blobs, other.directories) as ingester:
            for batch in FilesystemWalk(bytes(tree)):
                ingester.feed(batch)
                assert collect(store).blobs_dropped == 0
            node = ingester.finish()
        assert collect(store).directories_dropped == 0
        nar = other.services.nar_calculation.calculate_nar(node)
        assert collect(store).fresh > 40
        path = StorePath.parse_base_name("3" * 32 + "-tree")
        other.path_infos.put(PathInfo(path, node, (), None))
        assert other.services.nar_nodes.nar(node) == nar
        assert collect(store, only_pinned=True).paths_dropped == 0
        check(store)


@pytest.mark.parametrize("asked", ["blob", "chunks", "directory", "path", "version", "missing"])
def test_what_was_answered_to_be_there_stays(folder: Path, trees: list[PathInfo], asked: str) -> None:
    node = trees[0].node
    assert isinstance(node, DirectoryNode)
    with opened(folder) as store:
        large = store.node(f"{trees[0].store_path}/large")
    assert isinstance(large, FileNode)
    with opened(folder) as store:
        if asked == "blob":
            assert store.blobs.has(large.digest)
        elif asked == "missing":
            assert store.blobs.missing_blobs([large.digest]) == []
        elif asked == "chunks":
            assert store.blobs.chunks(large.digest)
        elif asked == "directory":
            assert store.directories.get(node.digest) is not None
        elif asked == "path":
            assert store.path_infos.get(trees[0].digest) is not None
        else:
            assert store.path_infos.version(trees[0].digest) is not None
        collect(store, keep=[trees[1].store_path])
        assert (trees[0].store_path in paths(store)) == (asked in ("path", "version"))
        contents = store.blobs.read(large.digest)
        assert b3_digest(contents) == large.digest
        if asked not in ("blob", "missing", "chunks"):
            assert len(b"".join(store.services.renderer.stream(node))) > 1_200_000
        check(store)
    # A process that has ended counts on nothing any more.
    with opened(folder) as store:
        collect(store, keep=[trees[1].store_path])
        assert paths(store) == {trees[1].store_path}
        assert not store.blobs.has(large.digest)


@pytest.mark.parametrize("anew", [False, True])
def test_a_verification_beside_a_collection(
    folder: Path, tmp_path: Path, trees: list[PathInfo], anew: bool
) -> None:
    """What is dropped, or put again, while it is looked at is not missing."""
    with opened(folder) as store:

        class Meddling(Progress):
            done = False

            def start(self, total: int | None) -> None:
                return

            def advance(self, amount: int, current: str = "") -> None:
                if current == trees[0].store_path.base_name and not self.done:
                    self.done = True
                    collect(store, keep=[trees[1].store_path], grace=0)

        meddling = Meddling()
        assert verify_store(store.services, meddling).problems == []
        assert meddling.done
        assert paths(store) == {trees[1].store_path}
        if anew:
            large = store.node(f"{trees[1].store_path}/large")
            assert isinstance(large, FileNode)
            store.blobs.delete_many([large.digest])
            (problem,) = verify_store(store.services).problems
            assert f"is missing; breaks {trees[1].store_path}" in problem


def test_a_verification_keeps_nothing(folder: Path, trees: list[PathInfo]) -> None:
    with opened(folder) as store:
        check(store)
        store.path_infos.delete_many([trees[0].digest])
        report = collect(store, keep=[trees[1].store_path])
        assert (report.fresh, report.paths_dropped) == (0, 2)
        assert set(last_used(packs_of(store).index)) == {trees[1].digest}


def test_what_a_server_has_answered_stays_for_the_grace(
    folder: Path, trees: list[PathInfo], served: None
) -> None:
    with opened(folder) as store:
        assert store.path_infos.get(trees[0].digest) is not None
    with opened(folder) as store:
        assert collect(store, keep=[trees[1].store_path]).paths_dropped == 2
        assert paths(store) == {trees[0].store_path, trees[1].store_path}
        assert collect(store, keep=[trees[1].store_path], grace=0).paths_dropped == 1
        check(store)


def test_after_a_power_failure_nothing_is_dropped_during_the_grace(
    folder: Path, trees: list[PathInfo], served: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(folder) as store:
        assert store.path_infos.get(trees[0].digest) is not None
        monkeypatch.setattr(notes, "boot_id", lambda: b"another")
        with pytest.raises(Unavailable, match="--grace 0"):
            collect(store, keep=[trees[1].store_path])
        assert len(paths(store)) == 4
        collect(store, keep=[trees[1].store_path], grace=0)
        assert paths(store) == {trees[1].store_path}


class Between:
    """Does something right before a step of the sweep, as another process may."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, step: str, act) -> None:  # type: ignore[no-untyped-def]
        real = getattr(sweep, step)
        self.done = False

        def first(*arguments):  # type: ignore[no-untyped-def]
            if not self.done:
                self.done = True
                act()
            return real(*arguments)

        monkeypatch.setattr(sweep, step, first)


@pytest.mark.parametrize("what", ["path", "directory", "blob", "put", "pin", "reference"])
def test_what_becomes_fresh_during_a_collection_stays(
    folder: Path, tmp_path: Path, trees: list[PathInfo], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the rest has been condemned, and before it is dropped."""
    path, node = trees[0].store_path, trees[0].node
    assert isinstance(node, DirectoryNode)
    with opened(folder) as store, opened(folder) as other:
        large = store.node(f"{path}/large")
        assert isinstance(large, FileNode)
        new: list[PathInfo] = []

        def act() -> None:
            if what == "path":
                assert other.path_infos.get(path.digest) is not None
            elif what == "directory":
                assert other.directories.get(node.digest) is not None
            elif what == "blob":
                assert other.blobs.has(large.digest)
            elif what == "pin":
                Pins(packs_of(other)).add("late", [path])
            elif what == "reference":
                # Whoever puts it need not have asked for what it refers to.
                assert trees[1].nar is not None
                details = NarDetails(
                    size=trees[1].nar.size, sha256=trees[1].nar.sha256, reference_names=(path,)
                )
                referring = PathInfo(
                    StorePath.parse_base_name("4" * 32 + "-new"), trees[1].node, (path.digest,), details
                )
                new.append(other.path_infos.put(referring))
            else:
                new.append(other.import_path(tmp_path / "trees" / "0", ImportOptions(name="anew")))

    # In processes of their own: what was looked up here so far counts no more.
    with opened(folder) as store, opened(folder) as other:
        Between(monkeypatch, "_drop_paths_and_directories", act)
        collect(store, keep=[trees[1].store_path])
        kept = {trees[1].store_path} | {info.store_path for info in new}
        assert paths(store) == kept | ({path} if what in ("path", "pin", "reference") else set())
        assert b3_digest(store.blobs.read(large.digest)) == large.digest
        if what != "blob":
            assert len(b"".join(store.services.renderer.stream(node))) > 1_200_000
        check(store)


@pytest.mark.parametrize("step", ["_drop_lists", "_drop_contents"])
def test_a_blob_that_is_asked_for_late(
    folder: Path, trees: list[PathInfo], step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Either it is not there any more, or it stays."""
    node = trees[0].node
    assert isinstance(node, DirectoryNode)
    with opened(folder) as store:
        large = store.node(f"{trees[0].store_path}/large")
        small = store.node(f"{trees[0].store_path}/d0/e0/file-0")
        assert isinstance(large, FileNode)
        assert isinstance(small, FileNode)
        found: list[tuple[bytes, bool]] = []
    with opened(folder) as store, opened(folder) as other:
        Between(
            monkeypatch,
            step,
            lambda: found.extend((n.digest, other.blobs.has(n.digest)) for n in (large, small)),
        )
        collect(store, keep=[trees[1].store_path])
        assert [there for _, there in found] == [step == "_drop_lists", True]
        for digest, there in found:
            assert store.blobs.has(digest) == there
            if there:
                assert b3_digest(store.blobs.read(digest)) == digest
        assert store.directories.get(node.digest) is None
        check(store)


# The map of NARs.


def test_nars_of_trees_that_are_gone_are_forgotten(folder: Path, trees: list[PathInfo]) -> None:
    with opened(folder) as store:
        collect(store, keep=[trees[1].store_path])
        nars = store.services.nar_nodes
        for info in trees:
            assert info.nar is not None
            kept = info is trees[1]
            assert (nars.node(info.nar.sha256) is not None) == kept
            assert (nars.nar(info.node) is not None) == kept
        assert packs_of(store).index.count(4) == 2
        # It can be learned again.
        assert trees[0].nar is not None
        nars.put(trees[0].node, Nar(trees[0].nar.size, trees[0].nar.sha256))
        assert nars.nar(trees[0].node) is not None


def test_the_nar_of_a_tree_that_is_just_put_again_is_not_forgotten(
    folder: Path, tmp_path: Path, trees: list[PathInfo], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tree is staged, and goes in with the next commit; its NAR was known from before."""
    nar = trees[0].nar
    assert nar is not None
    with opened(folder) as store, opened(folder) as other:
        done: list[object] = []
        real, ending = sweep._of_absent_trees, contextlib.ExitStack()

        def first(*arguments):  # type: ignore[no-untyped-def]
            found = real(*arguments)
            if not done:
                ending.enter_context(other.services.one_commit())
                with Ingester(other.blobs, other.directories) as ingester:
                    for batch in FilesystemWalk(bytes(tmp_path / "trees" / "0")):
                        ingester.feed(batch)
                    done.append(ingester.finish())
                other.services.nar_nodes.put(trees[0].node, Nar(nar.size, nar.sha256))
            return found

        monkeypatch.setattr(sweep, "_of_absent_trees", first)
        with ending:
            collect(store, keep=[trees[1].store_path])
        assert done == [trees[0].node]
        assert other.services.nar_nodes.node(nar.sha256) is not None
        assert other.services.nar_nodes.nar(trees[0].node) is not None


def test_what_is_to_be_dropped_may_be_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "_IN_MEMORY", 10 * 32)
    digests = [b3_digest(bytes((number,))) for number in range(57)]
    keys = sweep.Keys(tmp_path)
    for start in range(0, 57, 4):
        keys.add(digests[start : start + 4])
    assert len(keys) == 57
    assert [d for batch in keys.batches(7) for d in batch] == digests
    assert {len(batch) for batch in keys.batches(100)} == {48, 9}
    keys.close()


@pytest.mark.root
def test_what_is_to_be_dropped_needs_no_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "_IN_MEMORY", 1000 * 32)
    digests = [b3_digest(number.to_bytes(4, "big")) for number in range(3500)]
    with small_disk(tmp_path / "disk", 1_000_000) as disk:
        fill_up(disk / "full", leave=40_000)
        keys = sweep.Keys(disk)
        for start in range(0, 3500, 500):
            keys.add(digests[start : start + 500])
        assert [d for batch in keys.batches(70) for d in batch] == digests
        keys.close()


@pytest.mark.root
def test_a_disk_without_any_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A collection has a reserve, gives back what is dropped, and makes the reserve anew."""
    monkeypatch.setattr(reserve, "RESERVE_BYTES", 2_000_000)
    with small_disk(tmp_path / "disk", 30_000_000) as disk:
        folder = disk / "store"
        infos = imported(folder, tmp_path / "trees", [0, 1, 2])
        kept = infos[0].store_path
        with opened(folder) as store:
            collect(store)  # The first one makes it.
        assert (folder / "reserve").stat().st_size == 2_000_000
        fill_up(disk / "full")
        assert free_bytes(disk) == 0
        with opened(folder) as store:
            assert collect(store, keep=[kept], dry_run=True).paths_dropped == 2
            assert free_bytes(disk) == 0
            report = collect(store, keep=[kept])
            assert report.problems == []
            assert report.given_back > 1_500_000
            assert free_bytes(disk) >= report.given_back
            check(store)
        assert (folder / "reserve").stat().st_size == 2_000_000


# Troubles.


def test_a_damaged_directory_that_stays_ends_it(folder: Path, trees: list[PathInfo]) -> None:
    node = trees[1].node
    assert isinstance(node, DirectoryNode)
    with opened(folder) as store:
        place = packs_of(store).find(DIRECTORIES, [node.digest])[node.digest].place
    flip(folder / "packs" / f"{place >> 40:08x}.pack", 8 * (place & (1 << 40) - 1) + 77)
    with opened(folder) as store:
        before = counts(store)
        with pytest.raises(Corrupt, match=rf"{node.digest.hex()}.*nothing was dropped.*neve verify"):
            collect(store, keep=[trees[1].store_path])
        assert counts(store) == before
        # It stands in nobody's way once it is not needed.
        assert collect(store, keep=[trees[2].store_path]).problems == []
        check(store)


def test_a_damaged_blob_that_stays_keeps_its_pack(folder: Path, trees: list[PathInfo]) -> None:
    with opened(folder) as store:
        node = store.node(f"{trees[1].store_path}/d0/e0/file-0")
        assert isinstance(node, FileNode)
        place = packs_of(store).find(BLOBS, [node.digest])[node.digest].place
    path = folder / "packs" / f"{place >> 40:08x}.pack"
    flip(path, 8 * (place & (1 << 40) - 1) + 77)
    with opened(folder) as store:
        report = collect(store, keep=[trees[1].store_path])
        assert len(report.problems) == 1
        assert path.name in report.problems[0]
        assert report.paths_dropped == 3
        assert path.exists()
    flip(path, 8 * (place & (1 << 40) - 1) + 77)
    with opened(folder) as store:
        assert collect(store).problems == []
        assert not path.exists()
        check(store)


def test_a_missing_directory_is_counted(folder: Path, trees: list[PathInfo]) -> None:
    """As in the near part of a cache."""
    node = trees[1].node
    assert isinstance(node, DirectoryNode)
    with opened(folder) as store:
        below = [child.digest for _, child in store.list_dir(trees[1].store_path).directories()]
        store.directories.delete_many(below[:1])
    with opened(folder) as store:
        report = collect(store, keep=[trees[1].store_path])
        assert report.missing == 1
        assert paths(store) == {trees[1].store_path}


def test_one_at_a_time(folder: Path, trees: list[PathInfo]) -> None:
    with opened(folder) as store, collection_lock(folder), pytest.raises(Unavailable, match="under way"):
        collect(store)


def test_only_an_embedded_store_that_can_be_written(folder: Path, trees: list[PathInfo]) -> None:
    with neve.open(f"local://{folder}?mode=ro") as store, pytest.raises(PermissionDenied):
        collect(store)


def test_an_empty_store(folder: Path) -> None:
    with opened(folder) as store:
        report = collect(store)
        assert (report.paths_kept, report.dead_bytes, report.given_back) == (0, 0, 0)
        assert collect(store, only_pinned=True, max_size=1, keep_newer=0).paths_dropped == 0
    assert DEFAULT_GRACE <= notes.MAX_LASTING
