"""A mounted store when something is wrong: with what is stored, with the backend, with the process."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import neve
from neve.castore.digest import b3_digest, format_digest
from neve.castore.directories.local import LocalDirectoryService
from neve.castore.directory import Directory
from neve.castore.node import DirectoryNode, FileNode
from neve.nix.store_path import StorePath
from neve.store.path_info import PathInfo
from tests.castore.damage import damage_directory, damage_plain_blob
from tests.server.serve import served

from .conftest import Stored
from .mounts import SECONDS, Mount, in_parallel, is_mounted, mounting, python, remove, run, until
from .samples import LARGE, imported

pytestmark = pytest.mark.fuse


def is_in(process: int, folder: Path) -> bool:
    """Whether a process has a file open there, and so waits to read from it, or soon will."""
    with contextlib.suppress(OSError):
        return any(
            os.readlink(file).startswith(f"{folder}/") for file in Path(f"/proc/{process}/fd").iterdir()
        )
    return False


READ = "import sys; sys.stdout.write(open(sys.argv[1]).read())"


def test_a_damaged_file_is_an_error_for_this_file_only(tmp_path: Path, mounted: Callable[..., Mount]) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    contents = {f"file-{number:02}": os.urandom(2000) for number in range(40)}
    for name, data in contents.items():
        (tree / name).write_bytes(data)
    contents["large"] = os.urandom(LARGE)
    (tree / "large").write_bytes(contents["large"])
    url = f"local://{tmp_path}/store"
    base_name = imported(url, tree)
    broken = b3_digest(contents["file-20"])
    with neve.open(url) as store:
        damage_plain_blob(store.blobs, broken)
        chunks = store.blobs.chunks(b3_digest(contents["large"]))
        assert chunks is not None
        damage_plain_blob(store.blobs, chunks[-1].digest)
    mount = mounted(url)
    for name, data in contents.items():
        result = subprocess.run(
            ["cat", mount.path(base_name, name)], capture_output=True, timeout=SECONDS, check=False
        )
        if name in ("file-20", "large"):
            assert b"Input/output error" in result.stderr
            assert result.stdout == data[: len(result.stdout)]
        else:
            assert (result.stdout, result.stderr) == (data, b"")
    assert mount.says(re.escape(f"{format_digest(broken)} do not match its digest"))
    assert mount.says(re.escape(format_digest(chunks[-1].digest)))


def test_a_damaged_or_missing_directory_is_an_error_for_this_directory_only(
    tmp_path: Path, mounted: Callable[..., Mount]
) -> None:
    url = f"local://{tmp_path}/store"
    nodes: dict[bytes, DirectoryNode] = {}
    with neve.open(url) as store:
        for name in (b"bad", b"good", b"gone"):
            # One by one: Directories that are put together lie in one frame, and are damaged together.
            file = FileNode(store.blobs.put_many([name])[0], len(name))
            inner = store.directories.put(Directory({b"file": file}))
            nodes[name] = DirectoryNode(
                store.directories.put(Directory({b"sub": DirectoryNode(inner, 1)})), 2
            )
        path = StorePath(bytes(20), "tree")
        root = DirectoryNode(store.directories.put(Directory(nodes)), 9)
        store.path_infos.put(PathInfo(path, root))
        damage_directory(store.directories, nodes[b"bad"].digest)
        assert isinstance(store.directories, LocalDirectoryService)
        store.directories.delete_many([nodes[b"gone"].digest])
    base_name = path.base_name
    mount = mounted(url)
    assert run("ls", mount.path(base_name)).stdout == "bad\ngone\ngood\n"
    for name in (b"bad", b"gone"):
        assert "Input/output error" in run("ls", mount.path(base_name, name.decode())).stderr
        assert mount.says(re.escape(format_digest(nodes[name].digest)))
    assert run("cat", mount.path(base_name, "good", "sub", "file")).stdout == "good"


def test_a_backend_that_hangs(stored: Stored, tmp_path: Path, mounted: Callable[..., Mount]) -> None:
    """What is known can be read, who waits can be interrupted, and it can be unmounted."""
    with served(stored.store, tmp_path / "socket") as daemon:
        mount = mounted(daemon.url)
        at_hand, wanted = (
            mount.path(stored.base_name, "text"),
            mount.path(stored.base_name, "many", "file-007"),
        )
        assert at_hand.read_text() == "Hello\n"
        with daemon.paused():
            with (
                in_parallel("cat", wanted) as reader,
                in_parallel("ls", mount.path("0" * 32 + "-x")) as looker,
                in_parallel("cat", mount.path(stored.base_name, f"bytes-{LARGE}")) as other,
            ):
                for _ in range(20):
                    assert run("cat", at_hand).stdout == "Hello\n"
                    assert run("stat", mount.path(stored.base_name)).returncode == 0
                for process in (reader, looker, other):
                    assert process.poll() is None
                    process.send_signal(signal.SIGINT)
                    assert process.wait(SECONDS) == -signal.SIGINT
            with in_parallel("cat", wanted):
                run("umount", "--lazy", mount.folder)
                assert not is_mounted(mount.folder)
                mount.process.terminate()
                assert mount.ended() == 0


STUCK = """
import os, sys
for number in range(100, 300):
    fd = os.open(f"{sys.argv[1]}/file-{number}", os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED)
