"""Path infos, the map of NARs and NAR hashes of servers: ours on every kind of address, under both sets of
names, with and without administration, and servers that are not ours, some of them malicious."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from neve.castore.blobs.memory import MemoryBlobService
from neve.castore.digest import format_digest
from neve.castore.directories.memory import MemoryDirectoryService
from neve.castore.directory import Directory, SizeRule
from neve.castore.node import DirectoryNode, FileNode, Node
from neve.errors import (
    Corrupt,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    Unavailable,
    Unsupported,
)
from neve.nix.store_path import StorePath
from neve.proto.neve.admin.protos import rpc_admin_pb2
from neve.proto.tvix.store.protos.pathinfo_pb2 import PathInfo as PathInfoMessage
from neve.proto.tvix.store.protos.rpc_pathinfo_pb2 import CalculateNARResponse
from neve.registry import parse_address
from neve.rpc.channel import Connection
from neve.server.limits import Limits
from neve.store.check import verify_store
from neve.store.nar.render import RenderingNarCalculation
from neve.store.nar_nodes import MemoryNarNodes, Nar, NarNodes
from neve.store.path_info import NarDetails, PathInfo
from neve.store.pathinfos.base import PathInfoService
from neve.store.pathinfos.memory import MemoryPathInfoService
from neve.store.pathinfos.urls import PATH_INFO_SERVICES
from neve.store.remote import ADMIN_SERVICE, GrpcNarCalculation, GrpcNarNodes, open_admin
from neve.store.services import Services, open_services
from neve.store.stats import collect_stats
from neve.store.wire import path_info_to_message
from neve.testing.nar_nodes import NODES, NarNodesContract, nar_of
from neve.testing.pathinfos import PathInfoServiceContract, path_info, signature, store_path
from neve.testing.servers import RunningDaemon, running_daemon
from tests.castore.damage import damage_blob
from tests.castore.test_grpc_services import WAYS, Way, client_url
from tests.server.foreign import ForeignPathInfos, foreign_server

from .helpers import CountingBlobs


@pytest.fixture(autouse=True)
def _every_connection_is_closed() -> Iterator[None]:
    before = set(Connection._opened)
    yield
    while _connections:
        _connections.pop().close()
    assert set(Connection._opened) == before


_connections: list[Connection] = []
"""To be closed when a test ends."""


@pytest.fixture
def daemon(way: Way, tmp_path: Path) -> Iterator[RunningDaemon]:
    url = f"local://{tmp_path / 'store'}" if way.backend == "local" else "memory://"
    with running_daemon(url, address=way.address, folder=tmp_path) as daemon:  # type: ignore[arg-type]
        yield daemon


class _PathInfos(PathInfoServiceContract):
    @pytest.fixture
    def service(self, daemon: RunningDaemon, way: Way) -> Iterator[PathInfoService]:
        service = PATH_INFO_SERVICES.open(client_url(daemon, way))
        yield service
        service.close()


@pytest.mark.parametrize("way", [way for way in WAYS if way.admin], ids=str)
class TestPathInfos(_PathInfos):
    pass


@pytest.mark.parametrize("way", [way for way in WAYS if not way.admin], ids=str)
class TestPathInfosWithoutAdministration(_PathInfos):
    can_delete = can_replace = can_tell_referrers = False


class _NarNodes(NarNodesContract):
    can_list = False

    @pytest.fixture
    def nar_nodes(self, daemon: RunningDaemon, way: Way) -> Iterator[NarNodes]:
        nar_nodes = GrpcNarNodes(open_admin(parse_address(client_url(daemon, way))))
        yield nar_nodes
        nar_nodes.close()


@pytest.mark.parametrize("way", WAYS, ids=str)
class TestNarNodes(_NarNodes):
    pass


class TestNarNodesOfAForeignServer(NarNodesContract):
    can_list = False

    @pytest.fixture
    def nar_nodes(self) -> Iterator[NarNodes]:
        with foreign_server() as url:
            nar_nodes = GrpcNarNodes(open_admin(parse_address(url)))
            yield nar_nodes
            nar_nodes.close()


# The map of NARs.


def test_the_map_is_the_servers_where_it_may_be(tmp_path: Path) -> None:
    with running_daemon("memory://", folder=tmp_path) as daemon:
        assert daemon.admin_url is not None
        for url, kept in ((daemon.url, False), (daemon.admin_url, True)):
            nar_nodes = GrpcNarNodes(open_admin(parse_address(url)))
            nar_nodes.put(NODES[0], nar_of(NODES[0]))
            assert nar_nodes.nar(NODES[0]) == nar_of(NODES[0])
            assert (daemon.services.nar_nodes.nar(NODES[0]) is not None) is kept
            nar_nodes.close()


def test_a_server_that_only_reads_tells_its_nars(tmp_path: Path) -> None:
    services = open_services("memory://")
    services.nar_nodes.put(NODES[0], nar_of(NODES[0]))
    with running_daemon(services, folder=tmp_path, read_only=True) as daemon:
        nar_nodes = GrpcNarNodes(open_admin(parse_address(daemon.admin_url or "")))
        nar_nodes.put(NODES[1], nar_of(NODES[1]))
        for node in NODES[:2]:
            assert nar_nodes.nar(node) == nar_of(node)
            assert nar_nodes.node(nar_of(node).sha256) == (node, nar_of(node).size)
        assert services.nar_nodes.nar(NODES[1]) is None
        nar_nodes.close()


# Servers that are not ours.


@pytest.fixture(params=["tvix", "snix"])
def is_snix(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "snix")


def test_a_listing_in_any_order(is_snix: bool) -> None:
    infos = sorted((path_info(f"p{i}") for i in range(20)), key=lambda info: info.digest)
    backwards = ForeignPathInfos()
    for info in reversed(infos):
        backwards.stored[info.digest] = path_info_to_message(info)
    with foreign_server(path_infos=backwards, snix=is_snix) as url:
        service = PATH_INFO_SERVICES.open(url)
        assert list(service) == infos[::-1]
        assert service.list() == infos
        assert service.list(limit=3) == infos[:3]
        assert service.list(infos[4].digest, 2) == infos[5:7]
        assert service.list(infos[4].digest[:-1], 1) == infos[4:5]
        assert service.list(infos[-1].digest) == []
        service.close()


def test_what_only_a_daemon_of_ours_can(is_snix: bool) -> None:
    with foreign_server(snix=is_snix) as url:
        service = PATH_INFO_SERVICES.open(url)
        given = service.put(path_info("p", signatures=["one"]))
        calls: list[tuple[Callable[[], object], str]] = [
            (lambda: service.delete_many([given.digest]), "delete path infos"),
            (lambda: service.referrers(given.digest), "tell referrers"),
            (lambda: service.put(path_info("p", contents="x"), replace=True), "replace a path info"),
        ]
        for call, what in calls:
            with pytest.raises(Unsupported, match=f"{what}: only the administration address") as refused:
                call()
            assert url in str(refused.value)
        assert service.get(given.digest) == given
        stored = service.add_signatures(given.digest, [signature("two")])
        assert stored == path_info("p", signatures=["one", "two"]) == service.get(given.digest)
        service.close()


@pytest.fixture
def tree() -> tuple[DirectoryNode, bytes, Directory]:
    contents = b"contents"
    blobs = MemoryBlobService()
    directory = Directory({b"file": FileNode(blobs.put_many([contents])[0], len(contents))})
    return DirectoryNode(directory.digest, directory.size()), contents, directory


def put_tree(services: Services, tree: tuple[DirectoryNode, bytes, Directory]) -> PathInfo:
    """A store path, in any store."""
    node, contents, directory = tree
    services.blobs.put_many([contents])
    services.directories.put(directory)
    nar = services.renderer.hash(node)
    return services.path_infos.put(
        PathInfo(store_path("p"), node, (), NarDetails(size=nar.size, sha256=nar.sha256))
    )


Tree = tuple[DirectoryNode, bytes, Directory]


def test_a_whole_store_on_a_foreign_server(
    tree: Tree, is_snix: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with foreign_server(snix=is_snix) as url:
        services = open_services(url)
        assert services.size_rule is (SizeRule.SNIX if is_snix else SizeRule.EXACT)
        given = put_tree(services, tree)
        assert given.nar is not None
        # It has no NAR hashes to give.
        assert services.nar_calculation.calculate_nar(tree[0]) == (given.nar.size, given.nar.sha256)
        with pytest.raises(Unsupported, match="cannot count what it holds: only the administration") as error:
            collect_stats(services)
        assert url in str(error.value)
        with caplog.at_level(logging.INFO, logger="neve"):
            report = verify_store(services, nar_hashes=True)
        assert report.problems == []
        assert report.summary == "read everything that 1 store paths refer to"
        lines = [record.getMessage() for record in caplog.records if record.levelno == logging.INFO]
        assert len(lines) == 1
        assert url in lines[0]
        services.close()
        services = open_services(url)
        assert verify_store(services).problems == []
        services.close()


class _Answering(ForeignPathInfos):
    """Answers what it is told to."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def Get(self, *_: Any) -> Any:  # noqa: N802
        return self.answer

    def Put(self, *_: Any) -> Any:  # noqa: N802
        return self.answer

    def CalculateNAR(self, request: Any, context: Any) -> Any:  # noqa: N802
        if isinstance(self.answer, PathInfoMessage):
            return super().CalculateNAR(request, context)
        return self.answer

    def List(self, *_: Any) -> Any:  # noqa: N802
        yield self.answer


