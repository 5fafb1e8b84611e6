"""What programs see of a mounted store, with the real kernel."""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest

import neve
from neve.castore.digest import b3_digest, format_digest, format_snix_digest
from tests.server.serve import served
from tests.store.substitute.caches import KEY, Cache
from tests.store.substitute.server import running_server

from .conftest import Stored
from .mounts import SECONDS, Mount, in_parallel, python, run
from .samples import LARGE, imported

pytestmark = pytest.mark.fuse

LSTAT = """
import json, os, sys
found = os.lstat(sys.argv[1])
print(json.dumps({name: getattr(found, name) for name in dir(found) if name.startswith("st_")}))
"""


def lstat(path: Path) -> dict[str, int]:
    result = python(LSTAT, path)
    assert result.returncode == 0, result.stderr
    return dict(json.loads(result.stdout))


def test_a_tree_is_as_it_was(stored: Stored, shared_mount: Mount) -> None:
    mounted = shared_mount.path(stored.base_name)
    result = run("diff", "--recursive", "--no-dereference", stored.tree, mounted)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    names = [
        run("find", ".", "-printf", r"%P %y %l\0", cwd=where, env={"LC_ALL": "C"}).stdout
        for where in (stored.tree, mounted)
    ]
    assert sorted(names[0].split("\0")) == sorted(names[1].split("\0"))
    # Once more, now that the kernel has it all.
    assert run("diff", "--recursive", "--no-dereference", stored.tree, mounted).returncode == 0


