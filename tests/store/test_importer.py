"""Imports from disk: the paths that Nix computes, and on failure nothing that anybody could see."""

from __future__ import annotations

import base64
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from neve.castore.blobs.base import BlobBatch, BlobWriter
from neve.castore.blobs.memory import MemoryBlobService
from neve.castore.digest import Digest
from neve.castore.ingest.exclude import exclude_globs
from neve.castore.ingest.filesystem import ChangedWhileRead, FilesystemWalk
from neve.castore.node import DirectoryNode, FileNode
from neve.errors import Conflict, DiskFull, InvalidRequest, NeveError, NotFound, Unavailable
from neve.nix.hashes import CAMethod
from neve.nix.store_path import StorePath
from neve.store.importer import ImportOptions, import_archive, import_events, import_path
from neve.store.services import Services, open_services
from neve.telemetry import NoProgress
from neve.tree import BATCH_BYTES, WHOLE_FILE_LIMIT, BeginFile, Data, EnterDirectory, Event, File, Symlink
from tests.castore.ingest.disk import make_deep, public_folder
from tests.nix.nar.cases import VECTORS, Case, load_trees

from .helpers import everything, leaving_nothing_open, memory_services, stored

TREES = load_trees()
ITEMS: dict[str, dict[str, Any]] = {
    item["name"]: item for item in json.loads((VECTORS / "trees.json").read_text())
}
TEXTS = [item for item in json.loads((VECTORS / "store_paths.json").read_text()) if item["kind"] == "text"]
FLAT = ImportOptions(method=CAMethod.FLAT)


@pytest.fixture(params=["memory", "local"])
def services(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Services]:
    services = open_services("memory://" if request.param == "memory" else f"local://{tmp_path / 'store'}")
    # What a service makes at its first use is not what an import leaves behind.
    list(services.blobs.read_many([stored_blob(services)]))
    services.blobs.delete_many([stored_blob(services)])
    yield services
    services.close()


def stored_blob(services: Services) -> Digest:
    return services.blobs.put_many([b"warm"])[0]


def materialize(tree: dict[str, Any], place: Path) -> None:
    """A tree of the vectors on disk."""
    if tree["type"] == "file":
        place.write_bytes(base64.b64decode(tree["contents_b64"]))
        place.chmod(0o755 if tree["executable"] else 0o644)
    elif tree["type"] == "symlink":
        place.symlink_to(tree["target"])
    else:
        place.mkdir()
        for name, child in tree["entries"].items():
            materialize(child, place / name)


@pytest.mark.parametrize("case", TREES, ids=lambda case: case.name)
def test_the_paths_that_nix_computed(services: Services, tmp_path: Path, case: Case) -> None:
    place = tmp_path / case.name
    materialize(ITEMS[case.name]["tree"], place)
    path_info = import_path(services, place)
    assert path_info.store_path.absolute == ITEMS[case.name]["store_path"]
    assert path_info.references == ()
    assert path_info.nar is not None
    assert str(path_info.nar.ca) == f"fixed:r:sha256:{case.nar_sha256_nix32}"
    assert path_info.nar.size == case.nar_size
    assert services.path_infos.get(path_info.digest) == path_info
    assert path_info.node == stored(memory_services(), case.events)
    assert len(b"".join(services.renderer.stream(path_info.node))) == case.nar_size
    assert services.nar_nodes.node(path_info.nar.sha256) == (path_info.node, case.nar_size)
    # Again, by another way to write it.
    assert import_path(services, str(place) + "/") == path_info
    assert list(services.path_infos) == [path_info]


@pytest.mark.parametrize("name", [name for name, item in ITEMS.items() if "store_path_flat" in item])
def test_flat_imports(services: Services, tmp_path: Path, name: str) -> None:
    place = tmp_path / name
    materialize(ITEMS[name]["tree"], place)
    place.chmod(0o755)
    path_info = import_path(services, place, FLAT)
    assert path_info.store_path.absolute == ITEMS[name]["store_path_flat"]
    assert isinstance(path_info.node, FileNode)
    assert not path_info.node.executable
    assert path_info.nar is not None
    assert str(path_info.nar.ca).startswith("fixed:sha256:")
    nar = services.nar_calculation.calculate_nar(path_info.node)
    assert (path_info.nar.size, path_info.nar.sha256) == nar
    assert len(b"".join(services.renderer.stream(path_info.node))) == nar.size


