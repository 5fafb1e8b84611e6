"""Going through many store paths, a bounded part for each request.

Reading a path info costs about a tenth of a millisecond, so a store of a million paths takes minutes.
A scan stops after a number of paths or a time and says where to go on.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from neve.errors import Corrupt
from neve.store.path_info import PathInfo
from neve.store.pathinfos.base import PathInfoService
from neve.telemetry import LOGGER

_PAGE = 500


class Scan:
    """Iterates over path infos behind ``after``, up to ``limit`` of them, for ``seconds`` at most.

    At least one page is read, so that whoever goes on gets to the end. Damage ends a scan like a limit
    does: what was found before it counts. Raises ``Unsupported`` when the service cannot list.
    """

    def __init__(
        self, path_infos: PathInfoService, *, after: bytes = b"", limit: int, seconds: float
    ) -> None:
        self._path_infos = path_infos
        self._limit = limit
        self._seconds = seconds
        self.after = after
        """The digest of the last path that was looked at."""
        self.examined = 0
        self.ended = False
        """Whether there are no more paths."""
        self.damage: Corrupt | None = None
        """What kept the scan from going on."""

    def __iter__(self) -> Iterator[PathInfo]:
        deadline = time.monotonic() + self._seconds
        while self.examined < self._limit:
            try:
                page = self._path_infos.list(self.after, min(_PAGE, self._limit - self.examined))
            except Corrupt as error:
                LOGGER.warning("the store paths cannot be listed: %s", error)
                self.damage = error
                return
            if not page:
                self.ended = True
                return
            for path_info in page:
                self.after = path_info.digest
                self.examined += 1
                yield path_info
            if time.monotonic() >= deadline:
                return

    @property
    def share(self) -> float:
        """How much of the store lies before ``after``, 0 to 1: digests are spread evenly."""
        if self.ended:
            return 1.0
        return int.from_bytes(self.after[:8].ljust(8, b"\0"), "big") / 2**64
