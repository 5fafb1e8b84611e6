"""Servers with batches that answer wrongly: what the clients of blobs and Directories make of it."""

from __future__ import annotations

import contextlib
import os
import re
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
import zstandard

from neve.castore.blobs.base import BlobService
from neve.castore.blobs.bundle import MAX_BUNDLE_BYTES
from neve.castore.blobs.grpc_read import BATCHES
from neve.castore.blobs.urls import BLOB_SERVICES
from neve.castore.digest import b3_digest, format_digest
from neve.errors import Corrupt, LimitExceeded, NotFound, Unavailable
from neve.proto.neve.castore.protos import rpc_batch_pb2
from neve.tree import WHOLE_FILE_LIMIT

from .foreign import ForeignBlobs, foreign_server
from .misbehaving import nothing_left

Response = rpc_batch_pb2.ReadResponse

CONTENTS = [b"blob %d " % number * 1000 for number in range(5)]
DIGESTS = [b3_digest(blob) for blob in CONTENTS]
SIZES = [len(blob) for blob in CONTENTS]
STARTS = [sum(SIZES[:number]) for number in range(5)]
RAW = b"".join(CONTENTS)
ZSTD = zstandard.compress(RAW)


class Batches:
    """A BatchService that says that nothing is missing, and gives what it is told to."""

    def __init__(self, *answers: Any, missing: tuple[int, ...] = ()) -> None:
        self.answers: Callable[[], Iterator[Any]] = lambda: iter(answers)
        self.missing = missing
        self.sent = 0

    def Missing(self, request: Any, _: grpc.ServicerContext) -> Any:  # noqa: N802
        # The question without digests is whether there is a BatchService at all.
        return rpc_batch_pb2.MissingResponse(missing=self.missing if request.digests else ())

    def Read(self, _: Any, context: grpc.ServicerContext) -> Iterator[Any]:  # noqa: N802
        for answer in self.answers():
            if not context.is_active():
                return
            yield answer
            self.sent += 1

    def Put(self, requests: Iterator[Any], _: grpc.ServicerContext) -> Iterator[Any]:  # noqa: N802
        for request in requests:
            if request.commit or request.keep:
                yield from self.answers()