print("asked", flush=True)
sys.stdin.read()
"""

AGAIN = """
import os, sys
with open(sys.argv[1], "rb") as file:
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
    sys.stdout.buffer.write(file.read())
"""


def test_unmounted_by_force_while_a_backend_hangs(
    stored: Stored, tmp_path: Path, mounted: Callable[..., Mount]
) -> None:
    """That cuts it off, and does not unmount it."""
    with served(stored.store, tmp_path / "socket") as daemon:
        mount = mounted(daemon.url)
        assert mount.path(stored.base_name, "text").read_text() == "Hello\n"
        assert run("ls", "-l", mount.path(stored.base_name, "many")).returncode == 0
        with daemon.paused(), in_parallel("cat", mount.path(stored.base_name, "many", "file-007")) as reader:
            until(lambda: is_in(reader.pid, mount.folder))
            run("umount", "--force", mount.folder)
            assert reader.wait(SECONDS) == 1
            assert mount.ended() == 0
            assert not is_mounted(mount.folder)


def test_many_readers_of_a_backend_that_hangs(
    stored: Stored, tmp_path: Path, mounted: Callable[..., Mount]
) -> None:
    """However many there are, what is at hand here, but not in the kernel, can be read."""
    with served(stored.store, tmp_path / "socket") as daemon:
        mount = mounted(daemon.url)
        at_hand, many = mount.path(stored.base_name, "text"), mount.path(stored.base_name, "many")
        assert run("ls", "-l", many).returncode == 0
        assert at_hand.read_text() == "Hello\n"
        with daemon.paused():
            command = [sys.executable, "-c", STUCK, str(many)]
            with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as readers:
                assert readers.stdout is not None
                assert readers.stdout.readline() == b"asked\n"
                assert python(AGAIN, at_hand).stdout == "Hello\n"


def test_more_waiting_readers_than_threads(
    stored: Stored, tmp_path: Path, mounted: Callable[..., Mount]
) -> None:
    """All of them get theirs when the backend comes to itself again; those who were interrupted do not
    keep the others from it."""
    with served(stored.store, tmp_path / "socket") as daemon:
        mount = mounted(daemon.url, "--threads", "2")
        assert run("ls", mount.path(stored.base_name, "many")).returncode == 0
        names = [f"file-{number:03}" for number in range(1, 41, 4)]
        paths = [mount.path(stored.base_name, "many", name) for name in names]
        readers = []
        with daemon.paused():
            for path in paths:
                readers.append(subprocess.Popen(["cat", path], stdout=subprocess.PIPE, text=True))
            for reader in readers[::2]:
                reader.send_signal(signal.SIGINT)
                assert reader.wait(SECONDS) == -signal.SIGINT
        for name, reader in list(zip(names, readers, strict=True))[1::2]:
            assert reader.communicate(timeout=SECONDS)[0] == (stored.tree / "many" / name).read_text()
        for reader in readers[::2]:
            reader.communicate()


def test_a_backend_that_dies_and_comes_back(
    stored: Stored, tmp_path: Path, mounted: Callable[..., Mount]
) -> None:
    socket = tmp_path / "socket"
    with served(stored.store, socket) as daemon:
        mount = mounted(f"{daemon.url}?timeout=5")
        assert mount.path(stored.base_name, "text").read_text() == "Hello\n"
        daemon.kill()
    result = run("cat", mount.path(stored.base_name, "many", "file-007"))
    assert "Input/output error" in result.stderr
    assert run("cat", mount.path(stored.base_name, "text")).stdout == "Hello\n"
    with served(stored.store, socket):
        expected = (stored.tree / "many" / "file-007").read_text()
        path = mount.path(stored.base_name, "many", "file-007")
        until(lambda: run("cat", path).stdout == expected)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_unmounts(stored: Stored, mounted: Callable[..., Mount], number: signal.Signals) -> None:
    mount = mounted(stored.store)
    assert mount.path(stored.base_name, "text").read_text() == "Hello\n"
    mount.process.send_signal(number)
    assert mount.ended() == 0
    assert not is_mounted(mount.folder)
    assert len(mount.log) == 1


def test_several_signals_unmount(stored: Stored, mounted: Callable[..., Mount]) -> None:
    """As a closing terminal sends them, or systemd: they are there at once, even while files are open."""
    mount = mounted(stored.store)
    with in_parallel("tail", "-f", mount.path(stored.base_name, "text")) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "Hello\n"
        for number in (signal.SIGSTOP, signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGCONT):
            mount.process.send_signal(number)
        assert mount.ended() == 0
        assert not is_mounted(mount.folder)


def test_umount_ends_it(stored: Stored, mounted: Callable[..., Mount]) -> None:
    mount = mounted(stored.store)
    assert run("umount", mount.folder).returncode == 0
    assert mount.ended() == 0


OPEN = """
import sys
file = open(sys.argv[1], "rb")
print(file.read(3).decode(), flush=True)
sys.stdin.readline()
print(file.read(3).decode(), flush=True)
try:
    open(sys.argv[1])
