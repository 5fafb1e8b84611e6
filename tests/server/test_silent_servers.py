"""Servers that do not answer, hang up or speak no HTTP/2, and connections that break: every kind of call
ends with ``Unavailable``, within the time that the address gives it."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest

from neve.castore.blobs.base import BlobService
from neve.castore.blobs.grpc_read import BATCHES
from neve.castore.blobs.urls import BLOB_SERVICES
from neve.castore.digest import b3_digest
from neve.castore.directories.base import DirectoryService
from neve.castore.directories.urls import DIRECTORY_SERVICES
from neve.castore.directory import Directory
from neve.errors import Unavailable
from neve.proto.neve.castore.protos import rpc_batch_pb2
from neve.rpc import channel
from neve.testing.servers import RunningDaemon, running_daemon

from .foreign import foreign_server
from .misbehaving import Proxy, closing, garbage, http1, nothing_left, proxy, raw_server, silent

BLOB = os.urandom(3_000_000)
HALF = len(BLOB) // 2
DIGEST = b3_digest(BLOB)
EMPTY = Directory()


class Client(NamedTuple):
    """Both services of one server."""

    blobs: BlobService
    directories: DirectoryService


def read_by_reader(client: Client) -> object:
    reader = client.blobs.open_read(DIGEST)
    if reader is None:
        return None
    with reader:
        return reader.read()


def put_blob(client: Client) -> object:
    with client.blobs.open_write() as writer:
        writer.write(BLOB)
        return writer.close()


def put_batch(client: Client) -> object:
    with client.blobs.batch() as batch:
        batch.put_many([b"small"])
        batch.commit()
    return None


def put_large_in_batch(client: Client) -> object:
    with client.blobs.batch() as batch, batch.open_write() as writer:
        writer.write(BLOB)
        writer.close()
        batch.commit()
    return None


def put_closure(client: Client) -> object:
    with client.directories.put_multiple() as putter:
        putter.put(EMPTY)
        return putter.close()


CALLS: dict[str, Callable[[Client], object]] = {
    "has": lambda client: client.blobs.has(DIGEST),
    "missing": lambda client: client.blobs.missing([DIGEST]),
    "read": lambda client: client.blobs.read(DIGEST),
    "stream": lambda client: list(client.blobs.stream(DIGEST)),
    "open_read": read_by_reader,
    "read_many": lambda client: list(client.blobs.read_many([DIGEST, DIGEST])),
    "put": put_blob,
    "batch": put_batch,
    "large in a batch": put_large_in_batch,
    "get": lambda client: client.directories.get(DIGEST),
    "get_many": lambda client: client.directories.get_many([DIGEST, EMPTY.digest]),
    "get_recursive": lambda client: list(client.directories.get_recursive(DIGEST)),
    "put one": lambda client: client.directories.put(EMPTY),
    "put a closure": put_closure,
    # Of the administration, which comes last and which not every server has.
    "list": lambda client: client.blobs.list(),
}

every_call = pytest.mark.parametrize("call", CALLS.values(), ids=list(CALLS))


@contextlib.contextmanager
def client_of(url: str) -> Iterator[Client]:
    blobs, directories = BLOB_SERVICES.open(url), DIRECTORY_SERVICES.open(url)
    try:
        yield Client(blobs, directories)
    finally:
        blobs.close()
        directories.close()


def unavailable(match: str = "") -> Any:
    return pytest.raises(Unavailable, match=rf"grpc\+unix:///.*{match}")


# Nobody there who speaks gRPC.


@every_call
def test_a_server_that_accepts_and_never_answers(call: Callable[[Client], object]) -> None:
    with raw_server(silent) as url, nothing_left(), client_of(f"{url}?timeout=0.1") as client, unavailable():
        call(client)


@pytest.mark.parametrize("serve", [closing, garbage, http1])
@every_call
def test_a_server_of_something_else(
    serve: Callable[[socket.socket], None], call: Callable[[Client], object]
) -> None:
    with raw_server(serve) as url, nothing_left(), client_of(url) as client, unavailable("failed to connect"):
        call(client)


@every_call
def test_no_server(tmp_path: Path, call: Callable[[Client], object]) -> None:
    """One that was never reached is not waited for."""
    with (
        nothing_left(),
        client_of(f"grpc+unix://{tmp_path}/socket") as client,
        unavailable("failed to connect"),
    ):
        call(client)


@pytest.mark.parametrize("serve", [silent, closing, garbage])
def test_waiting_for_a_server_when_opening(serve: Callable[[socket.socket], None]) -> None:
    raising = unavailable("cannot be reached within 0.3 s")
    with raw_server(serve) as url, nothing_left(), raising:
        BLOB_SERVICES.open(f"{url}?timeout=0.3&wait-connect=1")


# A server whose handlers never end.


class Sleeping:
    """Every method of every service takes what comes, or nothing, and never ends."""

    def __init__(self, *, takes: bool) -> None:
        self._takes = takes

    def __getattr__(self, name: str) -> Any:
        if name in {"Put", "PutClosure"}:
            return self._sleep
        if name in {"Read", "Get", "GetDirectories", "GetClosure"}:
            return self._sleep_streaming
        if name in {"Stat", "Missing"}:
            return self._sleep
        raise AttributeError(name)

    def _sleep(self, request: Any, context: grpc.ServicerContext) -> Any:
        ended = threading.Event()
        context.add_callback(ended.set)
        if self._takes and not hasattr(request, "DESCRIPTOR"):
            with contextlib.suppress(grpc.RpcError):
                for _ in request:
                    pass
        ended.wait(60)

    def _sleep_streaming(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        self._sleep(request, context)
        yield from ()


@pytest.mark.parametrize("takes", [True, False])
@pytest.mark.parametrize("call", list(CALLS.values())[:-1], ids=list(CALLS)[:-1])
def test_handlers_that_never_end(call: Callable[[Client], object], takes: bool) -> None:
    sleeping = Sleeping(takes=takes)
    with (
        foreign_server(blobs=sleeping, directories=sleeping, others=((BATCHES, sleeping),)) as url,
        nothing_left(),
        client_of(f"{url}?timeout=0.1") as client,
        unavailable(),
    ):
        call(client)


class SleepingUploads(Sleeping):
    """Answers questions, but ends no upload."""

    def Missing(self, request: Any, _: grpc.ServicerContext) -> Any:  # noqa: N802
        return rpc_batch_pb2.MissingResponse(missing=range(len(request.digests) // 32))


@pytest.mark.parametrize("call", [put_batch, put_large_in_batch, put_closure])
def test_uploads_that_never_end(call: Callable[[Client], object]) -> None:
    batches = SleepingUploads(takes=True)
    with (
        foreign_server(others=((BATCHES, batches),)) as url,
        nothing_left(),
        client_of(f"{url}?timeout=0.3") as client,
        unavailable("no answer within 0.3 s"),
    ):
        call(client)


# Connections that break.


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[RunningDaemon]:
    with running_daemon(f"local://{tmp_path / 'store'}", folder=tmp_path, admin=False) as daemon:
        yield daemon


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "_FIRST_PAUSE", 0.02)
    monkeypatch.setattr(channel, "_MAX_RECONNECT_MS", 100)


@pytest.fixture
def way(daemon: RunningDaemon) -> Iterator[Proxy]:
    with proxy(daemon.target) as way:
        yield way


def store_blob(daemon: RunningDaemon) -> None:
    with daemon.services.blobs.open_write() as writer:
        writer.write(BLOB)
        writer.close()


READS = [name for name in CALLS if name in {"read", "stream", "open_read", "read_many"}]


@pytest.mark.parametrize("call", [CALLS[name] for name in READS], ids=READS)
def test_downloads_that_are_cut(daemon: RunningDaemon, way: Proxy, call: Callable[[Client], object]) -> None:
    store_blob(daemon)
    with client_of(f"{way.url}?timeout=10") as client:
        assert client.blobs.has(DIGEST)
        way.cut_after("down", 1_500_000)
        with unavailable():
            call(client)
        way.mend()
        assert client.blobs.read(DIGEST) == BLOB


@pytest.mark.parametrize("breaks", ["cut", "reset"])
def test_nothing_is_yielded_twice(daemon: RunningDaemon, way: Proxy, breaks: str) -> None:
    blob = os.urandom(64_000_000)  # More than can be on its way.
    daemon.services.blobs.put_many([blob])
    with client_of(way.url) as client:
        pieces = client.blobs.stream(b3_digest(blob))
        first = next(pieces)
        if breaks == "cut":
            way.cut_after("down", 0)
            way.cut_after("up", 0)
        way.reset()
        with unavailable():
            first += b"".join(pieces)
        assert blob.startswith(first)
        assert len(first) < len(blob)


def test_a_stream_that_stalls(daemon: RunningDaemon, way: Proxy) -> None:
    """The connection stands, nothing comes."""
    store_blob(daemon)
    with nothing_left(daemon=True), client_of(f"{way.url}?timeout=0.5") as client:
        assert client.blobs.has(DIGEST)
        way.hold_after("down", HALF)
        with unavailable("no answer within 0.5 s"):
            list(client.blobs.stream(DIGEST))
        with unavailable("Deadline"):
            client.blobs.has(DIGEST)
        way.hold.set()
        assert client.blobs.has(DIGEST)


def test_consumers_may_take_their_time(daemon: RunningDaemon) -> None:
    """What is waited for is the server, not who reads."""
    store_blob(daemon)
    with client_of(f"{daemon.url}?timeout=1") as client:
        pieces = client.blobs.stream(DIGEST)
        read = next(pieces)
        time.sleep(1.8)
        assert read + b"".join(pieces) == BLOB
        with client.blobs.batch() as batch:
            batch.put_many([b"one"])
            assert batch.keep_many([DIGEST]) == []
            time.sleep(1.8)
            batch.put_many([b"two"])
            batch.commit()
        assert client.blobs.missing([b3_digest(b"one"), b3_digest(b"two")]) == []


def test_a_slow_handshake(daemon: RunningDaemon) -> None:
    """A server that is far away, or busy, for some hundred milliseconds."""
    with proxy(daemon.target) as way:
        way.hold.clear()
        timer = threading.Timer(0.8, way.hold.set)
        timer.start()
        with client_of(f"{way.url}?timeout=20") as client:
            assert not client.blobs.has(DIGEST)
        timer.join()


WRITES = {"put": put_blob, "batch": put_batch, "large in a batch": put_large_in_batch, "closure": put_closure}


@pytest.mark.usefixtures("short_pauses")
@pytest.mark.parametrize("call", WRITES.values(), ids=list(WRITES))
def test_the_same_client_goes_on(daemon: RunningDaemon, way: Proxy, call: Callable[[Client], object]) -> None:
    """All calls that come after the connection was lost find the server again."""
    with client_of(way.url) as client:
        assert not client.blobs.has(DIGEST)
        for _ in range(3):
            way.cut_after("up", 0)
            with unavailable():
                call(client)
            way.mend()
            # No upload is repeated, and a connection made while nothing went through may not be known to be
            # lost yet. Questions are repeated, and find it out.
            assert not client.blobs.has(b3_digest(b"absent"))
            call(client)


def test_questions_are_repeated(daemon: RunningDaemon, way: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one waits for the next attempt, the server comes back."""
    store_blob(daemon)
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) % 2 == 0:
            way.mend()
        sleep(seconds)

    sleep = time.sleep
    with client_of(way.url) as client:
        assert client.blobs.has(DIGEST)
        monkeypatch.setattr(time, "sleep", pause)
        way.cut_after("up", 0)
        assert client.blobs.has(DIGEST)
        assert pauses
        pauses.clear()
        way.cut_after("up", 0)
        assert client.blobs.read(DIGEST) == BLOB
        assert pauses


def test_no_thread_outlives_its_client(daemon: RunningDaemon, way: Proxy) -> None:
    store_blob(daemon)
    with nothing_left(daemon=True):
        for _ in range(5):
            way.mend()
            with client_of(way.url) as client:
                for call in CALLS.values():
                    if call is not CALLS["list"]:
                        call(client)
                way.cut_after("up", 100_000)
                with unavailable():
                    put_blob(client)
