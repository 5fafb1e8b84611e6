"""What each call answers to what it is asked: the statuses of BlobService, DirectoryService and the batches,
with raw stubs, over both backends. (PathInfoService has a file of its own.)"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from neve import errors
from neve.castore.blobs.memory import MemoryBlobService
from neve.castore.digest import EMPTY_BLOB, b3_digest, format_digest
from neve.castore.directories.memory import MemoryDirectoryService
from neve.castore.directory import Directory
from neve.castore.node import DirectoryNode, FileNode, SymlinkNode
from neve.errors import NeveError
from neve.proto.neve.castore.protos import rpc_batch_pb2 as batch
from neve.proto.tvix.castore.protos import castore_pb2, rpc_blobstore_pb2, rpc_directory_pb2
from neve.proto.tvix.store.protos import rpc_pathinfo_pb2
from neve.rpc.status import ERROR_TRAILER
from neve.store.nar_nodes import MemoryNarNodes
from neve.store.pathinfos.memory import MemoryPathInfoService
from neve.store.services import Services
from neve.testing.servers import running_daemon
from tests.castore.damage import damage_blob, damage_directory

from .peer import BACKENDS, Peer, serving
from .raw import status

Code = grpc.StatusCode
Chunk = rpc_blobstore_pb2.BlobChunk
Stat = rpc_blobstore_pb2.StatBlobRequest
Read = rpc_blobstore_pb2.ReadBlobRequest
Get = rpc_directory_pb2.GetDirectoryRequest

SMALL = b"small"
LARGE = bytes(range(256)) * 8192  # 2 MiB: chunks
ABSENT = b3_digest(b"not there")


@pytest.fixture(params=BACKENDS)
def peer(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Peer]:
    with serving(request.param, tmp_path, new=None) as peer:
        yield peer


# BlobService.


def test_stat(peer: Peer) -> None:
    stat = peer.blobs("Stat")
    small, large = peer.put(SMALL), peer.put(LARGE)
    for digest in (small, large, EMPTY_BLOB):
        for send_bao in (False, True):
            answer = stat(Stat(digest=digest, send_bao=send_bao))
            assert not answer.chunks
            assert answer.bao == b""
    assert not stat(Stat(digest=EMPTY_BLOB, send_chunks=True)).chunks
    assert not stat(Stat(digest=small, send_chunks=True)).chunks
    read = peer.blobs("Read")
    chunks = stat(Stat(digest=large, send_chunks=True)).chunks
    contents = [b"".join(m.data for m in read(Read(digest=chunk.digest))) for chunk in chunks]
    assert [len(content) for content in contents] == [chunk.size for chunk in chunks]
    assert b"".join(contents) in (LARGE, b"")
    for chunk in chunks:
        assert not stat(Stat(digest=chunk.digest)).chunks
        assert not stat(Stat(digest=chunk.digest, send_chunks=True)).chunks
    for send_chunks in (False, True):
        with status(Code.NOT_FOUND, re.escape(format_digest(ABSENT))):
            stat(Stat(digest=ABSENT, send_chunks=send_chunks))


def test_read(peer: Peer) -> None:
    read = peer.blobs("Read")
    for blob in (SMALL, LARGE):
        messages = list(read(Read(digest=peer.put(blob))))
        assert b"".join(message.data for message in messages) == blob
        assert max(len(message.data) for message in messages) <= 1 << 20
    assert b"".join(message.data for message in read(Read(digest=EMPTY_BLOB))) == b""
    with status(Code.NOT_FOUND, re.escape(format_digest(ABSENT))):
        next(read(Read(digest=ABSENT)))


@pytest.mark.parametrize(
    "pieces",
    [
        [],
        [b""],
        [b"", b"", b""],
        [SMALL],
        [b"", SMALL, b""],
        [b"%d" % i for i in range(5000)],
        [LARGE],
        [LARGE] * 3,
    ],
)
def test_put(peer: Peer, pieces: list[bytes]) -> None:
    blob = b"".join(pieces)
    answer = peer.blobs("Put")(Chunk(data=piece) for piece in pieces)
    assert answer.digest == b3_digest(blob)
    assert peer.daemon.services.blobs.read(answer.digest) == blob


# DirectoryService.

LEAF = Directory([(b"file", FileNode(b3_digest(SMALL), len(SMALL), True))])
ROOT = Directory([(b"leaf", DirectoryNode(LEAF.digest, LEAF.size())), (b"link", SymlinkNode(b"leaf/file"))])


def put_directories(peer: Peer, *directories: Directory) -> bytes:
    requests = (directory.encode() for directory in directories)
    digest: bytes = peer.directories("Put", request_as_bytes=True)(requests).root_digest
    return digest


def test_directory_get(peer: Peer) -> None:
    get = peer.directories("Get")
    assert put_directories(peer, LEAF, ROOT) == ROOT.digest
    assert [d.SerializeToString() for d in get(Get(digest=LEAF.digest))] == [LEAF.encode()]
    assert [d.SerializeToString() for d in get(Get(digest=ROOT.digest))] == [ROOT.encode()]
    closure = [d.SerializeToString() for d in get(Get(digest=ROOT.digest, recursive=True))]
    assert closure == [ROOT.encode(), LEAF.encode()]
    with status(Code.NOT_FOUND, re.escape(format_digest(ABSENT))):
        next(get(Get(digest=ABSENT)))
    assert list(get(Get(digest=ABSENT, recursive=True))) == []
    for recursive in (False, True):
        with status(Code.INVALID_ARGUMENT, "by_what"):
            next(get(Get(recursive=recursive)))


def test_a_child_that_is_missing(peer: Peer) -> None:
    """An error after what could be sent."""
    put_directories(peer, LEAF, ROOT)
    peer.daemon.services.directories.delete_many([LEAF.digest])
    for call in (
        peer.directories("Get")(Get(digest=ROOT.digest, recursive=True)),
        peer.batches("GetClosure")(batch.GetClosureRequest(digest=ROOT.digest)),
    ):
        assert next(call)
        with status(Code.NOT_FOUND, re.escape(format_digest(LEAF.digest))):
            next(call)


def test_directory_put(peer: Peer) -> None:
    assert put_directories(peer, LEAF, LEAF, ROOT) == ROOT.digest
    assert peer.stored() == {LEAF.digest, ROOT.digest}
    assert put_directories(peer, Directory()) == EMPTY_BLOB


# Digests of the wrong length, in every field there is.

BAD = [b"", b"x", bytes(20), bytes(31), bytes(33), bytes(64), b"x" * 100_000]


@pytest.mark.parametrize("digest", BAD, ids=len)
def test_digests_of_the_wrong_length(peer: Peer, digest: bytes) -> None:
    named = f"{len(digest)} bytes, must have 32"
    questions: list[Any] = [
        lambda: peer.blobs("Stat")(Stat(digest=digest)),
        lambda: peer.blobs("Stat")(Stat(digest=digest, send_chunks=True)),
        lambda: next(peer.blobs("Read")(Read(digest=digest))),
        lambda: next(peer.directories("Get")(Get(digest=digest))),
        lambda: next(peer.directories("Get")(Get(digest=digest, recursive=True))),
        lambda: next(peer.batches("GetClosure")(batch.GetClosureRequest(digest=digest))),
        lambda: next(peer.batches("Put")(iter([batch.PutRequest(parts=[batch.Part(end=digest)])]))),
        lambda: peer.path_infos("CalculateNAR")(
            castore_pb2.Node(file=castore_pb2.FileNode(digest=digest, size=1))
        ),
        lambda: peer.path_infos("CalculateNAR")(
            castore_pb2.Node(directory=castore_pb2.DirectoryNode(digest=digest, size=1))
        ),
    ]
    for ask in questions:
        with status(Code.INVALID_ARGUMENT, named):
            ask()
    file = castore_pb2.Directory(files=[castore_pb2.FileNode(name=b"f", digest=digest)])
    child = castore_pb2.Directory(directories=[castore_pb2.DirectoryNode(name=b"d", digest=digest)])
    for message in (file, child):
        with status(Code.INVALID_ARGUMENT, f"{len(digest)} bytes"):
            peer.directories("Put")(iter([message]))
        with status(Code.INVALID_ARGUMENT, f"{len(digest)} bytes"):
            encoded = message.SerializeToString()
            peer.batches("PutClosure")(iter([batch.Directories(directories=[encoded])]))
    assert peer.stored() == set()


@pytest.mark.parametrize("run", [b"x", bytes(31), bytes(33), bytes(65)], ids=len)
def test_runs_of_digests_of_the_wrong_length(peer: Peer, run: bytes) -> None:
    named = f"{len(run)} bytes, no multiple of 32"
    bundle = batch.Bundle(digests=run, sizes=[1])
    parts = [batch.Part(known=run), batch.Part(chunks=bundle)]
    puts = [batch.PutRequest(keep=run), batch.PutRequest(blobs=[bundle])]
    puts += [batch.PutRequest(parts=[part]) for part in parts]
    for put in puts:
        with status(Code.INVALID_ARGUMENT, named):
            next(peer.batches("Put")(iter([put])))
    with status(Code.INVALID_ARGUMENT, named):
        peer.batches("Missing")(batch.MissingRequest(digests=run))
    with status(Code.INVALID_ARGUMENT, named):
        next(peer.batches("Read")(batch.ReadRequest(digests=run)))
    with status(Code.INVALID_ARGUMENT, named):
        next(peer.batches("GetDirectories")(batch.GetDirectoriesRequest(digests=run)))


@pytest.mark.parametrize("length", [0, 19, 21, 32])
def test_path_digests_of_the_wrong_length(peer: Peer, length: int) -> None:
    request = rpc_pathinfo_pb2.GetPathInfoRequest(by_output_hash=bytes(length))
    with status(Code.INVALID_ARGUMENT, f"{length} bytes, must have 20"):
        peer.path_infos("Get")(request)


# What is no message at all.

METHODS = [
    ("blobs", "Stat"),
    ("blobs", "Read"),
    ("blobs", "Put"),
    ("directories", "Get"),
    ("directories", "Put"),
    ("path_infos", "Get"),
    ("path_infos", "Put"),
    ("path_infos", "CalculateNAR"),
    ("batches", "Missing"),
    ("batches", "Read"),
    ("batches", "Put"),
    ("batches", "GetDirectories"),
    ("batches", "GetClosure"),
    ("batches", "PutClosure"),
]
STREAMED = {"Put", "PutClosure"}
GARBAGE = [b"\xff", b"\x0a\xff\xff\xff\xff\x0f", b"\x00", b"GET / HTTP/1.1\r\n\r\n", bytes(range(256))]


@pytest.mark.parametrize(("service", "method"), METHODS)
def test_garbage(peer: Peer, service: str, method: str) -> None:
    call = getattr(peer, service)(method, request_as_bytes=True)
    streamed = method in STREAMED and service != "path_infos"
    for garbage in GARBAGE:
        with status(Code.INVALID_ARGUMENT, "."):
            answer = call(iter([garbage]) if streamed else garbage)
            if hasattr(answer, "__next__"):
                next(answer)
    assert peer.stored() == set()


# Stored data that is found damaged.


def test_damage(tmp_path: Path) -> None:
    with serving("local", tmp_path, new=None) as peer:
        services = peer.daemon.services
        blob, large = peer.put(SMALL * 100), peer.put(LARGE + b"x")
        # Apart, so that they do not share a frame, of which just one record is damaged.
        put_directories(peer, LEAF)
        put_directories(peer, LEAF, ROOT)
        chunk = peer.blobs("Stat")(Stat(digest=large, send_chunks=True)).chunks[1].digest
        for digest in (blob, chunk):
            damage_blob(services.blobs, digest)
        damage_directory(services.directories, LEAF.digest)
        read, get = peer.blobs("Read"), peer.directories("Get")
        for asked, damaged in ((blob, blob), (chunk, chunk), (large, chunk)):
            with status(Code.DATA_LOSS, re.escape(format_digest(damaged))):
                list(read(Read(digest=asked)))
        for digest, recursive in ((LEAF.digest, False), (LEAF.digest, True), (ROOT.digest, True)):
            with status(Code.DATA_LOSS, re.escape(format_digest(LEAF.digest))):
                list(get(Get(digest=digest, recursive=recursive)))
        with status(Code.DATA_LOSS, re.escape(format_digest(LEAF.digest))):
            list(peer.batches("GetClosure")(batch.GetClosureRequest(digest=ROOT.digest)))
        with status(Code.DATA_LOSS, re.escape(format_digest(LEAF.digest))):
            request = batch.GetDirectoriesRequest(digests=ROOT.digest + LEAF.digest)
            list(peer.batches("GetDirectories")(request))
        # Nothing else suffers.
        assert [d.SerializeToString() for d in get(Get(digest=ROOT.digest))] == [ROOT.encode()]


# Backends that fail.


class FailingBlobs(MemoryBlobService):
    """Raises what it is told to."""

    error: Exception = NeveError()

    def _fail(self, *_: Any, **__: Any) -> Any:
        raise self.error

    has = missing = open_read = open_write = chunks = stream = batch = read_bundles = _fail


class FailingDirectories(MemoryDirectoryService):
    error: Exception = NeveError()

    def _fail(self, *_: Any, **__: Any) -> Any:
        raise self.error

    get = get_many = get_recursive = get_recursive_encoded = put_multiple = put = _fail


FAILURES: list[tuple[Exception, grpc.StatusCode]] = [
    (errors.Unavailable("the reason"), Code.UNAVAILABLE),
    (errors.DiskFull("the reason"), Code.RESOURCE_EXHAUSTED),
    (errors.LimitExceeded("the reason"), Code.RESOURCE_EXHAUSTED),
    (errors.Corrupt("the reason"), Code.DATA_LOSS),
    (errors.PermissionDenied("the reason"), Code.PERMISSION_DENIED),
    (errors.NotFound("the reason"), Code.NOT_FOUND),
    (errors.Unsupported("the reason"), Code.UNIMPLEMENTED),
    (errors.Conflict("the reason"), Code.ALREADY_EXISTS),
    (OSError("the reason"), Code.INTERNAL),
    (RuntimeError("the reason"), Code.INTERNAL),
]


@pytest.mark.parametrize(("error", "code"), FAILURES, ids=[type(error).__name__ for error, _ in FAILURES])
def test_backends_that_fail(error: Exception, code: grpc.StatusCode, tmp_path: Path) -> None:
    blobs, directories = FailingBlobs(), FailingDirectories()
    blobs.error = directories.error = error
    services = Services(blobs, directories, MemoryPathInfoService(), MemoryNarNodes())
    with running_daemon(services, folder=tmp_path, admin=False) as daemon, daemon.channel() as channel:
        peer = Peer(daemon, channel)
        calls: list[Any] = [
            lambda: peer.blobs("Stat")(Stat(digest=ABSENT)),
            lambda: peer.blobs("Stat")(Stat(digest=ABSENT, send_chunks=True)),
            lambda: next(peer.blobs("Read")(Read(digest=ABSENT))),
            lambda: peer.blobs("Put")(iter([Chunk(data=SMALL)])),
            lambda: peer.blobs("Put")(iter([Chunk(data=LARGE)] * 5)),
            lambda: next(peer.directories("Get")(Get(digest=ABSENT))),
            lambda: next(peer.directories("Get")(Get(digest=ABSENT, recursive=True))),
            lambda: put_directories(peer, LEAF),
            lambda: peer.batches("Missing")(batch.MissingRequest(digests=ABSENT)),
            lambda: next(peer.batches("Read")(batch.ReadRequest(digests=ABSENT))),
            lambda: next(peer.batches("Put")(iter([batch.PutRequest(keep=ABSENT)]))),
            lambda: next(peer.batches("GetDirectories")(batch.GetDirectoriesRequest(digests=ABSENT))),
            lambda: next(peer.batches("GetClosure")(batch.GetClosureRequest(digest=ABSENT))),
            lambda: peer.batches("PutClosure")(iter([batch.Directories(directories=[LEAF.encode()])])),
        ]
        for call in calls:
            with pytest.raises(grpc.RpcError, match="the reason") as failed:
                call()
            failure: Any = failed.value
            assert failure.code() is code
            trailers = dict(failure.trailing_metadata())
            kind = type(error).__name__ if isinstance(error, NeveError) else None
            assert trailers.get(ERROR_TRAILER) == kind


@pytest.mark.parametrize("backend", BACKENDS)
def test_read_only(backend: str, tmp_path: Path) -> None:
    url = "memory://" if backend == "memory" else f"local://{tmp_path / 'store'}"
    with (
        running_daemon(url, folder=tmp_path, admin=False, read_only=True) as daemon,
        daemon.channel() as channel,
    ):
        peer = Peer(daemon, channel)
        for call in (
            lambda: peer.put(SMALL),
            lambda: put_directories(peer, LEAF),
            lambda: next(peer.batches("Put")(iter([batch.PutRequest(commit=True)]))),
            lambda: peer.batches("PutClosure")(iter([batch.Directories(directories=[LEAF.encode()])])),
        ):
            with status(Code.PERMISSION_DENIED, "this server is read-only"):
                call()
        assert peer.answers()
        assert peer.stored() == set()


def test_services_of_the_first_generation(peer: Peer) -> None:
    for path in ("/tvix.store.v1.BlobService/Stat", "/tvix.store.v1.DirectoryService/Get", "/x/y", "/"):
        call: Any = peer.channel.unary_unary(path)
        with status(Code.UNIMPLEMENTED, "."):
            call(b"")
