"""Small disks that fill up: real ones, in memory. Mounting them needs root."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def small_disk(path: Path, size: int) -> Iterator[Path]:
    """A disk of ``size`` bytes mounted on ``path`` for the time of the block."""
    path.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def fill_up(path: Path, leave: int = 0) -> None:
    """Writes a file until there is no room for another byte, or for ``leave`` bytes only."""
    with path.open("ab", buffering=0) as file:
        with contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        if leave:
            file.truncate(max(0, file.tell() - leave))


def free_bytes(path: Path) -> int:
    """What is left of the disk that ``path`` is on."""
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize
