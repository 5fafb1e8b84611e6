"""The fsspec filesystem: what users of fsspec do with any filesystem, done with a store."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import pickle
import random
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import neve
from neve.castore.digest import b3_digest, format_digest
from neve.castore.directory import Directory
from neve.castore.node import DirectoryNode, FileNode, Node, SymlinkNode
from neve.nix.store_path import StorePath
from neve.store.importer import ImportOptions
from neve.store.path_info import PathInfo
from neve.store.pathinfos.memory import MemoryPathInfoService
from neve.tree import WHOLE_FILE_LIMIT
from tests.castore.ingest.disk import make_deep, public_folder
from tests.store.helpers import leaving_nothing_open

fsspec = pytest.importorskip("fsspec")

from neve.fsspec import NeveFileSystem  # noqa: E402 - needs fsspec

LARGE = b"0123456789abcdef" * (WHOLE_FILE_LIMIT // 8)


@pytest.fixture(autouse=True)
def _fresh_instances() -> Iterator[None]:
    NeveFileSystem.clear_instance_cache()
    yield
    NeveFileSystem.clear_instance_cache()


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"local://{tmp_path / 'store'}"


@pytest.fixture
def root(tmp_path: Path, address: str) -> str:
    """A store path with files, links and names of all kinds."""
    source = tmp_path / "source"
    (source / "dir/empty").mkdir(parents=True)
    (source / "dir/large").write_bytes(LARGE)
    (source / "data.csv").write_text("a,b\n1,2\n")
    (source / "tool").write_bytes(b"#!")
    (source / "tool").chmod(0o755)
    (source / "link").symlink_to("dir/large")
    (source / "to-dir").symlink_to("dir")
    (source / "dangling").symlink_to("nowhere")
    (source / os.fsdecode(b"\xff")).write_bytes(b"odd")
    with neve.open(address) as store:
        return store.import_path(source).store_path.absolute


@pytest.fixture
def fs(address: str, root: str) -> NeveFileSystem:
    fs = fsspec.filesystem("neve", store=address)
    assert isinstance(fs, NeveFileSystem)
    return fs


def code_of(call: Callable[[], object]) -> int | None:
    """The errno of the error that a call raises."""
    with pytest.raises(OSError) as raised:
        call()
    return raised.value.errno


# Getting one


def test_the_protocol_is_known(address: str) -> None:
    assert fsspec.get_filesystem_class("neve") is NeveFileSystem
    assert isinstance(fsspec.filesystem("neve", store=address), NeveFileSystem)


def test_instances_are_cached_by_their_arguments(address: str, tmp_path: Path) -> None:
    one = fsspec.filesystem("neve", store=address)
    assert fsspec.filesystem("neve", store=address) is one
    assert fsspec.filesystem("neve", store=f"local://{tmp_path / 'other'}") is not one
    assert fsspec.filesystem("neve", store=address, skip_instance_cache=True) is not one
    with neve.open("memory://") as a, neve.open("memory://") as b:
        by_object = fsspec.filesystem("neve", store=a)
        assert fsspec.filesystem("neve", store=a) is by_object
        assert fsspec.filesystem("neve", store=b) is not by_object


def test_nothing_is_opened_before_it_is_needed(address: str, tmp_path: Path) -> None:
    fsspec.filesystem("neve", store=address)
    assert not (tmp_path / "store").exists()


def test_a_dropped_filesystem_closes_its_store(address: str, root: str) -> None:
    with leaving_nothing_open():
        fs = NeveFileSystem(address, skip_instance_cache=True)
        assert fs.cat_file(f"{root}/tool") == b"#!"
        del fs


def test_an_open_store_stays_its_owners(address: str, root: str) -> None:
    with neve.open(address) as store:
        fs = NeveFileSystem(store, skip_instance_cache=True)
        assert fs.cat_file(f"{root}/tool") == b"#!"
        assert fs.store is store
        del fs
        assert store.open(f"{root}/tool").read() == b"#!"


def test_a_store_must_be_named() -> None:
    with pytest.raises(ValueError, match="name a store, for example store='local:///srv/neve'"):
        fsspec.filesystem("neve")
    with pytest.raises(ValueError, match=r"'nonsense://x': no blob service has the scheme"):
        fsspec.filesystem("neve", store="nonsense://x").ls("/")


def test_heavy_modules_come_with_their_use() -> None:
    code = "import sys, neve.fsspec; neve.fsspec.NeveFileSystem('local:///x')\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"lmdb", "google.protobuf", "pyfastcdc", "neve.library", "neve.store"} & set(
        done.stdout.split()
    )


# Paths


@pytest.mark.parametrize(
    ("path", "stripped"),
    [
        ("neve:///nix/store/x/y", "/nix/store/x/y"),
        ("neve://x/y", "/nix/store/x/y"),
        ("x/y/", "/nix/store/x/y"),
        ("/nix/store//x///y//", "/nix/store/x/y"),
        ("", "/nix/store"),
        ("/", "/nix/store"),
        ("neve://", "/nix/store"),
        ("neve:///", "/nix/store"),
        ("/nix/store/", "/nix/store"),
        ("/etc", "/etc"),
        ("*", "/nix/store/*"),
    ],
)
def test_ways_to_write_a_path(path: str, stripped: str) -> None:
    assert NeveFileSystem._strip_protocol(path) == stripped
    assert NeveFileSystem._strip_protocol(stripped) == stripped
    assert NeveFileSystem._strip_protocol([path, "/"]) == [stripped, "/nix/store"]


@pytest.mark.parametrize(
    ("path", "parent"),
    [
        ("neve:///nix/store/x/y", "/nix/store/x"),
        ("/nix/store/x", "/nix/store"),
        ("x", "/nix/store"),
        ("/nix/store", "/nix/store"),
        ("/", "/nix/store"),
    ],
)
def test_parents(path: str, parent: str) -> None:
    assert NeveFileSystem._parent(path) == parent


def test_paths_as_urls(fs: NeveFileSystem, root: str, address: str) -> None:
    assert fs.unstrip_protocol(root) == f"neve://{root}"
    found, path = fsspec.core.url_to_fs(f"neve://{root}/tool", store=address)
    assert (found, path) == (fs, f"{root}/tool")
    assert fs.cat_file(f"neve://{root}/tool") == fs.cat_file(root.rpartition("/")[2] + "/tool") == b"#!"


# Looking


def test_listing_the_store(fs: NeveFileSystem, root: str) -> None:
    for path in ("/", "", "neve://", "/nix/store"):
        assert fs.ls(path, detail=False) == [root]
        (info,) = fs.ls(path)
        assert (info["name"], info["type"], info["size"]) == (root, "directory", 0)
    assert fs.isdir("/")
    assert not fs.isfile("/")
    assert fs.info("/")["type"] == "directory"
    assert fs.glob("*") == fs.glob("*-source") == fs.glob("/nix/store/*") == [root]


def test_listing_a_directory(fs: NeveFileSystem, root: str) -> None:
    names = ["dangling", "data.csv", "dir", "link", "to-dir", "tool", "\udcff"]
    assert fs.ls(root, detail=False) == [f"{root}/{name}" for name in names]
    infos = {info["name"].rpartition("/")[2]: info for info in fs.ls(root)}
    assert {name: info["type"] for name, info in infos.items()} == {
        "dangling": "link",
        "data.csv": "file",
        "dir": "directory",
        "link": "link",
        "to-dir": "link",
        "tool": "file",
        "\udcff": "file",
    }
    assert fs.ls(f"{root}/dir/empty") == []
    # What is listed is what is told of each.
    for info in infos.values():
        assert fs.info(info["name"]) == info


def test_details(fs: NeveFileSystem, root: str) -> None:
    tool = fs.info(f"{root}/tool")
    assert tool == {
        "name": f"{root}/tool",
        "type": "file",
        "size": 2,
        "mode": stat.S_IFREG | 0o555,
        "mtime": 1,
        "islink": False,
        "digest": format_digest(b3_digest(b"#!")),
    }
    assert fs.info(f"{root}/data.csv")["mode"] == stat.S_IFREG | 0o444
    assert fs.info(f"{root}/dir")["size"] == 0
    link = fs.info(f"{root}/link")
    assert (link["type"], link["islink"], link["destination"]) == ("link", True, "dir/large")
    # Those who ask for the size are about to read.
    assert link["size"] == fs.size(f"{root}/link") == len(LARGE)
    assert fs.info(f"{root}/to-dir")["size"] == fs.info(f"{root}/dangling")["size"] == 0
    assert fs.modified(f"{root}/tool").timestamp() == 1
    assert fs.checksum(f"{root}/tool") != fs.checksum(f"{root}/data.csv")
    assert fs.ukey(f"{root}/tool") == fs.ukey(f"{root}//tool")


@pytest.mark.parametrize(
    ("path", "there", "is_file", "is_dir"),
    [
        ("", True, False, True),
        ("/dir", True, False, True),
        ("/tool", True, True, False),
        ("/link", True, True, False),
        ("/to-dir", True, False, True),
        ("/to-dir/large", True, True, False),
        ("/dir/../tool", True, True, False),
        ("/to-dir/../tool", True, True, False),
        ("/dangling", False, False, False),
        ("/absent", False, False, False),
        ("/tool/x", False, False, False),
        ("/\ud800", False, False, False),
    ],
)
def test_what_is_there(
    fs: NeveFileSystem, root: str, path: str, there: bool, is_file: bool, is_dir: bool
) -> None:
    assert fs.exists(root + path) is there
    assert fs.isfile(root + path) is is_file
    assert fs.isdir(root + path) is is_dir
    assert fs.lexists(root + path) is (there or path == "/dangling")


@pytest.mark.parametrize(
    "path", ["/etc", "/etc/passwd", "/nix", "/nix/store/x", "x", "/nix/store/" + "0" * 32 + "-source", "a/b"]
)
def test_what_is_in_no_store(fs: NeveFileSystem, path: str) -> None:
    assert not fs.exists(path)
    calls: list[Callable[[str], Any]] = [fs.info, fs.ls, fs.open, fs.cat_file, fs.size, fs.modified]
    for call in calls:
        with pytest.raises(FileNotFoundError):
            call(path)


def test_another_name_with_the_same_digest_is_not_there(fs: NeveFileSystem, root: str) -> None:
    assert not fs.exists(root + "x")
    assert not fs.exists(root + "x/tool")


def test_a_file_lists_itself(fs: NeveFileSystem, root: str) -> None:
    assert fs.ls(f"{root}/tool", detail=False) == [f"{root}/tool"]
    assert fs.ls(f"{root}/link") == [fs.info(f"{root}/link")]
    assert [info["name"] for info in fs.ls(f"{root}/to-dir")] == [
        f"{root}/to-dir/empty",
        f"{root}/to-dir/large",
    ]


def test_errors_have_their_numbers(fs: NeveFileSystem, root: str) -> None:
    assert code_of(lambda: fs.info(f"{root}/absent")) == errno.ENOENT
    assert code_of(lambda: fs.info(f"{root}/tool/x")) == errno.ENOTDIR
    assert code_of(lambda: fs.open(root)) == errno.EISDIR
    assert code_of(lambda: fs.cat_file(f"{root}/to-dir")) == errno.EISDIR
    assert code_of(lambda: fs.cat_file(f"{root}/dangling")) == errno.ENOENT
    with pytest.raises(NotADirectoryError):
        fs.ls(f"{root}/tool/x")
    with pytest.raises(IsADirectoryError):
        fs.open("/")


# Going through


def test_walking(fs: NeveFileSystem, root: str) -> None:
    expected = [
        (root, ["dir"], ["dangling", "data.csv", "link", "to-dir", "tool", "\udcff"]),
        (f"{root}/dir", ["empty"], ["large"]),
        (f"{root}/dir/empty", [], []),
    ]
    assert list(fs.walk(root)) == expected
    assert list(fs.walk("/")) == [("/nix/store", [root.rpartition("/")[2]], []), *expected]
    assert list(fs.walk(root, topdown=False)) == expected[::-1]
    assert list(fs.walk(root, maxdepth=1)) == expected[:1]
    assert list(fs.walk(root, maxdepth=2, topdown=False)) == expected[1::-1]
    assert list(fs.walk(f"{root}/tool")) == [(f"{root}/tool", [], [""])]
    (_, dirs, files) = next(fs.walk(root, detail=True))
    assert dirs["dir"] == fs.info(f"{root}/dir")
    assert files["link"] == fs.info(f"{root}/link")
    with pytest.raises(ValueError, match="maxdepth"):
        list(fs.walk(root, maxdepth=0))


def test_the_caller_of_a_walk_may_prune_it(fs: NeveFileSystem, root: str) -> None:
    seen = []
    for place, dirs, _ in fs.walk(root):
        seen.append(place)
        dirs[:] = [name for name in dirs if name != "empty"]
        if place == root:
            dirs.append("to-dir")
    assert seen == [root, f"{root}/dir", f"{root}/to-dir"]


def test_errors_in_a_walk(fs: NeveFileSystem, root: str) -> None:
    assert list(fs.walk(f"{root}/absent")) == []
    with pytest.raises(FileNotFoundError):
        list(fs.walk(f"{root}/absent", on_error="raise"))
    seen: list[OSError] = []
    assert list(fs.walk(f"{root}/absent", on_error=seen.append)) == []
    assert [type(error) for error in seen] == [FileNotFoundError]


def test_finding(fs: NeveFileSystem, root: str) -> None:
    files = ["dangling", "data.csv", "dir/large", "link", "to-dir", "tool", "\udcff"]
    assert fs.find(root) == [f"{root}/{name}" for name in files]
    assert fs.find(root, maxdepth=1) == [f"{root}/{name}" for name in files if name != "dir/large"]
    assert f"{root}/dir/empty" in fs.find(root, withdirs=True)
    assert fs.find(f"{root}/tool") == [f"{root}/tool"]
    assert fs.find("/") == fs.find(root)
    assert fs.du(root) == 2 * len(LARGE) + 8 + 2 + 3


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("/*.csv", ["data.csv"]),
        ("/d*", ["dangling", "data.csv", "dir"]),
        ("/**/large", ["dir/large"]),
        ("/dir/*", ["dir/empty", "dir/large"]),
        ("/dir/*/", ["dir/empty"]),
        ("/t[a-n]ol", []),
        ("/to[a-o]l", ["tool"]),
        ("/????", ["link", "tool"]),
        ("/tool", ["tool"]),
        ("/absent", []),
    ],
)
def test_globs(fs: NeveFileSystem, root: str, pattern: str, found: list[str]) -> None:
    assert fs.glob(root + pattern) == [f"{root}/{name}" for name in found]


def test_deep_trees(address: str) -> None:
    with public_folder() as folder:
        make_deep(os.fsencode(folder), 1500, b"d")
        with neve.open(address) as store:
            root = store.import_path(folder, ImportOptions(name="deep")).store_path.absolute
    fs = fsspec.filesystem("neve", store=address)
    assert len(fs.find(root)) == 3001
    places = [place for place, _, _ in fs.walk(root, topdown=False)]
    assert places == sorted(places, key=len, reverse=True)
    assert fs.cat_file(root + "/d" * 1500 + "/bottom") == b"bottom"


# Reading


def test_reading_by_url(address: str, root: str) -> None:
    with fsspec.open(f"neve://{root}/tool", store=address) as file:
        assert file.read() == b"#!"
    with fsspec.open(f"neve://{root}/data.csv", "r", store=address) as file:
        assert file.read() == "a,b\n1,2\n"
    files = fsspec.open_files(f"neve://{root}/*.csv", "rt", store=address)
    assert [file.path for file in files] == [f"{root}/data.csv"]
    with files[0] as opened:
        assert opened.readlines() == ["a,b\n", "1,2\n"]


def test_an_open_file(fs: NeveFileSystem, root: str) -> None:
    with fs.open(f"{root}/dir/large") as file:
        assert (file.size, file.path, file.fs, file.mode) == (len(LARGE), f"{root}/dir/large", fs, "rb")
        assert file.readable()
        assert file.seekable()
        assert not file.writable()
        assert file.read(10) == LARGE[:10]
        assert file.tell() == 10
        assert file.seek(-3, os.SEEK_END) == len(LARGE) - 3
        assert file.read() == LARGE[-3:]
        assert file.seek(len(LARGE) + 5) == len(LARGE) + 5
        assert file.read() == b""
        file.seek(WHOLE_FILE_LIMIT - 5)
        assert file.read(10) == LARGE[WHOLE_FILE_LIMIT - 5 : WHOLE_FILE_LIMIT + 5]
        file.seek(0)
        buffer = bytearray(WHOLE_FILE_LIMIT)
        assert file.readinto(buffer) == len(buffer)
        assert buffer == LARGE[: len(buffer)]
        assert file.peek(1)
    assert file.closed
    with fs.open(f"{root}/dir/large", block_size=100) as file:
        assert file.read() == LARGE


def test_parts_of_files(fs: NeveFileSystem, root: str) -> None:
    path = f"{root}/dir/large"
    for start, end in [
        (None, None),
        (5, 10),
        (None, 7),
        (-5, None),
        (-5, -2),
        (3, -3),
        (10, 5),
        (10**9, None),
    ]:
        assert fs.cat_file(path, start, end) == LARGE[start:end], (start, end)
    assert fs.cat_ranges([path, path], [0, 5], [3, 9]) == [LARGE[:3], LARGE[5:9]]
    assert fs.head(path, 4) == LARGE[:4]
    assert fs.tail(path, 4) == LARGE[-4:]
    assert fs.read_block(f"{root}/data.csv", 0, 6, delimiter=b"\n") == b"a,b\n1,2\n"
    assert fs.read_text(f"{root}/data.csv") == "a,b\n1,2\n"
    assert fs.read_bytes(f"{root}/tool") == b"#!"
    assert fs.cat([f"{root}/tool", f"{root}/data.csv"]) == {
        f"{root}/tool": b"#!",
        f"{root}/data.csv": b"a,b\n1,2\n",
    }


def test_links_are_followed_where_the_store_has_what_they_lead_to(
    address: str, root: str, tmp_path: Path
) -> None:
    source = tmp_path / "links"
    source.mkdir()
    base = root.rpartition("/")[2]
    targets = {
        "absolute": f"{root}/tool",
        "across": f"../{base}/tool",
        "through a link": f"{root}/to-dir/large",
        "chain": "absolute",
        "back and forth": f"../{base}/dir/../to-dir/../tool",
        "round the store": "../../../nix/store/" + base + "/tool",
        "too far up": "../../../../../../../nix/store/" + base + "/tool",
        "out": "/etc/passwd",
        "out and up": "../../../etc/passwd",
        "another": "/nix/store/" + "0" * 32 + "-absent/x",
        "loop": "loop",
        "above": "/nix",
        "store": "/nix/store",
        "itself": ".",
    }
    for name, target in targets.items():
        (source / name).symlink_to(target)
    with neve.open(address) as store:
        links = store.import_path(source).store_path.absolute
    fs = fsspec.filesystem("neve", store=address)
    for name in ("absolute", "across", "chain", "back and forth", "round the store", "too far up"):
        assert fs.cat_file(f"{links}/{name}") == b"#!", name
        assert fs.info(f"{links}/{name}")["size"] == 2
    assert fs.cat_file(f"{links}/through a link") == LARGE
    for name in ("out", "out and up", "another", "loop", "above"):
        assert not fs.exists(f"{links}/{name}"), name
        assert fs.lexists(f"{links}/{name}")
        assert fs.info(f"{links}/{name}")["size"] == 0
    assert code_of(lambda: fs.open(f"{links}/loop")) == errno.ELOOP
    with pytest.raises(FileNotFoundError):
        fs.open(f"{links}/out")
    assert fs.isdir(f"{links}/store")
    assert links in {name.replace(f"{links}/store", "/nix/store") for name in fs.ls("/", detail=False)}
    assert fs.cat_file(f"{links}/store/{base}/tool") == b"#!"
    # Listing does not follow, so a link to what is above is no endless tree.
    assert fs.isdir(f"{links}/itself")
    assert len(fs.find(links)) == len(targets)


def test_copying_to_the_disk(fs: NeveFileSystem, root: str, tmp_path: Path) -> None:
    fs.get(f"{root}/dir/", str(tmp_path / "copy"), recursive=True)
    assert (tmp_path / "copy/large").read_bytes() == LARGE
    assert (tmp_path / "copy/empty").is_dir()
    fs.get_file(f"{root}/link", str(tmp_path / "large"))
    assert (tmp_path / "large").read_bytes() == LARGE


def test_as_a_mapping(fs: NeveFileSystem, root: str) -> None:
    mapping = fs.get_mapper(f"{root}/dir")
    assert list(mapping) == ["large"]
    assert mapping["large"] == LARGE
    assert "absent" not in mapping
    with pytest.raises(KeyError):
        mapping["absent"]


def test_caching_layers(address: str, root: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "neve": {"store": address},
        "simplecache": {"cache_storage": str(tmp_path / "c")},
    }
    with fsspec.open(f"simplecache::neve://{root}/link", **options) as file:
        assert file.read() == LARGE


# Not writing


def test_nothing_can_be_written(fs: NeveFileSystem, root: str, tmp_path: Path) -> None:
    local = tmp_path / "local"
    local.write_bytes(b"x")
    target = f"{root}/new"
    calls: dict[str, Callable[[], object]] = {
        "open": lambda: fs.open(target, "wb"),
        "append": lambda: fs.open(f"{root}/tool", "ab"),
        "update": lambda: fs.open(f"{root}/tool", "r+b"),
        "exclusive": lambda: fs.open(target, "xb"),
        "text": lambda: fs.open(target, "w"),
        "write_text": lambda: fs.write_text(target, "x"),
        "pipe": lambda: fs.pipe(target, b"x"),
        "pipe_file": lambda: fs.pipe_file(target, b"x"),
        "put": lambda: fs.put(str(local), target),
        "put_file": lambda: fs.put_file(str(local), target),
        "copy": lambda: fs.copy(f"{root}/tool", target),
        "cp_file": lambda: fs.cp_file(f"{root}/tool", target),
        "mv": lambda: fs.mv(f"{root}/tool", target),
        "rename": lambda: fs.rename(f"{root}/tool", target),
        "rm": lambda: fs.rm(root, recursive=True),
        "rm_file": lambda: fs.rm_file(f"{root}/tool"),
        "delete": lambda: fs.delete(f"{root}/tool"),
        "mkdir": lambda: fs.mkdir(target),
        "makedirs": lambda: fs.makedirs(target, exist_ok=True),
        "mkdirs": lambda: fs.mkdirs(target),
        "rmdir": lambda: fs.rmdir(f"{root}/dir/empty"),
        "touch": lambda: fs.touch(target),
    }
    for name, call in calls.items():
        with pytest.raises(OSError, match="a neve store cannot be changed through fsspec") as raised:
            call()
        assert raised.value.errno == errno.EROFS, name


# Damage


def put(store: neve.Store, node: Node) -> str:
    path = StorePath(bytes(20), "broken")
    store.path_infos.put(PathInfo(path, node), replace=True)
    return path.absolute


def test_an_inconsistent_store_is_not_an_absent_file() -> None:
    gone = b3_digest(b"gone")
    with neve.open("memory://") as store:
        fs = NeveFileSystem(store, skip_instance_cache=True)
        path = put(store, FileNode(gone, 4))
        assert fs.exists(path)
        assert code_of(lambda: fs.open(path)) == errno.EIO
        path = put(store, DirectoryNode(gone, 4))
        for call in (fs.ls, lambda path: fs.info(f"{path}/x"), lambda path: fs.exists(f"{path}/x")):
            with pytest.raises(OSError, match=r"Directory b3:\S+ is not in the store") as raised:
                call(path)
            assert raised.value.errno == errno.EIO
        assert code_of(lambda: list(fs.walk(path, on_error="raise"))) == errno.EIO
        store.blobs.put_many([b"gone"])
        path = put(store, FileNode(gone, 5))
        assert code_of(lambda: fs.cat_file(path)) == errno.EIO
        # A link to what is broken is no dangling one.
        entries: dict[bytes, Node] = {b"a": DirectoryNode(b3_digest(b"x"), 0), b"l": SymlinkNode(b"a/b")}
        inner = store.directories.put(Directory(entries))
        path = put(store, DirectoryNode(inner, 2))
        assert code_of(lambda: fs.exists(f"{path}/l")) == errno.EIO


def test_damage_while_reading(address: str, tmp_path: Path) -> None:
    """The file can be opened and read up to the damage, never beyond it."""
    contents = random.Random(7).randbytes(3 * WHOLE_FILE_LIMIT)
    (tmp_path / "file").write_bytes(contents)
    with neve.open(address) as store:
        path = store.import_path(tmp_path / "file").store_path.absolute
    (pack,) = (tmp_path / "store/packs").iterdir()
    data = bytearray(pack.read_bytes())
    data[data.index(contents[-WHOLE_FILE_LIMIT:][:64])] ^= 1
    pack.write_bytes(data)
    fs = fsspec.filesystem("neve", store=address)
    assert fs.size(path) == len(contents)
    with fs.open(path) as file:
        assert file.read(1000) == contents[:1000]
        with pytest.raises(OSError, match=r"match its digest|damaged") as raised:
            file.read()
        assert raised.value.errno == errno.EIO
    assert code_of(lambda: fs.cat_file(path)) == errno.EIO


def test_a_store_that_cannot_list() -> None:
    class Unlisted(MemoryPathInfoService):
        list = neve.store.pathinfos.base.PathInfoService.list

    with neve.open("memory://") as store:
        store.services.path_infos = Unlisted()
        fs = NeveFileSystem(store, skip_instance_cache=True)
        path = put(store, SymlinkNode(b"x"))
        assert code_of(lambda: fs.ls("/")) == errno.ENOTSUP
        assert fs.info(path)["destination"] == "x"


# Threads, processes


def test_threads(fs: NeveFileSystem, root: str) -> None:
    def read(i: int) -> bytes:
        return bytes(fs.cat_file(f"{root}/dir/large", i, i + 100))

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(read, range(100))) == [LARGE[i : i + 100] for i in range(100)]


def test_pickling(fs: NeveFileSystem, root: str, address: str) -> None:
    assert fs.cat_file(f"{root}/tool") == b"#!"
    copy = pickle.loads(pickle.dumps(fs))
    assert copy == fs
    NeveFileSystem.clear_instance_cache()
    copy = pickle.loads(pickle.dumps(fs))
    assert copy is not fs
    assert copy.cat_file(f"{root}/tool") == b"#!"
    opened = pickle.loads(pickle.dumps(fsspec.open(f"neve://{root}/tool", store=address)))
    with opened as file:
        assert file.read() == b"#!"
    document = json.loads(fs.to_json())
    assert document["store"] == address
    assert type(fs).from_json(fs.to_json()) == fs
    assert fs.fsid == f"neve_{address}"


def test_an_open_store_cannot_be_pickled() -> None:
    with neve.open("memory://") as store:
        fs = NeveFileSystem(store, skip_instance_cache=True)
        with pytest.raises(TypeError, match="cannot be pickled; make it from an address"):
            pickle.dumps(fs)
        with pytest.raises(NotImplementedError):
            fs.fsid  # noqa: B018


def _read(fs: NeveFileSystem, path: str) -> bytes:
    return bytes(fs.cat_file(path))


def test_another_process(fs: NeveFileSystem, root: str) -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_read, (fs, f"{root}/tool")) == b"#!"


FORK = """
import os, sys
from neve.fsspec import NeveFileSystem
fs = NeveFileSystem(sys.argv[1])
assert fs.cat_file(sys.argv[2]) == b"#!"
pid = os.fork()
if not pid:
    assert fs.cat_file(sys.argv[2]) == b"#!"
    assert NeveFileSystem(sys.argv[1]).cat_file(sys.argv[2]) == b"#!"
    sys.exit(0)
assert os.waitpid(pid, 0)[1] == 0
assert fs.cat_file(sys.argv[2]) == b"#!"
"""


def test_after_a_fork(address: str, root: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORK, address, f"{root}/tool"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
