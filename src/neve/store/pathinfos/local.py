"""Path infos in the embedded store, with a second table that tells who refers to whom."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import TypeVar

from neve.castore.ages import refuse_ages
from neve.errors import Conflict, Corrupt, LimitExceeded, NeveError, NotFound
from neve.nix import base32
from neve.nix.store_path import StorePath
from neve.packstore.address import open_address
from neve.packstore.frames import Record
from neve.packstore.location import Location
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

    def __init__(self, store: PackStore) -> None:
        self._store = store
        self._closed = False

    @property
    def store(self) -> PackStore:
        """The embedded store, in which other tables may lie beside this one."""
        return self._store

    @property
    def looks_up_at_once(self) -> bool:
        return not self._store.is_swept

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

        return self._store.update(lambda transaction: _put(transaction, path_info, replace=replace))

    def put_many(self, path_infos: Sequence[PathInfo]) -> Sequence[PathInfo | NeveError]:
        """All of them by one commit."""

        def change(transaction: TableTransaction) -> list[PathInfo | NeveError]:
            return [_put_or_error(transaction, path_info) for path_info in path_infos]

        return self._store.update(change) if path_infos else []

    def list(self, after: bytes = b"", limit: int = _PAGE) -> Sequence[PathInfo]:
        return self._page(after, limit, decode_path_info)

    def names(self, after: bytes = b"", limit: int = _PAGE) -> Sequence[StorePath]:
        return self._page(after, limit, decode_path_name)

    def list_encoded(self, after: bytes = b"", limit: int = _PAGE) -> Sequence[tuple[bytes, bytes | Corrupt]]:
        return self._records(after, limit, self._encoded)

    def _encoded(self, digest: bytes, location: Location) -> bytes | Corrupt:
        try:
            return self._store.read(PATH_INFOS, digest, location)
        except Corrupt as error:
            return error

    def _page(self, after: bytes, limit: int, decode: Callable[[bytes], T]) -> Sequence[T]:
        """What ``decode`` makes of a page of records."""

        def read(digest: bytes, location: Location) -> T:
            return _decoded(digest, self._store.read(PATH_INFOS, digest, location), decode)

        return [decoded for _, decoded in self._records(after, limit, read)]

    def _records(
        self, after: bytes, limit: int, read: Callable[[bytes, Location], T]
    ) -> Sequence[tuple[bytes, T]]:
        """What ``read`` makes of a page of records, by digest."""
        found: dict[bytes, T] = {}
        # A page of which nothing is left is not the end of the list.
        while not found and (page := self._store.page(PATH_INFOS, after, limit)):
            # Those that lie side by side may share a frame, which is unpacked once that way.
            for key, location in sorted(page, key=lambda item: item[1].place):
                with contextlib.suppress(NotFound):  # Deleted, and its pack gone, since the page was read.
                    found[key] = read(key, location)
            after = page[-1][0]
        return sorted(found.items(), key=itemgetter(0))

    def delete_many(self, digests: Sequence[bytes], *, unused_for: float | None = None) -> int:
        refuse_ages(self, unused_for)
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


def _put(transaction: TableTransaction, path_info: PathInfo, *, replace: bool = False) -> PathInfo:
    stored = _stored(transaction, path_info.digest, damaged_is_none=replace)
    result = to_be_stored(None if replace else stored, path_info)
    if result != stored:
        transaction.put(PATH_INFOS, Record(_TAG, result.digest, encode_path_info(result)))
        if stored is None or stored.references != result.references:
            _forget_references(transaction, stored)
            for reference in set(result.references):
                transaction.put(REFERRERS, Record(_TAG, reference + result.digest, b""))
    return result


def _put_or_error(transaction: TableTransaction, path_info: PathInfo) -> PathInfo | NeveError:
    try:
        return _put(transaction, path_info)
    except (Conflict, Corrupt, LimitExceeded) as error:
        return error  # It shows before anything is changed.


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
