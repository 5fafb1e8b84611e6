"""The path infos used last, in memory: as a near cache."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

from neve.castore.ages import refuse_ages
from neve.registry import Address
from neve.store.path_info import PathInfo
from neve.store.pathinfos.base import PathInfoService, check_path_digest, to_be_stored

DEFAULT_CAPACITY = 10_000
"""Some 10 MiB, with references and signatures as usual."""

MAX_CAPACITY = 10_000_000


class LruPathInfoService(PathInfoService):
    """Holds up to ``capacity`` path infos; of more, those that nobody has asked for longest are dropped."""

    def __init__(self, capacity: int = DEFAULT_CAPACITY) -> None:
        self._capacity = capacity
        self._path_infos: OrderedDict[bytes, PathInfo] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, digest: bytes) -> PathInfo | None:
        check_path_digest(digest)
        with self._lock:
            found = self._path_infos.get(digest)
            if found is not None:
                self._path_infos.move_to_end(digest)
            return found

    def put(self, path_info: PathInfo, *, replace: bool = False) -> PathInfo:
        with self._lock:
            stored = None if replace else self._path_infos.get(path_info.digest)
            result = to_be_stored(stored, path_info)
            self._path_infos[path_info.digest] = result
            self._path_infos.move_to_end(path_info.digest)
            while len(self._path_infos) > self._capacity:
                self._path_infos.popitem(last=False)
            return result

    def list(self, after: bytes = b"", limit: int = 1000) -> Sequence[PathInfo]:
        with self._lock:
            above = sorted(digest for digest in self._path_infos if digest > after)
            return [self._path_infos[digest] for digest in above[:limit]]

    def delete_many(self, digests: Sequence[bytes], *, unused_for: float | None = None) -> int:
        refuse_ages(self, unused_for)
        for digest in digests:
            check_path_digest(digest)
        with self._lock:
            return sum(self._path_infos.pop(digest, None) is not None for digest in digests)

    def referrers(self, digest: bytes) -> Sequence[bytes]:
        check_path_digest(digest)
        with self._lock:
            return sorted(d for d, info in self._path_infos.items() if digest in info.references)


def open_lru(address: Address) -> LruPathInfoService:
    """``lru://?capacity=N``"""
    address.check_parameters("capacity")
    if address.host or address.path:
        raise address.refuse("lru:// takes neither host nor path")
    return LruPathInfoService(address.number("capacity", DEFAULT_CAPACITY, most=MAX_CAPACITY))