def without_node() -> Any:
    message = path_info_to_message(path_info("p"))
    message.ClearField("node")
    return message


def test_invalid_answers() -> None:
    given = path_info("p")
    with foreign_server(path_infos=_Answering(without_node())) as url:
        service = PATH_INFO_SERVICES.open(url)
        calls: list[Callable[[], object]] = [
            lambda: service.get(given.digest),
            lambda: service.put(given),
            lambda: list(service),
            service.list,
        ]
        for call in calls:
            with pytest.raises(Corrupt, match="the path info in the answer is invalid: node") as error:
                call()
            assert url in str(error.value)
        service.close()


def test_answers_that_are_no_messages() -> None:
    given = path_info("p")
    with foreign_server(path_infos=_Answering(b"\xff\xff\xff")) as url:
        service = PATH_INFO_SERVICES.open(url)
        calls: list[Callable[[], object]] = [
            lambda: service.get(given.digest),
            lambda: service.put(given),
            lambda: list(service),
            lambda: calculation(url).calculate_nar(NODES[0]),
        ]
        for call in calls:
            with pytest.raises((Corrupt, Unavailable)) as error:
                call()
            assert url in str(error.value)
        service.close()


def test_answers_about_something_else() -> None:
    asked, other = path_info("asked"), path_info("other")
    with foreign_server(path_infos=_Answering(path_info_to_message(other))) as url:
        service = PATH_INFO_SERVICES.open(url)
        with pytest.raises(Corrupt, match=f"about {other.store_path}, .*{asked.store_path.base_name[:32]}"):
            service.get(asked.digest)
        assert service.get(other.digest) == other
        different = (asked, path_info("other", contents="x"))
        for given in different:
            with pytest.raises(Corrupt, match=f"{given.store_path} was given"):
                service.put(given)
        # What is known of the NAR must be there, and may be more than was given.
        assert service.put(path_info("other", with_nar=False)) == other
        service.close()
    with foreign_server(path_infos=_Answering(path_info_to_message(path_info("p", with_nar=False)))) as url:
        service = PATH_INFO_SERVICES.open(url)
        with pytest.raises(Corrupt, match="was given"):
            service.put(path_info("p"))
        service.close()


