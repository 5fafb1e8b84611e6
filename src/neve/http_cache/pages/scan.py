"""Going through many store paths, a bounded part for each request.

Reading a path info costs about a tenth of a millisecond, and its name a third of that, so a store of a
million paths takes minutes, or half a minute. A scan stops after a number of paths or a time and says where
to go on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, Protocol, TypeVar

from neve.errors import Corrupt
from neve.telemetry import LOGGER

_PAGE = 500

LARGE_PAGE = 10_000
"""Of names: the more of them are read at once, the more of them are read from the same place."""

_PAGE_SECONDS = 0.3
"""Pages become larger as long as they take less: a scan can only stop between them."""


class Listed(Protocol):
    """What has a place in a list."""

    @property
    def digest(self) -> bytes: ...


L = TypeVar("L", bound=Listed)


class Scan(Generic[L]):
    """Iterates over what ``list_page`` gives (``PathInfoService.list`` or ``names``) behind ``after``, up to
    ``limit`` of it, for about ``seconds``.

    At least one page is read, so that whoever goes on gets to the end. Damage ends a scan like a limit
    does: what was found before it counts. Raises ``Unsupported`` when the service cannot list.
    """

    def __init__(
        self,
        list_page: Callable[[bytes, int], Sequence[L]],
        *,
        after: bytes = b"",
        limit: int,
        seconds: float,
        largest_page: int = _PAGE,
    ) -> None:
        self._list = list_page
        self._largest_page = largest_page
        self._limit = limit
        self._seconds = seconds
        self.after = after
        """The digest of the last path that was looked at."""
        self.examined = 0
        self.ended = False
        """Whether there are no more paths."""
        self.damage: Corrupt | None = None
        """What kept the scan from going on."""

    def __iter__(self) -> Iterator[L]:
        began = now = time.monotonic()
        size = _PAGE
        while self.examined < self._limit:
            try:
                page = self._list(self.after, min(size, self._limit - self.examined))
            except Corrupt as error:
                LOGGER.warning("the store paths cannot be listed: %s", error)
                self.damage = error
                return
            if not page:
                self.ended = True
                return
            for each in page:
                self.after = each.digest
                self.examined += 1
                yield each
            before, now = now, time.monotonic()
            if now - began >= self._seconds:
                return
            if now - before < _PAGE_SECONDS:
                size = min(2 * size, self._largest_page)

    @property
    def share(self) -> float:
        """How much of the store lies before ``after``, 0 to 1: digests are spread evenly."""
        if self.ended:
            return 1.0
        return int.from_bytes(self.after[:8].ljust(8, b"\0"), "big") / 2**64
