"""Maps the guest's memory: the descriptors that come with a memory table.

A file that shrinks while it is mapped ends whoever touches what is no longer there with SIGBUS, and Python
cannot catch that. So memory must be sealed against shrinking (memfd_create(2)): QEMU's
``memory-backend-memfd`` does that by itself, and a memfd without seals is sealed here. The kernel seals
nothing but memory, so a seal also says that the pages do not come from a file system that may hang.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import stat
from collections.abc import Sequence

from neve.errors import InvalidRequest
from neve.fs.vhost.memory import GuestMemory, Region
from neve.fs.vhost.messages import RegionDescription


class UnusableMemory(InvalidRequest):
    """A descriptor that is no memory, or one that could go away under our hands."""


def map_memory(
    descriptions: Sequence[RegionDescription], files: Sequence[int], *, unsealed: bool = False
) -> GuestMemory:
    """The memory that a table and its descriptors stand for. The descriptors still belong to the caller, who
    may close them; the memory is unmapped when nobody refers to it any more.

    With ``unsealed``, memory that may shrink is taken as well. Raises ``UnusableMemory`` and
    ``OutsideMemory``.
    """
    pairs = zip(descriptions, files, strict=True)
    return GuestMemory(_mapped(description, file, unsealed) for description, file in pairs)


def _mapped(description: RegionDescription, file: int, unsealed: bool) -> Region:
    start, size = description.offset, description.size
    where = f"memory at guest address {description.guest_address:#x}"
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            raise UnusableMemory(f"{where}: its descriptor is no file of memory")
        if not unsealed:
            _seal(file, where)
        # Only now: what is sealed does not get shorter.
        length = os.fstat(file).st_size
        if start + size > length:
            raise UnusableMemory(f"{where}: {size} bytes from {start} on, in a file of {length}")
        # Huge pages can be mapped only as a whole.
        unit = max(status.st_blksize, mmap.ALLOCATIONGRANULARITY)
        first = start // unit * unit
        last = min(-(-(start + size) // unit) * unit, length)
        mapped = mmap.mmap(file, last - first, mmap.MAP_SHARED, offset=first)
    except (OSError, OverflowError, ValueError) as error:
        raise UnusableMemory(f"{where} cannot be mapped: {error}") from error
    view = memoryview(mapped)[start - first : start - first + size]
    return Region(description.guest_address, description.user_address, view)


def _seal(file: int, where: str) -> None:
    """Makes sure that the memory cannot shrink."""
    hint = "give QEMU a memory-backend-memfd, or allow it with --unsealed-memory"
    try:
        if fcntl.fcntl(file, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
            return
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    except OSError as error:
        raise UnusableMemory(f"{where} could shrink, and cannot be sealed: {hint}") from error
