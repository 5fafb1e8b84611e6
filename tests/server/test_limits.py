"""What a client may cost: whoever is over a limit is told which one, whoever does not move is ended."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from neve.castore.blobs.urls import BLOB_SERVICES
from neve.castore.digest import b3_digest
from neve.castore.directories.urls import DIRECTORY_SERVICES
from neve.castore.directory import Directory
from neve.castore.node import DirectoryNode, FileNode
from neve.errors import LimitExceeded
from neve.proto.neve.castore.protos import rpc_batch_pb2 as batch
from neve.proto.tvix.castore.protos import rpc_blobstore_pb2, rpc_directory_pb2
from neve.rpc.status import ERROR_TRAILER
from neve.server import calls, messages

from .peer import BACKENDS, Peer, serving
from .raw import soon, status

Code = grpc.StatusCode
Chunk = rpc_blobstore_pb2.BlobChunk

FILE = FileNode(b3_digest(b"x"), 1, False)
BLOB = os.urandom(100_000)

WATCHING = [
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
]
LIST = reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString()
"""For the health service, this asks after the whole."""
SERVING = health_pb2.HealthCheckResponse(status="SERVING").SerializeToString()

both_backends = pytest.mark.parametrize("backend", BACKENDS)


def directory(entries: int) -> Directory:
    return Directory([(b"%06d" % number, FILE) for number in range(entries)])


def chained(depth: int) -> list[Directory]:
    closure = [directory(1)]
    while len(closure) < depth:
        closure.append(Directory([(b"d", DirectoryNode(closure[-1].digest, closure[-1].size()))]))
    return closure


def bundle(*blobs: bytes) -> batch.Bundle:
    digests = b"".join(map(b3_digest, blobs))
    return batch.Bundle(digests=digests, sizes=[len(blob) for blob in blobs], data=b"".join(blobs))


# Sizes.


@both_backends
def test_longest_blob(backend: str, tmp_path: Path) -> None:
    limit = len(BLOB)
    named = f"over the limit of {limit} bytes .max_blob_bytes."
    parts = [batch.Part(writer=1, data=BLOB), batch.Part(writer=1, data=b"x")]
    chunks = [batch.Part(writer=1, chunks=bundle(BLOB)), batch.Part(writer=1, chunks=bundle(b"x"))]
    with serving(backend, tmp_path, new=[b3_digest(BLOB)], max_blob_bytes=limit) as peer:
        with status(Code.RESOURCE_EXHAUSTED, named):
            peer.put(BLOB + b"x")
        with status(Code.RESOURCE_EXHAUSTED, named):
            peer.blobs("Put")(iter([Chunk(data=BLOB), Chunk(data=b"x")]))
        for request in (
            batch.PutRequest(blobs=[bundle(BLOB + b"x")], commit=True),
            batch.PutRequest(parts=parts),
            batch.PutRequest(parts=chunks),
        ):
            with status(Code.RESOURCE_EXHAUSTED, named):
                list(peer.batches("Put")(iter([request])))
        assert peer.stored() == set()
        assert peer.put(BLOB) == b3_digest(BLOB)


def test_an_endless_blob(tmp_path: Path) -> None:
    sent = [0]

    def endless() -> Iterator[Any]:
        while True:
            sent[0] += 1
            yield Chunk(data=BLOB)

    refused = status(Code.RESOURCE_EXHAUSTED, "max_blob_bytes")
    with serving("local", tmp_path, max_blob_bytes=5_000_000) as peer, refused:
        peer.blobs("Put")(endless())
    assert sent[0] < 1000


@both_backends
def test_longest_directory(backend: str, tmp_path: Path) -> None:
    fits, too_long = directory(100), directory(101)
    limit = len(fits.encode())
    named = f"{len(too_long.encode())} bytes is over the limit of {limit} bytes .max_directory_bytes."
    with serving(backend, tmp_path, new=[fits.digest], max_directory_bytes=limit) as peer:
        put = peer.directories("Put", request_as_bytes=True)
        with status(Code.RESOURCE_EXHAUSTED, named):
            put(iter([fits.encode(), too_long.encode()]))
        with status(Code.RESOURCE_EXHAUSTED, named):
            peer.batches("PutClosure")(iter([batch.Directories(directories=[too_long.encode()])]))
        assert put(iter([fits.encode()])).root_digest == fits.digest


@both_backends
def test_most_directories(backend: str, tmp_path: Path) -> None:
    fits, too_many = chained(10), chained(11)
    named = "over the limit of 10 Directories .max_directories."
    with serving(backend, tmp_path, new=[one.digest for one in fits], max_directories=10) as peer:
        put = peer.directories("Put", request_as_bytes=True)
        with status(Code.RESOURCE_EXHAUSTED, named):
            put(one.encode() for one in too_many)
        with status(Code.RESOURCE_EXHAUSTED, named):
            encoded = [one.encode() for one in too_many]
            peer.batches("PutClosure")(iter([batch.Directories(directories=encoded)]))
        assert put(one.encode() for one in fits).root_digest == fits[-1].digest


def test_an_endless_closure(tmp_path: Path) -> None:
    """Of Directories that each are right."""
    sent = [0]

    def endless() -> Iterator[bytes]:
        while True:
            sent[0] += 1
            yield Directory([(b"%d" % sent[0], FILE)]).encode()

    refused = status(Code.RESOURCE_EXHAUSTED, "max_directories")
    with serving("local", tmp_path, max_directories=2000) as peer, refused:
        peer.directories("Put", request_as_bytes=True)(endless())
    assert sent[0] < 20_000


@both_backends
def test_longest_message(backend: str, tmp_path: Path) -> None:
    limit = 200_000
    big = directory(10_000)
    with serving(backend, tmp_path, new=None, max_message_bytes=limit) as peer:
        named = rf"larger than max \(\d+ vs\. {limit}\)"
        too_long: list[Callable[[], object]] = [
            lambda: peer.blobs("Put")(iter([Chunk(data=bytes(limit))])),
            lambda: peer.directories("Put", request_as_bytes=True)(iter([big.encode()])),
            lambda: peer.batches("Missing")(batch.MissingRequest(digests=bytes(limit))),
            lambda: list(peer.batches("Put")(iter([batch.PutRequest(keep=bytes(limit))]))),
        ]
        for call in too_long:
            with status(Code.RESOURCE_EXHAUSTED, named):
                call()
        assert peer.stored() == set()
        # What is stored, and does not go into a message.
        peer.daemon.services.directories.put(big)
        request = rpc_directory_pb2.GetDirectoryRequest(digest=big.digest)
        with status(Code.RESOURCE_EXHAUSTED, "larger than max"):
            list(peer.directories("Get")(request))
        client = DIRECTORY_SERVICES.open(peer.daemon.url)
        with pytest.raises(LimitExceeded, match=r"grpc\+unix:///.*larger than max"):
            client.get(big.digest)
        client.close()


def test_a_long_directory_behind_others(tmp_path: Path) -> None:
    """Each goes into a message, but not all of them into one."""
    first, long = directory(20_000), directory(30_000)
    root = Directory(
        [(b"a", DirectoryNode(first.digest, 20_000)), (b"b", DirectoryNode(long.digest, 30_000))]
    )
    closure = [first, long, root]
    with serving("local", tmp_path, new=None, max_message_bytes=len(long.encode()) + 1000) as peer:
        client = DIRECTORY_SERVICES.open(peer.daemon.url)
        putter = client.put_multiple()
        for one in closure:
            putter.put(one)
        assert putter.close() == root.digest
        assert list(client.get_recursive(root.digest)) == [root, first, long]
        assert client.get_many([one.digest for one in closure]) == {one.digest: one for one in closure}
        request = rpc_directory_pb2.GetDirectoryRequest(digest=root.digest, recursive=True)
        assert len(list(peer.directories("Get")(request))) == 3
        client.close()


@both_backends
def test_messages_of_very_many_parts(backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only one part makes a long message; many of next to nothing cost a multiple of what was sent."""
    monkeypatch.setattr(messages, "MAX_PARTS_BYTES", 1000)
    long, parts = directory(100), b"\x0a\x00" * 501
    named = "1002 bytes in several parts, the limit for such is 1000"
    with serving(backend, tmp_path, new=None) as peer:
        for put in (
            peer.blobs("Put", request_as_bytes=True),
            peer.batches("PutClosure", request_as_bytes=True),
        ):
            for refused in (parts, b"\x08\xea\x07" + parts[3:], b"\x0a" + b"\xff" * 1001):
                with status(Code.RESOURCE_EXHAUSTED, named):
                    put(iter([refused]))
            # As long, and no message at all.
            with status(Code.INVALID_ARGUMENT, "."):
                put(iter([b"\xff" * 1000]))
        assert peer.stored() == set()
        assert peer.put(BLOB) == b3_digest(BLOB)
        client = DIRECTORY_SERVICES.open(peer.daemon.url)
        putter = client.put_multiple()
        putter.put(long)
        assert putter.close() == long.digest
        client.close()


