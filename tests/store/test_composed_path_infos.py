"""Path infos from several services: the contracts, what is kept near, pull-through, signing."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from neve.castore.absences import Absences
from neve.castore.node import FileNode
from neve.errors import Conflict, Corrupt, InvalidRequest, Unavailable, Unsupported
from neve.nix.signing import SecretKey, Signature
from neve.packstore.store import PackStore
from neve.store.importer import import_path
from neve.store.nar_nodes import LocalNarNodes, MemoryNarNodes, Nar
from neve.store.path_info import PathDescription, PathInfo
from neve.store.pathinfos.base import PathInfoService
from neve.store.pathinfos.cached import CachedPathInfoService
from neve.store.pathinfos.lru import LruPathInfoService
from neve.store.pathinfos.memory import MemoryPathInfoService
from neve.store.pathinfos.signing import SigningPathInfoService
from neve.store.pathinfos.urls import PATH_INFO_SERVICES
from neve.store.services import Services, open_services
from neve.testing.pathinfos import (
    PathInfoAgesContract,
    PathInfoServiceContract,
    path_info,
    signature,
    store_path,
)
from neve.testing.servers import running_daemon
from tests.logged import logged
from tests.store.helpers import leaving_nothing_open, memory_services
from tests.store.substitute.caches import Cache, context_of, http_cache
from tests.store.substitute.server import Server, running_server
from tests.store.substitute.test_honest import written

KEY = SecretKey("team-1", bytes(range(32)))


def nested(scheme: str, more: str = "", **addresses: str) -> str:
    query = "&".join(f"{name}={quote(url, safe='')}" for name, url in addresses.items())
    return f"{scheme}://?{query}{more}"


@pytest.fixture
def keyfile(tmp_path: Path) -> Path:
    file = tmp_path / "key"
    file.write_text(KEY.render())
    return file


# The contracts.


class TestLru(PathInfoServiceContract):
    @pytest.fixture
    def service(self) -> Iterator[PathInfoService]:
        services = open_services("memory://", path_info_service="lru://?capacity=1000")
        yield services.path_infos
        services.close()


class TestCached(PathInfoServiceContract, PathInfoAgesContract):
    reading_counts = False

    @pytest.fixture
    def service(self) -> Iterator[PathInfoService]:
        url = nested("cache", "&negative-ttl=60", near="memory://", far="memory://")
        services = open_services("memory://", path_info_service=url)
        yield services.path_infos
        services.close()

    def make_older(self, service: Any, seconds: float) -> None:
        service._far._uses.make_older(seconds)


class TestCachedNearALittle(PathInfoServiceContract):
    """Near forgets nearly everything."""

    @pytest.fixture
    def service(self, tmp_path: Path) -> Iterator[PathInfoService]:
        url = nested("cache", near="lru://?capacity=1", far=f"local://{tmp_path / 'far'}")
        services = open_services("memory://", path_info_service=url)
        yield services.path_infos
        services.close()


class TestPullThrough(PathInfoServiceContract, PathInfoAgesContract):
    """Far is a binary cache that has nothing of it: all that is put stays near."""

    @pytest.fixture
    def service(self, tmp_path: Path) -> Iterator[PathInfoService]:
        written(Cache(), tmp_path / "cache")
        url = nested("cache", near="memory://", far=f"nix+file://{tmp_path / 'cache'}")
        services = open_services("memory://", path_info_service=url)
        yield services.path_infos
        services.close()

    def make_older(self, service: Any, seconds: float) -> None:
        service._near._uses.make_older(seconds)


class TestSigning(PathInfoServiceContract, PathInfoAgesContract):
    """The contents of what the contract puts are nowhere, so that nothing of it is signed."""

    @pytest.fixture
    def service(self, keyfile: Path) -> Iterator[PathInfoService]:
        url = nested("keyfile-signing", inner="memory://", keyfile=str(keyfile))
        services = open_services("memory://", path_info_service=url)
        with logged(logging.WARNING):
            yield services.path_infos
        services.close()

    def make_older(self, service: Any, seconds: float) -> None:
        service._inner._uses.make_older(seconds)


# Those used last.


def test_of_too_many_those_used_last_stay() -> None:
    service = LruPathInfoService(3)
    infos = [path_info(f"p{number}") for number in range(4)]
    for info in infos[:3]:
        service.put(info)
    assert service.get(infos[0].digest) == infos[0]
    service.put(infos[3])
    assert [service.get(info.digest) for info in infos] == [infos[0], None, *infos[2:]]
    # Putting it again is using it.
    service.put(path_info("p0", signatures=["key"]))
    service.put(infos[1])
    assert service.get(infos[0].digest) == path_info("p0", signatures=["key"])
    assert service.get(infos[2].digest) is None


# Near and far.


class Far(MemoryPathInfoService):
    """Notes what it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[bytes] = []

    def get(self, digest: bytes) -> PathInfo | None:
        self.asked.append(digest)
        return super().get(digest)


