"""LMDB's data file, looked at before LMDB does: what it would die of shows here as ``Corrupt``.

LMDB trusts its file. Of a page that is cut off or damaged it dies: SIGBUS, or a failed assertion. So
opening an index begins with its two meta pages, and, as long as that takes only milliseconds, with a
look at every page in use. The layout is that of LMDB 0.9 on 64-bit machines (``MDB_meta``,
``MDB_db``, ``MDB_page``, ``MDB_node`` in mdb.c). All that goes further is up to ``verify``.
"""

from __future__ import annotations

import functools
import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from neve.errors import Corrupt, Unavailable
from neve.packstore.layout import locked_folder, os_errors
from neve.packstore.location import REPAIR

DATA_FILE = "data.mdb"
LOCK_FILE = "lock.mdb"

PAGES_CHECKED_UP_TO = 8 * 1024 * 1024
"""Longer data files (100,000 records) are opened without a look at every page: it takes about
two milliseconds a megabyte, and reads all of the file."""

_ATTEMPTS = 5
_META_ATTEMPTS = 100
_META_BYTES = 4096
_LOCK_HEAD, _LOCK_OF_READER = 128, 64
_PAGE_SIZES = {1 << bits for bits in range(9, 16)}
_PAGE_HEAD = struct.Struct("<QHHHH")
_META = struct.Struct("<IIQQ" + "IHHQQQQQ" * 2 + "QQ")
_MAGIC, _VERSION = 0xBEEFC0DE, 1
_BRANCH, _LEAF, _META_PAGE = 1, 2, 8
_LONG_NODE, _SUBTREE_NODE = 1, 2
_NODE_HEAD = struct.Struct("<HHHH")
_PAGE_NUMBER_SIZE = 8
_ROOT_OF_DB = 40
_NO_PAGE = 2**64 - 1


def make_lock_file(folder: Path, readers: int) -> None:
    """Makes LMDB's lock file, if there is none, with all its blocks.

    LMDB would make one full of holes, and on a full disk be killed (SIGBUS) when it first writes to a
    place in one of them. ``readers`` is how many readers at once it is to have room for.
    """
    path = folder / LOCK_FILE
    if path.exists():
        return
    temporary = path.with_name(f"{LOCK_FILE}.tmp")
    # One after the other: another process may have made one meanwhile, and use it already.
    with os_errors(f"cannot make {path}"), locked_folder(folder):
        if path.exists():
            return
        try:
            # Whatever the umask: who may write it may upset those who read.
            with open(temporary, "wb", opener=lambda name, flags: os.open(name, flags, 0o644)) as file:
                file.write(bytes(_LOCK_HEAD + readers * _LOCK_OF_READER))
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


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
            if os.fstat(fd).st_size:
                _check(fd, path)
        finally:
            os.close(fd)


def _check(fd: int, path: Path) -> None:
    for _ in range(_ATTEMPTS):
        meta = _newest_meta(fd, path)
        size = os.fstat(fd).st_size
        if size > PAGES_CHECKED_UP_TO:
            return
        # In one piece: page by page, from a disk, it takes a hundred times as long.
        damaged = _PageCheck(os.pread(fd, size, 0), meta).run()
        if damaged is None:
            return
        # Other processes may go on committing. What the next transaction frees, the one after it writes to,
        # before its meta page says so.
        if _newest_meta(fd, path).transaction == meta.transaction:
            raise Corrupt(f"{path}: page {damaged} is damaged; {REPAIR}")


def _newest_meta(fd: int, path: Path) -> _Meta:
    """The meta page in use, checked against the other one and the length of the file.

    Between two looks other processes may have committed several times, so what does not fit together
    counts only if it stays the same.
    """
    pages = _meta_pages(fd)
    for _ in range(_META_ATTEMPTS):
        try:
            return _checked_meta(fd, path, *pages)
        except Corrupt:
            before, pages = pages, _meta_pages(fd)
            if pages == before:
                raise
    raise Unavailable(f"{path}: other processes write to the index faster than it can be read; try again")


def _meta_pages(fd: int) -> tuple[_Meta | None, _Meta | None]:
    """Both meta pages, as far as they are such."""
    first = _read_meta(os.pread(fd, _META_BYTES, 0), 0)
    return first, first and _read_meta(os.pread(fd, _META_BYTES, first.page_size), 1)


