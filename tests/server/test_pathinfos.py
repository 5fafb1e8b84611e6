"""PathInfoService with raw stubs: what each call answers, and what it refuses with which status."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest

from neve.castore.blobs.memory import MemoryBlobService
from neve.castore.digest import EMPTY_BLOB, Digest, b3_digest, format_digest
from neve.castore.directories.memory import MemoryDirectoryService
from neve.castore.directory import Directory
from neve.castore.node import DirectoryNode, FileNode, Node, SymlinkNode
from neve.castore.wire import node_to_message
from neve.errors import Conflict
from neve.packstore.frames import Record
from neve.proto.tvix.castore.protos import castore_pb2
from neve.proto.tvix.store.protos import pathinfo_pb2
from neve.proto.tvix.store.protos.rpc_pathinfo_pb2 import GetPathInfoRequest, ListPathInfoRequest
from neve.server.limits import Limits
from neve.store.nar_nodes import MemoryNarNodes
from neve.store.path_info import PathInfo
from neve.store.pathinfos.base import PathInfoService
from neve.store.pathinfos.local import PATH_INFOS
from neve.store.pathinfos.memory import MemoryPathInfoService
from neve.store.services import Services, open_services
from neve.store.wire import path_info_from_message, path_info_to_message
from neve.testing.pathinfos import path_info, store_path
from neve.testing.servers import RunningDaemon, running_daemon
from tests.castore.damage import damage_blob
from tests.store.helpers import CountingBlobs

from .foreign import PATH_INFOS as SERVICE
from .raw import soon, status, stub

Code = grpc.StatusCode


class Calls:
    """The four methods of a running daemon."""

    def __init__(self, channel: grpc.Channel, *, snix: bool) -> None:
        self.get = stub(channel, SERVICE, "Get", snix=snix)
        self.put = stub(channel, SERVICE, "Put", snix=snix)
        self.calculate_nar = stub(channel, SERVICE, "CalculateNAR", snix=snix)
        self.list = stub(channel, SERVICE, "List", snix=snix)


@pytest.fixture(params=["memory", "local"])
def daemon(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RunningDaemon]:
    url = "memory://" if request.param == "memory" else f"local://{tmp_path / 'store'}"
    with running_daemon(url, folder=tmp_path, admin=False) as daemon:
        yield daemon


@pytest.fixture(params=["tvix", "snix"])
def calls(request: pytest.FixtureRequest, daemon: RunningDaemon) -> Iterator[Calls]:
    with daemon.channel() as channel:
        yield Calls(channel, snix=request.param == "snix")


def serving(services: Services, folder: Path, **options: Any) -> Any:
    return running_daemon(services, folder=folder, admin=False, **options)


def memory_services(**parts: Any) -> Services:
    made = {
        "blobs": MemoryBlobService(),
        "directories": MemoryDirectoryService(),
        "path_infos": MemoryPathInfoService(),
        "nar_nodes": MemoryNarNodes(),
        **parts,
    }
    return Services(**made)


def test_put_get_and_list(daemon: RunningDaemon, calls: Calls) -> None:
    assert list(calls.list(ListPathInfoRequest())) == []
    given = path_info("p", references=[store_path("p"), store_path("a")], signatures=["one"])
    answer = calls.put(path_info_to_message(given))
    assert path_info_from_message(answer) == given
    assert daemon.services.path_infos.get(given.digest) == given
    assert calls.get(GetPathInfoRequest(by_output_hash=given.digest)) == answer
    # The answer may carry more signatures.
    answer = calls.put(path_info_to_message(path_info("p", signatures=["two"], references=[])))
    assert [signature.name for signature in answer.narinfo.signatures] == ["one", "two"]
    others = [path_info(f"p{i}") for i in range(600)]
    for other in others:
        daemon.services.path_infos.put(other)
    listed = [path_info_from_message(message) for message in calls.list(ListPathInfoRequest())]
    assert listed == list(daemon.services.path_infos)
    assert len(listed) == 601


@pytest.mark.parametrize("size", [0, 19, 21, 32])
def test_get_takes_twenty_bytes(calls: Calls, size: int) -> None:
    with status(Code.INVALID_ARGUMENT, f"has {size} bytes, must have 20"):
        calls.get(GetPathInfoRequest(by_output_hash=bytes(size)))


def test_get_of_what_is_not_there(calls: Calls) -> None:
    with status(Code.UNIMPLEMENTED, "by_what is missing"):
        calls.get(GetPathInfoRequest())
    absent = store_path("absent")
    with status(Code.NOT_FOUND, absent.base_name[:32]):
        calls.get(GetPathInfoRequest(by_output_hash=absent.digest))


def test_put_validates(calls: Calls) -> None:
    message = path_info_to_message(path_info("p", references=[store_path("a")]))
    cases: list[tuple[Callable[[Any], object], str]] = [
        (lambda m: m.ClearField("node"), "node"),
        (lambda m: setattr(m.node.file, "name", b"no-store-path"), "node.name"),
        (lambda m: setattr(m.node.file, "digest", bytes(31)), "has 31 bytes"),
        (lambda m: m.references.append(bytes(19)), r"references\[1\] has 19 bytes"),
        (lambda m: setattr(m.narinfo, "nar_sha256", b""), "nar_sha256 has 0 bytes"),
        (lambda m: m.narinfo.signatures.add(name="key", data=bytes(63)), r"signatures\[0\]"),
    ]
    for spoil, field in cases:
        spoiled = pathinfo_pb2.PathInfo.FromString(message.SerializeToString())
        spoil(spoiled)
        with status(Code.INVALID_ARGUMENT, field):
            calls.put(spoiled)
    assert list(calls.list(ListPathInfoRequest())) == []


def test_put_of_something_else_is_a_conflict(daemon: RunningDaemon, calls: Calls) -> None:
    given = daemon.services.path_infos.put(path_info("p"))
    with status(Code.ALREADY_EXISTS, given.store_path.base_name):
        calls.put(path_info_to_message(path_info("p", contents="other")))


def test_a_put_is_answered_when_it_is_durable(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    with running_daemon(f"local://{folder}", folder=tmp_path) as daemon, daemon.channel() as channel:
        Calls(channel, snix=False).put(path_info_to_message(path_info("p")))
        services = open_services(f"local://{folder}?mode=ro")
        assert services.path_infos.get(path_info("p").digest) == path_info("p")
        services.close()


def test_a_server_that_only_reads(tmp_path: Path) -> None:
    services = memory_services()
    stored = services.path_infos.put(path_info("p"))
    with serving(services, tmp_path, read_only=True) as daemon, daemon.channel() as channel:
        calls = Calls(channel, snix=False)
        with status(Code.PERMISSION_DENIED, "read-only"):
            calls.put(path_info_to_message(path_info("q")))
        assert path_info_from_message(calls.get(GetPathInfoRequest(by_output_hash=stored.digest))) == stored
        assert calls.calculate_nar(node_to_message(b"", SymlinkNode(b"x"))).nar_size > 0


def test_damage_is_data_loss(tmp_path: Path) -> None:
    services = open_services(f"local://{tmp_path / 'store'}")
    given = services.path_infos.put(path_info("p"))
    assert services.packs is not None
    services.packs.update(lambda t: t.put(PATH_INFOS, Record(1, given.digest, b"\x0a\x00")))
    with serving(services, tmp_path) as daemon, daemon.channel() as channel:
        calls = Calls(channel, snix=False)
        for call in (
            lambda: calls.get(GetPathInfoRequest(by_output_hash=given.digest)),
            lambda: calls.put(path_info_to_message(given)),
            lambda: list(calls.list(ListPathInfoRequest())),
        ):
            with status(Code.DATA_LOSS, given.store_path.base_name[:32]):
                call()
    services.close()


class _Endless(PathInfoService):
    """Lists path infos for as long as anyone takes them."""

    def __init__(self) -> None:
        self.made = 0
        self.is_closed = threading.Event()

    def get(self, digest: bytes) -> PathInfo | None:
        return None

    def put(self, path_info: PathInfo, *, replace: bool = False) -> PathInfo:
        raise Conflict("full")

    def __iter__(self) -> Iterator[PathInfo]:
        try:
            while True:
                self.made += 1
                yield path_info(f"p{self.made}")
        finally:
            self.is_closed.set()


def test_a_listing_is_made_as_it_is_taken(tmp_path: Path) -> None:
    endless = _Endless()
    with (
        serving(memory_services(path_infos=endless), tmp_path) as daemon,
        daemon.channel() as channel,
    ):
        stream = Calls(channel, snix=False).list(ListPathInfoRequest())
        taken = [path_info_from_message(next(stream)).store_path.name for _ in range(1000)]
        assert taken == [f"p{i}" for i in range(1, 1001)]
        # What waits in buffers on the way is less than a megabyte or two.
        assert endless.made < 50_000
        assert not endless.is_closed.is_set()
        stream.cancel()
        assert endless.is_closed.wait(20)


class _Unlistable(_Endless):
    def __iter__(self) -> Iterator[PathInfo]:
        return PathInfoService.__iter__(self)

    def list(self, after: bytes = b"", limit: int = 1000) -> Sequence[PathInfo]:
        return PathInfoService.list(self, after, limit)


def test_a_backend_that_cannot_list(tmp_path: Path) -> None:
    services = memory_services(path_infos=_Unlistable())
    with serving(services, tmp_path) as daemon, daemon.channel() as channel:
        calls = Calls(channel, snix=False)
        with status(Code.UNIMPLEMENTED, "cannot list path infos"):
            list(calls.list(ListPathInfoRequest()))


# CalculateNAR.


def stored_tree(services: Services) -> tuple[DirectoryNode, FileNode]:
    """A folder with a file, and the file."""
    contents = b"some contents" * 1000
    file = FileNode(services.blobs.put_many([contents])[0], len(contents))
    entries: dict[bytes, Node] = {b"file": file, b"link": SymlinkNode(b"file")}
    directory = Directory(entries)
    return DirectoryNode(services.directories.put(directory), directory.size()), file


@pytest.mark.parametrize("name", [b"", b"any name", store_path("p").base_name.encode()])
def test_nars(daemon: RunningDaemon, calls: Calls, name: bytes) -> None:
    for node in (*stored_tree(daemon.services), SymlinkNode(b"\xff")):
        answer = calls.calculate_nar(node_to_message(name, node))
        expected = daemon.services.renderer.hash(node)
        assert (answer.nar_size, answer.nar_sha256) == expected
        assert daemon.services.nar_nodes.nar(node) == expected


def test_nodes_that_are_none(calls: Calls) -> None:
    with status(Code.INVALID_ARGUMENT, "no node"):
        calls.calculate_nar(castore_pb2.Node())
    for name in (b"..", b"a/b", b"\0"):
        message = node_to_message(b"", SymlinkNode(b"x"))
        message.symlink.name = name
        with status(Code.INVALID_ARGUMENT, "name"):
            calls.calculate_nar(message)
    message = node_to_message(b"", FileNode(bytes(32), 1))
    message.file.digest = bytes(31)
    with status(Code.INVALID_ARGUMENT, "has 31 bytes, must have 32"):
        calls.calculate_nar(message)


def test_nars_of_what_is_not_there(daemon: RunningDaemon, calls: Calls) -> None:
    absent = b3_digest(b"absent")
    holder = Directory({b"file": FileNode(absent, 6)})
    digest = daemon.services.directories.put(holder)
    for node in (FileNode(absent, 6), DirectoryNode(absent, 0), DirectoryNode(digest, 1)):
        with status(Code.NOT_FOUND, r"is not in the store"):
            calls.calculate_nar(node_to_message(b"", node))


@pytest.mark.parametrize("backend", ["memory", "local"])
def test_nars_of_nodes_that_are_not_those_of_the_store(backend: str, tmp_path: Path) -> None:
    """Whoever asks is wrong, not the store."""
    url = "memory://" if backend == "memory" else f"local://{tmp_path / 'store'}"
    with running_daemon(url, folder=tmp_path) as daemon, daemon.channel() as channel:
        services, calls = daemon.services, Calls(channel, snix=False)
        folder, small = stored_tree(services)
        contents = os.urandom(2_000_000)
        with services.blobs.open_write() as writer:
            writer.write(contents)
            large = FileNode(writer.close(), len(contents))
        for node in (folder, small, large, FileNode(EMPTY_BLOB, 0)):
            for size in {node.size - 1, node.size + 1, 10, 3_000_000} - {-1}:
                wrong = node_to_message(b"", node._replace(size=size))
                with status(Code.INVALID_ARGUMENT, f"the node says size {size}, b3:.* has {node.size}"):
                    calls.calculate_nar(wrong)
            assert calls.calculate_nar(node_to_message(b"", node)).nar_size > 0
        # By the other rule of counting.
        assert calls.calculate_nar(node_to_message(b"", folder._replace(size=4))).nar_size > 0


def test_nars_of_damaged_blobs(tmp_path: Path) -> None:
    services = open_services(f"local://{tmp_path / 'store'}")
    _, file = stored_tree(services)
    damage_blob(services.blobs, file.digest)
    with serving(services, tmp_path) as daemon, daemon.channel() as channel:
        calls = Calls(channel, snix=False)
        with status(Code.DATA_LOSS, re.escape(format_digest(file.digest))):
            calls.calculate_nar(node_to_message(b"", file))
    services.close()


def test_a_nar_is_rendered_once(tmp_path: Path) -> None:
    blobs = CountingBlobs(MemoryBlobService())
    services = memory_services(blobs=blobs)
    folder, file = stored_tree(services)
    with serving(services, tmp_path) as daemon, daemon.channel() as channel:
        calls = Calls(channel, snix=False)
        first = calls.calculate_nar(node_to_message(b"", folder))
        assert blobs.read_digests == [file.digest]
        assert calls.calculate_nar(node_to_message(b"named", folder)) == first
        assert blobs.read_digests == [file.digest]


def test_a_nar_that_cannot_be_remembered(tmp_path: Path) -> None:
    services = open_services(f"local://{tmp_path / 'store'}")
    folder, _ = stored_tree(services)
    expected = services.renderer.hash(folder)
    services.close()
    with running_daemon(f"local://{tmp_path / 'store'}?mode=ro", folder=tmp_path) as daemon:
        with daemon.channel() as channel:
            answer = Calls(channel, snix=False).calculate_nar(node_to_message(b"", folder))
        assert (answer.nar_size, answer.nar_sha256) == expected
        assert daemon.services.nar_nodes.nar(folder) is None


def test_a_server_in_front_of_another_lets_that_one_compute(tmp_path: Path) -> None:
    blobs = CountingBlobs(MemoryBlobService())
    services = memory_services(blobs=blobs)
    folder, file = stored_tree(services)
    with (
        serving(services, tmp_path) as behind,
        running_daemon(behind.url, folder=tmp_path) as daemon,
        daemon.channel() as channel,
    ):
        calls = Calls(channel, snix=False)
        answer = calls.calculate_nar(node_to_message(b"", folder))
        assert blobs.read_digests == [file.digest]
        assert (answer.nar_size, answer.nar_sha256) == services.nar_nodes.nar(folder)
        with status(Code.NOT_FOUND, "is not in the store"):
            calls.calculate_nar(node_to_message(b"", FileNode(bytes(32), 1)))
        given = path_info("p")
        assert path_info_from_message(calls.put(path_info_to_message(given))) == given
        assert list(services.path_infos) == [given]
        assert [path_info_from_message(m) for m in calls.list(ListPathInfoRequest())] == [given]


def test_those_who_wait_for_the_same_nar_share_it(tmp_path: Path) -> None:
    blobs = CountingBlobs(MemoryBlobService())
    services = memory_services(blobs=blobs)
    folder, _ = stored_tree(services)
    with serving(services, tmp_path) as daemon, daemon.channel() as channel:
        calls = Calls(channel, snix=False)
        futures = [calls.calculate_nar.future(node_to_message(b"", folder)) for _ in range(32)]
        assert len({future.result().nar_sha256 for future in futures}) == 1
    assert 1 <= len(blobs.read_digests) <= 2


def doubling(services: Services, depth: int) -> DirectoryNode:
    """A folder of two folders of two folders ...: a tree of 2**depth, stored in ``depth`` Directories."""
    node: Node = SymlinkNode(b"x")
    for _ in range(depth):
        directory = Directory({b"a": node, b"b": node})
        node = DirectoryNode(services.directories.put(directory), directory.size())
    assert isinstance(node, DirectoryNode)
    return node


def test_a_nar_over_the_limit(tmp_path: Path) -> None:
    services = memory_services()
    with serving(services, tmp_path) as daemon, daemon.channel() as channel:
        calls = Calls(channel, snix=False)
        with status(Code.RESOURCE_EXHAUSTED, r"over the limit of 1099511627776 \(max_nar_bytes\)"):
            calls.calculate_nar(node_to_message(b"", doubling(services, 62)))
    size = services.renderer.size(SymlinkNode(b"x"))
    for limit, refused in ((size, False), (size - 1, True)):
        services = memory_services()
        options = Limits(max_nar_bytes=limit)
        with serving(services, tmp_path, limits=options) as daemon, daemon.channel() as channel:
            future = Calls(channel, snix=False).calculate_nar.future(node_to_message(b"", SymlinkNode(b"x")))
            assert (future.code() is Code.RESOURCE_EXHAUSTED) is refused


class _SlowDirectories(MemoryDirectoryService):
    """Gives out Directories when it is told to, and counts who asks."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = threading.Event()
        self.asked: list[Digest] = []

    def get(self, digest: Digest) -> Directory | None:
        self.asked.append(digest)
        assert self.go_on.wait(60)
        return super().get(digest)