class Failing(PathInfoService):
    """A near one that is gone."""

    def get(self, digest: bytes) -> PathInfo | None:
        raise Unavailable("near is gone")

    def put(self, path_info: PathInfo, *, replace: bool = False) -> PathInfo:
        raise Unavailable("near is gone")


class Describing(Far):
    """Would have to fetch what it has, and does not when it is asked to describe it."""

    only_read = True

    def describe(self, digest: bytes) -> PathInfo | PathDescription | None:
        found = self._path_infos.get(digest)
        return None if found is None or found.nar is None else PathDescription(found.store_path, found.nar)


def test_what_came_from_far_is_near() -> None:
    near, far = MemoryPathInfoService(), Far()
    service = CachedPathInfoService(near, far)
    info = far.put(path_info("p"))
    far.asked.clear()
    assert service.get(info.digest) == service.get(info.digest) == info
    assert near.get(info.digest) == info
    assert far.asked == [info.digest]


def test_what_is_described_is_kept_if_it_is_all_there_is_to_know() -> None:
    near, far = MemoryPathInfoService(), Far()
    info = far.put(path_info("p"))
    assert CachedPathInfoService(near, far).describe(info.digest) == info
    assert near.get(info.digest) == info


def test_a_description_is_no_path_info() -> None:
    near, far = MemoryPathInfoService(), Describing()
    service = CachedPathInfoService(near, far)
    info = far.put(path_info("p"))
    assert info.nar is not None
    assert service.describe(info.digest) == PathDescription(info.store_path, info.nar)
    assert near.get(info.digest) is None
    assert service.get(info.digest) == info
    assert service.describe(info.digest) == info
    assert far.asked == [info.digest]


def test_near_may_fail() -> None:
    far = Far()
    service = CachedPathInfoService(Failing(), far)
    info = path_info("p")
    with logged(logging.WARNING) as lines:
        assert service.put(info) == info
        assert service.get(info.digest) == service.describe(info.digest) == info
        assert service.get(store_path("absent").digest) is None
    assert any(line == f"{info.store_path} is not kept near: near is gone" for line in lines)
    assert any(line == "asking far, because near does not answer: near is gone" for line in lines)


def test_far_may_not() -> None:
    near = MemoryPathInfoService()
    service = CachedPathInfoService(near, Failing())
    with pytest.raises(Unavailable):
        service.put(path_info("p"))
    with pytest.raises(Unavailable):
        service.get(path_info("p").digest)
    assert near.get(path_info("p").digest) is None


def test_far_is_right_where_near_has_something_else() -> None:
    near, far = MemoryPathInfoService(), Far()
    service = CachedPathInfoService(near, far)
    near.put(path_info("p", contents="old"))
    info = path_info("p", contents="new")
    assert service.put(info) == info
    assert near.get(info.digest) == info
    with pytest.raises(Conflict):
        service.put(path_info("p", contents="other"))
    assert service.get(info.digest) == info