def test_a_client_is_told_which_limit(tmp_path: Path) -> None:
    large = os.urandom(1_500_000)

    def told(name: str) -> Any:
        return pytest.raises(LimitExceeded, match=rf"grpc\+unix:///.*{name}")

    with serving("local", tmp_path, max_blob_bytes=1_000_000, max_directories=2) as peer:
        blobs, directories = BLOB_SERVICES.open(peer.daemon.url), DIRECTORY_SERVICES.open(peer.daemon.url)
        writer = blobs.open_write()
        writer.write(large)
        with told("max_blob_bytes"):
            writer.close()
        with blobs.batch() as one:
            one.put_many([large])
            with told("max_blob_bytes"):
                one.commit()
        putter = directories.put_multiple()
        for each in chained(3):
            putter.put(each)
        with told("max_directories"):
            putter.close()
        blobs.close()
        directories.close()


# Calls.


class Open:
    """Uploads that wait for their next message."""

    def __init__(self, peer: Peer, count: int) -> None:
        self._end = threading.Event()
        self._count = count
        self.puts = [peer.blobs("Put").future(self._requests()) for _ in range(count)]

    def _requests(self) -> Iterator[Any]:
        yield Chunk(data=BLOB)
        self._end.wait(60)

    def end(self) -> set[bytes]:
        self._end.set()
        return {put.result(timeout=60).digest for put in self.puts}


