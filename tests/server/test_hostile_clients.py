"""Clients that break off, send nonsense or lie: the right status, nothing stored, nothing left behind."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest

from neve.castore.digest import EMPTY_BLOB, b3_digest
from neve.castore.directory import Directory
from neve.castore.node import MAX_SIZE, DirectoryNode, FileNode, SymlinkNode
from neve.proto.neve.castore.protos import rpc_batch_pb2 as batch
from neve.proto.tvix.castore.protos import castore_pb2, rpc_blobstore_pb2

from .misbehaving import proxy
from .peer import BACKENDS, Peer, serving
from .raw import soon, status

Code = grpc.StatusCode
Chunk = rpc_blobstore_pb2.BlobChunk

SMALL = b"small"
PIECE = os.urandom(700_000)
FILE = FileNode(b3_digest(b"x"), 1, False)
LEAF = Directory([(b"file", FILE)])
OTHER = Directory([(b"other", FILE)])
ROOT = Directory([(b"a", DirectoryNode(LEAF.digest, LEAF.size())), (b"b", SymlinkNode(b"x"))])

both_backends = pytest.mark.parametrize("backend", BACKENDS)


# Uploads that are cut. What has come could be a whole blob, or a whole closure.


def some_blob() -> Iterator[Any]:
    for _ in range(4):
        yield Chunk(data=PIECE)


def some_directories() -> Iterator[Any]:
    for number in range(600):
        yield Directory([(b"%d" % number, FILE)]).encode()


def some_batches() -> Iterator[Any]:
    for number in range(4):
        data = PIECE[number : number + 100_000]
        yield batch.PutRequest(blobs=[batch.Bundle(digests=b3_digest(data), sizes=[len(data)], data=data)])
        yield batch.PutRequest(parts=[batch.Part(writer=number, data=PIECE)])


def some_closures() -> Iterator[Any]:
    yield batch.Directories(directories=[LEAF.encode(), ROOT.encode()])


UPLOADS: dict[str, tuple[str, str, Callable[[], Iterator[Any]]]] = {
    "Blob.Put": ("blobs", "Put", some_blob),
    "Directory.Put": ("directories", "Put", some_directories),
    "a Directory": ("directories", "Put", lambda: iter([LEAF.encode()])),
    "batches": ("batches", "Put", some_batches),
    "PutClosure": ("batches", "PutClosure", some_closures),
}
WHOLE = {b3_digest(PIECE[number : number + 100_000]) for number in range(4)}
"""What comes whole in the batches. A backend without batches of its own may make them visible at once."""


def left_by(backend: str, upload: tuple[str, str, Callable[[], Iterator[Any]]]) -> set[bytes]:
    """What may be stored of an upload that breaks off."""
    return WHOLE if backend == "memory" and upload is UPLOADS["batches"] else set()


every_upload = pytest.mark.parametrize("upload", UPLOADS.values(), ids=list(UPLOADS))


class Begun:
    """An upload of which everything has been sent but the end."""

    def __init__(
        self, peer: Peer, channel: grpc.Channel, upload: tuple[str, str, Callable[[], Iterator[Any]]]
    ):
        service, method, messages = upload
        self._messages = messages
        self._sent, self._end = threading.Event(), threading.Event()
        one = Peer(peer.daemon, channel)
        call = getattr(one, service)(method, request_as_bytes=service == "directories")
        self.call = (
            call(self._requests())
            if method == "Put" and service == "batches"
            else call.future(self._requests())
        )
        assert self._sent.wait(60)
        assert soon(lambda: peer.calls.active >= 1)

    def _requests(self) -> Iterator[Any]:
        yield from self._messages()
        self._sent.set()
        self._end.wait(60)

    def end(self) -> None:
        self._end.set()


def cancel(begun: Begun, _: grpc.Channel) -> None:
    begun.call.cancel()


def close(_: Begun, channel: grpc.Channel) -> None:
    channel.close()


@both_backends
@every_upload
@pytest.mark.parametrize("breaking", [cancel, close])
def test_uploads_that_break_off(
    backend: str,
    upload: tuple[str, str, Callable[[], Iterator[Any]]],
    breaking: Callable[[Begun, grpc.Channel], None],
    tmp_path: Path,
) -> None:
    """Many times: whether the end of the stream or its cancellation is seen first is a matter of chance."""
    with serving(backend, tmp_path, new=left_by(backend, upload)) as peer:
        for _ in range(6):
            with grpc.insecure_channel(peer.daemon.target) as channel:
                begun = Begun(peer, channel, upload)
                breaking(begun, channel)
                begun.end()
        assert soon(peer.is_idle)


@both_backends
@every_upload
def test_connections_that_are_reset(
    backend: str, upload: tuple[str, str, Callable[[], Iterator[Any]]], tmp_path: Path
) -> None:
    with serving(backend, tmp_path, new=left_by(backend, upload)) as peer:
        for _ in range(5):
            with proxy(peer.daemon.target) as way, grpc.insecure_channel(way.target) as channel:
                begun = Begun(peer, channel, upload)
                way.reset()
                begun.end()
        assert soon(peer.is_idle)


@both_backends
@every_upload
def test_deadlines_that_pass(
    backend: str, upload: tuple[str, str, Callable[[], Iterator[Any]]], tmp_path: Path
) -> None:
    service, method, messages = upload
    ended = threading.Event()

    def requests() -> Iterator[Any]:
        yield from messages()
        ended.wait(60)

    with serving(backend, tmp_path, new=left_by(backend, upload)) as peer:
        for _ in range(3):
            ended.clear()
            call = getattr(peer, service)(method, request_as_bytes=service == "directories")
            with status(Code.DEADLINE_EXCEEDED, "."):
                answer = call(requests(), timeout=0.1)
                next(answer)
            ended.set()
        assert soon(peer.is_idle)


KILLED = """
    import os, signal, sys, threading, grpc
    from neve.castore.blobs.grpc import BLOBS
    from neve.proto.tvix.castore.protos import rpc_blobstore_pb2
    from tests.server.raw import stub

    def requests():
        for _ in range(4):
            yield rpc_blobstore_pb2.BlobChunk(data=bytes(700_000))
        os.write(1, b"sent\\n")
        threading.Event().wait()

    with grpc.insecure_channel(sys.argv[1]) as channel:
        put = stub(channel, BLOBS, "Put")
        calls = [put.future(requests()) for _ in range(8)]
        threading.Event().wait()
