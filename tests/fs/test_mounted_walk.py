"""A walk over many files, with the real kernel; `benchmarks/mount.py` walks over a million."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from .big import directory_of
from .mounts import Mount, python

pytestmark = [pytest.mark.fuse, pytest.mark.slow]

FOLDERS, FILES = 20, 10_000

WALK = """
import os, sys
count = looked = 0
for folder, folders, files in os.walk(sys.argv[1]):
    count += len(files)
    for name in files if sys.argv[2] == "stat" else ():
        looked += os.lstat(os.path.join(folder, name)).st_size
print(count, looked)
"""


def test_memory_is_bounded(tmp_path: Path, mounted: Callable[..., Mount]) -> None:
    """Who only reads names costs nothing; for each file that is looked at, the kernel holds a kilobyte, and
    we much less."""
    url = f"local://{tmp_path}/store"
    base_name = directory_of(url, FILES, FOLDERS)
    mount = mounted(url)
    path = mount.path(base_name)
    assert python(WALK, path, "names").stdout == f"{FOLDERS * FILES} 0\n"
    # What is kept of Directories is bounded, and the walk tells the kernel of few files.
    names_only = mount.memory("VmRSS")
    assert names_only < 450 << 20
    assert python(WALK, path, "stat").stdout == f"{FOLDERS * FILES} {FOLDERS * FILES * 1000}\n"
    grown = mount.memory() - names_only
    assert grown < FOLDERS * FILES * 350
    # When the kernel forgets them, so do we: another walk takes no more.
    Path("/proc/sys/vm/drop_caches").write_text("2")
    assert python(WALK, path, "stat").stdout == f"{FOLDERS * FILES} {FOLDERS * FILES * 1000}\n"
    assert mount.memory() - names_only < FOLDERS * FILES * 450
