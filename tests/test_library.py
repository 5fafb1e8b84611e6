"""The library: a store as one object, and the view of a Nix evaluator."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import neve
from neve.castore.digest import EMPTY_BLOB, b3_digest, format_digest
from neve.castore.directory import Directory
from neve.castore.node import DirectoryNode, FileNode, Node, SymlinkNode
from neve.errors import Corrupt, InvalidRequest, NeveError, NotFound, PermissionDenied, Unsupported
from neve.library import split_path
from neve.nix.store_path import StorePath
from neve.store.path_info import PathInfo
from neve.tree import WHOLE_FILE_LIMIT
from tests.castore.ingest.disk import as_nobody, public_folder
from tests.store.helpers import leaving_nothing_open

LARGE = b"0123456789abcdef" * (WHOLE_FILE_LIMIT // 8)


@pytest.fixture(params=["memory", "local"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[neve.Store]:
    with neve.open("memory://" if request.param == "memory" else f"local://{tmp_path / 'store'}") as store:
        yield store


@pytest.fixture
def source(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    (source / "dir/empty").mkdir(parents=True)
    (source / "dir/large").write_bytes(LARGE)
    (source / "tool").write_bytes(b"#!")
    (source / "tool").chmod(0o755)
    (source / "link").symlink_to("dir")
    (source / "empty").write_bytes(b"")
    (source / os.fsdecode(b"\xff")).write_bytes(b"odd")
    return source


@pytest.fixture
def path(store: neve.Store, source: Path) -> str:
    """The absolute store path of ``source``."""
    return store.import_path(source).store_path.absolute


# Store


def test_what_the_readme_shows(tmp_path: Path, source: Path) -> None:
    with leaving_nothing_open(), neve.open(f"local://{tmp_path / 'store'}") as store:
        path_info = store.import_path(source)
        with store.open(f"{path_info.store_path}/tool") as file:
            assert file.read() == b"#!"
    with neve.open(f"local://{tmp_path / 'store'}?mode=ro") as store:
        assert store.path_info(str(path_info.store_path)) == path_info


def test_path_infos(store: neve.Store, path: str) -> None:
    path_info = store.path_info(path)
    assert path_info.store_path.absolute == path
    base_name = path.rpartition("/")[2]
    for same in (base_name, path + "/", path_info.store_path):
        assert store.path_info(same) == path_info
    other = StorePath(path_info.digest, "other")
    for absent in (other.absolute, other, f"{other.base_name}/tool", StorePath(bytes(20), "source")):
        with pytest.raises(NotFound, match="is not in the store"):
            store.path_info(absent)


@pytest.mark.parametrize(
    "bad",
    ["", "/", "/etc/passwd", "/nix/store", "/nix/store/", "/nix/store/x", "a/b", "\0", "/nix/store/\ud800"],
)
def test_what_is_no_store_path(store: neve.Store, bad: str) -> None:
    for call in (store.path_info, store.node, store.open, store.list_dir, store.nar):
        with pytest.raises(InvalidRequest):
            call(bad)


def test_nodes(store: neve.Store, path: str) -> None:
    assert store.node(path) == store.path_info(path).node
    assert store.node(f"{path}/tool") == FileNode(b3_digest(b"#!"), 2, True)
    assert store.node(f"{path}//dir///empty/") == DirectoryNode(EMPTY_BLOB, 0)
    assert store.node(path.encode() + b"/\xff") == FileNode(b3_digest(b"odd"), 3)
    assert store.node(path + "/\udcff") == FileNode(b3_digest(b"odd"), 3)
    assert store.node(f"{path}/link") == SymlinkNode(b"dir")
    for absent in ("absent", "tool/x", "link/large", "dir/absent"):
        assert store.node(f"{path}/{absent}") is None
        with pytest.raises(NotFound, match=f"{path}/{absent} does not exist in the store"):
            store.existing_node(f"{path}/{absent}")
    for bad in ("..", "dir/../tool", ".", "n" * 256, "a\0b"):
        with pytest.raises(InvalidRequest):
            store.node(f"{path}/{bad}")


def test_files(store: neve.Store, path: str) -> None:
    with store.open(f"{path}/dir/large") as file:
        assert file.size == len(LARGE)
        assert file.read(10) == LARGE[:10]
        assert file.seek(-10, os.SEEK_END) == len(LARGE) - 10
        assert file.read() == LARGE[-10:]
    assert store.open(f"{path}/empty").read() == b""
    for other, kind in ((path, "a directory"), (f"{path}/dir", "a directory"), (f"{path}/link", "a symlink")):
        with pytest.raises(Unsupported, match=f"{other} is {kind}, not a file"):
            store.open(other)
    with pytest.raises(NotFound, match="/absent does not exist in the store"):
        store.open(f"{path}/absent")


def test_directories(store: neve.Store, path: str) -> None:
    assert [name for name, _ in store.list_dir(path)] == [b"dir", b"empty", b"link", b"tool", b"\xff"]
    assert len(store.list_dir(f"{path}/dir/empty")) == 0
    for other, kind in ((f"{path}/tool", "a file"), (f"{path}/link", "a symlink")):
        with pytest.raises(Unsupported, match=f"{other} is {kind}, not a directory"):
            store.list_dir(other)
    with pytest.raises(NotFound, match="/absent does not exist"):
        store.list_dir(f"{path}/absent")


def test_nars(store: neve.Store, path: str) -> None:
    nar = store.path_info(path).nar
    assert nar is not None
    data = b"".join(store.nar(path))
    assert (len(data), hashlib.sha256(data).digest()) == (nar.size, nar.sha256)
    assert b"".join(store.nar(path, 100, 200)) == data[100:200]
    assert b"".join(store.nar(f"{path}/tool")) != data
    with pytest.raises(NotFound):
        store.nar(f"{path}/absent")


def test_services_are_at_hand(store: neve.Store, path: str) -> None:
    node = store.node(path)
    assert isinstance(node, DirectoryNode)
    assert store.directories.get(node.digest) is not None
    assert store.blobs.has(b3_digest(b"#!"))
    assert [info.store_path.absolute for info in store.path_infos] == [path]


def put_node(store: neve.Store, node: Node, name: str = "broken") -> str:
    path = StorePath(bytes(20), name)
    store.path_infos.put(PathInfo(path, node), replace=True)
    return path.absolute


def test_inconsistencies_are_told(store: neve.Store) -> None:
    gone = b3_digest(b"gone")
    shown = format_digest(gone).replace("+", r"\+")
    path = put_node(store, FileNode(gone, 4))
    with pytest.raises(NotFound, match=f"blob {shown} is not in the store"):
        store.open(path)
    path = put_node(store, DirectoryNode(gone, 4))
    for call in (store.list_dir, lambda path: store.open(f"{path}/x")):
        with pytest.raises(NotFound, match=f"Directory {shown} is not in the store"):
            call(path)
    store.blobs.put_many([b"gone"])
    path = put_node(store, FileNode(gone, 5))
    with pytest.raises(Corrupt, match=f"blob {shown} has 4 bytes, its node says 5"):
        store.open(path)


def test_one_service_elsewhere(tmp_path: Path, source: Path) -> None:
    with neve.open("memory://", blob_service=f"local://{tmp_path / 'blobs'}") as store:
        path = store.import_path(source).store_path
        assert store.open(f"{path}/tool").read() == b"#!"
    with neve.open(f"local://{tmp_path / 'blobs'}") as store:
        assert store.blobs.has(b3_digest(b"#!"))
        assert list(store.path_infos) == []


def test_a_closed_store_refuses(tmp_path: Path, source: Path) -> None:
    """With an error; the process goes on."""
    store = neve.open(f"local://{tmp_path / 'store'}")
    path = store.import_path(source).store_path
    store.close()
    store.close()
    calls: list[Callable[[], object]] = [
        lambda: store.path_info(path),
        lambda: store.import_path(source),
        lambda: list(store.path_infos),
        lambda: store.blobs.put_many([b"x"]),
    ]
    for call in calls:
        with pytest.raises(NeveError, match="closed"):
            call()


def test_splitting_paths() -> None:
    path = StorePath(bytes(20), "x")
    assert split_path(path) == (path, ())
    for text in (path.absolute, path.base_name, f"{path.base_name}//"):
        assert split_path(text) == (path, ())
    assert split_path(f"{path.absolute}//a/b/") == (path, (b"a", b"b"))
    assert split_path(path.base_name.encode() + b"/\xff") == (path, (b"\xff",))


# StoreIO


@pytest.fixture
def view(store: neve.Store) -> neve.StoreIO:
    return neve.StoreIO(store)


def test_the_store_directory(view: neve.StoreIO) -> None:
    assert view.store_dir == "/nix/store"


def test_paths_in_the_store(view: neve.StoreIO, path: str) -> None:
    for there in ("", "/", "/tool", "/link", "/dir/empty", "/dir/../tool", "//tool", "/./tool", "/\udcff"):
        assert view.path_exists(path + there), there
    for absent in ("/absent", "/tool/x", "/link/large", "/" + "n" * 256, "x", "/a\0b"):
        assert not view.path_exists(path + absent), absent
    assert view.read_bytes(f"{path}/tool") == b"#!"
    assert view.read_bytes("/" + path + "/tool") == b"#!"
    assert view.read_bytes(Path(path) / "dir" / "large") == LARGE
    assert view.read_to_string(f"{path}/dir/../tool") == "#!"
    assert view.read_bytes(f"{path}/empty") == b""
    with view.open(f"{path}/dir/large") as file:
        file.seek(5)
        assert file.read(5) == LARGE[5:10]
    assert view.read_dir(path) == {
        b"dir": "directory",
        b"empty": "regular",
        b"link": "symlink",
        b"tool": "regular",
        b"\xff": "regular",
    }
    assert list(view.read_dir(path)) == sorted(view.read_dir(path))


def test_the_store_comes_before_the_disk(
    store: neve.Store, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing on the disk is even looked at."""
    path = store.import_path(source).store_path.absolute
    for name in ("lstat", "stat", "scandir"):
        monkeypatch.setattr(os, name, None)
    view = neve.StoreIO(store)
    assert view.path_exists(f"{path}/tool")
    assert not view.path_exists(f"{path}/absent")
    assert view.read_bytes(f"{path}/tool") == b"#!"
    assert len(view.read_dir(path)) == 5