def calculation(url: str) -> GrpcNarCalculation:
    services = Services(
        MemoryBlobService(), MemoryDirectoryService(), MemoryPathInfoService(), MemoryNarNodes()
    )
    _connections.append(Connection.open(parse_address(url)))
    return GrpcNarCalculation(_connections[-1], services.nar_calculation)


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_nar_hash_has_32_bytes(size: int) -> None:
    answer = CalculateNARResponse(nar_size=120, nar_sha256=bytes(size))
    with foreign_server(path_infos=_Answering(answer)) as url:
        with pytest.raises(Corrupt, match=f"CalculateNAR: .* has {size} bytes, must have 32") as error:
            calculation(url).calculate_nar(NODES[0])
        assert url in str(error.value)


class _Lying:
    """An administration that answers nonsense."""

    def ListPathInfos(self, *_: Any) -> Any:  # noqa: N802
        infos = [path_info("a"), path_info("b")]
        infos.sort(key=lambda info: info.digest, reverse=True)
        return rpc_admin_pb2.ListPathInfosResponse(path_infos=map(path_info_to_message, infos))

    def Referrers(self, *_: Any) -> Any:  # noqa: N802
        return rpc_admin_pb2.ReferrersResponse(digests=bytes(21))

    def ReplacePathInfo(self, *_: Any) -> Any:  # noqa: N802
        return path_info_to_message(path_info("other"))

    def AddSignatures(self, *_: Any) -> Any:  # noqa: N802
        return path_info_to_message(path_info("other"))

    def GetNarByHash(self, *_: Any) -> Any:  # noqa: N802
        return rpc_admin_pb2.NarEntry(nar_size=120)

    def GetNarByNode(self, *_: Any) -> Any:  # noqa: N802
        return rpc_admin_pb2.NarEntry(nar_size=120, nar_sha256=bytes(31))

    def Verify(self, *_: Any) -> Any:  # noqa: N802
        yield rpc_admin_pb2.VerifyResponse(advance=1)


