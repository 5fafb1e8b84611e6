"""The reserve: a file without contents, given up so that a collection can begin on a disk without any room.

Dropping things takes room before it gives any back: for the deletions in a pack, and because LMDB writes
pages anew before the old ones are free. Some 200 bytes for each Directory that goes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

RESERVE_FILE = "reserve"

RESERVE_BYTES = 16 * 1024 * 1024
"""Enough to drop some 80,000 Directories; a kernel tree has 5,000."""

_PLENTY = 8
"""So many times its size must be free when it is made at first: a small disk has better use for it."""


def make_reserve(store: Path, *, at_any_cost: bool = False) -> None:
    """Makes it, if it is not there and there is room. Nobody counts on it."""
    path = store / RESERVE_FILE
    with contextlib.suppress(OSError):
        if path.exists() or not (at_any_cost or free_bytes(store) > _PLENTY * RESERVE_BYTES):
            return
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.posix_fallocate(fd, 0, RESERVE_BYTES)
        except OSError:
            path.unlink()
        finally:
            os.close(fd)


@contextlib.contextmanager
def reserve_at_hand(store: Path) -> Iterator[None]:
    """Within the block the room of the reserve can be had, if there is little else. After it, it is there."""
    path, given_up = store / RESERVE_FILE, False
    with contextlib.suppress(OSError):
        if free_bytes(store) < RESERVE_BYTES and path.exists():
            path.unlink()
            given_up = True
    try:
        yield
    finally:
        make_reserve(store, at_any_cost=given_up)


def free_bytes(store: Path) -> int:
    """What is left of the disk that a store is on; 0 if that is not known."""
    try:
        found = os.statvfs(store)
    except OSError:
        return 0
    return found.f_bavail * found.f_frsize
