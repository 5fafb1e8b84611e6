"""What was not found lately, so that it need not be looked for again at once."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable

from neve.registry import Address

MAX_ABSENCES = 65_536
"""Digests remembered at once, some 200 bytes each: enough for the questions about a large system."""


class Absences:
    """Remembers digests for a number of seconds; of too many, those that came first are forgotten.

    Thread-safe. Without ``ttl`` nothing is remembered.
    """

    def __init__(
        self,
        ttl: float | None,
        *,
        capacity: int = MAX_ABSENCES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ttl = ttl
        self._capacity = capacity
        self._clock = clock
        self._until: OrderedDict[bytes, float] = OrderedDict()
        self._lock = threading.Lock()

    def __contains__(self, digest: bytes) -> bool:
        until = self._until.get(digest)
        return until is not None and self._clock() < until

    def add(self, digests: Iterable[bytes]) -> None:
        """Remembers that these are not there."""
        if self._ttl is None:
            return
        until = self._clock() + self._ttl
        with self._lock:
            for digest in digests:
                self._until[digest] = until
                self._until.move_to_end(digest)
            while len(self._until) > self._capacity:
                self._until.popitem(last=False)

    def discard(self, digests: Iterable[bytes]) -> None:
        """Forgets about these: they may be there now."""
        if not self._until:
            return
        with self._lock:
            for digest in digests:
                self._until.pop(digest, None)

    def clear(self) -> None:
        """Forgets about all."""
        with self._lock:
            self._until.clear()


def absences_of(address: Address) -> Absences:
    """What the parameter ``negative-ttl`` of an address asks for."""
    ttl = address.seconds("negative-ttl", 0) if "negative-ttl" in address.parameters else None
    return Absences(ttl)
