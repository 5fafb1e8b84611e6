"""The stat cache: a known tree is not read again, and nothing that changed passes for known."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from neve.castore.ingest import statcache
from neve.castore.ingest.exclude import exclude_globs
from neve.castore.ingest.stampwalk import stamp_tree
from neve.castore.ingest.statcache import StatCache, TreeStamp
from neve.errors import InvalidRequest
from neve.nix.hashes import CAMethod
from neve.store.importer import ImportOptions, import_path
from neve.store.path_info import PathInfo
from neve.store.services import Services
from neve.tree import WHOLE_FILE_LIMIT
from tests.castore.ingest.disk import make_deep, public_folder

from .helpers import leaving_nothing_open, memory_services


class Disk:
    """A tree, a store and a cache; tells whether an import has read contents."""

    def __init__(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = place / "root"
        self.folder = place / "cache"
        self.cache = StatCache(self.folder)
        self.services: Services = memory_services()
        self.bytes_read = 0
        (self.root / "sub/empty").mkdir(parents=True)
        (self.root / "sub/file").write_bytes(b"0123456789")
        (self.root / "large").write_bytes(bytes(2 * WHOLE_FILE_LIMIT))
        (self.root / "link").symlink_to("sub")
        real = os.read

        def read(fd: int, size: int) -> bytes:
            data = real(fd, size)
            self.bytes_read += len(data)
            return data

        monkeypatch.setattr(os, "read", read)

    def import_it(
        self, options: ImportOptions | None = None, path: Path | None = None
    ) -> tuple[PathInfo, bool]:
        """The path info, and whether contents were read."""
        before = self.bytes_read
        options = options or ImportOptions(stat_cache=self.cache)
        path_info = import_path(self.services, path or self.root, options)
        return path_info, self.bytes_read > before


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(tmp_path, monkeypatch)


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Imports happen a minute after the files were made."""
    real = time.time_ns
    monkeypatch.setattr(statcache.time, "time_ns", lambda: real() + 60 * 10**9)  # type: ignore[attr-defined]


@pytest.mark.usefixtures("later")
def test_an_unchanged_tree_is_not_read_again(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    first, read = disk.import_it()
    assert read
    with leaving_nothing_open():
        assert disk.import_it() == (first, False)
    # By another way to write the same path.
    monkeypatch.chdir(disk.root / "sub")
    for path in (f"{disk.root}/", f"{disk.root}/sub/../.././root", "../../root"):
        assert import_path(disk.services, path, ImportOptions(stat_cache=disk.cache)) == first
    assert len(list(disk.folder.iterdir())) == 1


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize("name", ["large", "link", "sub/empty"])
def test_files_links_and_empty_folders(disk: Disk, name: str) -> None:
    first, _ = disk.import_it(path=disk.root / name)
    assert disk.import_it(path=disk.root / name) == (first, False)


def rewrite_with_the_same_times(disk: Disk) -> None:
    """Of equal length and with the old mtime: only the ctime tells."""
    file = disk.root / "sub/file"
    state = file.stat()
    time.sleep(0.02)
    file.write_bytes(b"9876543210")
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))


def replace_file(disk: Disk) -> None:
    """Of equal length, another inode with the old mtime."""
    file = disk.root / "sub/file"
    state = file.stat()
    other = disk.root / "other"
    other.write_bytes(b"9876543210")
    os.utime(other, ns=(state.st_atime_ns, state.st_mtime_ns))
    other.replace(file)


def retarget(disk: Disk) -> None:
    (disk.root / "link").unlink()
    (disk.root / "link").symlink_to("sbu")


def link_to_file(disk: Disk) -> None:
    (disk.root / "link").unlink()
    (disk.root / "link").write_bytes(b"sub")


def swap_files(disk: Disk) -> None:
    for name in ("sub/file", "sub/twin"):
        (disk.root / name).rename(disk.root / f"{name}-")
    (disk.root / "sub/file-").rename(disk.root / "sub/twin")
    (disk.root / "sub/twin-").rename(disk.root / "sub/file")