except OSError as error:
    print(error.errno, flush=True)
"""


def test_unmounted_while_files_are_open(stored: Stored, mounted: Callable[..., Mount]) -> None:
    """By its user it is not to be had; when we are told to end, it goes all the same."""
    mount = mounted(stored.store)
    command = [sys.executable, "-c", OPEN, str(mount.path(stored.base_name, "text"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "Hel\n"
        assert "busy" in run("umount", mount.folder).stderr
        mount.process.terminate()
        assert mount.ended() == 0
        assert not is_mounted(mount.folder)
        # The kernel has the rest of it; the file itself is gone.
        assert reader.communicate("\n", timeout=SECONDS)[0] == "lo\n\n2\n"


def test_something_else_is_mounted_over_it(stored: Stored, mounted: Callable[..., Mount]) -> None:
    mount = mounted(stored.store)
    assert run("mount", "-t", "tmpfs", "tmpfs", mount.folder).returncode == 0
    mount.process.terminate()
    assert mount.ended() == 1
    reason = "another file system (tmpfs) is mounted over it; umount that one, then this one"
    assert mount.log[1:] == [f"neve: cannot unmount {mount.folder}: {reason}"]
    remove(mount.folder)


def test_it_is_bound_to_another_place(stored: Stored, tmp_path: Path, mounted: Callable[..., Mount]) -> None:
    """As long as it is anywhere it is served, and it goes from everywhere."""
    mount = mounted(stored.store)
    bound = tmp_path / "bound"
    bound.mkdir()
    try:
        assert run("mount", "--bind", mount.path(stored.base_name, "bin"), bound).returncode == 0
        assert run("umount", mount.folder).returncode == 0
        assert (bound / "alias").read_text() == (stored.tree / "bin" / "run").read_text()
        mount.process.terminate()
        assert mount.ended() == 0
        assert not is_mounted(bound)
    finally:
        remove(bound)


def test_killed(stored: Stored, tmp_path: Path, mounted: Callable[..., Mount]) -> None:
    """What is left can be unmounted, and mounted again."""
    mount = mounted(stored.store)
    assert mount.path(stored.base_name, "text").read_text() == "Hello\n"
    with in_parallel("tail", "-f", mount.path(stored.base_name, "text")):
        mount.process.kill()
        assert mount.ended() == -signal.SIGKILL
        assert "Transport endpoint is not connected" in run("ls", mount.folder).stderr
        again = run(sys.executable, "-m", "neve.cli", "mount", mount.folder, "--store", stored.store)
        message = f"{mount.folder} is mounted, and whoever served it has died; run: umount {mount.folder}"
        assert (again.returncode, again.stderr) == (1, f"neve: {message}\n")
    assert run("umount", mount.folder).returncode == 0
    with mounting(stored.store, mount.folder) as second:
        assert second.path(stored.base_name, "text").read_text() == "Hello\n"
    remove(mount.folder)


MEASURE = """
import os, sys
entries = sorted(os.listdir(sys.argv[1]))
print(len(entries), len(set(entries)))
"""

SEEK = """
import ctypes, os, random, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.opendir.restype = ctypes.c_void_p
libc.readdir.argtypes = libc.telldir.argtypes = libc.rewinddir.argtypes = [ctypes.c_void_p]
libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]
libc.telldir.restype = ctypes.c_long

