"""Paths whose contents are somewhere else until somebody wants them: a path info service that describes
them, and fetches when it is asked to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

import pytest

from neve.errors import Corrupt, InvalidRequest, LimitExceeded, NeveError, Unavailable
from neve.nix import base32
from neve.nix.narinfo import NarInfo
from neve.store.importer import import_nar
from neve.store.path_info import NarDetails, PathDescription, PathInfo
from neve.store.pathinfos.base import PathInfoService
from neve.store.services import Services
from tests.http_cache.samples import Sample, nar_url, push, put_narinfo, sample, sha256
from tests.http_cache.serving import SECONDS, Served, serving, until
from tests.nix.compressing import compress_zstd
from tests.store.helpers import memory_services

NEAR, FAR = sample("near"), sample("far", b"far away " * 100_000)


class FarPaths(PathInfoService):
    """Fetches ``far`` when it is asked for, over the path infos of a store."""

    def __init__(self, services: Services, near: PathInfoService, far: Sequence[Sample]) -> None:
        self._services = services
        self._near = near
        self._far = {each.path.digest: each for each in far}
        self.described = 0
        self.fetched = 0
        self.before_fetching: Callable[[], None] = lambda: None

    def get(self, digest: bytes) -> PathInfo | None:
        found = self._near.get(digest)
        far = self._far.get(digest)
        if found is not None or far is None:
            return found
        self.fetched += 1
        self.before_fetching()
        services = self._services
        with_near = Services(services.blobs, services.directories, self._near, services.nar_nodes)
        return import_nar(with_near, [far.nar], store_path=far.path, references=far.references)

    def describe(self, digest: bytes) -> PathInfo | PathDescription | None:
        self.described += 1
        found = self._near.get(digest)
        far = self._far.get(digest)
        if found is not None or far is None:
            return found
        return PathDescription(far.path, NarDetails(size=len(far.nar), sha256=sha256(far.nar)))

    def put(self, path_info: PathInfo, *, replace: bool = False) -> PathInfo:
        return self._near.put(path_info, replace=replace)


@pytest.fixture
def services() -> Iterator[Services]:
    opened = memory_services()
    opened.path_infos = FarPaths(opened, opened.path_infos, [FAR])
    yield opened
    opened.close()


@pytest.fixture
def paths(services: Services) -> FarPaths:
    assert isinstance(services.path_infos, FarPaths)
    return services.path_infos


@pytest.fixture
def cache(services: Services) -> Iterator[Served]:
    with serving(services) as served:
        yield served


def narinfo_of(cache: Served, what: Sample) -> NarInfo:
    return NarInfo.parse(cache.http.get(what.narinfo_url).content, expected_digest=what.path.digest)


def test_a_question_fetches_nothing(cache: Served, services: Services, paths: FarPaths) -> None:
    narinfo = narinfo_of(cache, FAR)
    assert narinfo.url == f"nar/{base32.encode(sha256(FAR.nar))}.nar?hash={FAR.digest}"
    assert (narinfo.nar_size, narinfo.file_size) == (len(FAR.nar), len(FAR.nar))
    assert cache.http.head(FAR.narinfo_url).status_code == 200
    head = cache.http.head(f"/{narinfo.url}")
    assert (head.status_code, head.headers["content-length"]) == (200, str(len(FAR.nar)))
    assert cache.http.get(f"/{FAR.digest}.ls").status_code == 404
    assert cache.http.get(f"/{'0' * 32}.narinfo").status_code == 404
    assert paths.fetched == 0
    assert list(services.blobs.list()) == []


def test_the_nar_is_fetched_when_it_is_wanted(cache: Served, paths: FarPaths) -> None:
    url = f"/{narinfo_of(cache, FAR).url}"
    assert cache.http.get(url).content == FAR.nar
    assert cache.http.get(url, headers={"range": "bytes=5-10"}).content == FAR.nar[5:11]
    assert paths.fetched == 1
    # From now on it is a path like any other; addresses that were given out stay good.
    assert "tvix-castore" in narinfo_of(cache, FAR).url
    assert cache.http.get(f"/{FAR.digest}.ls").status_code == 200
    assert cache.http.get(nar_url(FAR.nar)).content == FAR.nar


def test_a_part_of_it_or_a_packed_one(services: Services) -> None:
    with serving(services, narinfo_compression="zstd") as cache:
        narinfo = narinfo_of(cache, FAR)
        assert narinfo.url.partition("?")[0].endswith(".nar.zst")
        assert cache.http.head(f"/{narinfo.url}").status_code == 200
        packed = cache.http.get(f"/{narinfo.url}")
        assert packed.headers["content-type"] == "application/zstd"
        assert len(packed.content) < len(FAR.nar)
        # The address of the plain one works too.
        plain = narinfo.url.replace(".zst", "")
        assert cache.http.get(f"/{plain}", headers={"range": "bytes=-8"}).content == FAR.nar[-8:]


def test_one_fetch_however_many_ask(cache: Served, paths: FarPaths) -> None:
    go = threading.Event()
    paths.before_fetching = lambda: assert_true(go.wait(SECONDS))
    url = f"/{narinfo_of(cache, FAR).url}"
    answers: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: answers.append(cache.http.get(url).content)) for _ in range(40)
    ]
    for thread in threads:
        thread.start()
    until(lambda: paths.fetched == 1 and cache.metric("neve_http_active_requests") == 41)
    # Meanwhile others are served, and this path is described.
    assert cache.http.get(FAR.narinfo_url).status_code == 200
    push(cache.http, NEAR)
    assert cache.http.get(nar_url(NEAR.nar)).content == NEAR.nar
    go.set()
    for thread in threads:
        thread.join()
    assert answers == [FAR.nar] * 40
    assert paths.fetched == 1


def assert_true(value: bool) -> None:
    assert value


def test_who_leaves_does_not_end_it(cache: Served, paths: FarPaths) -> None:
    go = threading.Event()
    paths.before_fetching = lambda: assert_true(go.wait(SECONDS))
    url = f"/{narinfo_of(cache, FAR).url}"
    with cache.connect() as connection:
        connection.sendall(f"GET {url} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        until(lambda: paths.fetched == 1)
    go.set()
    assert cache.http.get(url).content == FAR.nar
    assert paths.fetched == 1
    until(lambda: cache.metric("neve_http_active_requests") == 1)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (LimitExceeded("the NAR of the far cache is too long"), 502),
        (Unavailable("the far cache is away"), 503),
        (Corrupt("the far cache lies"), 500),
        (InvalidRequest("the NAR of the far cache is none"), 502),
    ],
)
def test_a_fetch_that_fails(cache: Served, paths: FarPaths, error: NeveError, status: int) -> None:
    def fail() -> None:
        raise error

    paths.before_fetching = fail
    url = f"/{narinfo_of(cache, FAR).url}"
    answer = cache.http.get(url)
    assert (answer.status_code, answer.text) == (status, f"{error}\n")
    # It is tried again for the next one.
    paths.before_fetching = lambda: None
    assert cache.http.get(url).content == FAR.nar


def test_addresses_that_do_not_fit(cache: Served, paths: FarPaths) -> None:
    push(cache.http, NEAR)
    name = base32.encode(sha256(FAR.nar))
    for query in ("", "?hash=", f"?hash={NEAR.digest}", f"?hash={'0' * 32}"):
        assert cache.http.get(f"/nar/{name}.nar{query}").status_code in (400, 404)
    for query in ("?hash=x", f"?hash={'e' * 32}", f"?hash={FAR.digest}&hash={FAR.digest}", "?hash=..%2f"):
        assert cache.http.get(f"/nar/{name}.nar{query}").status_code == 400
    assert paths.fetched == 0
    # The hash of another NAR than the path has: it is fetched, and not given out as that.
    other = base32.encode(sha256(b"other"))
    assert cache.http.get(f"/nar/{other}.nar?hash={FAR.digest}").status_code == 404


def test_references_may_be_far(cache: Served, paths: FarPaths) -> None:
    """What is uploaded may refer to what is only known here."""
    what = sample("refers", references=[FAR.path])
    file = compress_zstd(what.nar)
    assert cache.http.put(nar_url(file, "zstd"), content=file).status_code == 201
    assert put_narinfo(cache.http, what).status_code == 200
    assert paths.fetched == 0