def test_what_is_absent_is_remembered_if_wanted() -> None:
    now = [0.0]
    far = Far()
    absences = Absences(60, clock=lambda: now[0])
    service = CachedPathInfoService(MemoryPathInfoService(), far, absences=absences)
    info = path_info("p")
    for _ in range(3):
        assert service.get(info.digest) is None
        assert service.describe(info.digest) is None
    assert far.asked == [info.digest]
    far.put(info)
    now[0] = 59
    assert service.get(info.digest) is None
    now[0] = 60
    assert service.get(info.digest) == info
    other = path_info("other")
    assert service.describe(other.digest) is None
    service.put(other)
    assert service.describe(other.digest) == other


def test_without_that_far_is_asked_each_time() -> None:
    far = Far()
    service = CachedPathInfoService(MemoryPathInfoService(), far)
    for _ in range(3):
        assert service.get(bytes(20)) is None
    assert far.asked == [bytes(20)] * 3


@pytest.mark.parametrize("describe", [False, True])
def test_far_is_asked_once_however_many_ask(describe: bool) -> None:
    going, go_on = threading.Event(), threading.Event()

    class Slow(Far):
        def get(self, digest: bytes) -> PathInfo | None:
            going.set()
            assert go_on.wait(60)
            return super().get(digest)

    far = Slow()
    info = far.put(path_info("p"))
    service = CachedPathInfoService(MemoryPathInfoService(), far)
    ask = service.describe if describe else service.get
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(ask, info.digest) for _ in range(8)]
        assert going.wait(60)
        go_on.set()
        assert [answer.result() for answer in answers] == [info] * 8
    assert far.asked == [info.digest]


# Pull-through.


@pytest.fixture
def server() -> Iterator[Server]:
    with running_server() as server:
        yield server


def pull_through(server: Server, near: str, more: str = "") -> str:
    return nested("cache", more, near=near, far=f"nix+{server.url}?attempts=1")


def test_pulling_through(tmp_path: Path, server: Server) -> None:
    cache = Cache()
    narinfo = cache.add("tool", compression="zstd")
    digest = narinfo.store_path.digest
    server.serve(cache.files)
    store = f"local://{tmp_path / 'store'}"
    services = open_services(store, path_info_service=pull_through(server, store, "&negative-ttl=60"))
    assert isinstance(services.path_infos.describe(digest), PathDescription)
    assert f"/{narinfo.url}" not in server.paths()
    assert list(services.path_infos) == []
    found = services.path_infos.get(digest)
    assert found is not None
    assert services.path_infos.describe(digest) == found
    assert list(services.path_infos) == [found]
    for _ in range(3):
        assert services.path_infos.get(store_path("absent").digest) is None
    assert len(server.paths()) == len(set(server.paths())) + 1  # The narinfo, for the description.
    # It can be pushed to, and what was pushed is found.
    pushed = services.path_infos.put(path_info("pushed"))
    assert services.path_infos.get(pushed.digest) == pushed
    assert services.path_infos.referrers(store_path("dependency").digest) == [digest]
    services.close()
    # What was pulled is all there without the cache.
    asked = len(server.requests)
    services = open_services(store)
    assert services.path_infos.get(digest) == found
    assert services.renderer.hash(found.node) == (narinfo.nar_size, narinfo.nar_sha256)
    assert services.nar_nodes.node(narinfo.nar_sha256) == (found.node, narinfo.nar_size)
    assert services.path_infos.delete_many([pushed.digest]) == 1
    services.close()
    assert len(server.requests) == asked
    assert PackStore._opened == {}