def _checked_meta(fd: int, path: Path, first: _Meta | None, second: _Meta | None) -> _Meta:
    if first is None or second is None or first.page_size != second.page_size:
        size = os.fstat(fd).st_size
        raise Corrupt(f"{path}: a meta page is damaged or cut off ({size} bytes); {REPAIR}")
    older, newer = sorted((first, second), key=lambda meta: meta.transaction)
    # The two take turns, the first with the even transactions, both 0 in a new file.
    if newer.transaction and (newer.transaction - older.transaction != 1 or first.transaction % 2):
        raise Corrupt(f"{path}: a meta page is damaged (its transaction number); {REPAIR}")
    expected = (newer.last_page + 1) * newer.page_size
    if (size := os.fstat(fd).st_size) < expected:
        raise Corrupt(f"{path} is truncated: {size} bytes, its meta page says {expected}; {REPAIR}")
    return newer


def _read_meta(page: bytes, number: int) -> _Meta | None:
    """A meta page, or None if it is not one."""
    if len(page) < _PAGE_HEAD.size + _META.size:
        return None
    found, _, flags, _, _ = _PAGE_HEAD.unpack_from(page)
    fields = _META.unpack_from(page, _PAGE_HEAD.size)
    magic, version, page_size, free_root, main_root = *fields[:2], fields[4], fields[11], fields[19]
    expected = (number, _META_PAGE, _MAGIC, _VERSION)
    if (found, flags, magic, version) != expected or page_size not in _PAGE_SIZES:
        return None
    return _Meta(page_size, free_root, main_root, *fields[20:])


class _Node(NamedTuple):
    """The head of a node: of a page, or of a key with its data (``low`` and ``high``: their length)."""

    low: int
    high: int
    flags: int
    key_size: int


class _PageCheck:
    """A walk over all trees of one state, looking at the bounds of everything, not at keys and values."""

    def __init__(self, data: bytes, meta: _Meta) -> None:
        self._data = data
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
        page = self._data[number * size : (number + 1) * size]
        if len(page) < size:
            return False
        found, _, flags, lower, upper = _PAGE_HEAD.unpack_from(page)
        if found != number or flags not in (_BRANCH, _LEAF):
            return False
        if not _PAGE_HEAD.size < lower <= upper < size or lower % 2:
            return False
        nodes = _pointers((lower - _PAGE_HEAD.size) // 2).unpack_from(page, _PAGE_HEAD.size)
        if flags == _LEAF and _are_alike(page, nodes, upper):
            return True
        if min(nodes) != upper or max(nodes) > size - _NODE_HEAD.size:
            return False
        heads = [_Node(*_NODE_HEAD.unpack_from(page, node)) for node in nodes]
        if flags == _BRANCH:
            self._to_do += [(head.low | head.high << 16 | head.flags << 32, is_main) for head in heads]
            sizes = [head.key_size for head in heads]
        else:
            sizes = [_leaf_node_size(head) for head in heads]
        # Nodes begin at even places and fill the page to its end.
        if sum([_NODE_HEAD.size + size + size % 2 for size in sizes]) != size - upper:
            return False
        if is_main and flags == _LEAF:
            self._to_do += _roots(page, zip(nodes, heads, strict=True))
        return True


def _are_alike(page: bytes, nodes: tuple[int, ...], upper: int) -> bool:
    """Whether the nodes are all of one size and of one kind: true of most pages, and found out fast."""
    first = _Node(*_NODE_HEAD.unpack_from(page, upper))
    size = _NODE_HEAD.size + first.key_size + first.low
    places, heads = _in_steps(size + size % 2, len(nodes), len(page))
    if first.high or first.flags or min(places) != upper or places != set(nodes):
        return False
    return len(set(heads.unpack_from(page, upper))) == 1


@functools.cache
def _in_steps(step: int, count: int, page_size: int) -> tuple[frozenset[int], struct.Struct]:
    """Where ``count`` nodes of ``step`` bytes each begin, and what takes their heads."""
    places = frozenset(range(page_size - step * count, page_size, step))
    return places, struct.Struct(f"{_NODE_HEAD.size}s{step - _NODE_HEAD.size}x" * count)


@functools.cache
def _pointers(count: int) -> struct.Struct:
    return struct.Struct(f"<{count}H")


def _leaf_node_size(head: _Node) -> int:
    """Bytes behind the head of a node in a leaf."""
    long_data = head.flags & _LONG_NODE
    return head.key_size + (_PAGE_NUMBER_SIZE if long_data else head.low | head.high << 16)


def _roots(page: bytes, nodes: Iterable[tuple[int, _Node]]) -> Iterator[tuple[int, bool]]:
    """The roots of the named databases in a leaf of the main one."""
    for at, head in nodes:
        if head.flags == _SUBTREE_NODE and head.low >= _ROOT_OF_DB + _PAGE_NUMBER_SIZE:
            [root] = struct.unpack_from("<Q", page, at + _NODE_HEAD.size + head.key_size + _ROOT_OF_DB)
            yield root, False