def test_long_measurements_hold_up_nobody_and_stop(tmp_path: Path) -> None:
    directories = _SlowDirectories()
    services = memory_services(directories=directories)
    stored = services.path_infos.put(path_info("p"))
    trees = [Directory({b"%d" % number: SymlinkNode(b"x")}) for number in range(20)]
    for tree in trees:
        directories.put(tree)
    with serving(services, tmp_path) as daemon, daemon.channel() as channel:
        calls = Calls(channel, snix=False)
        nodes = [node_to_message(b"", DirectoryNode(tree.digest, 1)) for tree in trees]
        futures = [calls.calculate_nar.future(node) for node in nodes]
        active = daemon._daemon._calls
        assert soon(lambda: active.active == 20 and len(directories.asked) == 2)
        calls.get(GetPathInfoRequest(by_output_hash=stored.digest), timeout=20)
        calls.calculate_nar(node_to_message(b"", SymlinkNode(b"x")), timeout=20)
        for future in futures:
            future.cancel()
        # Only those that a thread works for are still there.
        assert soon(lambda: active.active == 2)
        directories.go_on.set()
        assert soon(lambda: active.active == 0)
        assert len(directories.asked) == 2
        assert calls.calculate_nar(nodes[0], timeout=20).nar_size > 0


def test_long_renderings_hold_up_nobody_and_stop(tmp_path: Path) -> None:
    services = memory_services()
    stored = services.path_infos.put(path_info("p"))
    endless = doubling(services, 28)  # Some ten gigabytes.
    with serving(services, tmp_path) as daemon, daemon.channel() as channel:
        calls = Calls(channel, snix=False)
        futures = [calls.calculate_nar.future(node_to_message(b"", endless)) for _ in range(20)]
        active = daemon._daemon._calls
        assert soon(lambda: active.active == 20)
        for _ in range(20):
            calls.get(GetPathInfoRequest(by_output_hash=stored.digest), timeout=20)
        # The cached answers do not wait for a turn either.
        services.nar_nodes.put(SymlinkNode(b"known"), services.renderer.hash(SymlinkNode(b"known")))
        calls.calculate_nar(node_to_message(b"", SymlinkNode(b"known")), timeout=20)
        for future in futures:
            assert not future.done()
            future.cancel()
        assert soon(lambda: active.active == 0)
        assert calls.calculate_nar(node_to_message(b"", SymlinkNode(b"y")), timeout=20).nar_size > 0
