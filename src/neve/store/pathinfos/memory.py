"""Path infos in a dict: for tests, and as a near cache."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Sequence

from neve.castore.ages import Aged, Stamps
from neve.registry import Address
from neve.store.path_info import PathInfo
from neve.store.pathinfos.base import PathInfoService, check_path_digest, to_be_stored


class MemoryPathInfoService(PathInfoService):
    """Holds every path info for as long as it lives."""

    looks_up_at_once = True
    tells_ages = True

    def __init__(self) -> None:
        self._stamps = Stamps()
        self._path_infos: dict[bytes, PathInfo] = {}
        self._lock = threading.Lock()

    def get(self, digest: bytes) -> PathInfo | None:
        return self._path_infos.get(check_path_digest(digest))

    def put(self, path_info: PathInfo, *, replace: bool = False) -> PathInfo:
        with self._lock:
            stored = None if replace else self._path_infos.get(path_info.digest)
            result = to_be_stored(stored, path_info)
            self._path_infos[path_info.digest] = result
            self._stamps.renew([path_info.digest])
            return result

    def list(self, after: bytes = b"", limit: int = 1000) -> Sequence[PathInfo]:
        with self._lock:
            digests = sorted(self._path_infos)
            start = bisect_right(digests, after)
            return [self._path_infos[digest] for digest in digests[start : start + limit]]

    def delete_many(self, digests: Sequence[bytes]) -> int:
        for digest in digests:
            check_path_digest(digest)
        with self._lock:
            self._stamps.forget(digests)
            return sum(self._path_infos.pop(digest, None) is not None for digest in digests)

    def list_aged(self, after: bytes = b"", limit: int = 1000) -> Sequence[Aged]:
        return self._stamps.aged([path_info.digest for path_info in self.list(after, limit)])

    def referrers(self, digest: bytes) -> Sequence[bytes]:
        check_path_digest(digest)
        with self._lock:
            return sorted(d for d, info in self._path_infos.items() if digest in info.references)


def open_memory(address: Address) -> MemoryPathInfoService:
    """``memory://``"""
    address.check_parameters()
    if address.host or address.path:
        raise address.refuse("memory:// takes neither host nor path")
    return MemoryPathInfoService()
