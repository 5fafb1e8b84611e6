"""A cache in front of another one, over HTTP: both are real."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from neve.nix import base32
from neve.nix.narinfo import NarInfo
from neve.nix.signing import SecretKey
from neve.store.services import Services, open_services
from tests.http_cache.samples import Sample, nar_url, push, put_narinfo, sample, sha256
from tests.http_cache.serving import Served, serving
from tests.store.helpers import everything, memory_services

KEY, STRANGER = SecretKey.generate("far-1"), SecretKey.generate("far-1")
FAR = sample("far", b"far away " * 100_000)
SECOND = sample("second", references=[FAR.path])


@pytest.fixture
def far() -> Iterator[Served]:
    services = memory_services()
    with serving(services, secret_key=KEY.render()) as cache:
        push(cache.http, FAR)
        push(cache.http, SECOND)
        yield cache
    services.close()


def opened(store: Path, far: Served, key: SecretKey = KEY, more: str = "") -> Services:
    """A store that takes what it does not have from another cache."""
    local = f"local://{store}"
    source = f"nix+{far.url}?trusted-public-keys={quote(key.public_key().render(), safe='')}"
    url = f"cache://?near={quote(local, safe='')}&far={quote(source, safe='')}{more}"
    return open_services(local, path_info_service=url)


@contextlib.contextmanager
def in_front(store: Path, far: Served, key: SecretKey = KEY, more: str = "") -> Iterator[Served]:
    services = opened(store, far, key, more)
    try:
        with serving(services) as cache:
            yield cache
    finally:
        services.close()


def narinfo_of(cache: Served, what: Sample) -> NarInfo:
    answer = cache.http.get(what.narinfo_url)
    assert answer.status_code == 200, answer.text
    return NarInfo.parse(answer.content, expected_digest=what.path.digest)


def requests(far: Served, route: str, status: int = 200) -> float:
    return far.metric(f'neve_http_requests_total{{method="read",route="{route}",status="{status}"}}')


def test_a_question_fetches_no_nar(tmp_path: Path, far: Served) -> None:
    with in_front(tmp_path / "near", far) as cache:
        narinfo = narinfo_of(cache, FAR)
        assert narinfo.url == f"nar/{base32.encode(sha256(FAR.nar))}.nar?hash={FAR.digest}"
        assert [signature.name for signature in narinfo.signatures] == ["far-1"]
        assert cache.http.head(f"/{narinfo.url}").status_code == 200
        assert everything(cache.services)[0] == []
    assert requests(far, "nar") == 0


def test_what_is_wanted_is_fetched_and_stays(tmp_path: Path, far: Served) -> None:
    with in_front(tmp_path / "near", far) as cache:
        for what in (SECOND, FAR):
            url = f"/{narinfo_of(cache, what).url}"
            assert cache.http.get(url).content == what.nar
            assert cache.http.get(url).content == what.nar
        assert requests(far, "nar") == 2
        assert "tvix-castore" in narinfo_of(cache, FAR).url
    # And it is there for whoever opens the store without the other cache.
    services = open_services(f"local://{tmp_path}/near")
    with serving(services) as cache:
        assert cache.http.get(f"/{narinfo_of(cache, FAR).url}").content == FAR.nar
    services.close()


def test_what_is_not_there_is_remembered_for_a_while(tmp_path: Path, far: Served) -> None:
    with in_front(tmp_path / "near", far, more="&negative-ttl=3600") as cache:
        before = requests(far, "narinfo", 404)
        for _ in range(5):
            assert cache.http.get(f"/{'0' * 32}.narinfo").status_code == 404
        assert requests(far, "narinfo", 404) == before + 1


def test_another_key_than_ours(tmp_path: Path, far: Served) -> None:
    with in_front(tmp_path / "near", far, STRANGER) as cache:
        answer = cache.http.get(FAR.narinfo_url)
        assert answer.status_code in (500, 502)
        assert "signature" in answer.text
        assert answer.text.count("\n") == 1
        url = f"/nar/{base32.encode(sha256(FAR.nar))}.nar?hash={FAR.digest}"
        assert cache.http.get(url).status_code in (500, 502)
        assert cache.is_fine()
        assert everything(cache.services)[0] == []


def test_pushing_what_refers_to_something_far(tmp_path: Path, far: Served) -> None:
    mine = sample("mine", references=[FAR.path])
    with in_front(tmp_path / "near", far) as cache:
        assert cache.http.put(nar_url(mine.nar), content=mine.nar).status_code == 201
        assert put_narinfo(cache.http, mine).status_code == 200
        narinfo = narinfo_of(cache, mine)
        assert narinfo.references == (FAR.path,)
        assert cache.http.get(f"/{narinfo.url}").content == mine.nar
    assert requests(far, "nar") == 0
