"""Export: the tree as it was, whole or not at all."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from neve.castore.digest import EMPTY_BLOB, b3_digest
from neve.castore.directory import Directory
from neve.castore.node import DirectoryNode, FileNode, Node, SymlinkNode
from neve.errors import Conflict, Corrupt, InvalidRequest, NeveError, NotFound, PermissionDenied, Unavailable
from neve.store import export
from neve.store.export import export_tree
from neve.store.export_place import remove_tree
from neve.store.services import Services
from neve.telemetry import NoProgress
from neve.testing.strategies import trees
from neve.tree import LEAVE_DIRECTORY, WHOLE_FILE_LIMIT, EnterDirectory, Event, File, Symlink
from tests.castore.ingest.disk import as_nobody, events_of, joined, make_deep, public_folder, remove_all

from .helpers import (
    leaving_nothing_open,
    memory_services,
    open_files,
    put_blob,
    put_directory,
    stored,
)

LARGE = b"n" * 255
"""The name of a file that ``store_tree`` makes large."""

TREE: list[Event] = [
    EnterDirectory(b""),
    EnterDirectory(b"bin"),
    EnterDirectory(b"empty"),
    LEAVE_DIRECTORY,
    File(b"tool", True, b"#!/bin/sh\n"),
    LEAVE_DIRECTORY,
    File(b"empty", False, b""),
    Symlink(b"link", b"bin/tool"),
    File(LARGE, False, b"x"),
    Symlink(b"nowhere", b"/nix/store/\xff"),
    File(b"\xff\n", False, b"odd"),
    LEAVE_DIRECTORY,
]


@pytest.fixture
def services() -> Services:
    return memory_services()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Where things are exported to; nothing but the destination may be left there."""
    folder = tmp_path / "folder"
    folder.mkdir()
    yield folder
    remove_all(folder)


def export_to(services: Services, root: Node, destination: Path | str) -> None:
    with leaving_nothing_open():
        export_tree(services, root, os.fsencode(destination))


def store_tree(services: Services) -> Node:
    root = stored(services, TREE)
    assert isinstance(root, DirectoryNode)
    directory = services.directories.get(root.digest)
    assert directory is not None
    entries: dict[bytes, Node] = {**dict(directory), LARGE: import_large(services)}
    return DirectoryNode(put_directory(services, Directory(entries)), directory.size())


def import_large(services: Services) -> FileNode:
    contents = b"x" * 3 * WHOLE_FILE_LIMIT
    return FileNode(put_blob(services, contents), len(contents))