"""


@both_backends
def test_a_client_that_is_killed(backend: str, tmp_path: Path) -> None:
    with serving(backend, tmp_path) as peer:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-c", textwrap.dedent(KILLED), peer.daemon.target]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as client:
            assert client.stdout is not None
            try:
                for _ in range(8):
                    assert client.stdout.readline() == b"sent\n"
                assert soon(lambda: peer.calls.active == 8)
            finally:
                client.kill()
        assert soon(peer.is_idle)


@both_backends
def test_readers_that_break_off(backend: str, tmp_path: Path) -> None:
    with serving(backend, tmp_path, new=None) as peer:
        blob = peer.put(PIECE * 12)
        for _ in range(10):
            call = peer.blobs("Read")(rpc_blobstore_pb2.ReadBlobRequest(digest=blob))
            assert next(call).data
            call.cancel()
        assert soon(peer.is_idle)


# Closures that are none.


def chained(depth: int) -> list[Directory]:
    closure = [Directory()]
    for _ in range(depth):
        closure.append(Directory([(b"d", DirectoryNode(closure[-1].digest, closure[-1].size()))]))
    return closure


def named(kind: str, name: bytes, **more: Any) -> bytes:
    message = castore_pb2.Directory()
    getattr(message, kind).add(name=name, **more)
    return message.SerializeToString()


def file(name: bytes, **more: Any) -> bytes:
    return named("files", name, **{"digest": FILE.digest, "size": 1, **more})


def child(directory: Directory, size: int) -> bytes:
    return named("directories", b"d", digest=directory.digest, size=size)


UNKNOWN_FIELD = LEAF.encode() + b"\x22\x00"
DEFAULT_WRITTEN = LEAF.encode()[:-2] + b"\x18\x01\x20\x00"

REFUSED: dict[str, tuple[list[bytes], str]] = {
    "nothing": ([], "the stream has no Directory"),
    "root first": ([ROOT.encode(), LEAF.encode()], "has not come before it"),
    "a child missing": ([ROOT.encode()], "has not come before it"),
    "unconnected": ([OTHER.encode(), LEAF.encode(), ROOT.encode()], "is not reachable from the root"),
    "root not last": ([LEAF.encode(), ROOT.encode(), OTHER.encode()], "is not reachable from the root"),
    "a child last": ([LEAF.encode(), ROOT.encode(), LEAF.encode()], "is not reachable from the root"),
    "wrong size": ([LEAF.encode(), child(LEAF, 3)], "states size 3"),
    "size 2**64 - 1": ([LEAF.encode(), child(LEAF, MAX_SIZE)], f"states size {MAX_SIZE}|64 bits"),
    "sizes over 64 bits": (
        [child(LEAF, MAX_SIZE) + named("directories", b"e", digest=LEAF.digest, size=5)],
        "64 bit",
    ),
    "an unknown field": ([UNKNOWN_FIELD], "."),
    "default value written": ([DEFAULT_WRITTEN], "."),
    "fields out of order": ([file(b"b") + file(b"a")], "."),
    "one name twice": ([file(b"a") + file(b"a")], "."),
    "one name in two lists": ([file(b"a") + named("symlinks", b"a", target=b"x")], "."),
    "an empty name": ([file(b"")], "."),
    "a dot": ([file(b".")], "."),
    "two dots": ([file(b"..")], "."),
    "a slash": ([file(b"a/b")], "."),
    "a NUL byte": ([file(b"a\0b")], "."),
    "a name of 256 bytes": ([file(b"x" * 256)], "256"),
    "a name of a megabyte": ([file(b"\xff" * 1_000_000)], "."),
    "a target of 4096 bytes": ([named("symlinks", b"l", target=b"x" * 4096)], "4096"),
    "no target": ([named("symlinks", b"l")], "."),
    "a NUL byte in a target": ([named("symlinks", b"l", target=b"a\0b")], "."),
    "garbage": ([b"\xff\xff"], "."),
    "good ones before": ([one.encode() for one in chained(1000)] + [b"\xff"], "."),
}


@both_backends
@pytest.mark.parametrize(("closure", "match"), REFUSED.values(), ids=list(REFUSED))
def test_closures_that_are_none(backend: str, closure: list[bytes], match: str, tmp_path: Path) -> None:
    with serving(backend, tmp_path) as peer:
        with status(Code.INVALID_ARGUMENT, match):
            peer.directories("Put", request_as_bytes=True)(iter(closure))
        with status(Code.INVALID_ARGUMENT, match):
            peer.batches("PutClosure")(batch.Directories(directories=[one]) for one in closure)
        if closure:
            with status(Code.INVALID_ARGUMENT, match):
                peer.batches("PutClosure")(iter([batch.Directories(directories=closure)]))


TAKEN = [
    file(b"x" * 255),
    file(b"\xff" * 255),
    file(b"a b\n\\"),
    file(b"..."),
    file(b"f", size=MAX_SIZE),
    file(b"f", size=0),
    named("symlinks", b"l", target=b"x" * 4095),
    named("symlinks", b"l", target=b"\xff/../\n"),
]


@both_backends
def test_what_is_just_within_the_rules(backend: str, tmp_path: Path) -> None:
    with serving(backend, tmp_path, new=map(b3_digest, TAKEN)) as peer:
        for encoded in TAKEN:
            answer = peer.directories("Put", request_as_bytes=True)(iter([encoded]))
            assert answer.root_digest == b3_digest(encoded)
            request = batch.GetDirectoriesRequest(digests=answer.root_digest)
            (message,) = peer.batches("GetDirectories")(request)
            assert list(message.directories) == [encoded]


# Nonsense on the socket.

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = bytes(3) + b"\x04" + bytes(5)

NONSENSE: dict[str, list[bytes]] = {
    "nothing": [],
    "a byte": [b"P"],
    "half a preface": [PREFACE[:12]],
    "a preface alone": [PREFACE],
    "a preface and half a frame": [PREFACE + SETTINGS[:5]],
    "a web browser": [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"],
    "TLS": [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)) * 2],
    "garbage": [bytes(range(256)) * 100],
    "zeros": [bytes(100_000)],
    "a frame of 16 MiB": [PREFACE + b"\xff\xff\xff\x00\x00\x00\x00\x00\x01" + bytes(1000)],
    "data on no stream": [PREFACE + SETTINGS + b"\x00\x00\x05\x00\x00\x00\x00\x00\x01hello"],
    "settings of a wrong length": [PREFACE + b"\x00\x00\x05\x04\x00\x00\x00\x00\x00hello"],
    "broken headers": [PREFACE + SETTINGS + b"\x00\x00\x05\x01\x04\x00\x00\x00\x01\xff\xff\xff\xff\xff"],
    "byte by byte": [bytes([byte]) for byte in PREFACE + SETTINGS + b"\xff" * 20],
}


@pytest.mark.parametrize("pieces", NONSENSE.values(), ids=list(NONSENSE))
def test_nonsense_on_the_socket(pieces: Sequence[bytes], tmp_path: Path) -> None:
    """Sockets that stay open meanwhile hinder nobody, and are gone with their client."""
    with serving("memory", tmp_path) as peer:
        clients = [socket.socket(socket.AF_UNIX) for _ in range(20)]
        for client in clients:
            client.connect(peer.daemon.target.removeprefix("unix:"))
        for piece in pieces:
            for client in clients:
                try:
                    client.sendall(piece)
                except (BrokenPipeError, ConnectionResetError):
                    client.close()
            clients = [client for client in clients if client.fileno() >= 0]
        assert peer.answers()
        for client in clients:
            client.close()
        assert peer.answers()


def test_a_blob_byte_by_byte(tmp_path: Path) -> None:
    """Tiny messages are put together: they cost what they hold, not a hundred times as much."""
    blob = os.urandom(6_000)
    with serving("local", tmp_path, new=[b3_digest(blob)]) as peer:
        pieces = [Chunk(data=blob[i : i + 1]) for i in range(len(blob))]
        empty = Chunk()
        answer = peer.blobs("Put")(one for piece in pieces for one in (piece, empty))
        assert answer.digest == b3_digest(blob)


def test_a_stream_of_the_same_directory(tmp_path: Path) -> None:
    """Repeats are fine, and cost nothing."""
    with serving("local", tmp_path, new=[LEAF.digest]) as peer:
        answer = peer.directories("Put", request_as_bytes=True)(LEAF.encode() for _ in range(5_000))
        assert answer.root_digest == LEAF.digest


def test_the_empty_blob_everywhere(tmp_path: Path) -> None:
    """What is always there is never stored."""
    bundle = batch.Bundle(digests=EMPTY_BLOB * 3, sizes=[0, 0, 0])
    requests = [
        batch.PutRequest(blobs=[bundle]),
        batch.PutRequest(parts=[batch.Part(writer=1, data=b"")]),
        batch.PutRequest(parts=[batch.Part(writer=1, end=EMPTY_BLOB)]),
        batch.PutRequest(parts=[batch.Part(writer=2, end=EMPTY_BLOB)]),
        batch.PutRequest(keep=EMPTY_BLOB, commit=True),
    ]
    for backend in BACKENDS:
        with serving(backend, tmp_path / backend) as peer:
            (answer,) = peer.batches("Put")(iter(requests))
            assert not answer.missing
            assert peer.put(b"") == EMPTY_BLOB