CHANGES: dict[str, Callable[[Disk], object]] = {
    "contents": lambda disk: (disk.root / "sub/file").write_bytes(b"other"),
    "contents, times as before": rewrite_with_the_same_times,
    "another file": replace_file,
    "mtime": lambda disk: os.utime(disk.root / "sub/file", ns=(1, 1)),
    "chmod": lambda disk: (disk.root / "sub/file").chmod(0o755),
    "rename": lambda disk: (disk.root / "sub/file").rename(disk.root / "sub/file2"),
    "rename of a folder": lambda disk: (disk.root / "sub").rename(disk.root / "sub2"),
    "two files swapped": swap_files,
    "new file": lambda disk: (disk.root / "sub/new").write_bytes(b""),
    "new folder": lambda disk: (disk.root / "sub/empty/new").mkdir(),
    "new link": lambda disk: (disk.root / "sub/new").symlink_to("x"),
    "removed file": lambda disk: (disk.root / "sub/file").unlink(),
    "removed folder": lambda disk: (disk.root / "sub/empty").rmdir(),
    "removed link": lambda disk: (disk.root / "link").unlink(),
    "another target": retarget,
    "a link that became a file": link_to_file,
    "grown": lambda disk: os.truncate(disk.root / "large", 3 * WHOLE_FILE_LIMIT),
}


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_noticed(disk: Disk, change: str) -> None:
    (disk.root / "sub/twin").write_bytes(b"abcdefghij")
    first, _ = disk.import_it()
    CHANGES[change](disk)
    expected = import_path(memory_services(), disk.root)
    found, read = disk.import_it()
    assert found.node == expected.node
    assert found.store_path == expected.store_path
    assert read
    assert (found.store_path == first.store_path) == (change == "mtime")
    assert disk.import_it() == (found, False)


def test_young_files_are_not_trusted(disk: Disk) -> None:
    """They could change once more without their times telling."""
    first, _ = disk.import_it()
    assert disk.import_it() == (first, True)


def test_a_file_that_is_young_at_the_import_makes_all_of_it_untrusted(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = time.time_ns
    newest = max(path.lstat().st_ctime_ns for path in (disk.root / "sub/file", disk.root / "large"))
    for age, trusted in ((statcache.SLACK_NS, False), (statcache.SLACK_NS + 1, True)):
        monkeypatch.setattr(statcache.time, "time_ns", lambda age=age: newest + age)  # type: ignore[attr-defined]
        first, _ = disk.import_it()
        # However late one asks: what counts is when the files were read.
        monkeypatch.setattr(statcache.time, "time_ns", lambda: real() + 10**12)  # type: ignore[attr-defined]
        assert disk.import_it()[1] is not trusted
        assert first == disk.import_it()[0]
        for file in disk.folder.iterdir():
            file.unlink()


@pytest.mark.usefixtures("later")
def test_another_name_is_another_path(disk: Disk) -> None:
    first, _ = disk.import_it()
    named = ImportOptions(name="other", stat_cache=disk.cache)
    other, read = disk.import_it(named)
    assert read
    assert other.store_path.name == "other"
    assert other.node == first.node
    assert disk.import_it(named) == (other, False)
    assert disk.import_it() == (first, False)


@pytest.mark.usefixtures("later")
def test_what_is_left_out_counts(disk: Disk) -> None:
    first, _ = disk.import_it()
    without = ImportOptions(exclude=exclude_globs(["large"]), stat_cache=disk.cache)
    other, read = disk.import_it(without)
    assert read
    assert other.store_path != first.store_path
    (disk.root / "large").write_bytes(b"what is left out may change")
    assert disk.import_it(without) == (other, False)


@pytest.mark.usefixtures("later")
def test_other_methods_do_not_use_it(disk: Disk) -> None:
    file = disk.root / "sub/file"
    first, _ = disk.import_it(path=file)
    flat = ImportOptions(method=CAMethod.FLAT, stat_cache=disk.cache)
    for _ in range(2):
        other, read = disk.import_it(flat, file)
        assert read
        assert other.store_path != first.store_path


@pytest.mark.usefixtures("later")
def test_what_the_store_has_lost_is_read_again(disk: Disk) -> None:
    first, _ = disk.import_it()
    disk.services.path_infos.delete_many([first.digest])
    assert disk.import_it() == (first, True)
    assert disk.import_it() == (first, False)
    # Another store, with the same cache.
    disk.services = memory_services()
    assert disk.import_it() == (first, True)


@pytest.mark.usefixtures("later")
def test_a_stored_path_of_other_contents_is_not_taken(disk: Disk) -> None:
    first, _ = disk.import_it()
    disk.services.path_infos.put(PathInfo(first.store_path, first.node), replace=True)
    found, read = disk.import_it()
    assert read
    assert found == first


@pytest.mark.usefixtures("later")
def test_errors_are_those_of_the_import(disk: Disk) -> None:
    disk.import_it()
    os.mkfifo(disk.root / "fifo")
    with leaving_nothing_open(), pytest.raises(InvalidRequest, match="is a FIFO"):
        disk.import_it()


DAMAGE = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"17",
    b"\xff\xfe",
    b"[" * 100_000,
    b'{"key": 1}',
]


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize("data", DAMAGE)
def test_a_damaged_cache_is_no_cache(disk: Disk, data: bytes) -> None:
    first, _ = disk.import_it()
    (file,) = disk.folder.iterdir()
    file.write_bytes(data)
    assert disk.import_it() == (first, True)
    assert disk.import_it() == (first, False)


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("key", "00"),
        ("stamp", "00" * 32),
        ("stamp", None),
        ("started_ns", 0),
        ("started_ns", "soon"),
        ("started_ns", float("inf")),
        ("result", None),
        ("result", {}),
        ("result", {"node": "zz", "size": 1, "sha256": "00"}),
        ("result", {"node": "", "size": 1, "sha256": "00" * 32}),
        ("result", {"node": 1, "size": 1, "sha256": 2}),
    ],
)
def test_a_document_that_does_not_fit_is_no_cache(disk: Disk, field: str, value: object) -> None:
    first, _ = disk.import_it()
    (file,) = disk.folder.iterdir()
    document = json.loads(file.read_bytes())
    document[field] = value
    file.write_text(json.dumps(document))
    assert disk.import_it() == (first, True)


