"""Path infos in a dict: for tests, and as a near cache."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Sequence

from neve.castore.ages import Uses
from neve.registry import Address
from neve.store.path_info import PathInfo
from neve.store.pathinfos.base import PathInfoService, check_path_digest, to_be_stored


class MemoryPathInfoService(PathInfoService):
    """Holds every path info for as long as it lives."""

    looks_up_at_once = True

    def __init__(self) -> None:
        self._uses = Uses()
        self._path_infos: dict[bytes, PathInfo] = {}
        self._lock = threading.Lock()

    def get(self, digest: bytes) -> PathInfo | None:
        found = self._path_infos.get(check_path_digest(digest))
        if found is not None:
            with self._lock:
                self._uses.note([digest])
        return found

    def put(self, path_info: PathInfo, *, replace: bool = False) -> PathInfo:
        with self._lock:
            stored = None if replace else self._path_infos.get(path_info.digest)
            result = to_be_stored(stored, path_info)
            self._path_infos[path_info.digest] = result
            self._uses.note([path_info.digest])
            return result

    def list(self, after: bytes = b"", limit: int = 1000) -> Sequence[PathInfo]:
        with self._lock:
            digests = sorted(self._path_infos)
            start = bisect_right(digests, after)
            return [self._path_infos[digest] for digest in digests[start : start + limit]]

    def delete_many(self, digests: Sequence[bytes], *, unused_for: float | None = None) -> int:
        for digest in digests:
            check_path_digest(digest)
        with self._lock:
            going = self._uses.old(digests, unused_for)
            self._uses.forget(going)
            return sum(self._path_infos.pop(digest, None) is not None for digest in going)

    def list_with_ages(self, after: bytes = b"", limit: int = 1000) -> Sequence[tuple[bytes, float]]:
        digests = [path_info.digest for path_info in self.list(after, limit)]
        return [(one.digest, one.age) for one in self._uses.aged(digests)]

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