def test_what_is_signed_when_it_is_kept_is_answered_so(server: Server, keyfile: Path) -> None:
    cache = Cache()
    got, described = (cache.add(name).store_path.digest for name in ("got", "described"))
    server.serve(cache.files)
    near = nested("keyfile-signing", inner="memory://", keyfile=str(keyfile))
    services = open_services("memory://", path_info_service=pull_through(server, near))
    first = services.path_infos.get(got)
    assert first is not None
    assert len(ours(first)) == 1
    assert services.path_infos.get(got) == first
    source = f"nix+{server.url}"
    other = PATH_INFO_SERVICES.open(source, context_of(services))
    assert isinstance(other.get(described), PathInfo)
    other.close()
    known = services.path_infos.describe(described)
    assert isinstance(known, PathInfo)
    assert len(ours(known)) == 1
    services.close()


def test_a_far_that_cannot_be_believed_leaves_nothing_near(tmp_path: Path, server: Server) -> None:
    cache = Cache()
    narinfo = cache.add("tool", nar_sha256=bytes(32))
    server.serve(cache.files)
    store = f"local://{tmp_path / 'store'}"
    services = open_services(store, path_info_service=pull_through(server, store))
    with pytest.raises(Corrupt):
        services.path_infos.get(narinfo.store_path.digest)
    assert list(services.path_infos) == []
    assert services.directories.list() == []
    services.close()


def test_two_caches_one_behind_the_other(server: Server) -> None:
    cache = Cache()
    narinfo = cache.add("tool")
    server.serve(cache.files)
    url = nested("cache", near="lru://", far=pull_through(server, "memory://"))
    with leaving_nothing_open():
        services = open_services("memory://", path_info_service=url)
        assert services.path_infos.get(narinfo.store_path.digest) is not None
        assert services.path_infos.get(narinfo.store_path.digest) is not None
        services.close()
        server.settle()
    assert server.paths().count(f"/{narinfo.url}") == 1


# Where the map of NARs lies.


def test_the_map_of_nars_lies_where_what_is_put_ends_up(tmp_path: Path) -> None:
    written(Cache(), tmp_path / "cache")
    source, store = f"nix+file://{tmp_path / 'cache'}", f"local://{tmp_path / 'store'}"
    other = f"local://{tmp_path / 'other'}"
    cases: list[tuple[dict[str, str], str | None]] = [
        ({"url": store, "path_info_service": source}, "store"),
        ({"url": store, "path_info_service": "lru://"}, "store"),
        ({"url": store, "path_info_service": nested("cache", near=other, far=source)}, "other"),
        ({"url": store, "path_info_service": nested("cache", near="memory://", far=other)}, "other"),
        ({"url": store, "path_info_service": nested("cache", near="lru://", far=source)}, "store"),
        ({"url": "memory://", "path_info_service": source}, None),
        ({"url": "memory://", "directory_service": nested("cache", near="memory://", far=store)} |
         {"path_info_service": source}, "store"),
    ]  # fmt: skip
    for addresses, folder in cases:
        with leaving_nothing_open():
            services = open_services(**addresses)
            if folder is None:
                assert isinstance(services.nar_nodes, MemoryNarNodes)
            else:
                assert isinstance(services.nar_nodes, LocalNarNodes)
                assert services.nar_nodes._store.path == tmp_path / folder
            services.close()


def test_a_temporary_store_is_the_same_one_in_every_part() -> None:
    url = nested("cache", near="local://", far="local://")
    services = open_services(url)
    assert len(PackStore._opened) == 2
    services.close()
    assert PackStore._opened == {}


# Signing.


def signing(services: Services, inner: PathInfoService) -> SigningPathInfoService:
    return SigningPathInfoService(inner, KEY, services.nar_calculation)


def imported(services: Services, tmp_path: Path) -> PathInfo:
    (tmp_path / "source").write_text("contents")
    return import_path(services, tmp_path / "source")


def ours(info: PathInfo) -> list[Signature]:
    assert info.nar is not None
    return [one for one in info.nar.signatures if KEY.public_key().verify(info.fingerprint(), one)]