@pytest.mark.parametrize(
    ("path", "mode", "size"),
    [
        ((), stat.S_IFDIR | 0o555, None),
        (("bin",), stat.S_IFDIR | 0o555, 2),
        (("empty",), stat.S_IFDIR | 0o555, 0),
        (("many",), stat.S_IFDIR | 0o555, 700),
        (("bin", "run"), stat.S_IFREG | 0o555, 19),
        (("text",), stat.S_IFREG | 0o444, 6),
        (("nothing",), stat.S_IFREG | 0o444, 0),
        ((f"bytes-{LARGE}",), stat.S_IFREG | 0o444, LARGE),
        (("bin", "alias"), stat.S_IFLNK | 0o777, 3),
        (("long-link",), stat.S_IFLNK | 0o777, 4095),
    ],
)
def test_attributes(
    stored: Stored, shared_mount: Mount, path: tuple[str, ...], mode: int, size: int | None
) -> None:
    found = lstat(shared_mount.path(stored.base_name, *path))
    assert found["st_mode"] == mode
    expected = len(os.listdir(stored.tree)) if size is None else size
    assert found["st_size"] == expected
    assert found["st_blocks"] == -(-expected // 512)
    assert (found["st_uid"], found["st_gid"]) == (0, 0)
    assert {found[f"st_{kind}time_ns"] for kind in "amc"} == {1_000_000_000}


def test_files_of_the_same_contents_share_an_inode_and_directories_do_not(
    tmp_path: Path, mounted: Callable[..., Mount]
) -> None:
    tree = tmp_path / "tree"
    for folder in ("a", "b"):
        (tree / folder / "sub").mkdir(parents=True)
        (tree / folder / "sub" / "file").write_text("same")
        (tree / folder / "link").symlink_to("same")
        (tree / folder / "run").write_text("same")
        (tree / folder / "run").chmod(0o755)
    store = f"local://{tmp_path}/store"
    base_name = imported(store, tree)
    mount = mounted(store)

    def inode(*path: str) -> int:
        return lstat(mount.path(base_name, *path))["st_ino"]

    assert inode("a", "sub", "file") == inode("b", "sub", "file")
    assert inode("a", "link") == inode("b", "link")
    assert inode("a", "run") == inode("b", "run") != inode("a", "sub", "file")
    assert len({inode("a"), inode("b"), inode("a", "sub"), inode("b", "sub")}) == 4


def test_xattrs(stored: Stored, shared_mount: Mount) -> None:
    code = """
import json, os, sys
print(json.dumps({n: os.getxattr(sys.argv[1], n).decode() for n in os.listxattr(sys.argv[1])}))
try:
    os.getxattr(sys.argv[1], "user.else")
except OSError as error:
    print(error.errno)
"""
    with neve.open(f"{stored.store}?mode=ro") as store:
        directory = store.path_info(stored.base_name).node
    digests = {"text": ("blob", b3_digest(b"Hello\n")), "": ("directory", directory[0])}
    for name, (kind, digest) in digests.items():
        assert isinstance(digest, bytes)
        shown, missing = python(code, shared_mount.path(stored.base_name, name)).stdout.splitlines()
        assert json.loads(shown) == {
            f"user.tvix.castore.{kind}.digest": format_digest(digest),
            f"user.snix.castore.{kind}.digest": format_snix_digest(digest),
        }
        assert missing == "61"  # ENODATA


def test_without_xattrs(stored: Stored, mounted: Callable[..., Mount]) -> None:
    mount = mounted(stored.store, "--no-show-xattr")
    result = python(
        "import os, sys; os.getxattr(sys.argv[1], 'user.tvix.castore.blob.digest')",
        mount.path(stored.base_name, "text"),
    )
    assert "[Errno 95]" in result.stderr  # ENOTSUP


def test_the_root_cannot_be_listed_unless_that_was_wanted(
    stored: Stored, mounted: Callable[..., Mount]
) -> None:
    mount = mounted(stored.store)
    for _ in range(2):
        # Before and after the kernel was told not to ask when directories are opened.
        result = run("ls", mount.folder)
        assert result.returncode == 2
        assert "Operation not permitted" in result.stderr
        assert run("ls", mount.path(stored.base_name, "bin")).stdout == "alias\nrun\n"


def test_the_root_shows_what_has_come_since(tmp_path: Path, mounted: Callable[..., Mount]) -> None:
    """It was listed before, and something was looked up before it was there."""
    store = f"local://{tmp_path}/store"
    (tmp_path / "one").write_text("1")
    (tmp_path / "two").write_text("2")
    first = imported(store, tmp_path / "one")
    second = imported(f"local://{tmp_path}/other", tmp_path / "two")
    mount = mounted(store, "--list-root")
    for _ in range(2):
        assert run("ls", mount.folder).stdout.split() == [first]
        assert run("cat", mount.path(second)).returncode == 1
        (mount.path(first)).read_text()
        assert run("ls", "-a", mount.folder).stdout.split() == [".", "..", first]
    assert imported(store, tmp_path / "two") == second
    assert run("cat", mount.path(second)).stdout == "2"
    assert run("ls", mount.folder).stdout.split() == sorted([first, second])
    assert run("ls", "-l", mount.folder).stdout.count("\n") == 3


def test_what_is_no_store_path_is_not_there(shared_mount: Mount) -> None:
    for name in (".git", "x" * 255, "0" * 32 + "-missing", "e" * 32 + "-bad"):
        assert "No such file" in run("cat", shared_mount.path(name)).stderr
    assert "too long" in run("cat", shared_mount.path("x" * 256)).stderr


def test_programs_run_and_are_mapped(tmp_path: Path, mounted: Callable[..., Mount]) -> None:
    tree = tmp_path / "programs"
    tree.mkdir()
    (tree / "cat").write_bytes(Path("/bin/cat").read_bytes())
    (tree / "cat").chmod(0o755)
    (tree / "script").write_text("#!/bin/sh\necho script $1\n")
    (tree / "script").chmod(0o755)
    (tree / "data").write_bytes(b"data" * 300_000)
    store = f"local://{tmp_path}/store"
    base_name = imported(store, tree)
    mount = mounted(store)
    assert run(mount.path(base_name, "cat"), "-", input="hello").stdout == "hello"
    assert run(mount.path(base_name, "script"), "one").stdout == "script one\n"
    code = """
import hashlib, mmap, sys
with open(sys.argv[1], "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
    print(mapped[777_777:777_781].decode(), hashlib.sha256(mapped).hexdigest())
"""
    digest = run("sha256sum", tree / "data").stdout.split()[0]
    assert python(code, mount.path(base_name, "data")).stdout == f"atad {digest}\n"
    with pytest.raises(PermissionError):
        subprocess.run([mount.path(base_name, "data")], check=True, timeout=60)
    other = mounted(store, "--noexec", name="noexec")
    with pytest.raises(PermissionError):
        subprocess.run([other.path(base_name, "script")], check=True, timeout=60)


def test_holes_and_statvfs(stored: Stored, shared_mount: Mount) -> None:
    code = """
import os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
print(os.lseek(fd, 2, os.SEEK_DATA), os.lseek(fd, 2, os.SEEK_HOLE), os.statvfs(sys.argv[1]).f_namemax)
try:
    os.lseek(fd, 6, os.SEEK_DATA)
except OSError as error:
    print(error.errno)
"""
    assert python(code, shared_mount.path(stored.base_name, "text")).stdout == "2 6 255\n6\n"


def test_random_reads_of_a_large_file(stored: Stored, shared_mount: Mount) -> None:
    code = """
import os, random, sys
a, b = (os.open(name, os.O_RDONLY) for name in sys.argv[1:])
size, rng = os.fstat(a).st_size, random.Random(2)
for _ in range(300):
    where, length = rng.randrange(size), rng.choice([1, 4096, 100_000, 2_000_000])
    assert os.pread(a, length, where) == os.pread(b, length, where), (where, length)
    if rng.random() < 0.1:
        os.posix_fadvise(b, 0, 0, os.POSIX_FADV_DONTNEED)
print("equal")
"""
    for name in (f"bytes-{LARGE}", "repetitive"):
        result = python(code, stored.tree / name, shared_mount.path(stored.base_name, name))
        assert result.stdout == "equal\n", result.stderr


def test_it_can_be_the_lower_layer_of_an_overlay(stored: Stored, shared_mount: Mount, tmp_path: Path) -> None:
    # The upper layer must be of a kind that can be one, and this file system may be an overlay itself.
    script = """
set -e
mount -t tmpfs tmpfs "$2"
mkdir "$2/upper" "$2/work" "$2/all"
mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" "$2/all"
cd "$2/all"
echo more >> text
rm nothing
mkdir empty/new
mv many/file-007 empty/new/
cat text empty/new/file-007
ls many | wc -l
test ! -e nothing
bin/run
"""
    lower = shared_mount.path(stored.base_name)
    result = run("unshare", "--mount", "sh", "-c", script, "sh", lower, tmp_path)
    assert result.stderr == ""
    assert result.stdout == "Hello\nmore\n" + "7\n" * 7 + "699\nran\n"
    assert (lower / "text").read_text() == "Hello\n"


PARENTS = """
import os, sys, time
end = time.monotonic() + float(sys.argv[2])
names = sys.argv[3:]
wrong = rounds = 0
while time.monotonic() < end or rounds < 200:
    for name in names:
        with open(f"{sys.argv[1]}/{name}/lib/up", "rb") as file:
            wrong += file.read() != name[33:].encode()
    rounds += 1
print(wrong)
"""


def test_equal_directories_of_two_packages_lead_back_to_their_own(
    tmp_path: Path, mounted: Callable[..., Mount]
) -> None:
    """``lib`` is the same in all of them, and so are its digest and its link ``up`` to ``../id``."""
    store = f"local://{tmp_path}/store"
    names = []
    for name in ("one", "two", "three"):
        tree = tmp_path / name
        (tree / "lib").mkdir(parents=True)
        (tree / "id").write_text(name)
        (tree / "lib" / "up").symlink_to("../id")
        names.append(imported(store, tree))
    mount = mounted(store)
    command = (sys.executable, "-c", PARENTS, mount.folder, "2")
    with in_parallel(*command, *names) as one, in_parallel(*command, *reversed(names)) as other:
        assert one.communicate()[0] == other.communicate()[0] == "0\n"


SUMS = """
import hashlib, os, sys
digest = hashlib.sha256()
for folder, folders, files in os.walk(sys.argv[1]):
    folders.sort()
    for name in sorted(files):
        with open(os.path.join(folder, name), "rb") as file:
            digest.update(name.encode() + file.read())
print(digest.hexdigest())
"""


def test_several_who_walk_through_trees_with_the_same_files(
    tmp_path: Path, mounted: Callable[..., Mount]
) -> None:
    """Files are sent to the kernel while somebody else reads them by another name."""
    store = f"local://{tmp_path}/store"
    names, sums = [], []
    for tree_number in range(2):
        tree = tmp_path / f"tree-{tree_number}"
        for folder in range(30):
            below = tree / f"folder-{folder:02d}" / "below"
            below.mkdir(parents=True)
            for number in range(20):
                content = (folder if tree_number else 29 - folder, number)
                (below / f"file-{number:02d}").write_text(f"{content}\n" * 3000)
                (below.parent / f"file-{number:02d}").write_text(f"{content[0]}\n" * number)
        names.append(imported(store, tree))
        sums.append(python(SUMS, tree).stdout)
    mount = mounted(store)
    for _ in range(5):
        with contextlib.suppress(PermissionError):
            Path("/proc/sys/vm/drop_caches").write_text("3")
        with contextlib.ExitStack() as stack:
            command = (sys.executable, "-c", SUMS)
            readers = [
                stack.enter_context(in_parallel(*command, mount.path(name))) for name in [*names, *names]
            ]
            assert [reader.communicate(timeout=SECONDS)[0] for reader in readers] == [*sums, *sums]


def test_over_a_daemon(stored: Stored, tmp_path: Path, mounted: Callable[..., Mount]) -> None:
    with served(stored.store, tmp_path / "socket") as daemon:
        mount = mounted(daemon.url, "--list-root")
        assert run("ls", mount.folder).stdout == f"{stored.base_name}\n"
        result = run("diff", "--recursive", "--no-dereference", stored.tree, mount.path(stored.base_name))
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
        mount.process.terminate()
        assert mount.ended() == 0


def test_lookups_substitute_on_demand(tmp_path: Path, mounted: Callable[..., Mount]) -> None:
    cache = Cache()
    narinfo = cache.add("tool", compression="xz")
    bad = cache.add("bad", nar=b"no NAR")
    with running_server() as server:
        server.serve(cache.files)
        keys = quote(KEY.public_key().render())
        source = f"nix+{server.url}?trusted-public-keys={keys}&attempts=1"
        mount = mounted(f"local://{tmp_path}/store", "--path-info-service-addr", source)
        assert server.paths() == []
        path = mount.path(narinfo.store_path.base_name)
        assert run("cat", path / "bin" / "tool").stdout == "#!/bin/sh\ntool"
        assert run("ls", path).stdout == "bin\ndata\nlink\n"
        assert server.paths().count(f"/{narinfo.url}") == 1
        assert "Input/output error" in run("ls", mount.path(bad.store_path.base_name)).stderr
        assert mount.says(re.escape(bad.store_path.base_name))
        assert "No such file" in run("ls", mount.path("0" * 32 + "-absent")).stderr
        assert run("cat", path / "bin" / "tool").stdout == "#!/bin/sh\ntool"
