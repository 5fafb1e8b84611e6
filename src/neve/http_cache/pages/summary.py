"""The numbers of the start page, counted at most once a minute, and by a bounded look at the store."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from neve.errors import NeveError, Unsupported
from neve.http_cache.pages.scan import Scan
from neve.store.path_info import PathInfo
from neve.store.pathinfos.local import PATH_INFOS
from neve.store.services import Services
from neve.store.stats import disk_bytes
from neve.telemetry import LOGGER

_KEPT_SECONDS = 60.0
_EXAMINED = 5_000
_SECONDS = 1.0
"""What counting may look at; of a larger store the numbers are estimated."""
_SHOWN = 12
"""Store paths on the start page."""


@dataclass(frozen=True)
class Summary:
    """What a store holds, as far as it can be told; None is what cannot."""

    paths: int | None = None
    nar_bytes: int | None = None
    """The NARs of all store paths together."""
    disk_bytes: int | None = None
    """What the store takes on the disk."""
    estimated: bool = False
    """Whether the first two were concluded from a part of the store."""
    some: tuple[PathInfo, ...] = ()
    """A few store paths, the first by digest."""
    problem: str | None = None


def summarize(
    services: Services, *, examined: int = _EXAMINED, seconds: float = _SECONDS, shown: int = _SHOWN
) -> Summary:
    """Looks at up to ``examined`` paths, for ``seconds``; in a larger store concludes from those.

    Does not raise what the store raises: the page has more to tell than numbers.
    """
    scan = Scan(services.path_infos.list, limit=examined, seconds=seconds)
    nar_bytes = 0
    some: list[PathInfo] = []
    problem = None
    try:
        for path_info in scan:
            nar_bytes += path_info.nar.size if path_info.nar is not None else 0
            if len(some) < shown:
                some.append(path_info)
        paths = _counted(services)
        on_disk = None if services.packs is None else disk_bytes(services.packs.path)
    except Unsupported:
        return Summary(problem="The store behind this cache cannot list its paths.")
    except (NeveError, OSError) as error:
        LOGGER.warning("the store cannot be counted: %s", error)
        return Summary(some=tuple(some), problem="The store cannot be counted right now.")
    if scan.damage is not None:
        problem = f"The list of paths is damaged: {scan.damage}"
    if scan.ended:
        return Summary(scan.examined, nar_bytes, on_disk, False, tuple(some))
    total = _concluded(scan) if paths is None else paths
    concluded = None
    if total is not None and scan.examined:
        concluded = nar_bytes * total // scan.examined
    return Summary(total, concluded, on_disk, True, tuple(some), problem)


def _counted(services: Services) -> int | None:
    """How many paths the index of an embedded store has."""
    return None if services.packs is None else services.packs.index.count(PATH_INFOS.id)


def _concluded(scan: Scan[PathInfo]) -> int | None:
    """How many there are if they lie as close everywhere as where the scan has been."""
    return None if scan.share <= 0 or not scan.examined else round(scan.examined / scan.share)


class KeptSummary:
    """The summary of a store, no older than a minute unless counting takes that long. Thread-safe."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._counting = threading.Lock()
        self._kept: tuple[float, Summary] | None = None

    def get(self) -> Summary:
        """Counts if need be. While one counts, the others take what was counted before."""
        kept = self._kept
        if kept is not None and time.monotonic() - kept[0] < _KEPT_SECONDS:
            return kept[1]
        if not self._counting.acquire(blocking=kept is None):
            assert kept is not None
            return kept[1]
        try:
            if self._kept is kept:
                self._kept = time.monotonic(), summarize(self._services)
            assert self._kept is not None
            return self._kept[1]
        finally:
            self._counting.release()
