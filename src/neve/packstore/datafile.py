"""LMDB's data file, looked at before LMDB does: what it would die of shows here as ``Corrupt``.

LMDB trusts its file. Of a page that is cut off or damaged it dies: SIGBUS, or a failed assertion. So
opening an index begins with its two meta pages, and, as long as that takes only milliseconds, with a
look at every page in use. The layout is that of LMDB 0.9 on 64-bit machines (``MDB_meta``,
``MDB_db``, ``MDB_page``, ``MDB_node`` in mdb.c). All that goes further is up to ``verify``.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import NamedTuple

from neve.errors import Corrupt
from neve.packstore.layout import os_errors
from neve.packstore.location import REPAIR

DATA_FILE = "data.mdb"

PAGES_CHECKED_UP_TO = 16 * 1024 * 1024
"""Longer data files (200,000 records) are opened without a look at every page: it takes about
a millisecond a megabyte, and reads all of the file."""

_ATTEMPTS = 5
_PAGE_SIZES = {1 << bits for bits in range(9, 16)}
_PAGE_HEAD = struct.Struct("<QHHHH")
_META = struct.Struct("<IIQQ" + "IHHQQQQQ" * 2 + "QQ")
_MAGIC, _VERSION = 0xBEEFC0DE, 1
_BRANCH, _LEAF, _META_PAGE = 1, 2, 8
_SUBTREE_NODE = 2
_NODE_HEAD = 8
_ROOT_OF_DB = 40
_NO_PAGE = 2**64 - 1


class _Meta(NamedTuple):
    page_size: int
    free_root: int
    main_root: int
    last_page: int
    transaction: int


def check_data_file(folder: Path) -> None:
    """Refuses an index that LMDB had better not open. A missing file is fine, and so is one of 0 bytes.

    Raises ``Corrupt``.
    """
    path = folder / DATA_FILE
    with os_errors(f"cannot read {path}"):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            if size := os.fstat(fd).st_size:
                _check(fd, size, path)
        finally:
            os.close(fd)


def _check(fd: int, size: int, path: Path) -> None:
    for _ in range(_ATTEMPTS):
        meta = _newest_meta(fd, size, path)
        if size > PAGES_CHECKED_UP_TO:
            return
        damaged = _PageCheck(fd, meta).run()
        if damaged is None:
            return
        # Other processes may go on committing; two commits later pages of this state are used again.
        if _newest_meta(fd, size, path).transaction < meta.transaction + 2:
            raise Corrupt(f"{path}: page {damaged} is damaged; {REPAIR}")


def _newest_meta(fd: int, size: int, path: Path) -> _Meta:
    """The meta page in use, checked against the other one and the length of the file."""
    first = _read_meta(os.pread(fd, 4096, 0), 0)
    second = first and _read_meta(os.pread(fd, 4096, first.page_size), 1)
    if first is None or second is None or first.page_size != second.page_size:
        raise Corrupt(f"{path}: a meta page is damaged or cut off ({size} bytes); {REPAIR}")
    older, newer = sorted((first, second), key=lambda meta: meta.transaction)
    # The two take turns, the first with the even transactions, both 0 in a new file.
    if newer.transaction and (newer.transaction - older.transaction != 1 or first.transaction % 2):
        raise Corrupt(f"{path}: a meta page is damaged (its transaction number); {REPAIR}")
    expected = (newer.last_page + 1) * newer.page_size
    if os.fstat(fd).st_size < expected:
        raise Corrupt(f"{path} is truncated: {size} bytes, its meta page says {expected}; {REPAIR}")
    return newer


def _read_meta(page: bytes, number: int) -> _Meta | None:
    """A meta page, or None if it is not one."""
    if len(page) < _PAGE_HEAD.size + _META.size:
        return None
    found, _, flags, _, _ = _PAGE_HEAD.unpack_from(page)
    fields = _META.unpack_from(page, _PAGE_HEAD.size)
    magic, version, page_size, free_root, main_root = *fields[:2], fields[4], fields[11], fields[19]
    if (found, flags, magic, version) != (
        number,
        _META_PAGE,
        _MAGIC,
        _VERSION,
    ) or page_size not in _PAGE_SIZES:
        return None
    return _Meta(page_size, free_root, main_root, *fields[20:])


class _PageCheck:
    """A walk over all trees of one state, looking at heads and pointers, not at keys and values."""

    def __init__(self, fd: int, meta: _Meta) -> None:
        self._fd = fd
        self._meta = meta
        self._seen: set[int] = set()
        self._to_do = [(root, root == meta.main_root) for root in (meta.free_root, meta.main_root)]

    def run(self) -> int | None:
        """The number of a damaged page, or None."""
        while self._to_do:
            number, is_main = self._to_do.pop()
            if number == _NO_PAGE:
                continue
            if number > self._meta.last_page or number in self._seen or not self._page(number, is_main):
                return number
            self._seen.add(number)
        return None

    def _page(self, number: int, is_main: bool) -> bool:
        size = self._meta.page_size
        page = os.pread(self._fd, size, number * size)
        if len(page) < size:
            return False
        found, _, flags, lower, upper = _PAGE_HEAD.unpack_from(page)
        if found != number or flags not in (_BRANCH, _LEAF):
            return False
        if not _PAGE_HEAD.size < lower <= upper < size or lower % 2:
            return False
        nodes = struct.unpack_from(f"<{(lower - _PAGE_HEAD.size) // 2}H", page, _PAGE_HEAD.size)
        if min(nodes) < upper or max(nodes) > size - _NODE_HEAD:
            return False
        if flags == _BRANCH:
            # The number of the page below takes the first six bytes of the node.
            below = [int.from_bytes(page[node : node + 6], "little") for node in nodes]
            self._to_do.extend((child, is_main) for child in below)
        elif is_main:
            self._to_do.extend((root, False) for root in _roots(page, nodes))
        return True


def _roots(page: bytes, nodes: tuple[int, ...]) -> list[int]:
    """The roots of the named databases in a leaf of the main one."""
    roots: list[int] = []
    for node in nodes:
        flags, key_size = struct.unpack_from("<HH", page, node + 4)
        at = node + _NODE_HEAD + key_size + _ROOT_OF_DB
        if flags == _SUBTREE_NODE and at + 8 <= len(page):
            roots += struct.unpack_from("<Q", page, at)
    return roots
