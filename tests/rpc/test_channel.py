"""Connections: shared, counted, repeated calls, what the other side has."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from neve.castore.blobs.grpc import BLOBS
from neve.castore.blobs.grpc_read import BATCHES
from neve.castore.digest import EMPTY_BLOB
from neve.errors import InvalidRequest, Unavailable, Unsupported
from neve.proto.neve.castore.protos import rpc_batch_pb2
from neve.proto.tvix.castore.protos import rpc_blobstore_pb2
from neve.registry import parse_address
from neve.rpc import channel
from neve.rpc.channel import Connection, NotOffered
from neve.rpc.status import ERROR_TRAILER
from tests.server.foreign import ForeignBlobs, foreign_server
from tests.server.misbehaving import nothing_left

STAT = rpc_blobstore_pb2.StatBlobRequest(digest=EMPTY_BLOB)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "_FIRST_PAUSE", 0.001)


class Answering(ForeignBlobs):
    """Fails as often and with what it is told to."""

    def __init__(self, failures: int = 0, code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE) -> None:
        super().__init__()
        self.failures = failures
        self.code = code
        self.calls = 0

    def Stat(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        self.calls += 1
        if self.failures:
            self.failures -= 1
            context.abort(self.code, "not now")
        return super().Stat(request, context)


@pytest.fixture
def server() -> Answering:
    return Answering()


@pytest.fixture
def url(server: Answering) -> Iterator[str]:
    with foreign_server(blobs=server) as url, nothing_left():
        yield url


@pytest.fixture
def connection(url: str) -> Iterator[Connection]:
    connection = Connection.open(parse_address(url))
    yield connection
    connection.close()


def test_shared_by_equal_addresses(url: str) -> None:
    first, second = (Connection.open(parse_address(url)) for _ in range(2))
    other = Connection.open(parse_address(f"{url}?timeout=5"))
    assert first is second
    assert other is not first
    first.close()
    assert second.call(BLOBS, "Stat", STAT) is not None
    second.close()
    other.close()
    fresh = Connection.open(parse_address(url))
    assert fresh is not first
    fresh.close()


def test_closed(url: str) -> None:
    connection = Connection.open(parse_address(url))
    connection.call(BLOBS, "Stat", STAT)
    connection.close()
    connection.close()
    for use in (
        lambda: connection.call(BLOBS, "Stat", STAT),
        lambda: next(connection.receive(BLOBS, "Read", STAT)),
        lambda: connection.upload(BLOBS, "Put"),
        lambda: connection.exchange(BATCHES, "Put"),
    ):
        with pytest.raises(Unavailable, match=r"grpc\+unix:///.*the connection is closed"):
            use()


def test_opened_by_many_threads_at_once(url: str) -> None:
    opened: list[Connection] = []
    barrier = threading.Barrier(8)

    def work() -> None:
        for _ in range(20):
            barrier.wait()
            connection = Connection.open(parse_address(url))
            opened.append(connection)
            connection.call(BLOBS, "Stat", STAT)
            connection.close()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == 160
    assert not Connection._opened


@pytest.mark.parametrize(("failures", "calls"), [(0, 1), (1, 2), (5, 6)])
def test_repeated_until_it_works(
    server: Answering, connection: Connection, failures: int, calls: int
) -> None:
    server.failures = failures
    connection.call(BLOBS, "Stat", STAT)
    assert server.calls == calls


def test_repeated_with_a_bound(server: Answering, connection: Connection) -> None:
    server.failures = 1000
    with pytest.raises(Unavailable, match=r"grpc\+unix:///.*: Stat: not now \(UNAVAILABLE\)"):
        connection.call(BLOBS, "Stat", STAT)
    assert server.calls == channel._ATTEMPTS
    # It is not held against the server for ever.
    server.failures = 0
    connection.call(BLOBS, "Stat", STAT)


@pytest.mark.parametrize("code", sorted(set(grpc.StatusCode) - {grpc.StatusCode.OK}, key=str))
def test_what_is_not_repeated(server: Answering, connection: Connection, code: grpc.StatusCode) -> None:
    server.failures, server.code = 1, code
    if code is grpc.StatusCode.UNAVAILABLE:
        connection.call(BLOBS, "Stat", STAT)
        assert server.calls == 2
        return
    with pytest.raises(Exception, match=r"not now|does not offer"):
        connection.call(BLOBS, "Stat", STAT)
    assert server.calls == 1


def test_pauses() -> None:
    """They double, up to a limit, and are shortened by chance so that clients do not come back together."""
    connection = Connection.__new__(Connection)
    every = [list(connection._pauses()) for _ in range(50)]
    for pauses in every:
        assert len(pauses) == channel._ATTEMPTS - 1
        for number, pause in enumerate(pauses):
            longest = min(channel._FIRST_PAUSE * 2**number, channel._LONGEST_PAUSE)
            assert longest / 2 <= pause <= longest
    assert len({tuple(pauses) for pauses in every}) > 1


# What the server has.


def test_a_service_that_is_not_there(connection: Connection) -> None:
    with pytest.raises(NotOffered, match=r"grpc\+unix:///.*Missing: the server does not offer this call"):
        connection.call(BATCHES, "Missing", rpc_batch_pb2.MissingRequest())
    asked = []

    def ask() -> Any:
        asked.append(1)
        return connection.call(BATCHES, "Missing", rpc_batch_pb2.MissingRequest())

    for _ in range(3):
        assert connection.unless_lacking(BATCHES, ask, lambda: "otherwise") == "otherwise"
    assert asked == [1]
    assert not connection.offers(BATCHES)
    assert connection.offers(BLOBS)


def test_unsupported_is_not_the_same_as_not_there(url: str) -> None:
    """A call that our server refuses as unsupported does not mean that it has no such service."""

    class Refusing(ForeignBlobs):
        def Stat(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
            context.set_trailing_metadata(((ERROR_TRAILER, "Unsupported"),))
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "not for this blob")

    with foreign_server(blobs=Refusing()) as refusing:
        connection = Connection.open(parse_address(refusing))
        with pytest.raises(Unsupported, match="not for this blob") as failed:
            connection.unless_lacking(
                BLOBS, lambda: connection.call(BLOBS, "Stat", STAT), lambda: pytest.fail("given up")
            )
        assert not isinstance(failed.value, NotOffered)
        assert connection.offers(BLOBS)
        connection.close()


def test_an_error_of_the_call_is_none_of_the_service(server: Answering, connection: Connection) -> None:
    server.failures, server.code = 1, grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(InvalidRequest):
        connection.unless_lacking(BLOBS, lambda: connection.call(BLOBS, "Stat", STAT), lambda: None)
    assert connection.offers(BLOBS)
