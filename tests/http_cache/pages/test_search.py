"""Searching: a bounded part of the store for each request, and nothing left out on the way."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from neve.errors import InvalidRequest
from neve.http_cache.pages.search import parse_after, search, whole_digest
from neve.http_cache.pages.summary import KeptSummary, summarize
from neve.http_cache.pages.threads import Busy, Threads
from neve.nix import base32
from neve.store.services import Services
from neve.tree import File
from tests.http_cache.pages.samples import named, put
from tests.store.helpers import memory_services

COUNT = 250


@pytest.fixture(scope="module")
def services() -> Iterator[Services]:
    opened = memory_services()
    for number in range(COUNT):
        put(opened, f"{'even' if number % 2 == 0 else 'odd'}-{number}", [File(b"", False, b"%d" % number)])
    yield opened
    opened.close()


@pytest.mark.parametrize("examined", [1, 7, 100, 10_000])
def test_going_on_finds_everything_once(services: Services, examined: int) -> None:
    names: list[str] = []
    after: bytes | None = b""
    while after is not None:
        found = search(services.path_infos, "EVEN", after, found=10, examined=examined)
        assert found.examined <= examined
        assert len(found.paths) <= 10
        assert 0 <= found.share <= 1
        names += [path_info.store_path.name for path_info in found.paths]
        after = found.after
    assert sorted(names) == sorted(f"even-{number}" for number in range(0, COUNT, 2))
    assert found.share == 1


def test_a_search_without_time_left_still_goes_on(services: Services) -> None:
    found = search(services.path_infos, "odd", seconds=0)
    assert found.examined > 0


@pytest.mark.parametrize("text", ["a", "a" * 31, "a" * 33, "e" * 32])
def test_where_to_go_on_is_a_digest(text: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_after(text)


@pytest.mark.parametrize(
    ("query", "known"),
    [
        (named("x").base_name, True),
        (base32.encode(bytes(20)), True),
        (base32.encode(bytes(20))[:31], False),
        (base32.encode(bytes(20)) + "x", False),
        ("u" * 32, False),
        ("hello", False),
    ],
)
def test_whole_hashes_are_recognized(query: str, known: bool) -> None:
    assert (whole_digest(query) is not None) == known


def test_numbers_of_a_large_store_are_estimated(services: Services) -> None:
    whole = summarize(services)
    assert (whole.paths, whole.estimated) == (COUNT, False)
    part = summarize(services, examined=100)
    assert part.estimated
    assert part.paths is not None
    assert COUNT / 2 < part.paths < COUNT * 2


def test_numbers_are_kept_for_a_while(services: Services) -> None:
    kept = KeptSummary(services)
    assert kept.get() is kept.get()


def test_pages_take_few_threads_and_nobody_waits_for_ever() -> None:
    async def crowd() -> list[object]:
        threads = Threads(2, 3)
        most = 0
        running = 0
        lock, go_on = threading.Lock(), threading.Event()

        def work() -> int:
            nonlocal most, running
            with lock:
                running += 1
                most = max(most, running)
            assert go_on.wait(90)
            with lock:
                running -= 1
            return most

        waiting = [asyncio.ensure_future(threads.run(work)) for _ in range(5)]
        await asyncio.sleep(0)  # All have asked for a thread.
        with pytest.raises(Busy, match="too many"):
            await threads.run(work)
        while running < 2:
            await asyncio.sleep(0.001)
        go_on.set()
        await asyncio.gather(*waiting)
        return [most, await threads.run(work)]

    assert asyncio.run(crowd()) == [2, 2]