def test_an_administration_that_answers_nonsense() -> None:
    with foreign_server(others=((ADMIN_SERVICE, _Lying()),)) as url:
        services = open_services(url)
        digest = store_path("a").digest
        calls: list[tuple[Callable[[], object], str]] = [
            (services.path_infos.list, "ListPathInfos: the answer is not in order"),
            (lambda: services.path_infos.referrers(digest), "has 21 bytes, must have a multiple of 20"),
            (lambda: services.path_infos.put(path_info("a"), replace=True), "was given"),
            (lambda: services.path_infos.add_signatures(digest, [signature("one")]), "asked for was"),
            (lambda: services.nar_nodes.node(bytes(32)), "GetNarByHash: .*no node"),
            (lambda: services.nar_nodes.nar(NODES[0]), "has 31 bytes, must have 32"),
        ]
        for call, match in calls:
            with pytest.raises(Corrupt, match=match) as error:
                call()
            assert url in str(error.value)
        with pytest.raises(Unavailable, match="Verify: the server ended before it was done"):
            verify_store(services)
        services.close()


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    url = f"grpc+unix://{tmp_path}/s"
    services = open_services(url)
    calls: list[Callable[[], object]] = [
        lambda: services.path_infos.get(bytes(20)),
        lambda: services.path_infos.put(path_info("p")),
        services.path_infos.list,
        lambda: list(services.path_infos),
        lambda: services.nar_nodes.nar(NODES[0]),
        lambda: services.nar_calculation.calculate_nar(NODES[0]),
        lambda: collect_stats(services),
        lambda: verify_store(services),
    ]
    for call in calls:
        with pytest.raises(Unavailable) as error:
            call()
        assert url in str(error.value)
    services.close()


