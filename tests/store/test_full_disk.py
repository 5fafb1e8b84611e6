"""An import onto a disk that is full: one clear error, nothing registered, its room given back at once, and
all is well once there is more. The disk is a small tmpfs in a mount namespace of the test's own."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

_SCRIPT = """
import os, subprocess, sys
from pathlib import Path
import neve
from neve.errors import DiskFull
from neve.store.check import verify_store

disk, tree, small = sys.argv[1:]
url = f"local://{disk}/store"
with neve.open(url) as store:
    kept = {store.import_path(small).store_path}
    for attempt in range(3):
        free = os.statvfs(disk).f_bfree
        try:
            store.import_path(tree)
        except DiskFull as error:
            assert "disk full" in str(error), error
        else:
            raise SystemExit("the import had room")
        # What it had stored so far is given back, all but what the index has grown by.
        assert os.statvfs(disk).f_bfree > free - 50, (free, os.statvfs(disk).f_bfree)
        another = Path(small).with_name(f"another-{attempt}")
        another.write_bytes(os.urandom(200_000))
        kept.add(store.import_path(another).store_path)
    assert {info.store_path for info in store.path_infos} == kept
    assert not verify_store(store.services, nar_hashes=True).problems
with neve.open(url) as store:
    assert {info.store_path for info in store.path_infos} == kept
    subprocess.run(["mount", "-o", "remount,size=100m", disk], check=True)
    # The same process goes on, in the store that was full a moment ago.
    path_info = store.import_path(tree)
    assert store.services.renderer.hash(path_info.node) == (path_info.nar.size, path_info.nar.sha256)
    assert not verify_store(store.services, nar_hashes=True).problems
print("ok")
"""


@pytest.mark.root
@pytest.mark.parametrize("size_kib", [6_000, 8_000, 12_000])
def test_full_disk(tmp_path: Path, size_kib: int) -> None:
    numbers = random.Random(size_kib)
    small, tree, disk = tmp_path / "small", tmp_path / "tree", tmp_path / "disk"
    for folder, count in ((small, 5), (tree, 1500)):
        folder.mkdir()
        for i in range(count):
            (folder / f"file-{i}").write_bytes(numbers.randbytes(numbers.randrange(1, 20_000)))
    (tree / "large").write_bytes(numbers.randbytes(4_000_000))
    disk.mkdir()
    shell = 'mount -t tmpfs -o size="$1k" tmpfs "$2" && exec "$3" -c "$4" "$2" "$5" "$6"'
    command = ["unshare", "--mount", "sh", "-c", shell, "sh", str(size_kib), str(disk)]
    done = subprocess.run(
        [*command, sys.executable, _SCRIPT, str(tree), str(small)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "ok\n", done.stderr