def states(place: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for path in (place, *place.rglob("*")):
        yield path, path.lstat()


def test_a_whole_tree(services: Services, folder: Path) -> None:
    root = store_tree(services)
    export_to(services, root, folder / "dest")
    assert os.listdir(folder) == ["dest"]
    large = File(LARGE, False, b"x" * 3 * WHOLE_FILE_LIMIT)
    expected = [large if isinstance(event, File) and event.name == LARGE else event for event in TREE]
    assert joined(events_of(folder / "dest")) == expected
    for path, state in states(folder / "dest"):
        assert state.st_mtime_ns == 1_000_000_000, path
        if path.is_symlink():
            continue
        executable = path.is_dir() or path.name == "tool"
        assert stat.S_IMODE(state.st_mode) == (0o555 if executable else 0o444), path


@settings(max_examples=20, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
@given(trees(large_files=True))
def test_any_tree(tmp_path_factory: pytest.TempPathFactory, events: list[Event]) -> None:
    services = memory_services()
    folder = tmp_path_factory.mktemp("export")
    export_tree(services, stored(services, events), os.fsencode(folder / "dest"))
    assert joined(events_of(folder / "dest")) == joined(events)
    assert os.listdir(folder) == ["dest"]
    remove_below(folder, b"dest")


def remove_below(folder: Path, name: bytes) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        remove_tree(fd, name)
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    "event", [File(b"", False, b"x"), File(b"", True, b""), Symlink(b"", b"nowhere")], ids=["f", "x", "l"]
)
def test_a_root_that_is_no_directory(services: Services, folder: Path, event: Event) -> None:
    for destination in (folder / "dest", f"{folder}/other/"):
        export_to(services, stored(services, [event]), destination)
        assert events_of(os.fsencode(destination)) == [event]
        assert Path(destination).lstat().st_mtime == 1


def test_relative_destinations(services: Services, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / "sub").mkdir()
    root = stored(services, [File(b"", False, b"x")])
    for destination in (b"a", b"./b", b"sub/../c", b"sub/d/"):
        export_tree(services, root, destination)
    assert sorted(path.name for path in folder.rglob("*")) == ["a", "b", "c", "d", "sub"]


EXISTING: dict[str, Callable[[Path], object]] = {
    "file": lambda path: path.write_bytes(b"mine"),
    "folder": lambda path: path.mkdir(),
    "full folder": lambda path: (path / "mine").mkdir(parents=True),
    "link": lambda path: path.symlink_to("/etc"),
    "dangling link": lambda path: path.symlink_to("nowhere"),
    "FIFO": lambda path: os.mkfifo(path),
}


@pytest.mark.parametrize("kind", EXISTING)
def test_what_is_there_is_left_alone(services: Services, folder: Path, kind: str) -> None:
    EXISTING[kind](folder / "dest")
    before = [(path, state.st_mode, state.st_mtime_ns) for path, state in states(folder)]
    for destination in (folder / "dest", f"{folder}/dest/"):
        with pytest.raises(Conflict, match=r"cannot export to .*dest/?: it exists; name something new"):
            export_to(services, stored(services, TREE[:1] + TREE[-1:]), destination)
    assert [(path, state.st_mode, state.st_mtime_ns) for path, state in states(folder)] == before


class Doing(NoProgress):
    """Does something once, in the middle of an export."""

    def __init__(self, action: Callable[[], object]) -> None:
        self._action: Callable[[], object] | None = action

    def advance(self, amount: int, current: str = "") -> None:
        action, self._action = self._action, None
        if action is not None:
            action()


@pytest.mark.parametrize("kind", EXISTING)
@pytest.mark.parametrize("old_kernel", [False, True])
def test_what_appears_meanwhile_is_left_alone(
    services: Services, folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str, old_kernel: bool
) -> None:
    if old_kernel:
        without_renameat2(monkeypatch)
    root = store_tree(services)
    progress = Doing(lambda: EXISTING[kind](folder / "dest"))
    with pytest.raises(Conflict, match="it exists"):
        export_tree(services, root, os.fsencode(folder / "dest"), progress=progress)
    assert os.listdir(folder) == ["dest"]


def without_renameat2(monkeypatch: pytest.MonkeyPatch) -> None:
    real = ctypes.CDLL(None, use_errno=True)

    class Old:
        def __init__(self, *_: object, **__: object) -> None:
            self.syncfs = real.syncfs

    monkeypatch.setattr(ctypes, "CDLL", Old)


def test_a_system_without_that_rename(
    services: Services, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_renameat2(monkeypatch)
    export_to(services, store_tree(services), folder / "dest")
    assert os.listdir(folder) == ["dest"]


@pytest.mark.parametrize("destination", ["/", "//", ".", "..", "sub/.", "sub/..", "/tmp/.."])
def test_destinations_that_exist_by_nature(
    services: Services, folder: Path, monkeypatch: pytest.MonkeyPatch, destination: str
) -> None:
    monkeypatch.chdir(folder)
    with leaving_nothing_open(), pytest.raises(Conflict, match="it exists"):
        export_tree(services, SymlinkNode(b"x"), destination.encode())


@pytest.mark.parametrize(
    ("destination", "error", "message"),
    [
        (b"", InvalidRequest, "names no file"),
        (b"a\0b", InvalidRequest, "names no file"),
        (b"absent/dest", NotFound, "the folder around it does not exist"),
        (b"file/dest", NotFound, "the folder around it does not exist"),
        (b"n" * 256, Unavailable, "File name too long"),
        (b"/proc/dest", NotFound, "cannot export to /proc/dest"),
    ],
)
def test_destinations_that_cannot_be(
    services: Services,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    destination: bytes,
    error: type[NeveError],
    message: str,
) -> None:
    monkeypatch.chdir(folder)
    (folder / "file").write_bytes(b"")
    with leaving_nothing_open(), pytest.raises(error, match=message):
        export_tree(services, SymlinkNode(b"x"), destination)
    assert os.listdir(folder) == ["file"]


# Failures in the middle


def with_entry(services: Services, name: bytes, node: Node) -> Node:
    """A tree with much before an entry that is wrong."""
    inner = stored(services, TREE)
    entries: dict[bytes, Node] = {b"a": inner, b"b": import_large(services), name: node}
    return DirectoryNode(put_directory(services, Directory(entries)), 10)


BROKEN: dict[str, tuple[Node, type[NeveError]]] = {
    "missing blob": (FileNode(b3_digest(b"gone"), 4), NotFound),
    "missing large blob": (FileNode(b3_digest(b"gone"), WHOLE_FILE_LIMIT + 4), NotFound),
    "another length": (FileNode(EMPTY_BLOB, 4), Corrupt),
    "missing Directory": (DirectoryNode(b3_digest(b"gone"), 4), NotFound),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_failure_leaves_nothing(services: Services, folder: Path, what: str) -> None:
    node, error = BROKEN[what]
    root = with_entry(services, b"z", node)
    with pytest.raises(error, match=r"b3:"):
        export_to(services, root, folder / "dest")
    assert os.listdir(folder) == []


@pytest.mark.parametrize("after", [0, 1, 2])
def test_an_interrupt_leaves_nothing(services: Services, folder: Path, after: int) -> None:
    root = with_entry(services, b"z", import_large(services))
    left = after

    class Interrupting(NoProgress):
        def advance(self, amount: int, current: str = "") -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt

    with leaving_nothing_open(), pytest.raises(KeyboardInterrupt):
        export_tree(services, root, os.fsencode(folder / "dest"), progress=Interrupting())
    assert os.listdir(folder) == []


class Dies(NoProgress):
    """Kills its process when something was made."""

    def advance(self, by: int = 0, item: str = "") -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def export_in_a_child(work: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_an_export(services: Services, root: Node, destination: Path) -> list[str]:
    """Returns what it has left beside its destination."""
    before = set(os.listdir(destination.parent))
    work = partial(export_tree, services, root, os.fsencode(destination), progress=Dies())
    assert export_in_a_child(work) == -signal.SIGKILL
    return sorted(set(os.listdir(destination.parent)) - before)


@pytest.mark.parametrize("kind", ["tree", "file"])
def test_what_a_killed_export_has_left_goes_with_the_next(
    services: Services, folder: Path, kind: str
) -> None:
    root = store_tree(services) if kind == "tree" else import_large(services)
    assert len(kill_an_export(services, root, folder / "out")) == 1
    [other] = kill_an_export(services, root, folder / "other")
    export_to(services, root, folder / "out")
    assert sorted(os.listdir(folder)) == sorted(["out", other])
    assert list(events_of(folder / "out"))


def test_what_a_living_export_makes_is_left_alone(services: Services, folder: Path) -> None:
    root = store_tree(services)

    class Another(NoProgress):
        """Of the same, to the same place, in the middle of it."""

        def advance(self, by: int = 0, item: str = "") -> None:
            if not (folder / "out").exists():
                export_to(services, root, folder / "out")

    with pytest.raises(Conflict):
        export_tree(services, root, os.fsencode(folder / "out"), progress=Another())
    assert os.listdir(folder) == ["out"]
    expected, found = folder / "expected", folder / "out"
    export_to(services, root, expected)
    assert list(events_of(found)) == list(events_of(expected))


def test_what_was_taken_before_it_could_be_locked_is_made_again(
    services: Services, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fcntl.flock
    taken: list[str] = []

    def take(fd: int, kind: int) -> None:
        if not taken:
            taken.extend(os.listdir(folder))
            (folder / taken[0]).rmdir()
        real(fd, kind)

    monkeypatch.setattr(fcntl, "flock", take)
    export_to(services, store_tree(services), folder / "out")
    assert len(taken) == 1
    assert os.listdir(folder) == ["out"]


@pytest.mark.parametrize("kind", ["tree", "file"])
def test_without_descriptors_nothing_is_left(
    services: Services, folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    root = store_tree(services) if kind == "tree" else import_large(services)
    real, left = os.dup, [1]

    def dup(fd: int) -> int:
        if left:
            left.pop()
            raise OSError(errno.EMFILE, "Too many open files")
        return real(fd)

    with leaving_nothing_open(), monkeypatch.context() as patch:
        patch.setattr(os, "dup", dup)
        with pytest.raises(Unavailable, match="Too many open files"):
            export_to(services, root, folder / "out")
    assert os.listdir(folder) == []


def test_where_nothing_can_be_locked_nothing_is_removed(
    services: Services, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = store_tree(services)
    left = kill_an_export(services, root, folder / "out")

    def none(fd: int, kind: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    export_to(services, root, folder / "out")
    assert sorted(os.listdir(folder)) == sorted(["out", *left])


@pytest.mark.parametrize("kind", ["link", "other"])
def test_what_no_export_of_ours_has_left_is_left_alone(services: Services, folder: Path, kind: str) -> None:
    if kind == "other" and os.geteuid():
        pytest.skip("only root can give files away")
    root = store_tree(services)
    [name] = kill_an_export(services, root, folder / "out")
    left = folder / name
    if kind == "other":
        os.chown(left, 65534, 65534)
    else:
        remove_below(folder, os.fsencode(name))
        left.symlink_to(folder / "precious")
        (folder / "precious").mkdir()
    before = os.lstat(left)
    export_to(services, root, folder / "out")
    assert os.path.samestat(before, os.lstat(left))
    assert (folder / "out").is_dir()


def test_progress_counts_every_byte(services: Services, folder: Path) -> None:
    total = 0

    class Counting(NoProgress):
        def advance(self, amount: int, current: str = "") -> None:
            nonlocal total
            total += amount

    root = with_entry(services, b"z", FileNode(put_blob(services, b"12345"), 5))
    export_tree(services, root, os.fsencode(folder / "dest"), progress=Counting())
    contents = sum(len(event.contents) for event in TREE if isinstance(event, File))
    assert total == 3 * WHOLE_FILE_LIMIT + 5 + contents


def test_a_deep_tree(services: Services) -> None:
    with public_folder() as folder:
        make_deep(os.fsencode(folder), 2000)
        events = events_of(folder)
        root = stored(services, events)
        most = 0

        class Watching(NoProgress):
            def advance(self, amount: int, current: str = "") -> None:
                nonlocal most
                most = max(most, len(open_files()))

        before = len(open_files())
        with leaving_nothing_open():
            export_tree(services, root, os.fsencode(folder / "dest"), progress=Watching())
        assert events_of(folder / "dest") == events
        assert most - before < 80


def test_a_deep_tree_that_fails_leaves_nothing(services: Services) -> None:
    node: Node = DirectoryNode(b3_digest(b"gone"), 1)
    for i in range(1500):
        directory = Directory({b"a": FileNode(EMPTY_BLOB, 0), b"b%d" % i: node, b"c": SymlinkNode(b"x")})
        node = DirectoryNode(put_directory(services, directory), directory.size())
    with public_folder() as folder:
        with pytest.raises(NotFound):
            export_to(services, node, folder / "dest")
        assert os.listdir(folder) == []


def test_removing_what_is_wide() -> None:
    with public_folder() as folder:
        root = folder / "root"
        root.mkdir()
        for i in range(300):
            (root / f"d{i}/inner").mkdir(parents=True)
            (root / f"d{i}/file").write_bytes(b"")
            (root / f"f{i}").write_bytes(b"")
            (root / f"l{i}").symlink_to(folder)
        (root / "d0").chmod(0o555)
        with leaving_nothing_open():
            remove_below(folder, b"root")
            remove_below(folder, b"absent")
        assert os.listdir(folder) == []


def test_removing_does_not_follow_links(folder: Path) -> None:
    (folder / "kept").mkdir()
    (folder / "kept/file").write_bytes(b"")
    (folder / "root").mkdir()
    (folder / "root/link").symlink_to("../kept")
    (folder / "alone").symlink_to("kept")
    for name in (b"root", b"alone"):
        remove_below(folder, name)
    assert sorted(path.name for path in folder.rglob("*")) == ["file", "kept"]


# Other users, other disks

EXPORT = """
from neve.castore.directory import Directory
from neve.castore.node import DirectoryNode, FileNode, SymlinkNode
from neve.errors import NeveError
from neve.store.export import export_tree
from neve.store.services import open_services
services = open_services("memory://")
blob = services.blobs.put_many([b"x" * 300_000])[0]
services.directories.put(Directory())
def folder(**entries):
    directory = Directory({name.encode(): node for name, node in entries.items()})
    return DirectoryNode(services.directories.put(directory), directory.size())
file = FileNode(blob, 300_000, True)
inner = folder(a=file, b=SymlinkNode(b"x"), c=folder(a=file))
good, bad = folder(a=inner, z=inner), folder(a=inner, z=FileNode(bytes(32), 3))
large = folder(**{f"a{i}": inner for i in range(20)})
def attempt(root, destination):
    try: export_tree(services, root, os.fsencode(destination))
    except NeveError as error: print(type(error).__name__, error)
"""


def test_a_user_without_rights() -> None:
    """Folders that are 0555 can be renamed and removed by their owner all the same."""
    with public_folder() as folder:
        (folder / "mine").mkdir()
        (folder / "mine").chmod(0o777)
        (folder / "closed").mkdir()
        code = "attempt(good, sys.argv[1] + '/mine/good')\nattempt(bad, sys.argv[1] + '/mine/bad')\n"
        code += "attempt(good, sys.argv[1] + '/closed/good')\nattempt(good, sys.argv[1] + '/closed/x/good')"
        (folder / "closed").chmod(0o555 if os.geteuid() == 0 else 0o500)
        printed = as_nobody(EXPORT, code, folder).splitlines()
        assert [line.split()[0] for line in printed] == ["NotFound", PermissionDenied.__name__, "NotFound"]
        assert f"cannot export to {folder}/closed/good: Permission denied" in printed[1]
        assert os.listdir(folder / "mine") == ["good"]
        assert stat.S_IMODE((folder / "mine/good/a").stat().st_mode) == 0o555
        assert (folder / "mine/good/z/c/a").stat().st_size == 300_000
        assert os.listdir(folder / "closed") == []


@pytest.mark.root
def test_a_full_disk(folder: Path) -> None:
    """On a file system of a megabyte, in a mount namespace of its own."""
    code = "import os, sys\n" + EXPORT
    code += "os.chdir(sys.argv[1])\nattempt(large, 'dest')\nprint(os.listdir('.'))\n"
    code += "attempt(folder(a=file), 'dest')\nprint(os.listdir('.'))\n"
    shell = 'mount -t tmpfs -o size=1m tmpfs "$1" && exec "$2" -c "$3" "$1"'
    command = ["unshare", "--mount", "sh", "-c", shell, "sh", str(folder), sys.executable, code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "DiskFull cannot export to dest: disk full; free some space and try again",
        "[]",
        "['dest']",
    ]


def test_errors_of_the_system(services: Services, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(fd: int, data: bytes) -> int:
        raise OSError(5, "I/O error")

    root = store_tree(services)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", failing)
        with pytest.raises(Unavailable, match="Input/output error"):
            export_to(services, root, folder / "dest")
    assert os.listdir(folder) == []
    assert export._MAX_OPEN_DIRECTORIES < 100