def test_paths_on_disk(view: neve.StoreIO, source: Path, tmp_path: Path) -> None:
    assert view.path_exists(source)
    assert view.path_exists(source / "tool")
    assert view.path_exists(str(source / "link"))
    (tmp_path / "dangling").symlink_to("nowhere")
    assert view.path_exists(tmp_path / "dangling")
    for absent in ("absent", "tool/x", "n" * 300, "a\0b"):
        assert not view.path_exists(f"{source}/{absent}")
    assert view.read_bytes(source / "tool") == b"#!"
    assert view.read_bytes(source / "link" / "large") == LARGE
    assert view.read_to_string(source / "tool") == "#!"
    os.mkfifo(source / "fifo")
    assert view.read_dir(source) == {
        b"dir": "directory",
        b"empty": "regular",
        b"fifo": "unknown",
        b"link": "symlink",
        b"tool": "regular",
        b"\xff": "regular",
    }
    assert view.read_dir(source / "link") == {b"empty": "directory", b"large": "regular"}


def test_store_paths_that_only_the_disk_could_have(view: neve.StoreIO, path: str) -> None:
    other = StorePath(bytes(20), "absent").absolute
    assert not view.path_exists(other)
    with pytest.raises(NotFound, match=f"cannot read {other}"):
        view.read_bytes(other)
    with pytest.raises(NotFound, match=f"cannot list {other}"):
        view.read_dir(other)
    assert view.path_exists("/nix/store") == os.path.exists("/nix/store")


