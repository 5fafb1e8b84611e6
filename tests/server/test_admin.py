"""AdminService with raw stubs: each method, who may call it, and how Verify tells what it finds."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from neve.castore.blobs.memory import MemoryBlobService
from neve.castore.digest import EMPTY_BLOB, b3_digest, format_digest
from neve.castore.directories.memory import MemoryDirectoryService
from neve.castore.directory import Directory
from neve.castore.node import DirectoryNode, FileNode, SymlinkNode
from neve.castore.wire import node_from_message, node_to_message
from neve.nix.store_path import StorePath
from neve.proto.neve.admin.protos import rpc_admin_pb2 as messages
from neve.proto.tvix.castore.protos import castore_pb2
from neve.rpc.methods import methods_of
from neve.server import admin
from neve.server.limits import Limits
from neve.store.nar_nodes import MemoryNarNodes, Nar
from neve.store.path_info import NarDetails, PathInfo
from neve.store.pathinfos.memory import MemoryPathInfoService
from neve.store.remote import ADMIN_SERVICE
from neve.store.services import Services, open_services
from neve.store.stats import collect_stats
from neve.store.wire import path_info_from_message, path_info_to_message
from neve.testing.pathinfos import path_info, signature, store_path
from neve.testing.servers import RunningDaemon, running_daemon
from tests.castore.damage import damage_blob

from .raw import soon, status, stub

Code = grpc.StatusCode

METHODS = {method.name: method for method in ADMIN_SERVICE.methods}

CHANGING = {
    "DeleteBlobs",
    "DeleteDirectories",
    "DeletePathInfos",
    "Freshen",
    "ReplacePathInfo",
    "AddSignatures",
    "PutNar",
    "Gc",
}


class Admin:
    """Calls of the administration, by name: the answer, or the list of answers of a stream."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel

    def __call__(self, name: str, request: Any) -> Any:
        answer = stub(self._channel, ADMIN_SERVICE, name)(request, timeout=60)
        return list(answer) if METHODS[name].server_streaming else answer

    def stream(self, name: str, request: Any) -> Any:
        return stub(self._channel, ADMIN_SERVICE, name)(request)