@pytest.mark.parametrize("item", TEXTS, ids=lambda item: item["name"])
def test_texts(services: Services, tmp_path: Path, item: dict[str, Any]) -> None:
    place = tmp_path / item["name"]
    place.write_text(item["contents"])
    references = [StorePath.parse(path) for path in item["references"]]
    # The order and number in which they are given do not matter.
    options = ImportOptions(method=CAMethod.TEXT, references=references * 2)
    path_info = import_path(services, place, options)
    assert path_info.store_path.absolute == item["path"]
    assert path_info.references == tuple(path.digest for path in references)
    assert path_info.nar is not None
    assert path_info.nar.reference_names == tuple(references)
    assert str(path_info.nar.ca).startswith("text:sha256:")
    assert import_path(services, place, options) == path_info


def test_a_large_flat_import(tmp_path: Path) -> None:
    place = tmp_path / "large"
    place.write_bytes(b"0123456789abcde!" * 200_000)
    services = memory_services()
    whole = import_path(services, place, ImportOptions(name="other", method=CAMethod.FLAT))
    assert isinstance(whole.node, FileNode)
    assert whole.node.size == 3_200_000
    assert whole.nar is not None
    assert services.nar_calculation.calculate_nar(whole.node) == (whole.nar.size, whole.nar.sha256)


@pytest.mark.parametrize("method", [CAMethod.FLAT, CAMethod.TEXT])
@pytest.mark.parametrize("kind", ["directory", "empty directory", "symlink"])
def test_only_files_are_imported_flat(
    services: Services, tmp_path: Path, method: CAMethod, kind: str
) -> None:
    place = tmp_path / "place"
    if kind == "symlink":
        place.symlink_to("/etc/passwd")
    else:
        place.mkdir()
        if kind == "directory":
            (place / "file").write_bytes(b"x")
    with leaving_nothing_open(), pytest.raises(InvalidRequest) as refused:
        import_path(services, place, ImportOptions(method=method))
    kind = kind.removeprefix("empty ")
    assert str(refused.value) == f"place is a {kind}; only a single file can be imported flat or as text"
    assert everything(services)[1:] == ([], [])


def test_references_belong_to_texts(services: Services, tmp_path: Path) -> None:
    place = tmp_path / "file"
    place.write_bytes(b"x")
    for method in (CAMethod.NAR, CAMethod.FLAT):
        options = ImportOptions(method=method, references=[StorePath(bytes(20), "x")])
        with pytest.raises(InvalidRequest, match="only be given for a text"):
            import_path(services, place, options)
    assert everything(services) == ([], [], [])