@pytest.mark.parametrize("where", ["store", "disk"])
def test_what_cannot_be_done(view: neve.StoreIO, source: Path, path: str, where: str) -> None:
    base = path if where == "store" else str(source)
    for folder in (base, f"{base}/dir", f"{base}/dir/empty"):
        for call in (view.read_bytes, view.read_to_string, view.open):
            with pytest.raises(Unsupported, match="directory"):
                call(folder)
    with pytest.raises(Unsupported, match="directory"):
        view.read_dir(f"{base}/tool")
    for absent in ("absent", "tool/x", "dir/absent/x"):
        with pytest.raises(NotFound):
            view.read_bytes(f"{base}/{absent}")
        with pytest.raises(NotFound):
            view.read_dir(f"{base}/{absent}")
    (source / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidRequest, match="no UTF-8"):
        view.read_to_string(source / "binary")


def test_links_in_the_store_are_not_followed(view: neve.StoreIO, path: str) -> None:
    """An evaluator resolves them itself."""
    with pytest.raises(Unsupported, match=f"{path}/link is a symlink, not a file"):
        view.read_bytes(f"{path}/link")
    with pytest.raises(Unsupported, match=f"{path}/link is a symlink, not a directory"):
        view.read_dir(f"{path}/link")


def test_text_that_is_no_utf8_in_the_store(store: neve.Store, view: neve.StoreIO) -> None:
    digest = store.blobs.put_many([b"a\xff"])[0]
    path = put_node(store, FileNode(digest, 2))
    assert view.read_bytes(path) == b"a\xff"
    with pytest.raises(InvalidRequest, match=f"{path} is no UTF-8"):
        view.read_to_string(path)