class Counting(ForeignBlobs):
    """Has the blobs, and counts how many were read alone."""

    def __init__(self) -> None:
        super().__init__()
        self.stored |= dict(zip(DIGESTS, CONTENTS, strict=True))
        self.reads = 0

    def Read(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:  # noqa: N802
        self.reads += 1
        return super().Read(request, context)


@contextlib.contextmanager
def client_of(batches: object, blobs: object | None = None) -> Iterator[BlobService]:
    """A client of a server with these batches; leaves nothing behind."""
    with foreign_server(blobs=blobs, others=((BATCHES, batches),)) as url, nothing_left():
        service = BLOB_SERVICES.open(f"{url}?timeout=20")
        try:
            yield service
        finally:
            service.close()


def answer(**changed: Any) -> Any:
    """A right answer, but for what is changed."""
    right: dict[str, Any] = {
        "data": ZSTD,
        "zstd": True,
        "raw_size": len(RAW),
        "places": range(5),
        "starts": STARTS,
        "sizes": SIZES,
    }
    return Response(**(right | changed))


def bomb(size: int) -> bytes:
    """A zstd frame of ``size`` zeros that states its size."""
    return zstandard.ZstdCompressor(level=1).compress(bytes(size))


def stating(frame: bytes, size: int) -> bytes:
    """The frame with another size in its header, which gets the longest field for it."""
    header = zstandard.get_frame_parameters(frame)
    assert header.content_size
    head_bytes = zstandard.frame_header_size(frame)
    # Single segment, 8 bytes of content size, no dictionary, no checksum.
    return frame[:4] + bytes([0b11100000]) + size.to_bytes(8, "little") + frame[head_bytes:]


def test_right_answers() -> None:
    blobs = Counting()
    for message in (
        answer(),
        answer(data=RAW, zstd=False),
        answer(data=stating(ZSTD, len(RAW))),
        answer(places=[4, 2, 0, 1, 3], starts=[STARTS[i] for i in (4, 2, 0, 1, 3)], sizes=[SIZES[0]] * 5),
    ):
        with client_of(Batches(message), blobs) as service:
            assert list(service.read_many(DIGESTS)) == CONTENTS
    assert blobs.reads == 0


USELESS = {
    "nothing": [],
    "an empty answer": [Response()],
    "some are left out": [answer(places=[1, 3], starts=STARTS[1:4:2], sizes=SIZES[1:4:2])],
    "to be read apart": [Response(apart=range(5))],
    "a frame that states 8 EiB": [answer(data=stating(ZSTD, 2**63))],
    "both state 4 GiB": [answer(data=stating(ZSTD, 2**32 - 1), raw_size=2**32 - 1)],
    "a frame that states too little": [answer(data=stating(ZSTD, len(RAW) - 1))],
    "both state too little": [answer(data=stating(ZSTD, 100), raw_size=100)],
    "both state too much": [answer(data=stating(ZSTD, len(RAW) + 1), raw_size=len(RAW) + 1)],
    "a frame that states nothing": [
        answer(data=zstandard.ZstdCompressor(write_content_size=False).compress(RAW))
    ],
    "trailing garbage": [answer(data=ZSTD + b"x")],
    "two frames": [answer(data=ZSTD + ZSTD)],
    "a frame that is cut": [answer(data=ZSTD[:-3])],
    "a frame of nothing": [answer(data=b"")],
    "no frame": [answer(data=RAW)],
    "a frame instead of the contents": [answer(zstd=False)],
    "contents of another length": [answer(data=RAW + b"x", zstd=False)],
    "other contents": [answer(data=RAW[::-1], zstd=False)],
    "starts past the end": [answer(starts=[start + 2**31 for start in STARTS])],
    "sizes past the end": [answer(sizes=[2**32 - 1] * 5)],
    "all at the same place": [answer(starts=[7] * 5)],
}


@pytest.mark.parametrize("answers", USELESS.values(), ids=list(USELESS))
def test_useless_answers(answers: list[Any]) -> None:
    """What cannot be used is read again, one by one: then the server itself says what is wrong."""
    blobs = Counting()
    with client_of(Batches(*answers), blobs) as service:
        assert list(service.read_many(DIGESTS)) == CONTENTS
        assert blobs.reads
    blobs.stored.clear()
    with client_of(Batches(*answers), blobs) as service, pytest.raises(NotFound):
        list(service.read_many(DIGESTS))


@pytest.mark.parametrize(
    "answers",
    [
        [answer(places=[0, 1, 2, 3, 5])],
        [answer(places=[2**32 - 1] * 5)],
        [answer(), answer(places=[0], starts=[0], sizes=[SIZES[0]])],
        [answer(), Response(absent=[0])],
        [Response(apart=[0] * 6)],
        [Response(absent=[0] * 6)],
        [answer(places=range(1_000_000))],
    ],
)
def test_answers_that_were_not_asked_for(answers: list[Any]) -> None:
    blobs = Counting()
    with client_of(Batches(*answers), blobs) as service:
        with pytest.raises(Corrupt, match=r"grpc\+unix:///.*was not asked for"):
            list(service.read_many(DIGESTS))
        # It has not made the client useless.
        assert service.read(DIGESTS[1]) == CONTENTS[1]


@pytest.mark.parametrize(
    "changed",
    [
        {"starts": STARTS[:3]},
        {"sizes": []},
        {"sizes": [*SIZES, 5]},
        {"places": [], "starts": range(1_000_000), "sizes": []},
    ],
)
def test_lists_of_unequal_length(changed: dict[str, Any]) -> None:
    """They would be kept for as long as their answer."""
    unequal = pytest.raises(Corrupt, match=r"grpc\+unix:///.*places, starts and sizes differ in number")
    with client_of(Batches(answer(**changed)), Counting()) as service, unequal:
        list(service.read_many(DIGESTS))


def test_an_answer_over_the_limit() -> None:
    """The server is told the limit, and does not care."""
    raising = pytest.raises(LimitExceeded, match="at most 100 are wanted")
    with client_of(Batches(answer()), Counting()) as service, raising:
        list(service.read_many(DIGESTS, 100))


def test_absent() -> None:
    first_three = answer(places=range(3), starts=STARTS[:3], sizes=SIZES[:3])
    with client_of(Batches(Response(absent=[3]), first_three), Counting()) as service:
        found = service.read_many([*DIGESTS[:3], bytes(32)])
        assert [next(found) for _ in range(3)] == CONTENTS[:3]
        with pytest.raises(NotFound, match=re.escape(format_digest(bytes(32)))):
            next(found)


@pytest.mark.parametrize("size", [MAX_BUNDLE_BYTES, MAX_BUNDLE_BYTES + 1, 2**30])
def test_bombs(size: int) -> None:
    """Small frames that become large: as many as the server likes to send."""
    zeros = bomb(size)
    digests = [b3_digest(b"%d" % number) for number in range(60)]
    blobs = Counting()
    blobs.stored |= {digest: b"%d" % number for number, digest in enumerate(digests)}
    bombs = [
        Response(data=zeros, zstd=True, raw_size=size, places=[i], starts=[0], sizes=[1]) for i in range(60)
    ]
    tracemalloc.start()
    try:
        with client_of(Batches(*bombs), blobs) as service:
            assert list(service.read_many(digests)) == [b"%d" % number for number in range(60)]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # 64 MiB of one answer, and the next one that may be under way.
    assert peak < 160_000_000


@pytest.mark.parametrize(
    "message", [Response(data=bytes(1_000_000), raw_size=1_000_000), Response(), Response(data=b"x")]
)
def test_endless_answers(message: Any) -> None:
    batches = Batches()

    def endless() -> Iterator[Any]:
        while True:
            yield message

    batches.answers = endless
    blobs = Counting()
    with client_of(batches, blobs) as service:
        assert list(service.read_many(DIGESTS)) == CONTENTS
    assert batches.sent < 1000


# Questions.


@pytest.mark.parametrize("missing", [(5,), (0, 1, 2, 3, 4, 5), (0,) * 6, (2**32 - 1,)])
def test_missing_of_what_was_not_asked_for(missing: tuple[int, ...]) -> None:
    with client_of(Batches(missing=missing)) as service:
        with pytest.raises(Corrupt, match=r"grpc\+unix:///.*was not asked for"):
            service.missing(DIGESTS)
        with service.batch() as batch:
            batch.put_many(CONTENTS)
            with pytest.raises(Corrupt, match=r"grpc\+unix:///.*was not asked for"):
                batch.commit()
            with pytest.raises(Unavailable, match="has failed before"):
                batch.commit()


# Uploads.


def test_keep_answers_for_what_was_not_asked_for() -> None:
    with client_of(Batches(rpc_batch_pb2.PutResponse(missing=[5]))) as service, service.batch() as batch:
        with pytest.raises(Corrupt, match="was not asked for"):
            batch.keep_many(DIGESTS)
        with pytest.raises(Unavailable, match="has failed before"):
            batch.commit()


@pytest.mark.parametrize(
    ("answers", "match"), [([], "no answer within 0.5 s"), ([b"\xff"], r"Put: .*deserializing")]
)
def test_commit_without_an_answer(answers: list[Any], match: str) -> None:
    with foreign_server(others=((BATCHES, Batches(*answers, missing=(0,))),)) as url, nothing_left():
        service = BLOB_SERVICES.open(f"{url}?timeout=0.5")
        with service.batch() as batch:
            batch.put_many([b"something"])
            with pytest.raises(Unavailable, match=rf"grpc\+unix:///.*{match}"):
                batch.commit()
        service.close()


def test_a_stream_of_uploads_that_the_server_ends() -> None:
    class Hasty(Batches):
        def Put(self, requests: Iterator[Any], _: grpc.ServicerContext) -> Iterator[Any]:  # noqa: N802
            next(requests)
            yield from ()

    with client_of(Hasty(missing=(0,))) as service, service.batch() as batch:
        batch.put_many([b"something"])
        with pytest.raises(Unavailable, match=r"grpc\+unix:///.*ended the call before its end"):
            batch.commit()


def test_a_server_that_takes_nothing_more() -> None:
    """The queue is full, nothing moves: the sender is not held up for ever, nor its memory filled."""

    class Full(Batches):
        def Missing(self, request: Any, _: grpc.ServicerContext) -> Any:  # noqa: N802
            return rpc_batch_pb2.MissingResponse(missing=range(len(request.digests) // 32))

        def Put(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:  # noqa: N802
            ended = threading.Event()
            context.add_callback(ended.set)
            ended.wait(60)
            yield from ()

    def put_on() -> None:
        for _ in range(200):
            writer.write(os.urandom(WHOLE_FILE_LIMIT))

    with foreign_server(others=((BATCHES, Full()),)) as url, nothing_left():
        service = BLOB_SERVICES.open(f"{url}?timeout=0.5")
        with service.batch() as batch:
            writer = batch.open_write()
            with pytest.raises(Unavailable, match=r"grpc\+unix:///"):
                put_on()
        service.close()