@pytest.fixture(params=["memory", "local"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return "memory://" if request.param == "memory" else f"local://{tmp_path / 'store'}"


@pytest.fixture
def daemon(url: str, tmp_path: Path) -> Iterator[RunningDaemon]:
    with running_daemon(url, folder=tmp_path) as daemon:
        yield daemon


@pytest.fixture
def call(daemon: RunningDaemon) -> Iterator[Admin]:
    with daemon.channel(admin=True) as channel:
        yield Admin(channel)


def request_of(name: str) -> Any:
    """The class of a method's request."""
    return methods_of(ADMIN_SERVICE)[name].request


# Who may.


def test_other_addresses_refuse_every_method(daemon: RunningDaemon) -> None:
    with daemon.channel() as channel:
        for name in METHODS:
            match = "not allowed on this address; connect to one given with --admin-listen"
            with status(Code.PERMISSION_DENIED, match):
                Admin(channel)(name, request_of(name)())


def test_what_changes_something_is_refused_by_a_server_that_only_reads(url: str, tmp_path: Path) -> None:
    with (
        running_daemon(url, folder=tmp_path, read_only=True) as daemon,
        daemon.channel(admin=True) as channel,
    ):
        call = Admin(channel)
        for name in CHANGING:
            with status(Code.PERMISSION_DENIED, "read-only"):
                call(name, request_of(name)())
        for name in ("ListBlobs", "ListDirectories", "ListPathInfos"):
            assert not call(name, messages.ListRequest()).ByteSize()
        with status(Code.NOT_FOUND, "not known"):
            call("GetNarByNode", node_to_message(b"", SymlinkNode(b"x")))
        assert call("Verify", messages.VerifyRequest())[-1].done


# Listing, deleting, keeping.


def digests_of(run: bytes, size: int = 32) -> list[bytes]:
    assert len(run) % size == 0
    return [run[start : start + size] for start in range(0, len(run), size)]


def listed(call: Admin, name: str, limit: int = 0) -> list[bytes]:
    """Everything, by pages of ``limit``."""
    found: list[bytes] = []
    while page := digests_of(
        call(name, messages.ListRequest(after=found[-1] if found else b"", limit=limit)).digests
    ):
        assert not limit or len(page) <= limit
        found += page
    return found


def test_blobs_and_directories(daemon: RunningDaemon, call: Admin) -> None:
    blobs = daemon.services.blobs.put_many([b"blob %d" % i for i in range(10)])
    directories = [
        daemon.services.directories.put(Directory({b"%d" % i: SymlinkNode(b"x")})) for i in range(10)
    ]
    for kind, digests in (("Blobs", blobs), ("Directories", directories)):
        assert listed(call, f"List{kind}") == sorted(digests)
        assert listed(call, f"List{kind}", 3) == sorted(digests)
        after = sorted(digests)[4]
        page = call(f"List{kind}", messages.ListRequest(after=after, limit=2))
        assert digests_of(page.digests) == sorted(digests)[5:7]
        gone = [digests[0], digests[0], b3_digest(b"absent"), digests[1]]
        assert call(f"Delete{kind}", messages.DeleteRequest(digests=b"".join(gone))).deleted == 2
        assert listed(call, f"List{kind}") == sorted(digests[2:])
        assert call(f"Delete{kind}", messages.DeleteRequest()).deleted == 0


def test_pages_are_bounded(daemon: RunningDaemon, call: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin, "MAX_PAGE", 3)
    blobs = sorted(daemon.services.blobs.put_many([b"blob %d" % i for i in range(8)]))
    for limit in (0, 4, 1 << 31):
        request = messages.ListRequest(limit=limit)
        assert digests_of(call("ListBlobs", request).digests) == blobs[:3]
    # Deleting goes on with the next portion.
    assert call("DeleteBlobs", messages.DeleteRequest(digests=b"".join(blobs))).deleted == 8


@pytest.mark.parametrize(
    ("name", "field", "size"),
    [
        ("DeleteBlobs", "digests", 32),
        ("DeleteDirectories", "digests", 32),
        ("DeletePathInfos", "digests", 20),
        ("Freshen", "blobs", 32),
        ("Freshen", "directories", 32),
    ],
)
def test_runs_of_digests_of_the_wrong_length(call: Admin, name: str, field: str, size: int) -> None:
    for length in (1, size - 1, size + 1, 3 * size + 1):
        match = f"{field} has {length} bytes, must have a multiple of {size}"
        with status(Code.INVALID_ARGUMENT, match):
            call(name, request_of(name)(**{field: bytes(length)}))


@pytest.mark.parametrize(
    ("name", "request_", "match"),
    [
        ("ListBlobs", messages.ListRequest(after=bytes(33)), "after has 33 bytes, digests have 32"),
        ("ListDirectories", messages.ListRequest(after=bytes(33)), "after has 33 bytes, digests have 32"),
        ("ListPathInfos", messages.ListRequest(after=bytes(21)), "after has 21 bytes, digests have 20"),
        ("Referrers", messages.ReferrersRequest(digest=bytes(19)), "has 19 bytes, must have 20"),
        ("AddSignatures", messages.AddSignaturesRequest(digest=bytes(32)), "has 32 bytes, must have 20"),
        ("GetNarByHash", messages.GetNarByHashRequest(sha256=bytes(31)), "has 31 bytes, must have 32"),
        ("GetNarByNode", castore_pb2.Node(), "no node"),
        ("PutNar", messages.NarEntry(nar_sha256=bytes(32)), "no node"),
        ("ReplacePathInfo", path_info_to_message(path_info("p")).__class__(), "no node"),
    ],
)
def test_malformed_requests(call: Admin, name: str, request_: Any, match: str) -> None:
    with status(Code.INVALID_ARGUMENT, match):
        call(name, request_)


def test_freshen_tells_what_is_missing(daemon: RunningDaemon, call: Admin) -> None:
    blobs = daemon.services.blobs.put_many([b"one", b"two"])
    directory = daemon.services.directories.put(Directory({b"x": SymlinkNode(b"x")}))
    absent = b3_digest(b"absent")
    request = messages.FreshenRequest(
        blobs=b"".join([absent, blobs[0], EMPTY_BLOB, absent, blobs[1]]),
        directories=b"".join([directory, absent]),
    )
    answer = call("Freshen", request)
    assert list(answer.missing_blobs) == [0, 3]
    assert list(answer.missing_directories) == [1]
    assert call("Freshen", messages.FreshenRequest()) == messages.FreshenResponse()


# Path infos.


def test_path_infos(daemon: RunningDaemon, call: Admin) -> None:
    infos = sorted((path_info(f"p{i}", references=[store_path("p0")]) for i in range(5)), key=_digest)
    for info in infos:
        daemon.services.path_infos.put(info)
    page = call("ListPathInfos", messages.ListRequest())
    assert [path_info_from_message(message) for message in page.path_infos] == infos
    page = call("ListPathInfos", messages.ListRequest(after=infos[1].digest, limit=2))
    assert [path_info_from_message(message) for message in page.path_infos] == infos[2:4]

    referrers = call("Referrers", messages.ReferrersRequest(digest=store_path("p0").digest))
    assert digests_of(referrers.digests, 20) == [info.digest for info in infos]

    gone = b"".join([infos[0].digest, store_path("absent").digest])
    assert call("DeletePathInfos", messages.DeleteRequest(digests=gone)).deleted == 1
    assert [info.digest for info in daemon.services.path_infos] == [info.digest for info in infos[1:]]


def _digest(info: PathInfo) -> bytes:
    return info.digest


def test_large_path_infos_come_in_smaller_pages(daemon: RunningDaemon, call: Admin) -> None:
    references = [StorePath(i.to_bytes(20, "big"), "a" * 200) for i in range(2000)]
    infos = sorted((path_info(f"p{i}", references=references) for i in range(5)), key=_digest)
    for info in infos:
        daemon.services.path_infos.put(info)
    found: list[bytes] = []
    pages = 0
    while page := call("ListPathInfos", messages.ListRequest(after=found[-1] if found else b"")).path_infos:
        pages += 1
        found += [path_info_from_message(message).digest for message in page]
    assert found == [info.digest for info in infos]
    assert pages > 1


def test_replacing_and_signing(daemon: RunningDaemon, call: Admin) -> None:
    old, new = path_info("p"), path_info("p", contents="other")
    daemon.services.path_infos.put(old)
    answer = call("ReplacePathInfo", path_info_to_message(new))
    assert path_info_from_message(answer) == new == daemon.services.path_infos.get(new.digest)

    request = messages.AddSignaturesRequest(digest=new.digest)
    request.signatures.add(name="key", data=signature("key").data)
    answer = call("AddSignatures", request)
    signed = path_info("p", contents="other", signatures=["key"])
    assert path_info_from_message(answer) == signed == daemon.services.path_infos.get(new.digest)

    request.signatures[0].data = bytes(63)
    with status(Code.INVALID_ARGUMENT, "63"):
        call("AddSignatures", request)
    absent = messages.AddSignaturesRequest(digest=store_path("absent").digest)
    with status(Code.NOT_FOUND, "no path with the digest"):
        call("AddSignatures", absent)


# The map of NARs.


def test_the_map_of_nars(daemon: RunningDaemon, call: Admin) -> None:
    node, nar, file = FileNode(b3_digest(b"x"), 1), Nar(120, bytes(range(32))), bytes([7]) * 32
    for name, request in (
        ("GetNarByHash", messages.GetNarByHashRequest(sha256=nar.sha256)),
        ("GetNarByNode", node_to_message(b"", node)),
    ):
        with status(Code.NOT_FOUND, "known"):
            call(name, request)
    entry = messages.NarEntry(
        node=node_to_message(b"any name", node), nar_size=nar.size, nar_sha256=nar.sha256, file_sha256=file
    )
    call("PutNar", entry)
    assert daemon.services.nar_nodes.nar(node) == nar
    assert daemon.services.nar_nodes.node(file) == (node, 120)
    for sha256 in (nar.sha256, file):
        found = call("GetNarByHash", messages.GetNarByHashRequest(sha256=sha256))
        assert node_from_message(found.node) == (b"", node)
        assert found.nar_size == 120
    found = call("GetNarByNode", node_to_message(b"another", node))
    assert Nar(found.nar_size, found.nar_sha256) == nar


# The whole store.


def stored_path(services: Services, name: str, contents: bytes) -> tuple[PathInfo, FileNode]:
    """A store path with a folder with a file."""
    file = FileNode(services.blobs.put_many([contents])[0], len(contents))
    directory = Directory({b"file": file})
    node = DirectoryNode(services.directories.put(directory), directory.size())
    nar = services.renderer.hash(node)
    return services.path_infos.put(
        PathInfo(store_path(name), node, (), NarDetails(size=nar.size, sha256=nar.sha256))
    ), file


def test_stats(tmp_path: Path) -> None:
    with (
        running_daemon(f"local://{tmp_path / 'store'}", folder=tmp_path) as daemon,
        daemon.channel(admin=True) as channel,
    ):
        stored_path(daemon.services, "p", b"contents" * 100)
        answer = Admin(channel)("Stats", messages.StatsRequest())
        expected = collect_stats(daemon.services)
        assert {name: getattr(answer, name) for name in vars(expected)} == vars(expected)
        assert {field.name for field in answer.DESCRIPTOR.fields} == set(vars(expected))
        assert expected.blobs == 1


def test_what_cannot_be_counted(tmp_path: Path) -> None:
    with running_daemon("memory://", folder=tmp_path) as daemon, daemon.channel(admin=True) as channel:
        call = Admin(channel)
        with status(Code.UNIMPLEMENTED, "only an embedded store"):
            call("Stats", messages.StatsRequest())


def test_a_store_without_damage(daemon: RunningDaemon, call: Admin) -> None:
    stored_path(daemon.services, "p", b"contents" * 100)
    *progress, last = call("Verify", messages.VerifyRequest(nar_hashes=True))
    assert last.done
    assert last.summary.startswith("read ")
    assert not any(message.problems for message in (*progress, last))
    if daemon.services.packs is not None:
        assert max(message.total for message in progress) > 0
    assert sum(message.advance for message in progress) > 0
    assert store_path("p").base_name in {message.current for message in progress}


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    with (
        running_daemon(f"local://{tmp_path / 'store'}", folder=tmp_path) as daemon,
        daemon.channel(admin=True) as channel,
    ):
        path, file = stored_path(daemon.services, "p", b"contents" * 100)
        damage_blob(daemon.services.blobs, file.digest)
        answers = Admin(channel)("Verify", messages.VerifyRequest())
        problems = [problem for message in answers for problem in message.problems]
        assert any(
            format_digest(file.digest) in problem and path.store_path.absolute in problem
            for problem in problems
        )
        assert answers[-1].done


def test_many_problems_come_in_several_messages(tmp_path: Path) -> None:
    services = open_services("memory://")
    for i in range(1200):
        services.path_infos.put(path_info(f"p{i}"))
    with running_daemon(services, folder=tmp_path) as daemon, daemon.channel(admin=True) as channel:
        answers = Admin(channel)("Verify", messages.VerifyRequest())
    problems = [problem for message in answers for problem in message.problems]
    assert len(problems) == 1200
    assert all("is missing; breaks /nix/store/" in problem for problem in problems)
    assert max(len(message.problems) for message in answers) < 1000


class _EndlessBlobs(MemoryBlobService):
    """Reading never ends."""

    def stream(self, digest: bytes, size: int = 1) -> Iterator[bytes]:
        while True:
            yield b"some more"


def _endless_services() -> Services:
    services = Services(_EndlessBlobs(), MemoryDirectoryService(), MemoryPathInfoService(), MemoryNarNodes())
    stored_path(services, "p", b"contents")
    return services


def test_a_cancelled_verification_stops(tmp_path: Path) -> None:
    with (
        running_daemon(_endless_services(), folder=tmp_path) as daemon,
        daemon.channel(admin=True) as channel,
    ):
        call = Admin(channel)
        # More than there are turns: some of them have not begun.
        streams = [call.stream("Verify", messages.VerifyRequest()) for _ in range(4)]
        for stream in streams:
            next(stream)  # Those that wait for their turn tell that the server is there, too.
        assert next(streams[0]).ByteSize() >= 0
        for stream in streams:
            stream.cancel()
        calls = daemon._daemon._calls
        assert soon(lambda: calls.active == 0)
        assert not call("ListBlobs", messages.ListRequest(after=b"\xff" * 32)).digests


def test_a_long_verification_is_no_idle_stream(tmp_path: Path) -> None:
    limits = Limits(stream_idle_seconds=0.3)
    with (
        running_daemon(_endless_services(), folder=tmp_path, limits=limits) as daemon,
        daemon.channel(admin=True) as channel,
    ):
        stream = Admin(channel).stream("Verify", messages.VerifyRequest())
        for _ in range(15):
            assert next(stream).advance > 0
        stream.cancel()


def test_a_verification_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise AssertionError("broken")

    monkeypatch.setattr("neve.server.admin.verify_store", broken)
    with running_daemon("memory://", folder=tmp_path) as daemon, daemon.channel(admin=True) as channel:
        call = Admin(channel)
        with status(Code.INTERNAL, re.escape("AssertionError: broken")):
            call("Verify", messages.VerifyRequest())