def test_embedded_stores_do_without_grpc(tmp_path: Path) -> None:
    """It takes a tenth of a second to import."""
    code = f"""
import sys
from neve.store.check import verify_store
from neve.store.services import open_services
from neve.store.stats import collect_stats
services = open_services("local://{tmp_path}/store")
verify_store(services)
collect_stats(services)
services.close()
print("grpc" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "False\n"


# A whole store on a daemon of ours.


def test_the_server_computes_and_remembers(tree: Tree, tmp_path: Path) -> None:
    blobs = CountingBlobs(MemoryBlobService())
    theirs = Services(blobs, MemoryDirectoryService(), MemoryPathInfoService(), MemoryNarNodes())
    with running_daemon(theirs, folder=tmp_path) as daemon:
        services = open_services(daemon.url)
        given = put_tree(theirs, tree)
        assert given.nar is not None
        blobs.read_digests.clear()
        expected = Nar(given.nar.size, given.nar.sha256)
        assert services.nar_calculation.calculate_nar(tree[0]) == expected
        assert len(blobs.read_digests) == 1
        assert theirs.nar_nodes.nar(tree[0]) == expected
        assert services.nar_calculation.calculate_nar(tree[0]) == expected
        assert len(blobs.read_digests) == 1
        with pytest.raises(NotFound):
            services.nar_calculation.calculate_nar(FileNode(bytes(32), 5))
        services.close()


def test_what_lacks_its_narinfo_gets_it_on_the_way(tmp_path: Path) -> None:
    """Of the server, if that can tell."""
    with running_daemon("memory://", folder=tmp_path) as daemon:
        services = daemon.services
        node = FileNode(services.blobs.put_many([b"contents"])[0], 8)
        client = PATH_INFO_SERVICES.open(daemon.url)
        known = client.put(path_info("known"))
        itself, unknown = store_path("itself"), store_path("unknown")

        def bare(*references: StorePath, node: Node = node) -> PathInfo:
            return PathInfo(itself, node, tuple(path.digest for path in references))

        as_it_is = (bare(unknown), bare(node=FileNode(bytes(32), 1)), bare(known.store_path, unknown))
        for given in as_it_is:
            assert client.put(given) == given == services.path_infos.get(given.digest)
            services.path_infos.delete_many([given.digest])
        given = bare(known.store_path, itself)
        nar = services.renderer.hash(node)
        filled = NarDetails(size=nar.size, sha256=nar.sha256, reference_names=(known.store_path, itself))
        assert client.put(given) == replace(given, nar=filled) == services.path_infos.get(given.digest)
        assert client.put(given) == replace(given, nar=filled)
        client.close()
    with foreign_server() as url:
        client = PATH_INFO_SERVICES.open(url)
        assert client.put(bare()) == bare()
        client.close()


def test_services_that_are_not_all_on_one_server(tmp_path: Path) -> None:
    with (
        running_daemon("memory://", folder=tmp_path) as daemon,
        running_daemon("memory://", folder=tmp_path) as other,
    ):
        for parts in (
            {"blob_service": other.url},
            {"directory_service": "memory://"},
            {"path_info_service": other.url},
        ):
            services = open_services(daemon.url, **parts)
            assert services.remote is None
            assert isinstance(services.nar_calculation, RenderingNarCalculation)
            assert isinstance(services.nar_nodes, GrpcNarNodes)
            services.close()
        # The same server by another address.
        services = open_services(daemon.url, blob_service=f"{daemon.url}?timeout=7")
        assert services.remote is not None
        services.close()


def test_addresses_are_read_before_anything_is_reached(tmp_path: Path) -> None:
    for url in ("grpc+unix://host/x", "grpc+http://", "grpc+unix:///s?flavor=x", "grpc+http://h:1/path"):
        with pytest.raises(InvalidRequest, match="address"):
            PATH_INFO_SERVICES.open(url)


def test_stats_and_verification_are_the_servers(tree: Tree, tmp_path: Path) -> None:
    with running_daemon(f"local://{tmp_path / 'store'}", folder=tmp_path) as daemon:
        assert daemon.admin_url is not None
        given = put_tree(daemon.services, tree)
        services = open_services(daemon.admin_url)
        assert collect_stats(services) == collect_stats(daemon.services)
        assert collect_stats(services).store_paths == 1
        told = _Told()
        report = verify_store(services, told, nar_hashes=True)
        assert report == verify_store(daemon.services, nar_hashes=True)
        assert report.summary.startswith("read ")
        assert told.total
        assert told.done == told.total - _framing(daemon)

        node = next(node for _, node in tree[2])
        assert isinstance(node, FileNode)
        damage_blob(daemon.services.blobs, node.digest)
        problems = verify_store(services).problems
        assert any(
            format_digest(node.digest) in line and given.store_path.absolute in line for line in problems
        )
        services.close()


def _framing(daemon: RunningDaemon) -> int:
    """Bytes of packs that are no frames of data."""
    from neve.packstore.check import pack_bytes, verify
    from neve.store.check import TABLES

    assert daemon.services.packs is not None
    report = verify(daemon.services.packs, TABLES)
    return pack_bytes(daemon.services.packs.path) - report.stored_bytes


class _Told:
    def __init__(self) -> None:
        self.total: int | None = None
        self.done = 0

    def start(self, total: int | None) -> None:
        self.total = total

    def advance(self, amount: int, current: str = "") -> None:
        self.done += amount


def test_without_the_permission(tree: Tree, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with running_daemon(f"local://{tmp_path / 'store'}", folder=tmp_path) as daemon:
        given = put_tree(daemon.services, tree)
        services = open_services(daemon.url)
        with pytest.raises(PermissionDenied, match="connect to one given with --admin-listen") as error:
            collect_stats(services)
        assert daemon.url in str(error.value)
        with caplog.at_level(logging.INFO, logger="neve"):
            assert verify_store(services).problems == []
        lines = [record.getMessage() for record in caplog.records if record.levelno == logging.INFO]
        assert len(lines) == 1
        assert daemon.url in lines[0]
        services.close()
    # Once more, since what a server has read it may still remember.
    with running_daemon(f"local://{tmp_path / 'store'}", folder=tmp_path) as daemon:
        services = open_services(daemon.url)
        node = next(node for _, node in tree[2])
        assert isinstance(node, FileNode)
        damage_blob(daemon.services.blobs, node.digest)
        problems = verify_store(services).problems
        assert len(problems) == 1
        assert format_digest(node.digest) in problems[0]
        assert given.store_path.absolute in problems[0]
        services.close()


def test_a_listing_does_not_wait_for_the_verification(tmp_path: Path) -> None:
    """A server ends streams that do not move; the verification of one store path can take hours."""
    theirs = open_services("memory://")
    node = FileNode(theirs.blobs.put_many([b"x"])[0], 1)
    # More together than the buffers on the way can hold.
    references = [store_path(f"{i}-{'x' * 200}") for i in range(500)]
    for i in range(120):
        info = path_info(f"p{i}", references=references)
        theirs.path_infos.put(replace(info, node=node))
    limits = Limits(stream_idle_seconds=3.0, min_stream_bytes=1 << 40)
    with running_daemon(theirs, folder=tmp_path, limits=limits) as daemon:
        services = open_services(daemon.url)
        real = services.blobs.missing
        waited: list[None] = []

        def slow(digests: Sequence[bytes]) -> list[bytes]:
            if len(waited) < 6:
                waited.append(None)
                time.sleep(0.75)
            return real(digests)

        services.blobs.missing = slow  # type: ignore[method-assign]
        assert verify_store(services).problems == []
        services.close()