def test_most_calls(tmp_path: Path) -> None:
    named = "5 calls are open, no more are taken .max_concurrent_calls."
    with serving("local", tmp_path, new=[b3_digest(BLOB)], max_concurrent_calls=5) as peer:
        opened = Open(peer, 5)
        assert soon(lambda: peer.calls.active == 5)
        for _ in range(10):
            for refused in (peer.answers, lambda: peer.put(b"x")):
                with status(Code.RESOURCE_EXHAUSTED, named):
                    refused()
        client = BLOB_SERVICES.open(peer.daemon.url)
        with pytest.raises(LimitExceeded, match="max_concurrent_calls"):
            client.has(b3_digest(BLOB))
        client.close()
        assert opened.end() == {b3_digest(BLOB)}
        assert soon(peer.is_idle)
        assert peer.answers()


@pytest.mark.parametrize("path", WATCHING)
def test_streams_that_only_watch(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They have a limit of their own, and take nobody else's place."""
    monkeypatch.setattr(calls, "MAX_ASIDE", 5)
    with serving("local", tmp_path, max_concurrent_calls=2) as peer, waiting_after(LIST) as requests:
        watch: Any = peer.channel.stream_stream(path)
        opened = [watch(requests()) for _ in range(5)]
        for one in opened:
            next(one)
        with status(Code.RESOURCE_EXHAUSTED, f"5 calls of {path} are open, no more are taken"):
            next(watch(requests()))
        assert peer.answers()
        check: Any = peer.channel.unary_unary("/grpc.health.v1.Health/Check")
        assert check(b"", timeout=60) == SERVING
        for one in opened:
            one.cancel()


def test_open_streams_hold_up_nobody(tmp_path: Path) -> None:
    """Hundreds of them cost neither threads nor answers to others."""
    with serving("local", tmp_path, new=[b3_digest(BLOB)]) as peer:
        opened = Open(peer, 200)
        assert soon(lambda: peer.calls.active == 200)
        workers = [t for t in threading.enumerate() if t.name.startswith(("neve-work", "neve-ingest"))]
        assert len(workers) <= 16
        assert peer.answers()
        with status(Code.NOT_FOUND, "."):
            peer.blobs("Stat")(rpc_blobstore_pb2.StatBlobRequest(digest=bytes(32)), timeout=60)
        assert opened.end() == {b3_digest(BLOB)}


# Streams that do not move.

SLOW: dict[str, Any] = {"stream_idle_seconds": 0.3, "min_stream_bytes": 1000}
MOVING: dict[str, Any] = {"stream_idle_seconds": 1.0, "min_stream_bytes": 1000}
"""For those who are to come through, also while the machine is busy with other things."""

TOO_SLOW = "less than 1000 bytes moved on this stream in 0.3 s .stream_idle_seconds, min_stream_bytes."


@contextlib.contextmanager
def trickle(made: Callable[[], Any], seconds: float) -> Iterator[Iterator[Any]]:
    """Messages that come one after the other, with pauses, until the block is left."""
    left = threading.Event()

    def requests() -> Iterator[Any]:
        while not left.is_set():
            yield made()
            left.wait(seconds)

    try:
        yield requests()
    finally:
        left.set()


@contextlib.contextmanager
def waiting_after(*messages: Any) -> Iterator[Callable[[], Iterator[Any]]]:
    """Makes streams of these messages that do not end before the block is left."""
    left = threading.Event()

    def requests() -> Iterator[Any]:
        yield from messages
        left.wait(60)

    try:
        yield requests
    finally:
        left.set()


TRICKLES: dict[str, tuple[str, str, Callable[[], Any]]] = {
    "Blob.Put": ("blobs", "Put", lambda: Chunk(data=b"x")),
    "Blob.Put of nothing": ("blobs", "Put", Chunk),
    "Directory.Put": ("directories", "Put", lambda: directory(1).encode()),
    "Directory.Put of nothing": ("directories", "Put", bytes),
    "batches": ("batches", "Put", lambda: batch.PutRequest(parts=[batch.Part(writer=1, data=b"x")])),
    "batches of nothing": ("batches", "Put", batch.PutRequest),
    "PutClosure": ("batches", "PutClosure", lambda: batch.Directories(directories=[directory(1).encode()])),
    "PutClosure of nothing": ("batches", "PutClosure", batch.Directories),
}


def ask(call: Any, requests: Iterator[Any]) -> None:
    answer = call(requests, timeout=60)
    if hasattr(answer, "__next__"):
        next(answer)


@pytest.mark.parametrize("seconds", [0.1, 60])
@pytest.mark.parametrize("trickled", TRICKLES.values(), ids=list(TRICKLES))
def test_uploads_that_do_not_move(
    trickled: tuple[str, str, Callable[[], Any]], seconds: float, tmp_path: Path
) -> None:
    """A few bytes now and then, or none after the first."""
    service, method, messages = trickled
    with serving("local", tmp_path, **SLOW) as peer, trickle(messages, seconds) as requests:
        call = getattr(peer, service)(method, request_as_bytes=service == "directories")
        with pytest.raises(grpc.RpcError, match=TOO_SLOW) as failed:
            ask(call, requests)
        failure: Any = failed.value
        assert failure.code() is Code.RESOURCE_EXHAUSTED
        assert dict(failure.trailing_metadata())[ERROR_TRAILER] == "LimitExceeded"


@pytest.mark.parametrize("path", WATCHING)
def test_watching_what_does_not_change(path: str, tmp_path: Path) -> None:
    with serving("local", tmp_path, **SLOW) as peer, waiting_after(LIST) as requests:
        watch: Any = peer.channel.stream_stream(path)
        answers = watch(requests(), timeout=60)
        next(answers)
        with status(Code.RESOURCE_EXHAUSTED, TOO_SLOW):
            next(answers)


@pytest.mark.parametrize(
    "path",
    [
        "/tvix.castore.v1.BlobService/Stat",
        "/snix.castore.v1.BlobService/Read",
        "/tvix.store.v1.PathInfoService/CalculateNAR",
        "/neve.castore.v1.BatchService/Missing",
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/Watch",
    ],
)
def test_a_request_that_never_comes(path: str, tmp_path: Path) -> None:
    """Of those methods that take a single one."""
    with serving("local", tmp_path, **SLOW) as peer, waiting_after() as requests:
        call: Any = peer.channel.stream_stream(path)
        with status(Code.RESOURCE_EXHAUSTED, "no request came in 0.3 s .stream_idle_seconds."):
            next(call(requests(), timeout=60))
        with status(Code.INVALID_ARGUMENT, "the call ended without a request"):
            next(call(iter(()), timeout=60))


def test_batches_that_commit_now_and_then(tmp_path: Path) -> None:
    """Answers do not make up for what is not sent."""
    refused = status(Code.RESOURCE_EXHAUSTED, TOO_SLOW)
    commits = trickle(lambda: batch.PutRequest(commit=True), 0.1)
    with serving("local", tmp_path, **SLOW) as peer, commits as requests, refused:
        for _ in peer.batches("Put")(requests, timeout=60):
            pass


def test_a_slow_upload_that_moves(tmp_path: Path) -> None:
    """Slower than the limit at some time, but not in the whole of its time."""
    with serving("local", tmp_path, new=[b3_digest(bytes(10_000))], **MOVING) as peer:

        def requests() -> Iterator[Any]:
            for _ in range(10):
                yield Chunk(data=bytes(1000))
                time.sleep(0.2)

        assert peer.blobs("Put")(requests()).digest == b3_digest(bytes(10_000))


@both_backends
def test_a_reader_that_does_not_read(backend: str, tmp_path: Path) -> None:
    blob = os.urandom(20_000_000)
    with serving(backend, tmp_path, new=None, **SLOW) as peer:
        digest = peer.daemon.services.blobs.open_write()
        digest.write(blob)
        stored = digest.close()
        reads = [peer.blobs("Read")(rpc_blobstore_pb2.ReadBlobRequest(digest=stored)) for _ in range(4)]
        assert soon(lambda: peer.calls.active == 4)
        assert soon(peer.is_idle)
        assert peer.answers()
        for call in reads:
            received = 0
            with status(Code.RESOURCE_EXHAUSTED, TOO_SLOW):
                for message in call:
                    received += len(message.data)
            assert received < len(blob)


def test_a_reader_that_reads_slowly(tmp_path: Path) -> None:
    with serving("local", tmp_path, new=None, **MOVING) as peer:
        blob = os.urandom(12_000_000)
        digest = peer.put(blob)
        call = peer.blobs("Read")(rpc_blobstore_pb2.ReadBlobRequest(digest=digest))
        read = b""
        for message in call:
            read += message.data
            time.sleep(0.2)
        assert read == blob


def test_a_server_that_is_slow_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it is at work, its client need not be quick."""
    with serving("local", tmp_path, new=[b3_digest(b"x")], **SLOW) as peer:
        blobs = peer.daemon.services.blobs
        open_write = blobs.open_write

        def slowly() -> Any:
            time.sleep(1)
            return open_write()

        monkeypatch.setattr(blobs, "open_write", slowly)
        assert peer.put(b"x") == b3_digest(b"x")
