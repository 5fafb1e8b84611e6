"""Streams that the client sends."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from neve.castore.blobs.grpc import BLOBS
from neve.castore.blobs.grpc_read import BATCHES
from neve.errors import Unavailable
from neve.proto.neve.castore.protos import rpc_batch_pb2
from neve.proto.tvix.castore.protos import rpc_blobstore_pb2
from neve.registry import parse_address
from neve.rpc.channel import Connection
from neve.rpc.upload import Exchange, Upload
from tests.server.foreign import ForeignBlobs, foreign_server
from tests.server.misbehaving import nothing_left
from tests.server.raw import soon

Chunk = rpc_blobstore_pb2.BlobChunk
Request = rpc_batch_pb2.PutRequest


class Puts(ForeignBlobs):
    """Takes messages one by one, when it is allowed to."""

    def __init__(self) -> None:
        super().__init__()
        self.allowed = threading.Semaphore(0)
        self.taken: list[bytes] = []
        self.ended = threading.Event()

    def Put(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Any:  # noqa: N802
        context.add_callback(self.ended.set)
        for request in requests:
            self.taken.append(request.data)
            while not self.allowed.acquire(timeout=0.05):
                if not context.is_active():
                    return rpc_blobstore_pb2.PutBlobResponse()
        return rpc_blobstore_pb2.PutBlobResponse(digest=b"".join(self.taken))


class Echo:
    """Answers each message that wants it."""

    def Put(self, requests: Iterator[Any], _: grpc.ServicerContext) -> Iterator[Any]:  # noqa: N802
        for request in requests:
            if request.commit:
                yield rpc_batch_pb2.PutResponse(missing=[len(request.keep)])


@pytest.fixture
def server() -> Puts:
    return Puts()


@pytest.fixture
def connection(server: Puts) -> Iterator[Connection]:
    with foreign_server(blobs=server, others=((BATCHES, Echo()),)) as url, nothing_left():
        before = threading.active_count()
        connection = Connection.open(parse_address(f"{url}?timeout=1"))
        yield connection
        connection.close()
        # The library's threads, which wait for messages, are gone too.
        assert soon(lambda: threading.active_count() <= before + 1)


def test_everything_arrives_in_order(server: Puts, connection: Connection) -> None:
    server.allowed.release(1000)
    upload: Upload = connection.upload(BLOBS, "Put")
    for number in range(100):
        upload.send(Chunk(data=b"%d," % number))
    assert upload.finish().digest == b"".join(b"%d," % number for number in range(100))
    upload.cancel()
    upload.cancel()


def test_nothing_at_all(server: Puts, connection: Connection) -> None:
    assert connection.upload(BLOBS, "Put").finish().digest == b""


def test_bytes_as_they_are(server: Puts, connection: Connection) -> None:
    server.allowed.release(10)
    upload = connection.upload(BLOBS, "Put", raw=True)
    upload.send(Chunk(data=b"x").SerializeToString())
    assert upload.finish().digest == b"x"


def test_a_server_that_takes_nothing(server: Puts, connection: Connection) -> None:
    """What is sent waits in a queue of a few messages, not in memory without bounds."""
    sent = [0]

    def send_on() -> None:
        while True:
            upload.send(Chunk(data=bytes(1_000_000)))
            sent[0] += 1

    upload = connection.upload(BLOBS, "Put")
    with pytest.raises(Unavailable, match=r"grpc\+unix:///.*: Put: the server took nothing for 1 s"):
        send_on()
    assert sent[0] < 100
    assert server.ended.wait(20)


def test_no_answer(server: Puts, connection: Connection) -> None:
    upload = connection.upload(BLOBS, "Put")
    upload.send(Chunk(data=b"x"))
    with pytest.raises(Unavailable, match=r"grpc\+unix:///.*: Put: no answer within 1 s"):
        upload.finish()
    assert server.ended.wait(20)


def test_given_up_by_the_client(server: Puts, connection: Connection) -> None:
    upload = connection.upload(BLOBS, "Put")
    upload.send(Chunk(data=b"x"))
    assert soon(lambda: bool(server.taken))
    upload.cancel()
    assert server.ended.wait(20)
    with pytest.raises(Unavailable, match="the call was given up"):
        upload.send(Chunk(data=b"y"))


def test_a_full_queue_is_given_up(server: Puts, connection: Connection) -> None:
    upload = connection.upload(BLOBS, "Put")
    for _ in range(3):
        upload.send(Chunk(data=bytes(20_000_000)))
    assert soon(lambda: bool(server.taken))
    upload.cancel()
    assert server.ended.wait(20)


def test_exchange(connection: Connection) -> None:
    exchange: Exchange = connection.exchange(BATCHES, "Put")
    for number in range(20):
        exchange.send(Request(keep=bytes(number)))
        exchange.send(Request(keep=bytes(number), commit=True))
        assert list(exchange.receive().missing) == [number]
    exchange.finish()
    exchange.cancel()


def test_exchange_without_an_answer(connection: Connection) -> None:
    exchange = connection.exchange(BATCHES, "Put")
    exchange.send(Request())
    with pytest.raises(Unavailable, match=r"grpc\+unix:///.*: Put: no answer within 1 s"):
        exchange.receive()
    with pytest.raises(Unavailable, match="Put"):
        exchange.send(Request())
    exchange.cancel()


def test_an_exchange_may_rest(connection: Connection) -> None:
    """It is not waited for all the time."""
    exchange = connection.exchange(BATCHES, "Put")
    for _ in range(2):
        exchange.send(Request(commit=True))
        assert list(exchange.receive().missing) == [0]
        threading.Event().wait(1.8)
    exchange.finish()
