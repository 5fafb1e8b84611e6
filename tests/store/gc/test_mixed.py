"""Collections of stores whose services lie in several places."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest

import neve
from neve.castore.ages import DEFAULT_GRACE
from neve.castore.blobs.base import BlobReader, Chunk
from neve.castore.blobs.memory import MemoryBlobService
from neve.castore.digest import Digest, b3_digest
from neve.castore.directories.memory import MemoryDirectoryService
from neve.castore.directory import Directory
from neve.castore.node import DirectoryNode, FileNode
from neve.errors import Corrupt, InvalidRequest, NotFound, Unavailable, Unsupported
from neve.library import Store
from neve.packstore.check import pack_bytes
from neve.packstore.gate import collection_lock
from neve.store.check import verify_store
from neve.store.gc import mixed
from neve.store.gc.parts import LocalPart
from neve.store.gc.report import GcReport
from neve.store.importer import ImportOptions
from neve.store.mirror.run import mirror
from neve.store.nar_nodes import MemoryNarNodes
from neve.store.path_info import NarDetails, PathInfo
from neve.store.pathinfos.base import PathInfoService
from neve.store.pathinfos.memory import MemoryPathInfoService
from neve.store.services import Services
from tests.store.gc import helpers
from tests.store.gc.helpers import check, make_tree, paths

T = TypeVar("T")


class RootsOnly(MemoryDirectoryService):
    """Like an object store: of a closure only the root can be looked up."""

    looks_up_children = False
    strict = False
    """For who walks trees from their roots: others keep what comes with a closure."""

    def __init__(self) -> None:
        super().__init__()
        self.closures: dict[Digest, list[Directory]] = {}

    def get(self, digest: Digest) -> Directory | None:
        closures = [[*self.get_recursive(digest)[:1]]] if self.strict else self.closures.values()
        return next((one for closure in closures for one in closure if one.digest == digest), None)

    def get_recursive(self, digest: Digest) -> list[Directory]:  # type: ignore[override]
        return self.closures.get(digest, [])

    def delete_many(self, digests: Sequence[Digest], *, unused_for: float | None = None) -> int:
        there = set(self.closures)
        count = super().delete_many(digests, unused_for=unused_for)
        for digest in there.difference(self._directories):
            del self.closures[digest]
        return count

    def add(self, encoded: dict[Digest, bytes]) -> None:
        *_, root = encoded
        found = {digest: Directory.decode(data) for digest, data in encoded.items()}
        walk = self._breadth_first(
            root,
            lambda some: {digest: found[digest] for digest in some},
            lambda one: (child.digest for _, child in one.directories()),
        )
        self.closures[root] = list(walk)
        super().add({root: encoded[root]})

    def freshen(self, digests: Sequence[Digest]) -> Sequence[Digest]:
        return super().freshen([digest for digest in digests if digest in self.closures])

    def put(self, directory: Directory) -> Digest:
        raise AssertionError


class Mix:
    """A store in several places. ``anew`` opens it as another process would, and ``age`` lets a day go by."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        self._folder = folder
        self._blobs = MemoryBlobService()
        self._directories = RootsOnly() if kind == "roots" else MemoryDirectoryService()
        self._path_infos = MemoryPathInfoService()

    @contextlib.contextmanager
    def anew(self) -> Iterator[Store]:
        if self.kind not in ("folders", "two"):
            yield Store(Services(self._blobs, self._directories, self._path_infos, MemoryNarNodes()))
            return
        names = ["a", "b", "c"] if self.kind == "folders" else ["a", "b", "a"]
        blobs, directories, path_infos = [f"local://{self._folder}/{name}" for name in names]
        with neve.open(
            blob_service=blobs, directory_service=directories, path_info_service=path_infos
        ) as store:
            assert store.services.packs is None
            yield store

    def age(self, seconds: float = DEFAULT_GRACE + 10) -> None:
        for service in (self._blobs, self._directories, self._path_infos):
            service._uses.make_older(seconds)

    @property
    def is_local(self) -> bool:
        return self.kind in ("folders", "two")


@pytest.fixture(params=["folders", "two", "memory", "roots"])
def mix(request: pytest.FixtureRequest, tmp_path: Path) -> Mix:
    return Mix(request.param, tmp_path / "stores")


def imported(mix: Mix, trees: Path, numbers: Sequence[int]) -> list[PathInfo]:
    """Imported long ago."""
    found = []
    for number in numbers:
        tree = make_tree(trees / str(number), number)
        with mix.anew() as store:
            found.append(store.import_path(tree, ImportOptions(name=f"tree-{number}")))
    mix.age()
    return found


