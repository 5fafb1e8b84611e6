"""Stores with their contents in a folder of objects, whose writers are killed or whose disk fills up: what is
there is whole, and what is not there can be put again."""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import neve
from neve.library import Store
from neve.store.check import verify_store

_ROUNDS = 8
_PATIENCE = 120.0


def make_tree(root: Path, seed: int, *, files: int = 300, large: int = 3_000_000) -> Path:
    """Files of some kilobytes in 70 folders, half of them those of other trees, and one in chunks."""
    shared, own = random.Random(0), random.Random(seed)
    for number in range(files):
        folder = root / f"d{number % 10}" / f"e{number % 7}"
        folder.mkdir(parents=True, exist_ok=True)
        numbers = shared if number % 2 else own
        (folder / f"file-{number}").write_bytes(numbers.randbytes(numbers.randrange(1, 20_000)))
    (root / "large").write_bytes(own.randbytes(large))
    return root


def addresses(folder: Path) -> dict[str, str]:
    objects = f"objectstore+file://{folder}/objects"
    return {
        "blob_service": objects,
        "directory_service": objects,
        "path_info_service": f"local://{folder}/paths",
    }


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[Store]:
    with neve.open(**addresses(folder)) as store:
        yield store


def start_import(folder: Path, trees: list[Path]) -> subprocess.Popen[str]:
    options = [f"--{name.replace('_', '-')}-addr={url}" for name, url in addresses(folder).items()]
    command = [sys.executable, "-m", "neve.cli", "import", *options, *map(str, trees)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def objects(folder: Path) -> list[Path]:
    return [path for path in (folder / "objects").glob("*/b3/*/*") if "#" not in path.name]


def check(folder: Path, printed: set[str]) -> None:
    """Every object that is there is right, also those that nothing refers to."""
    with opened(folder) as store:
        # Reads all blobs, all Directories, and compares every NAR.
        assert verify_store(store.services, nar_hashes=True).problems == []
        assert {info.store_path.absolute for info in store.path_infos} >= printed
        after = b""
        while page := store.blobs.list_chunks_with_ages(after):
            assert len(list(store.blobs.read_many([one.digest for one in page]))) == len(page)
            after = page[-1].digest


def test_killed_imports_leave_nothing_half_written(tmp_path: Path) -> None:
    trees = [make_tree(tmp_path / f"tree-{number}", number) for number in range(1, 4)]
    folder = tmp_path / "store"
    chances = random.Random(7)
    printed: set[str] = set()
    killed = 0
    for _ in range(_ROUNDS):
        before = len(objects(folder))
        process = start_import(folder, chances.sample(trees, len(trees)))
        # Killed when it has stored some more.
        enough = before + chances.randrange(1, 400)
        end = time.monotonic() + _PATIENCE
        while process.poll() is None and len(objects(folder)) < enough and time.monotonic() < end:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        out, _ = process.communicate()
        killed += process.returncode == -signal.SIGKILL
        printed.update(line.strip() for line in out.splitlines(keepends=True) if line.endswith("\n"))
    assert killed
    check(folder, printed)
    process = start_import(folder, trees)
    out, errors = process.communicate(timeout=_PATIENCE)
    assert process.returncode == 0, errors
    assert len(out.splitlines()) == len(trees)
    check(folder, {*printed, *out.splitlines()})


_SCRIPT = """
import os, subprocess, sys, time
from pathlib import Path
import neve
from neve.errors import DiskFull
from neve.store.check import verify_store

disk, tree, small, more = sys.argv[1:]
objects = f"objectstore+file://{disk}/objects"

def opened():
    return neve.open(
        blob_service=objects, directory_service=objects, path_info_service=f"local://{disk}-paths"
    )

def leftovers():
    # What stays, once what other threads had under way has come to its end.
    end = time.monotonic() + 60
    while found := [path for path in Path(disk).rglob("*") if "#" in path.name]:
        if time.monotonic() > end:
            return found
        time.sleep(0.01)
    return []

with opened() as store:
    kept = {store.import_path(small).store_path}
    for attempt in range(3):
        try:
            store.import_path(tree)
        except DiskFull as error:
            # Which file, of which store, and what to do.
            assert f"{disk}/objects/" in str(error) and "disk full" in str(error), error
        else:
            raise SystemExit("the import had room")
        assert not leftovers()
        assert {info.store_path for info in store.path_infos} == kept
        assert not verify_store(store.services, nar_hashes=True).problems
    # What is there is there also for who needs it made to stay, which takes room.
    for path in Path(disk).rglob("*"):
        os.utime(path, (0, 0))
    try:
        store.import_path(small)
    except DiskFull as error:
        assert f"{disk}/objects/" in str(error), error
    assert not leftovers()
    assert not verify_store(store.services, nar_hashes=True).problems
with opened() as store:
    subprocess.run(["mount", "-o", f"remount,{more}", disk], check=True)
    kept.add(store.import_path(tree).store_path)
    assert {info.store_path for info in store.path_infos} == kept
    assert not verify_store(store.services, nar_hashes=True).problems
print("ok")
"""


@pytest.mark.root
@pytest.mark.parametrize(
    ("full", "more"),
    [("size=3m", "size=100m"), ("size=4m", "size=100m"), ("nr_inodes=700", "nr_inodes=100k")],
    ids=["small", "larger", "files"],
)
def test_a_disk_that_is_full(tmp_path: Path, full: str, more: str) -> None:
    """Of bytes, or of files and folders. The disk is in a mount namespace of the test's own."""
    small = make_tree(tmp_path / "small", 1, files=20, large=300_000)
    tree = make_tree(tmp_path / "tree", 2, files=800)
    disk = tmp_path / "disk"
    disk.mkdir()
    shell = 'mount -t tmpfs -o "$1" tmpfs "$2" && exec "$3" -c "$4" "$2" "$5" "$6" "$7"'
    command = ["unshare", "--mount", "sh", "-c", shell, "sh", full, str(disk), sys.executable, _SCRIPT]
    done = subprocess.run(
        [*command, str(tree), str(small), more], capture_output=True, text=True, check=False
    )
    assert done.stdout == "ok\n", done.stderr
