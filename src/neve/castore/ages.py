"""Ages: what a service tells of its objects so that they can be collected while others write to it.

Writers and collections of a bucket or a database know nothing of each other. What they have in common is the
time at which each object was *stored or freshened* last, its stamp, by the clock of whoever stores it:

- Whoever asks whether an object is there and is told so, or puts one that is there, finds it fresh: if its
  stamp was older than ``FRESH_FOR`` it is the present time now. The service sees to that, in ``missing``,
  ``missing_blobs``, ``has`` and ``keep_many``, in every way to put, and in ``freshen``.
- A collection only deletes what is older than twice that at the time it begins, and whose stamp has not
  changed since it was listed.

So what somebody was told to be there, or has stored, stays for ``FRESH_FOR`` at least; by then whatever needs
it has to be registered. ``neve.store.gc.parts`` deletes, docs/gc.md says the same to users.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

FRESH_FOR = 12 * 3600.0
"""Seconds for which an answer counts. An upload of one path takes less; clocks may differ by what is left."""

MIN_GRACE = 2 * FRESH_FOR
"""The least grace of a collection beside others who write."""


class Aged(NamedTuple):
    """An object, and when it was stored or freshened last."""

    digest: bytes
    stamp: float
    """Seconds since 1970, as precisely as the service knows it: it is compared with itself."""
    is_list: bool = False
    """Of a blob: it is stored in several chunks, each an object of its own, and this is the list of them."""
    is_chunk: bool = False
    """It is stored as a piece of blobs, and is none itself (whatever blob has the same digest)."""


class Stamps:
    """The stamps of a service that keeps its objects in memory. Not thread-safe."""

    def __init__(self) -> None:
        self._stamps: dict[bytes, float] = {}

    def freshen(self, digests: Iterable[bytes]) -> None:
        """Of objects that are there: those that are not fresh are now."""
        now = time.time()
        for digest in digests:
            if not self._stamps.get(digest, 0) > now - FRESH_FOR:
                self._stamps[digest] = now

    def renew(self, digests: Iterable[bytes]) -> None:
        self._stamps.update(dict.fromkeys(digests, time.time()))

    def make_older(self, seconds: float) -> None:
        """As if so much time had gone by."""
        self._stamps = {digest: stamp - seconds for digest, stamp in self._stamps.items()}

    def forget(self, digests: Iterable[bytes]) -> None:
        for digest in digests:
            self._stamps.pop(digest, None)

    def aged(self, digests: Iterable[bytes]) -> list[Aged]:
        """Those of them that are there."""
        stamps = self._stamps
        return [Aged(digest, stamps[digest]) for digest in digests if digest in stamps]

    def unchanged(self, aged: Sequence[Aged]) -> list[bytes]:
        return [one.digest for one in aged if self._stamps.get(one.digest) == one.stamp]