def test_what_is_put_is_signed(tmp_path: Path, keyfile: Path) -> None:
    url = nested("keyfile-signing", inner=f"local://{tmp_path / 'store'}", keyfile=str(keyfile))
    services = open_services(f"local://{tmp_path / 'store'}", path_info_service=url)
    info = imported(services, tmp_path)
    assert len(ours(info)) == 1
    assert services.path_infos.get(info.digest) == services.path_infos.describe(info.digest) == info
    # Once is enough.
    assert services.path_infos.put(info) == info
    assert info.nar is not None
    bare = replace(info, nar=replace(info.nar, signatures=()))
    assert services.path_infos.put(bare) == info
    stored = services.path_infos.add_signatures(info.digest, [signature("other")])
    assert stored.nar is not None
    assert [one.name for one in stored.nar.signatures] == ["team-1", "other"]
    services.close()


def test_a_false_signature_of_our_name_does_not_count(tmp_path: Path) -> None:
    services = memory_services()
    info = imported(services, tmp_path)
    service = signing(services, MemoryPathInfoService())
    forged = info.with_signatures([signature(KEY.name)])
    stored = service.put(forged)
    assert stored.nar is not None
    assert len(stored.nar.signatures) == 2
    assert len(ours(stored)) == 1


def test_what_is_not_true_is_not_signed(tmp_path: Path) -> None:
    services = memory_services()
    info = imported(services, tmp_path)
    assert info.nar is not None
    service = signing(services, MemoryPathInfoService())
    lies = [
        replace(info, nar=replace(info.nar, size=info.nar.size + 8)),
        replace(info, nar=replace(info.nar, sha256=bytes(32))),
        replace(info, node=FileNode(bytes(32), 8)),
    ]
    for number, lie in enumerate(lies):
        lie = replace(lie, store_path=store_path(f"lie-{number}"))
        with logged(logging.WARNING) as lines:
            assert service.put(lie) == lie
        assert f"{lie.store_path} is not signed: " in lines[0]
    without = replace(info, nar=None)
    assert service.put(without) == without
    assert ours(service.put(info)) != []


def test_the_word_of_a_server_is_not_signed(tmp_path: Path, keyfile: Path) -> None:
    with running_daemon("memory://", folder=tmp_path) as daemon:
        info = imported(daemon.services, tmp_path)
        assert info.nar is not None
        lie = Nar(info.nar.size, bytes(32))
        daemon.services.nar_nodes._nars[info.node] = lie  # type: ignore[attr-defined]
        lying = replace(info, store_path=store_path("lie"), nar=replace(info.nar, sha256=lie.sha256))
        assert daemon.admin_url is not None
        url = nested("keyfile-signing", inner=daemon.admin_url, keyfile=str(keyfile))
        services = open_services(daemon.admin_url, path_info_service=url)
        assert services.nar_calculation.calculate_nar(info.node) == lie
        with logged(logging.WARNING) as lines:
            assert ours(services.path_infos.put(lying)) == []
        assert lines == [f"{lying.store_path} is not signed: its path info states another NAR"]
        assert len(ours(services.path_infos.put(info))) == 1
        services.close()


@pytest.mark.parametrize(
    ("contents", "error", "message"),
    [
        (None, InvalidRequest, "No such file or directory"),
        ("", InvalidRequest, "secret key of 0 characters has no '<name>:'"),
        ("x:secret", InvalidRequest, "secret key 'x': "),
        (KEY.public_key().render(), InvalidRequest, "secret key 'team-1': "),
    ],
)
def test_a_key_that_is_none(
    tmp_path: Path, contents: str | None, error: type[InvalidRequest], message: str
) -> None:
    file = tmp_path / "bad-key"
    if contents is not None:
        file.write_text(contents)
    url = nested("keyfile-signing", inner="memory://", keyfile=str(file))
    with leaving_nothing_open(), pytest.raises(error, match=message) as refused:
        open_services("memory://", path_info_service=url)
    assert f"key file {file}: " in str(refused.value)
    assert "x:secret" not in str(refused.value)