def test_a_symlink_is_imported_itself(services: Services, tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to("target")
    by_link = import_path(services, tmp_path / "link")
    assert by_link == import_path(services, str(tmp_path / "link") + "/")
    assert by_link.node == stored(services, [Symlink(b"", b"target")])


def test_excluding(services: Services, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / ".git").mkdir(parents=True)
    (root / "file").write_bytes(b"x")
    plain = import_path(services, root, ImportOptions(exclude=exclude_globs([".git"])))
    os.rmdir(root / ".git")
    assert import_path(services, root) == plain


def test_the_size_rule_of_the_store(tmp_path: Path) -> None:
    (tmp_path / "root/a/b").mkdir(parents=True)
    exact = open_services("memory://")
    snix = open_services(f"local://{tmp_path / 'store'}?directory-size-rule=snix")
    one, two = (import_path(services, tmp_path / "root") for services in (exact, snix))
    assert one.store_path == two.store_path
    assert isinstance(one.node, DirectoryNode)
    assert isinstance(two.node, DirectoryNode)
    assert (one.node.size, two.node.size) == (2, 4)
    snix.close()


# Everything is there, or nothing


def break_with_fifo(root: Path) -> None:
    os.mkfifo(root / "z-fifo")


def break_with_proc(root: Path) -> None:
    (root / "z-large").write_bytes(bytes(8 * BATCH_BYTES))


BREAKS: dict[str, tuple[Callable[[Path], None], type[NeveError]]] = {
    "a FIFO": (break_with_fifo, InvalidRequest),
    "a changing file": (break_with_proc, ChangedWhileRead),
}


@pytest.mark.parametrize("what", BREAKS)
def test_nothing_of_a_failed_import_can_be_seen(
    services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "sub/file").write_bytes(bytes(WHOLE_FILE_LIMIT))
    (root / "large").write_bytes(bytes(4 * BATCH_BYTES))
    break_it, error = BREAKS[what]
    break_it(root)
    if error is ChangedWhileRead:
        change_while_reading(monkeypatch, root / "z-large")
    with leaving_nothing_open(), pytest.raises(error):
        import_path(services, root)
    assert everything(services)[1:] == ([], [])


def change_while_reading(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    """Appends to ``file`` as soon as some of it was read."""
    real = os.read
    inode = file.stat().st_ino

    def read(fd: int, size: int) -> bytes:
        data = real(fd, size)
        if os.fstat(fd).st_ino == inode:
            with file.open("ab") as opened:
                opened.write(b"x")
        return data

    monkeypatch.setattr(os, "read", read)


class Interrupting(NoProgress):
    """Is told so far and no further, as when a user presses Ctrl-C."""

    def __init__(self, after: int) -> None:
        self._left = after

    def advance(self, amount: int, current: str = "") -> None:
        self._left -= 1
        if self._left < 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("after", [0, 1, 3])
@pytest.mark.parametrize("method", [CAMethod.NAR, CAMethod.FLAT])
def test_an_interrupt(services: Services, tmp_path: Path, after: int, method: CAMethod) -> None:
    place = tmp_path / "large"
    place.write_bytes(bytes(8 * BATCH_BYTES))
    with leaving_nothing_open(), pytest.raises(KeyboardInterrupt):
        import_path(services, place, ImportOptions(method=method), progress=Interrupting(after))
    assert everything(services)[1:] == ([], [])
    assert import_path(services, place) == import_path(services, place)


class FailingBlobs(MemoryBlobService):
    """A disk that is full after some megabytes."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self._left = capacity

    def add(self, contents: bytes) -> Digest:
        self._left -= len(contents)
        if self._left < 0:
            raise DiskFull("cannot write: disk full")
        return super().add(contents)


@pytest.mark.parametrize("sizes", [[WHOLE_FILE_LIMIT] * 20, [16 * BATCH_BYTES], [10, 16 * BATCH_BYTES, 10]])
def test_a_full_disk(tmp_path: Path, sizes: Sequence[int]) -> None:
    root = tmp_path / "root"
    root.mkdir()
    for i, size in enumerate(sizes):
        (root / f"{i:02}").write_bytes(bytes([i + 1]) * size)
    services = memory_services()
    services.blobs = FailingBlobs(3 * BATCH_BYTES)
    with leaving_nothing_open(), pytest.raises(DiskFull):
        import_path(services, root)
    assert everything(services)[1:] == ([], [])


def test_a_service_that_fails_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "root/a").mkdir(parents=True)
    services = memory_services()

    class Failing(MemoryBlobService):
        def batch(self) -> BlobBatch:
            real = super().batch()

            class Batch(type(real)):  # type: ignore[misc]
                def commit(self) -> None:
                    raise Unavailable("the peer is gone")

            real.__class__ = Batch
            return real

        def open_write(self) -> BlobWriter:
            return super().open_write()

    services.blobs = Failing()
    with leaving_nothing_open(), pytest.raises(Unavailable, match="gone"):
        import_path(services, tmp_path / "root")
    assert everything(services)[1:] == ([], [])


def test_a_missing_path(services: Services, tmp_path: Path) -> None:
    with leaving_nothing_open(), pytest.raises(NotFound, match=r"absent does not exist"):
        import_path(services, tmp_path / "absent")


def test_contents_that_are_there_otherwise_are_a_conflict(services: Services, tmp_path: Path) -> None:
    place = tmp_path / "file"
    place.write_bytes(b"x")
    right = import_path(services, place)
    wrong = import_path(memory_services(), place)
    services.path_infos.put(
        type(wrong)(right.store_path, FileNode(bytes(32), 1), (), right.nar), replace=True
    )
    with pytest.raises(Conflict, match=right.store_path.absolute):
        import_path(services, place)


# Shapes


def test_two_thousand_levels(services: Services) -> None:
    with public_folder() as folder:
        make_deep(os.fsencode(folder), 2000)
        with leaving_nothing_open():
            path_info = import_path(services, folder, ImportOptions(name="deep"))
    assert isinstance(path_info.node, DirectoryNode)
    assert path_info.node.size == 3 * 2000 + 1
    assert path_info.nar is not None
    assert services.renderer.hash(path_info.node) == (path_info.nar.size, path_info.nar.sha256)


def import_sparse(place: Path, size: int) -> None:
    services = open_services(f"local://{place / 'store'}")
    file = place / "sparse"
    with file.open("wb") as opened:
        opened.truncate(size - 3)
        opened.seek(0, os.SEEK_END)
        opened.write(b"end")
    path_info = import_path(services, file)
    assert isinstance(path_info.node, FileNode)
    assert path_info.node.size == size
    assert path_info.nar is not None
    # 112 bytes around the contents, padded to 8.
    assert path_info.nar.size == 112 + size + -size % 8
    tail = b"".join(services.renderer.stream(path_info.node, size + 50))
    assert b"end" in tail
    with services.blobs.open_read(path_info.node.digest) or io.BytesIO() as reader:
        reader.seek(-5, os.SEEK_END)
        assert reader.read() == b"\0\0end"
        reader.seek(size // 2)
        assert reader.read(4) == bytes(4)
    services.close()
    # Zeros are stored once.
    used = sum(path.stat().st_size for path in (place / "store/packs").iterdir())
    assert used < 64 * 1024 * 1024


def test_a_sparse_file(tmp_path: Path) -> None:
    import_sparse(tmp_path, 64 * 1024 * 1024 + 5)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_file_over_four_gigabytes(tmp_path: Path) -> None:
    import_sparse(tmp_path, 4 * 1024**3 + 5)


def test_imports_at_once(services: Services, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    for i in range(50):
        (root / f"{i}").write_bytes(b"%d" % i * 1000)
    with leaving_nothing_open(), ThreadPoolExecutor(6) as pool:
        results = list(pool.map(lambda _: import_path(services, root), range(6)))
    assert len(set(results)) == 1
    assert list(services.path_infos) == results[:1]


def test_progress_counts_every_byte(services: Services, tmp_path: Path) -> None:
    sizes = [0, 10, WHOLE_FILE_LIMIT + 5, 3 * BATCH_BYTES]
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    for i, size in enumerate(sizes):
        (root / "sub" / f"{i}").write_bytes(bytes(size))

    class Counting(NoProgress):
        def __init__(self) -> None:
            self.total = 0
            self.seen: set[str] = set()

        def advance(self, amount: int, current: str = "") -> None:
            self.total += amount
            self.seen.add(current)

    progress = Counting()
    import_path(services, root, progress=progress)
    assert progress.total == sum(sizes)
    assert str(root / "sub") in progress.seen


def test_the_walk_is_read_once(services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "file").write_bytes(b"contents")
    walks = []
    real = FilesystemWalk.__iter__

    def counted(walk: FilesystemWalk) -> Iterator[list[Event]]:
        walks.append(walk)
        return real(walk)

    monkeypatch.setattr(FilesystemWalk, "__iter__", counted)
    import_path(services, root)
    assert len(walks) == 1


# Other sources


def test_an_archive_is_the_tree_in_it(services: Services, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "sub/tool").write_bytes(b"#!" * 500_000)
    (root / "sub/tool").chmod(0o755)
    (root / "link").symlink_to("sub")
    with tarfile.open(tmp_path / "root.tar.gz", "w:gz") as archive:
        archive.add(root, ".")
    with (tmp_path / "root.tar.gz").open("rb") as file:
        assert import_archive(services, file, "root").store_path == import_path(services, root).store_path
    with pytest.raises(InvalidRequest, match="character"):
        import_archive(services, io.BytesIO(), "a b")


@pytest.mark.parametrize(
    "events",
    [
        [],
        [EnterDirectory(b"")],
        [EnterDirectory(b""), File(b"a", False, b"x")],
        [BeginFile(b"", False, 3), Data(b"abc")],
        [File(b"", False, b"a"), File(b"", False, b"b")],
        [File(b"", False, b"a"), EnterDirectory(b"")],
    ],
)
def test_trees_that_are_none(services: Services, events: list[Event]) -> None:
    with leaving_nothing_open(), pytest.raises(InvalidRequest):
        import_events(services, iter([events]), "name", ImportOptions())
    assert everything(services)[1:] == ([], [])
