"""Who refers to a path, also where that is half of the store."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict

from neve.store.services import Services

_KEPT_SECONDS = 60.0
_LONG_BYTES = 20 * 10_000
"""Finding referrers takes some microseconds each, so shorter lists are found anew for each page."""
_KEPT_BYTES = 64 * 1024 * 1024
"""Of all lists that are kept, 20 bytes a referrer."""


class KeptReferrers:
    """Asks a store for referrers, of one path at a time: a million of them take some seconds, and 70 MiB
    until they are in one piece. Long lists are kept for a minute, for who turns over pages. Thread-safe.
    """

    def __init__(
        self, services: Services, *, long_bytes: int = _LONG_BYTES, kept_bytes: int = _KEPT_BYTES
    ) -> None:
        self._services = services
        self._long_bytes = long_bytes
        self._kept_bytes = kept_bytes
        self._asking = threading.Lock()
        self._kept: OrderedDict[bytes, tuple[float, bytes]] = OrderedDict()
        """Since when, and the list; the oldest first."""

    def get(self, digest: bytes) -> bytes:
        """The digests of those that refer to this one, joined. Raises what the service raises."""
        with self._asking:
            now = time.monotonic()
            while self._kept and now - next(iter(self._kept.values()))[0] >= _KEPT_SECONDS:
                self._kept.popitem(last=False)
            if (kept := self._kept.get(digest)) is not None:
                return kept[1]
            found = b"".join(self._services.path_infos.referrers(digest))
            if len(found) >= self._long_bytes:
                self._kept[digest] = now, found
                while sum(len(each) for _, each in self._kept.values()) > self._kept_bytes:
                    self._kept.popitem(last=False)
            return found