def test_a_key_file_without_end() -> None:
    url = nested("keyfile-signing", inner="memory://", keyfile="/dev/zero")
    with pytest.raises(InvalidRequest, match=r"^key file /dev/zero: .* at most 65536 bytes"):
        open_services("memory://", path_info_service=url)


def test_a_key_file_that_is_a_folder(tmp_path: Path) -> None:
    url = nested("keyfile-signing", inner="memory://", keyfile=str(tmp_path))
    with pytest.raises(Unavailable, match="Is a directory"):
        open_services("memory://", path_info_service=url)


# Addresses.


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("lru://host", "lru:// takes neither host nor path"),
        ("lru://?capacity=0", "'capacity' is '0', must be a whole number from 1 to 10000000"),
        ("lru://?capacity=-1", "'capacity' is '-1'"),
        ("lru://?capacity=many", "'capacity' is 'many'"),
        ("lru://?size=1", r"unknown parameter 'size' \(known: capacity\)"),
        ("cache://?far=memory://", "parameter 'near' is missing"),
        ("cache:///x?near=memory://&far=memory://", "cache:// takes neither host nor path"),
        ("cache://?near=memory://&far=nonsense://", "far of address .*: address 'nonsense://': no path info"),
        ("cache://?near=memory://&far=memory://&negative-ttl=x", "'negative-ttl' is 'x'"),
        (nested("cache", near="nix+https://me:sesame@host", far="memory://"), "near is only read"),
        (nested("cache", near="memory://", far="nix+https://me:sesame@host?x=1"), "unknown parameter 'x'"),
        (
            nested("cache", near="lru://", far=nested("cache", near="memory://", far="nix+ftp://a:sesame@b")),
            "far of address .*: far of address .*: .*no path info service has the scheme 'nix\\+ftp'",
        ),
        ("keyfile-signing://?inner=memory://", "parameter 'keyfile' is missing"),
        ("keyfile-signing://?keyfile=/dev/null&inner=memory://", "key file /dev/null"),
        ("keyfile-signing://host?keyfile=/x&inner=memory://", "takes neither host nor path"),
    ],
)
def test_bad_addresses(url: str, message: str) -> None:
    with leaving_nothing_open(), pytest.raises(InvalidRequest, match=message) as refused:
        open_services("memory://", path_info_service=url)
    assert "sesame" not in str(refused.value)


def test_signing_needs_the_contents(keyfile: Path) -> None:
    from neve.store.pathinfos.urls import PATH_INFO_SERVICES

    with pytest.raises(InvalidRequest, match="needs the services beside it that have the contents"):
        PATH_INFO_SERVICES.open(nested("keyfile-signing", inner="memory://", keyfile=str(keyfile)))
    signing_key = nested("keyfile-signing", keyfile=str(keyfile))
    with leaving_nothing_open(), pytest.raises(InvalidRequest, match="parameter 'inner' is missing"):
        open_services("memory://", path_info_service=signing_key)


def test_closing_goes_to_the_services_below_last(server: Server) -> None:
    """Whoever fetches still has where to put things while it is being closed."""
    order: list[str] = []
    services = memory_services()
    services.path_infos = http_cache(server.url, services)
    for name in ("path_infos", "nar_nodes", "directories", "blobs"):
        service: PathInfoService = getattr(services, name)
        service.close = lambda name=name: order.append(name)  # type: ignore[method-assign,misc]
    services.close()
    assert order == ["path_infos", "nar_nodes", "directories", "blobs"]


def test_unsupported_is_told_by_whom(server: Server) -> None:
    services = open_services("memory://", path_info_service=f"nix+{server.url}")
    attempts: Sequence[object] = [services.path_infos.list, lambda: list(services.path_infos)]
    for attempt in attempts:
        with pytest.raises(Unsupported, match=f"{server.url} is a binary cache"):
            attempt()  # type: ignore[operator]
    services.close()