def collect(store: Store, **rules: object) -> GcReport:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RootsOnly, "strict", True)
        return helpers.collect(store, **rules)


def elsewhere(act: Callable[[], T]) -> T:
    """What comes of it in another thread: in that of a collection nothing counts as somebody's use."""
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(1) as pool:
        patch.setattr(RootsOnly, "strict", False)
        return pool.submit(act).result()


def contents(store: Store) -> tuple[set[Digest], set[Digest]]:
    return set(store.blobs.list(limit=100_000)), set(store.directories.list(limit=100_000))


def test_all_but_what_is_kept_goes(mix: Mix, tmp_path: Path) -> None:
    infos = imported(mix, tmp_path / "trees", [0, 1, 2])
    kept = infos[1].store_path
    alone = Mix(mix.kind, tmp_path / "alone")
    imported(alone, tmp_path / "again", [1])
    with alone.anew() as store:
        expected = contents(store)
    with mix.anew() as store:
        before = contents(store)
        told = collect(store, keep=[kept], dry_run=True)
        assert contents(store) == before
        report = collect(store, keep=[kept])
        for one in (told, report):
            assert (one.paths_kept, one.paths_dropped) == (1, 2)
            assert one.blobs_dropped == len(before[0]) - len(expected[0])
            assert one.directories_dropped == len(before[1]) - len(expected[1])
            assert one.problems == []
        assert paths(store) == {kept}
        assert contents(store) == expected
        if mix.is_local:
            assert report.chunks_dropped > 0
            assert (
                0
                < report.given_back
                == report.pack_bytes - sum(pack_bytes(folder) for folder in (tmp_path / "stores").iterdir())
            )
        check(store)
    with mix.anew() as store:
        assert collect(store).blobs_dropped == 0


def test_references_of_kept_paths_stay(mix: Mix, tmp_path: Path) -> None:
    infos = imported(mix, tmp_path / "trees", [0, 1])
    path = infos[0].store_path
    assert infos[1].nar is not None
    details = NarDetails(size=infos[1].nar.size, sha256=infos[1].nar.sha256, reference_names=(path,))
    top = PathInfo(neve.StorePath.parse_base_name("4" * 32 + "-top"), infos[1].node, (path.digest,), details)
    with mix.anew() as store:
        store.path_infos.put(top)
    mix.age()
    with mix.anew() as store:
        collect(store, keep=[top.store_path])
        assert paths(store) == {top.store_path, path}
        check(store)


def test_what_is_fresh_stays(mix: Mix, tmp_path: Path) -> None:
    """Stored and not registered, and what a path refers to that was."""
    infos = imported(mix, tmp_path / "trees", [0])
    with mix.anew() as store:
        with mix.anew() as other:
            node = other.import_path(make_tree(tmp_path / "new", 1), ImportOptions(name="new")).node
            other.path_infos.delete_many([info.digest for info in other.path_infos if info != infos[0]])
        report = collect(store, keep=[infos[0].store_path])
        assert report.paths_dropped == 0
        assert report.fresh > 0
        assert len(b"".join(store.services.renderer.stream(node))) > 1_200_000
        mix.age(DEFAULT_GRACE / 2)
        collect(store)
        assert len(b"".join(store.services.renderer.stream(node))) > 1_200_000
    mix.age(DEFAULT_GRACE / 2 + 10)
    with mix.anew() as store:
        assert collect(store).fresh == 0
        with pytest.raises(NotFound):
            b"".join(store.services.renderer.stream(node))
        check(store)