def test_inconsistencies_behind_a_known_path(store: neve.Store, view: neve.StoreIO) -> None:
    gone = b3_digest(b"gone")
    shown = format_digest(gone).replace("+", r"\+")
    path = put_node(store, FileNode(gone, 4))
    assert view.path_exists(path)
    for call in (view.read_bytes, view.read_to_string, view.open):
        with pytest.raises(NotFound, match=f"blob {shown} is not in the store"):
            call(path)
    path = put_node(store, DirectoryNode(gone, 4))
    calls: list[Callable[[], object]] = [
        lambda: view.read_dir(path),
        lambda: view.path_exists(f"{path}/x"),
        lambda: view.read_bytes(f"{path}/x"),
    ]
    for missing in calls:
        with pytest.raises(NotFound, match=f"Directory {shown} is not in the store"):
            missing()
    inner = store.directories.put(Directory({b"a": DirectoryNode(gone, 4)}))
    path = put_node(store, DirectoryNode(inner, 5))
    assert view.read_dir(path) == {b"a": "directory"}
    with pytest.raises(NotFound, match=f"Directory {shown}"):
        view.read_dir(f"{path}/a")


def test_paths_that_nothing_can_have(view: neve.StoreIO) -> None:
    for bad in ("/tmp/a\0b", "/tmp/\ud800"):
        assert not view.path_exists(bad)
        for call in (view.read_bytes, view.read_dir):
            with pytest.raises(InvalidRequest):
                call(bad)
    for bad in ("/tmp/" + "n" * 300, "/proc/self/fd/99999"):
        for call in (view.read_bytes, view.read_dir):
            with pytest.raises(NotFound, match="cannot"):
                call(bad)


def test_what_the_user_may_not_read() -> None:
    with public_folder() as folder:
        (folder / "file").write_bytes(b"")
        (folder / "dir").mkdir()
        for name in ("file", "dir"):
            (folder / name).chmod(0)
        printed = as_nobody(
            "import neve\nfrom neve.errors import NeveError\nview = neve.StoreIO(neve.open('memory://'))",
            "for call, name in ((view.read_bytes, 'file'), (view.read_dir, 'dir')):\n"
            "    try: call(sys.argv[1] + '/' + name)\n"
            "    except NeveError as error: print(type(error).__name__, error)",
            folder,
        )
        assert printed.splitlines() == [
            f"{PermissionDenied.__name__} cannot read {folder}/file: Permission denied",
            f"{PermissionDenied.__name__} cannot list {folder}/dir: Permission denied",
        ]


def test_importing_through_the_view(view: neve.StoreIO, source: Path) -> None:
    path = view.import_path(source)
    assert path.startswith("/nix/store/")
    assert path.endswith("-source")
    assert view.read_bytes(f"{path}/tool") == b"#!"
    assert view.import_path(str(source)) == path


def test_every_error_is_ours(view: neve.StoreIO, tmp_path: Path) -> None:
    with pytest.raises(NeveError):
        view.import_path(tmp_path / "absent")