@pytest.mark.usefixtures("later")
def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path, disk: Disk) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_bytes(b"a file where the folder should be")
    options = ImportOptions(stat_cache=StatCache(blocked))
    first, _ = disk.import_it(options)
    assert disk.import_it(options) == (first, True)
    assert blocked.read_bytes() == b"a file where the folder should be"


@pytest.mark.usefixtures("later")
def test_nothing_is_left_of_writing(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> None:
        raise OSError(28, "disk full")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", failing)
        disk.import_it()
    assert list(disk.folder.iterdir()) == []
    disk.import_it()
    disk.import_it()
    assert len(list(disk.folder.iterdir())) == 1


# Stamps


def test_stamps_tell_structure_apart(tmp_path: Path) -> None:
    """Names that look like the separators of what is hashed."""
    trees: list[Callable[[Path], object]] = [
        lambda root: os.makedirs(root / "a/b"),
        lambda root: list(map(os.mkdir, (root / "a", root / "b"))),
        lambda root: os.mkdir(root / "ab"),
        lambda root: (root / "a").symlink_to("b"),
        lambda root: (root / "a").symlink_to("ab"),
        lambda root: (root / "ad").symlink_to("b"),
        lambda root: None,
    ]
    stamps = set()
    for i, make in enumerate(trees):
        root = tmp_path / f"{i}"
        root.mkdir()
        make(root)
        stamps.add(stamp_tree(os.fsencode(root)).digest())
    assert len(stamps) == len(trees)


def test_the_buffer_of_a_stamp_is_bounded() -> None:
    stamp = TreeStamp()
    for i in range(40_000):
        stamp.symlink(b"%d" % i, b"target")
        stamp.enter(b"%d" % i)
    stamp.enter(b"")
    for _ in range(200_000):
        stamp.leave()
        assert len(stamp._buffer) < 2_000_000
    assert len(stamp._buffer) < 100_000


def test_stamps_of_deep_trees() -> None:
    with public_folder() as folder:
        make_deep(os.fsencode(folder), 1500)
        with leaving_nothing_open():
            assert stamp_tree(os.fsencode(folder)).digest() == stamp_tree(os.fsencode(folder)).digest()