@pytest.mark.parametrize("dropping", [False, True])
def test_a_path_that_is_put_during_a_collection_stays_whole(
    mix: Mix, tmp_path: Path, dropping: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tree was registered once, and whoever puts it anew has asked for nothing of it."""
    infos = imported(mix, tmp_path / "trees", [0, 1, 2])
    with mix.anew() as store:
        store.path_infos.delete_many([infos[0].digest])
    real = mixed._Run._mark
    with mix.anew() as store, mix.anew() as other:

        def then(run: mixed._Run) -> list[bytes]:
            result = real(run)
            elsewhere(lambda: other.path_infos.put(infos[0]))
            return result

        monkeypatch.setattr(mixed._Run, "_mark", then)
        collect(store, **({"keep": [infos[1].store_path]} if dropping else {}))
        assert infos[0].store_path in paths(store)
        assert (infos[2].store_path in paths(store)) == (not dropping)
        check(store)


def tree_asked_for(store: Store, node: DirectoryNode) -> bool:
    from neve.castore.traverse import is_whole

    return is_whole(store.blobs, store.directories, node)


def upload_again(store: Store, tmp_path: Path) -> None:
    store.import_path(tmp_path / "trees" / "0", ImportOptions(name="again"))


@pytest.mark.parametrize("what", ["asked", "uploaded", "registered", "read"])
def test_what_becomes_fresh_during_a_collection_stays(
    mix: Mix, tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After all that stays was marked, and before anything is dropped."""
    infos = imported(mix, tmp_path / "trees", [0, 1])
    node, path = infos[0].node, infos[0].store_path
    assert isinstance(node, DirectoryNode)
    real = mixed._Run._drop_paths
    with mix.anew() as store, mix.anew() as other:

        def act() -> None:
            if what == "asked":
                assert tree_asked_for(other, node)
            elif what == "uploaded":
                upload_again(other, tmp_path)
            elif what == "registered":
                assert infos[1].nar is not None
                details = NarDetails(
                    size=infos[1].nar.size, sha256=infos[1].nar.sha256, reference_names=(path,)
                )
                name = neve.StorePath.parse_base_name("4" * 32 + "-new")
                other.path_infos.put(PathInfo(name, infos[1].node, (path.digest,), details))
            else:
                assert len(b"".join(other.services.renderer.stream(node))) > 1_200_000

        def first(run: mixed._Run, condemned: Sequence[bytes]) -> list[bytes]:
            elsewhere(act)
            return real(run, condemned)

        monkeypatch.setattr(mixed._Run, "_drop_paths", first)
        collect(store, keep=[infos[1].store_path])
        assert (path in paths(store)) == (what == "registered")
        if what != "read":
            assert len(b"".join(store.services.renderer.stream(node))) > 1_200_000
        elif not mix.is_local:
            with pytest.raises(NotFound):
                b"".join(store.services.renderer.stream(node))
        check(store)


def test_a_large_blob_that_is_asked_for_late_keeps_its_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mix = Mix("folders", tmp_path / "stores")
    infos = imported(mix, tmp_path / "trees", [0, 1])
    with mix.anew() as store:
        large = store.node(f"{infos[0].store_path}/large")
        assert isinstance(large, FileNode)
    real = LocalPart.delete
    with mix.anew() as store, mix.anew() as other:

        def first(part: LocalPart, old: Sequence[bytes]) -> int:
            if large.digest in old:
                assert elsewhere(lambda: other.blobs.missing([large.digest])) == []
            return real(part, old)

        monkeypatch.setattr(LocalPart, "delete", first)
        collect(store, keep=[infos[1].store_path])
        assert b3_digest(store.blobs.read(large.digest)) == large.digest
        check(store)


def test_only_blobs_that_stay_are_asked_for_their_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each question is a request to a bucket."""
    mix = Mix("memory", tmp_path / "stores")
    infos = imported(mix, tmp_path / "trees", [0, 1])
    asked: list[Digest] = []
    with mix.anew() as store:
        chunks = [(b3_digest(b"chunk"), 0.0)]
        monkeypatch.setattr(
            MemoryBlobService, "list_chunks_with_ages", lambda _, after=b"", limit=0: [] if after else chunks
        )

        def stored_chunks(_: MemoryBlobService, digest: Digest) -> list[Chunk]:
            asked.append(digest)
            return []

        monkeypatch.setattr(MemoryBlobService, "stored_chunks", stored_chunks)
        collect(store, keep=[infos[1].store_path])
        assert sorted(asked) == store.blobs.list(limit=10_000)


# What is refused.


@pytest.mark.parametrize("rules", [{"only_pinned": True}, {"keep_newer": 60}, {"max_size": 10**9}])
def test_rules_for_one_folder_only(mix: Mix, rules: dict[str, object]) -> None:
    with mix.anew() as store, pytest.raises(Unsupported, match="--keep-from"):
        collect(store, **rules)


def test_services_that_do_not_belong_together(mix: Mix, tmp_path: Path) -> None:
    """A slip in an address must not cost what lies at the others."""
    infos = imported(mix, tmp_path / "trees", [0])
    strange = Mix(mix.kind, tmp_path / "strange")
    with mix.anew() as store, strange.anew() as other:
        before = contents(store)
        blobs, directories, path_infos = store.blobs, store.directories, other.path_infos
        services = Services(blobs, directories, path_infos, MemoryNarNodes())
        with pytest.raises(NotFound, match="there is no store path"):
            collect(Store(services))
        services = Services(blobs, other.directories, store.path_infos, MemoryNarNodes())
        with pytest.raises(NotFound, match="do these services belong together"):
            collect(Store(services))
        assert contents(store) == before
        assert paths(store) == {infos[0].store_path}


def test_services_without_ages(mix: Mix, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Dateless(MemoryPathInfoService):
        list_with_ages = PathInfoService.list_with_ages
        tells_ages = False

    infos = imported(mix, tmp_path / "trees", [0])
    with mix.anew() as store:
        dateless = Dateless()
        dateless.put(infos[0])
        services = Services(store.blobs, store.directories, dateless, MemoryNarNodes())
        with pytest.raises(Unsupported, match="Dateless does not tell when its path infos"):
            collect(Store(services), keep=[infos[0].store_path])
        assert collect(Store(services)).paths_kept == 1
        for kind, what in ((MemoryBlobService, "blobs"), (MemoryDirectoryService, "Directories")):
            if not mix.is_local:
                with monkeypatch.context() as patch:
                    patch.setattr(kind, "tells_ages", False)
                    with pytest.raises(Unsupported, match=f"does not tell when its {what}"):
                        collect(store)


def test_a_path_to_keep_that_is_not_there(mix: Mix, tmp_path: Path) -> None:
    infos = imported(mix, tmp_path / "trees", [0])
    absent = neve.StorePath.parse_base_name("4" * 32 + "-absent")
    with mix.anew() as store:
        with pytest.raises(NotFound, match="-absent is to be kept"):
            collect(store, keep=[infos[0].store_path, absent])
        assert collect(store, keep=[infos[0].store_path, absent], ignore_missing=True).paths_kept == 1


def test_one_at_a_time_in_each_folder(tmp_path: Path) -> None:
    mix = Mix("folders", tmp_path / "stores")
    imported(mix, tmp_path / "trees", [0])
    for name in ("a", "b", "c"):
        with (
            mix.anew() as store,
            collection_lock(tmp_path / "stores" / name),
            pytest.raises(Unavailable, match="a collection of the store"),
        ):
            collect(store)


def test_chunks_that_cannot_be_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mix = Mix("folders", tmp_path / "stores")
    imported(mix, tmp_path / "trees", [0])
    with mix.anew() as store:
        before = contents(store)
        monkeypatch.setattr(type(store.blobs), "stored_chunks", lambda *_: [])
        with pytest.raises(Corrupt, match="cannot be told"):
            collect(store)
        assert contents(store) == before


def test_a_grace_that_is_too_long(mix: Mix) -> None:
    with mix.anew() as store, pytest.raises(InvalidRequest, match="a grace of"):
        collect(store, grace=10**9)


# The other cares.


def test_mirrors_and_verifications(mix: Mix, tmp_path: Path) -> None:
    """From there to an embedded store and back. Nothing stays because it was verified."""
    infos = imported(mix, tmp_path / "trees", [0, 1])
    back = Mix(mix.kind, tmp_path / "back")
    with mix.anew() as store, neve.open(f"local://{tmp_path}/near") as near, back.anew() as other:
        assert mirror(store.services, near.services).copied == 2
        assert mirror(near.services, other.services).copied == 2
        assert mirror(near.services, other.services).copied == 0
        for one in (store, near, other):
            assert paths(one) == {info.store_path for info in infos}
            check(one)
        assert contents(store) == contents(other)
    if mix.is_local:
        return
    back.age()
    with back.anew() as store:
        check(store)
        ages = [one.age for one in store.blobs.list_with_ages(limit=10_000)]
        assert min(ages) >= DEFAULT_GRACE


def test_a_verification_reads_a_blob_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mix = Mix("memory", tmp_path / "stores")
    imported(mix, tmp_path / "trees", [0, 1, 2])
    read: list[Digest] = []
    real = MemoryBlobService.open_read

    def counted(service: MemoryBlobService, digest: Digest) -> BlobReader | None:
        read.append(digest)
        return real(service, digest)

    with mix.anew() as store:
        monkeypatch.setattr(MemoryBlobService, "open_read", counted)
        assert verify_store(store.services).problems == []
        assert len(read) == len(set(read)) == len(store.blobs.list(limit=10_000))
        store.blobs.delete_many([read[0]])
        (problem,) = verify_store(store.services).problems
        assert "is missing; breaks /nix/store/" in problem