class Dirent(ctypes.Structure):
    _fields_ = [("ino", ctypes.c_uint64), ("off", ctypes.c_int64), ("reclen", ctypes.c_uint16),
                ("type", ctypes.c_uint8), ("name", ctypes.c_char * 256)]

libc.readdir.restype = ctypes.POINTER(Dirent)
directory = libc.opendir(os.fsencode(sys.argv[1]))
expected = [b".", b".."] + [b"n%06d" % number for number in range(int(sys.argv[2]))]
places = []
position, rng = 0, random.Random(4)
for step in range(3000):
    for _ in range(rng.randrange(200)):
        if position % 50 == 0:
            places.append((position, libc.telldir(directory)))
        entry = libc.readdir(directory)
        if not entry:
            assert position == len(expected), position
            break
        assert entry.contents.name == expected[position], (position, entry.contents.name)
        position += 1
    choice = rng.random()
    if choice < 0.4:
        position, place = rng.choice(places)
        libc.seekdir(directory, place)
    elif choice < 0.45:
        position = 0
        libc.rewinddir(directory)
    elif choice < 0.9:
        position, place = max(places)
        libc.seekdir(directory, place)
print("fine", max(places)[0])
"""


@pytest.mark.slow
def test_a_long_directory_is_read_while_it_is_seeked(tmp_path: Path, mounted: Callable[..., Mount]) -> None:
    from .big import directory_of

    count = 300_000
    url = f"local://{tmp_path}/store"
    base_name = directory_of(url, count)
    mount = mounted(url)
    path = mount.path(base_name)
    with in_parallel(sys.executable, "-c", SEEK, path, str(count)) as seeking:
        assert python(MEASURE, path).stdout == f"{count} {count}\n"
        assert seeking.communicate(timeout=2 * SECONDS)[0].startswith("fine ")
    assert run("stat", "--format", "%s", path).stdout == f"{count}\n"
    assert run("ls", "-U", "-f", path).stdout.count("\n") == count + 2
