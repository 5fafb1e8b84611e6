"""Path infos in a table of Bigtable: a row each, its key the digest of the store path in hex, its cell the
encoding.

The layout is shared with tvix and snix, and has no index of who refers to whom, which they would not keep:
the server looks through all path infos for that.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import partial

from neve.bigtable.address import NAR_FAMILY, target_of
from neve.bigtable.messages import Cell, Row, Wanted
from neve.bigtable.table import ATTEMPTS, BigTable, age_of
from neve.errors import Corrupt, NeveError, Unavailable
from neve.nix import base32
from neve.nix.store_path import DIGEST_SIZE, StorePath
from neve.registry import Address
from neve.store.path_info import InvalidPathInfo, PathInfo
from neve.store.pathinfos.base import PathInfoService, check_path_digest, stored_or_error, to_be_stored
from neve.store.wire import decode_path_info, encode_path_info

_PATTERN = rb"[0-9a-f]{%d}" % (2 * DIGEST_SIZE)
_AFTER_ALL = b"g"
"""Greater than every key of ours, which tables may share with others."""

_PAGE = 1000
_PAGE_BYTES = 16 * 1024 * 1024
"""Encodings after which a page of the listing ends."""


class BigtablePathInfoService(PathInfoService):
    """Path infos of one table. Owns ``table``."""

    def __init__(self, table: BigTable) -> None:
        self._table = table

    def get(self, digest: bytes) -> PathInfo | None:
        cell = self._cell(check_path_digest(digest))
        if cell is None:
            return None
        found = _decoded(digest, cell)
        self._table.note_used([cell])
        return found

    def _cell(self, digest: bytes) -> Cell | None:
        return next((row.cell for row in self._table.get([_key(digest)])), None)

    def put(self, path_info: PathInfo, *, replace: bool = False) -> PathInfo:
        key, encoded = _key(path_info.digest), encode_path_info(to_be_stored(None, path_info))
        if replace:
            self._table.put(key, encoded)
            return path_info
        for _ in range(ATTEMPTS):
            if self._table.insert(key, encoded):
                return path_info
            cell = self._cell(path_info.digest)
            if cell is None:
                continue  # Deleted just now.
            stored = _decoded(path_info.digest, cell)
            result = to_be_stored(stored, path_info)
            if result == stored:
                self._table.note_used([cell])
                return stored
            if self._table.replace(cell, encode_path_info(result)):
                return result
        raise Unavailable(f"{path_info.store_path}: others change its path info all the time")

    def put_many(self, path_infos: Sequence[PathInfo]) -> Sequence[PathInfo | NeveError]:
        """Those that refer to none of the others at once, then those that refer to these, and so on."""
        results: dict[int, PathInfo | NeveError] = {}
        for wave in _waves(path_infos):
            put = partial(stored_or_error, self)
            answers = self._table.in_parallel(put, [path_infos[place] for place in wave])
            results.update(zip(wave, answers, strict=True))
        return [results[place] for place in range(len(path_infos))]

    def list(self, after: bytes = b"", limit: int = _PAGE) -> Sequence[PathInfo]:
        return [_decoded(_digest(row), row.cell) for row in self._page(after, limit)]

    def list_encoded(self, after: bytes = b"", limit: int = _PAGE) -> Sequence[tuple[bytes, bytes | Corrupt]]:
        return [(_digest(row), _encoded(row)) for row in self._page(after, limit)]

    def names(self, after: bytes = b"", limit: int = _PAGE) -> Sequence[StorePath]:
        return [path_info.store_path for path_info in self.list(after, limit)]

    def list_with_ages(self, after: bytes = b"", limit: int = _PAGE) -> Sequence[tuple[bytes, float]]:
        """Up to ``limit`` digests, as ``list`` has them, and how many seconds ago each was put or asked for;
        it may be an hour less."""
        if limit <= 0:
            return []
        wanted = self._wanted(after)._replace(values=False, limit=limit)
        return [(_digest(row), min(age_of(cell) for cell in row.cells)) for row in self._table.scan(wanted)]

    def _wanted(self, after: bytes) -> Wanted:
        return Wanted(after=_key(after), before=_AFTER_ALL, pattern=_PATTERN)

    def _page(self, after: bytes, limit: int) -> Sequence[Row]:
        page = []
        size = 0
        if limit > 0:
            for row in self._table.scan(self._wanted(after)._replace(limit=limit)):
                page.append(row)
                size += sum(len(cell.value) for cell in row.cells)
                if size >= _PAGE_BYTES:
                    break
        return page

    def delete_many(self, digests: Sequence[bytes], *, unused_for: float | None = None) -> int:
        """With ``unused_for``, only those that were not put, nor asked for, in the last so many seconds."""
        return self._table.delete([_key(check_path_digest(digest)) for digest in digests], unused_for)

    def referrers(self, digest: bytes) -> Sequence[bytes]:
        wanted = self._wanted(b"")._replace(holding=check_path_digest(digest))
        found = []
        for row in self._table.scan(wanted):
            # The server has looked for bytes anywhere in it.
            if digest in _decoded(_digest(row), row.cell).references:
                found.append(_digest(row))
        return found

    def close(self) -> None:
        self._table.close()


def _waves(path_infos: Sequence[PathInfo]) -> Iterable[Sequence[int]]:
    """The places of path infos that can be put together. Each comes after those in front of it that it refers
    to, or that are of the same path."""
    waves: dict[bytes, int] = {}
    together: defaultdict[int, list[int]] = defaultdict(list)
    for place, path_info in enumerate(path_infos):
        before = (waves.get(digest, -1) for digest in (path_info.digest, *path_info.references))
        wave = waves[path_info.digest] = 1 + max(before)
        together[wave].append(place)
    return [together[wave] for wave in sorted(together)]


def _key(digest: bytes) -> bytes:
    return digest.hex().encode()


def _digest(row: Row) -> bytes:
    return bytes.fromhex(row.key.decode())


def _encoded(row: Row) -> bytes | Corrupt:
    try:
        return row.cell.value
    except Corrupt as error:
        return error


def _decoded(digest: bytes, cell: Cell) -> PathInfo:
    try:
        path_info = decode_path_info(cell.value)
    except InvalidPathInfo as error:
        raise Corrupt(f"the stored path info of {base32.encode(digest)} is invalid: {error}") from error
    if path_info.digest != digest:
        raise Corrupt(f"the row of {base32.encode(digest)} holds the path info of {path_info.store_path}")
    return path_info


def open_bigtable(address: Address) -> BigtablePathInfoService:
    """``bigtable://instance?project_id=...&table_name=...&family_name=...``"""
    return BigtablePathInfoService(BigTable(target_of(address, NAR_FAMILY)))
