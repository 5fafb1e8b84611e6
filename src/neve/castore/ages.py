"""Ages: what a service tells of its objects so that they can be collected while others write to it.

Writers and collections of a bucket or a database know nothing of each other. What they have in common is the
age of each object: how long ago it was *used*, by the clock of whoever stores it.

- Whoever puts an object that is there, or asks whether it is there and is told so, uses it. The service sees
  to that in all ways to put, in ``missing``, ``missing_blobs``, ``has``, ``keep_many`` and ``freshen``. What
  was used less than ``SLACK`` before need not be noted anew. Reading may count, or not; of path infos it
  does, unless a near cache gives the answer.
- A collection begins to mark, and deletes what it has not marked and nobody has used since some time, the
  *grace*, before that (``delete_many`` with ``unused_for``). Whether it was used the service looks at in the
  moment in which it deletes; one that cannot do both in one step takes as little time in between as it can.

So what somebody was told to be there, or has stored, stays for the grace, less ``SLACK``; by then whatever
needs it must be registered. ``neve.store.gc.parts`` deletes, docs/gc.md says the same to users.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import NamedTuple

from neve.errors import Unsupported

SLACK = 3600.0
"""Seconds by which an object may have been used later than its age says."""

DEFAULT_GRACE = 24 * 3600.0
"""Of collections beside others who write, in seconds: more than any upload of one path takes."""


class Aged(NamedTuple):
    """A blob, or chunk, in a listing with ages."""

    digest: bytes
    age: float
    """Seconds since it was used; it may be up to ``SLACK`` less."""
    is_one_piece: bool = False
    """It is known to be stored in one piece: nothing is asked for its chunks."""


def refuse_ages(service: object, unused_for: float | None) -> None:
    """For ``delete_many`` of services that tell no ages: raises ``Unsupported`` if it goes by them."""
    if unused_for is not None:
        raise Unsupported(f"{type(service).__name__} does not know when something was used")


class Uses:
    """When the objects of a service that keeps them in memory were used. Not thread-safe."""

    def __init__(self) -> None:
        self._times: dict[bytes, float] = {}

    def note(self, digests: Iterable[bytes]) -> None:
        self._times.update(dict.fromkeys(digests, time.monotonic()))

    def make_older(self, seconds: float) -> None:
        """As if so much time had gone by."""
        self._times = {digest: then - seconds for digest, then in self._times.items()}

    def aged(self, digests: Iterable[bytes]) -> list[Aged]:
        """Those of them that are there."""
        now, times = time.monotonic(), self._times
        return [Aged(digest, now - times[digest]) for digest in digests if digest in times]

    def old(self, digests: Iterable[bytes], unused_for: float | None) -> set[bytes]:
        """Those of them that were not used in the last so many seconds; or all."""
        if unused_for is None:
            return set(digests)
        return {one.digest for one in self.aged(digests) if one.age >= unused_for}

    def forget(self, digests: Iterable[bytes]) -> None:
        for digest in digests:
            self._times.pop(digest, None)
