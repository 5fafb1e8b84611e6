"""``neve serve`` on a disk that gets full: who uploads too much is told so, and nobody else has to suffer."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import pytest

from tests.disks import fill_up, free_bytes, small_disk
from tests.http_cache.samples import Sample, nar_url, push, put_narinfo, sample
from tests.http_cache.serving import Process, process, until

pytestmark = pytest.mark.root

SIZE = 12_000_000
OPTIONS = ("--insecure-allow-upload",)
PAGES = 64 * 1024
"""The index, and a pack that was begun, may have grown by a few pages."""


def noise(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


LARGE = sample("large", noise(1, 14_000_000))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", SIZE) as disk:
        yield disk


def put(http: httpx.Client, what: Sample) -> httpx.Response:
    return http.put(nar_url(what.nar), content=what.nar)


def refused(answer: httpx.Response) -> None:
    assert answer.status_code == 507
    assert "disk full" in answer.text
    assert answer.text.count("\n") == 1


def gone(http: httpx.Client, what: Sample) -> None:
    """Nothing of it is there."""
    assert http.head(nar_url(what.nar)).status_code == 404
    assert http.head(what.narinfo_url).status_code == 404
    answer = put_narinfo(http, what)
    assert 400 <= answer.status_code < 500


def there(http: httpx.Client, several: Sequence[Sample]) -> None:
    for what in several:
        text = http.get(what.narinfo_url).text
        url = next(line for line in text.splitlines() if line.startswith("URL: "))
        assert http.get("/" + url.removeprefix("URL: ")).content == what.nar


def check_at_the_end(cache: Process, store: Path, several: Sequence[Sample]) -> None:
    """Another process finds the same, and no damage; nothing lies behind what was committed."""
    assert cache.end() == 0
    command = [sys.executable, "-m", "neve.cli", "verify", "--store", f"local://{store}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    size = sum(path.stat().st_size for path in (store / "packs").iterdir())
    with process(store, *OPTIONS) as cache, cache.client() as http:
        there(http, several)
    assert sum(path.stat().st_size for path in (store / "packs").iterdir()) == size


def test_one_that_is_too_large(disk: Path) -> None:
    kept = [sample("kept", noise(2, 300_000))]
    with process(disk / "store", *OPTIONS) as cache, cache.client() as http:
        push(http, kept[0])
        for turn in range(3):
            free = free_bytes(disk)
            refused(put(http, LARGE))
            assert free_bytes(disk) > free - PAGES
            gone(http, LARGE)
            # A small one has room at once, and so has one that is not that small.
            kept += [sample(f"small-{turn}"), sample(f"medium-{turn}", noise(10 + turn, 1_000_000))]
            push(http, kept[-2])
            push(http, kept[-1])
            there(http, kept)
        check_at_the_end(cache, disk / "store", kept)


@pytest.mark.parametrize("workers", [1, 2])
def test_several_that_are_too_large_together(disk: Path, workers: int) -> None:
    """All at once, and beside them small ones, each of which is stored or refused."""
    kept = [sample("kept", noise(2, 300_000))]
    lost: list[Sample] = []
    larges = [sample(f"large-{number}", noise(20 + number, 13_000_000)) for number in range(8)]
    smalls = [sample(f"small-{number}", noise(40 + number, 20_000)) for number in range(12)]
    options = (*OPTIONS, "--workers", str(workers))
    with process(disk / "store", *options) as cache, cache.client() as http:
        push(http, kept[0])

        def upload(several: Sequence[Sample]) -> None:
            with cache.client() as own:
                for what in several:
                    answer = put(own, what)
                    if answer.status_code == 201:
                        answer = put_narinfo(own, what)
                    if answer.status_code == 200:
                        kept.append(what)
                    else:
                        refused(answer)
                        lost.append(what)

        threads = [threading.Thread(target=upload, args=[[large]]) for large in larges]
        threads += [threading.Thread(target=upload, args=[smalls[n::3]]) for n in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(lost) >= set(larges)
        assert len(kept) + len(lost) == 1 + len(larges) + len(smalls)
        for large in larges:
            gone(http, large)
        kept += [sample("last", noise(3, 1_000_000))]
        push(http, kept[-1])
        there(http, kept)
        check_at_the_end(cache, disk / "store", kept)


@pytest.mark.parametrize("wrong", ["hash", "nar", "broken off"])
def test_uploads_that_are_given_up_leave_room(disk: Path, wrong: str) -> None:
    """Each takes most of the disk, so two would not fit."""
    kept = [sample("kept", noise(2, 300_000))]
    large = sample("large", noise(4, 8_000_000))
    with process(disk / "store", *OPTIONS) as cache, cache.client() as http:
        push(http, kept[0])
        for _ in range(3):
            free = free_bytes(disk)
            if wrong == "broken off":
                break_off(cache, large, disk, free)
            else:
                file = large.nar if wrong == "hash" else large.nar[:-8] + b"\1" * 8
                url = nar_url(b"another" if wrong == "hash" else file)
                answer = http.put(url, content=file)
                assert answer.status_code == 400, answer.text
            assert free_bytes(disk) > free - PAGES
            gone(http, large)
        push(http, large)
        kept.append(large)
        check_at_the_end(cache, disk / "store", kept)


def break_off(cache: Process, what: Sample, disk: Path, free: int) -> None:
    """Sends most of a NAR, sees that it takes the disk's room, goes, and sees that it is given back."""

    def pieces() -> Iterator[bytes]:
        for start in range(0, len(what.nar) - 1_000_000, 100_000):
            yield what.nar[start : start + 100_000]
        until(lambda: free_bytes(disk) < free - 4_500_000)
        raise ZeroDivisionError

    headers = {"content-length": str(len(what.nar))}
    with cache.client() as http, pytest.raises(ZeroDivisionError):
        http.put(nar_url(what.nar), content=pieces(), headers=headers)
    until(lambda: free_bytes(disk) > free - PAGES)


def test_a_disk_that_others_have_filled(disk: Path) -> None:
    """Down to the last pages, so that each step of an upload is once the first that has no room."""
    kept = [sample("kept", noise(2, 300_000))]
    refusals = 0
    with process(disk / "store", *OPTIONS) as cache, cache.client() as http:
        push(http, kept[0])
        for pages in [*range(16), *range(16, 120, 8)]:
            fill_up(disk / "ballast", 4096 * pages)
            what = sample(f"tight-{pages}", noise(100 + pages, 30_000))
            answer = put(http, what)
            if answer.status_code == 201:
                answer = put_narinfo(http, what)
            if answer.status_code == 200:
                kept.append(what)
            else:
                refused(answer)
                refusals += 1
            there(http, kept)
            (disk / "ballast").unlink()
            again = sample(f"again-{pages}")
            push(http, again)
            kept.append(again)
        assert refusals >= 5
        check_at_the_end(cache, disk / "store", kept)
