"""Going through the list of a store's paths, and searching in it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from neve.errors import Corrupt
from neve.http_cache.pages.scan import Scan
from neve.http_cache.pages.search import search
from neve.nix import base32
from neve.nix.store_path import StorePath
from neve.store.path_info import PathInfo
from neve.store.pathinfos.cached import CachedPathInfoService
from neve.store.pathinfos.memory import MemoryPathInfoService
from neve.testing.pathinfos import path_info

PATHS = [StorePath(number.to_bytes(20, "big"), f"p-{number}") for number in range(10_000)]


class Pages:
    """A list, and how much of it was asked for at once."""

    def __init__(self, damaged: int | None = None) -> None:
        self.asked: list[int] = []
        self._damaged = damaged

    def __call__(self, after: bytes, limit: int) -> Sequence[StorePath]:
        self.asked.append(limit)
        start = int.from_bytes(after, "big") + 1 if after else 0
        if self._damaged is not None and start <= self._damaged < start + limit:
            raise Corrupt("damaged")
        return PATHS[start : start + limit]


def test_all_of_it() -> None:
    scan = Scan(Pages(), limit=10**9, seconds=60)
    assert list(scan) == PATHS
    assert scan.ended
    assert scan.examined == len(PATHS)
    assert scan.share == 1


def test_pages_become_larger_where_they_are_quick() -> None:
    pages = Pages()
    assert list(Scan(pages, limit=7000, seconds=60, largest_page=2000)) == PATHS[:7000]
    assert pages.asked == [500, 1000, 2000, 2000, 1500]
    pages = Pages()
    assert list(Scan(pages, limit=1200, seconds=60)) == PATHS[:1200]
    assert pages.asked == [500, 500, 200]


def test_it_gets_on_whatever_the_time() -> None:
    found: list[StorePath] = []
    after = b""
    for _ in range(3):
        scan = Scan(Pages(), after=after, limit=10**9, seconds=0)
        found += scan
        after = scan.after
        assert not scan.ended
    assert found == PATHS[:1500]


def test_damage_ends_it() -> None:
    scan = Scan(Pages(damaged=700), limit=10**9, seconds=60)
    assert list(scan) == PATHS[:500]
    assert str(scan.damage) == "damaged"
    assert not scan.ended


# Searching.


@pytest.fixture
def infos() -> list[PathInfo]:
    return [path_info(f"{name}-{number}") for number in range(20) for name in ("Tool", "library")]


def test_names_and_beginnings_of_hashes(infos: list[PathInfo]) -> None:
    service = MemoryPathInfoService()
    for info in infos:
        service.put(info)
    by_digest = sorted(infos, key=lambda info: info.digest)
    for query, expected in (
        ("tool", [info for info in by_digest if "Tool" in info.store_path.name]),
        ("TOOL-7", [info for info in by_digest if info.store_path.name == "Tool-7"]),
        (base32.encode(infos[3].digest)[:8], [infos[3]]),
        (base32.encode(infos[3].digest)[1:9], []),
        ("", by_digest),
    ):
        found = search(service, query)
        assert list(found.paths) == expected
        assert found.after is None


def test_the_first_and_the_last_digest() -> None:
    service = MemoryPathInfoService()
    for byte in (b"\0", b"\xff"):
        info = path_info("edge")
        service.put(PathInfo(StorePath(byte * 20, "edge"), info.node))
    assert [path.store_path.digest[0] for path in search(service, "edge").paths] == [0, 255]


def test_damage_that_leaves_the_name(infos: list[PathInfo]) -> None:
    """It is found, and so is what comes behind it."""

    class Damaged(MemoryPathInfoService):
        def list(self, after: bytes = b"", limit: int = 1000) -> Sequence[PathInfo]:
            page = super().list(after, limit)
            if limit == 1 and page and page[0] == infos[0]:
                raise Corrupt("damaged")
            return page

    service = Damaged()
    for info in infos:
        service.put(info)
    found = search(service, "tool")
    assert len(found.paths) == 20
    assert {path.store_path for path in found.paths if path.nar is None} == {infos[0].store_path}
    assert found.problem is None


def test_what_is_found_is_not_fetched(infos: list[PathInfo]) -> None:
    """The list tells all that is shown."""

    class Unasked(MemoryPathInfoService):
        def get(self, digest: bytes) -> PathInfo | None:
            raise AssertionError("it is asked")

    far = MemoryPathInfoService()
    for info in infos:
        far.put(info)
    asked = Unasked()
    asked._path_infos.update(far._path_infos)
    found = search(CachedPathInfoService(MemoryPathInfoService(), asked), "tool-3")
    assert [path.store_path.name for path in found.paths] == ["Tool-3"]
