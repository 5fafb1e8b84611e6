"""Path infos in the embedded store, with a second table that tells who refers to whom."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import TypeVar

from neve.errors import Corrupt, NotFound
from neve.nix import base32
from neve.nix.store_path import StorePath
from neve.packstore.address import open_address
from neve.packstore.frames import Record
from neve.packstore.store import PackStore, Table, TableTransaction
from neve.registry import Address
from neve.store.path_info import InvalidPathInfo, PathInfo
from neve.store.pathinfos.base import PathInfoService, check_path_digest, to_be_stored
from neve.store.wire import decode_path_info, decode_path_name, encode_path_info

T = TypeVar("T")

PATH_INFOS = Table(3, "pathinfos", collected=True, dated=True)
REFERRERS = Table(5, "referrers")
"""Keys are the digest referred to and the digest that refers, 40 bytes; there is no data."""

_TAG = 1
_PAGE = 1000


class LocalPathInfoService(PathInfoService):
    """Path infos of one embedded store. Owns one use of ``store``."""

    looks_up_at_once = True

    def __init__(self, store: PackStore) -> None:
        self._store = store
        self._closed = False

    def get(self, digest: bytes) -> PathInfo | None:
        data = self._store.get(PATH_INFOS, check_path_digest(digest))
        return None if data is None else _decode(digest, data)

    def version(self, digest: bytes) -> object | None:
        # Where the record lies: one that is replaced or moved lies elsewhere, and no place is used twice.
        return self._store.promise(PATH_INFOS, [check_path_digest(digest)], reading=True).get(digest)

    def put(self, path_info: PathInfo, *, replace: bool = False) -> PathInfo:
        found = None if replace else self.get(path_info.digest)
        if found is not None and to_be_stored(found, path_info) == found:
            return found

        def change(transaction: TableTransaction) -> PathInfo:
            stored = _stored(transaction, path_info.digest, damaged_is_none=replace)
            result = to_be_stored(None if replace else stored, path_info)
            if result != stored:
                record = Record(_TAG, result.digest, encode_path_info(result))
                transaction.put(PATH_INFOS, record)
                if stored is None or stored.references != result.references:
                    _forget_references(transaction, stored)
                    for reference in set(result.references):
                        transaction.put(REFERRERS, Record(_TAG, reference + result.digest, b""))
            return result

        return self._store.update(change)

    def list(self, after: bytes = b"", limit: int = _PAGE) -> Sequence[PathInfo]:
        return self._page(after, limit, decode_path_info)

    def names(self, after: bytes = b"", limit: int = _PAGE) -> Sequence[StorePath]:
        return self._page(after, limit, decode_path_name)

    def _page(self, after: bytes, limit: int, decode: Callable[[bytes], T]) -> Sequence[T]:
        """What ``decode`` makes of a page of records."""
        found: dict[bytes, T] = {}
        # A page of which nothing is left is not the end of the list.
        while not found and (page := self._store.page(PATH_INFOS, after, limit)):
            # Those that lie side by side may share a frame, which is unpacked once that way.
            for key, location in sorted(page, key=lambda item: item[1].place):
                with contextlib.suppress(NotFound):  # Deleted, and its pack gone, since the page was read.
                    found[key] = _decoded(key, self._store.read(PATH_INFOS, key, location), decode)
            after = page[-1][0]
        return [found[key] for key in sorted(found)]

    def delete_many(self, digests: Sequence[bytes]) -> int:
        for digest in digests:
            check_path_digest(digest)

        def change(transaction: TableTransaction) -> int:
            count = 0
            for digest in digests:
                _forget_references(transaction, _stored(transaction, digest, damaged_is_none=True))
                count += transaction.delete(PATH_INFOS, digest)
            return count

        return self._store.update(change)

    def referrers(self, digest: bytes) -> Sequence[bytes]:
        result: list[bytes] = []
        after = check_path_digest(digest)
        while page := self._store.page(REFERRERS, after, _PAGE):
            for key, _ in page:
                if not key.startswith(digest):
                    return result
                result.append(key[len(digest) :])
            after = page[-1][0]
        return result

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._store.close()


def _stored(transaction: TableTransaction, digest: bytes, *, damaged_is_none: bool) -> PathInfo | None:
    """The stored path info. Damage must not stand in the way of replacing or deleting it."""
    try:
        data = transaction.get(PATH_INFOS, digest)
        return None if data is None else _decode(digest, data)
    except Corrupt:
        if damaged_is_none:
            return None
        raise


def _forget_references(transaction: TableTransaction, path_info: PathInfo | None) -> None:
    if path_info is not None:
        for reference in set(path_info.references):
            transaction.delete(REFERRERS, reference + path_info.digest)


def _decode(digest: bytes, data: bytes) -> PathInfo:
    return _decoded(digest, data, decode_path_info)


def _decoded(digest: bytes, data: bytes, decode: Callable[[bytes], T]) -> T:
    try:
        return decode(data)
    except InvalidPathInfo as error:
        raise Corrupt(f"the stored path info of {base32.encode(digest)} is invalid: {error}") from error


def open_local(address: Address) -> LocalPathInfoService:
    """``local:///folder``"""
    return LocalPathInfoService(open_address(address))
