"""Servers that answer wrongly, by the standard calls: what the client of blobs makes of it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grpc
import pytest

from neve.castore.blobs.base import BlobService, BlobWriter
from neve.castore.blobs.urls import BLOB_SERVICES
from neve.castore.digest import Digest, b3_digest, format_digest
from neve.errors import Corrupt, InvalidRequest, LimitExceeded, NeveError, NotFound, Unavailable
from neve.proto.tvix.castore.protos import rpc_blobstore_pb2
from neve.rpc import channel

from .foreign import ForeignBlobs, foreign_server
from .misbehaving import nothing_left

Chunk = rpc_blobstore_pb2.BlobChunk
Meta = rpc_blobstore_pb2.StatBlobResponse.ChunkMeta

BLOB = bytes(range(251)) * 4000
DIGEST = b3_digest(BLOB)
PARTS = [BLOB[start : start + 300_000] for start in range(0, len(BLOB), 300_000)]


class Blobs(ForeignBlobs):
    """Answers as it is told to, and counts."""

    def __init__(self, answer: Callable[[Any], Iterator[Any]] | None = None) -> None:
        super().__init__()
        self.answer = answer
        self.chunks: Sequence[tuple[bytes, int]] = ()
        self.reads: list[bytes] = []
        self.sent = 0
        self.gone = threading.Event()
        """Set when the client has ended a call."""

    def Stat(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        if request.digest == DIGEST:
            chunks = [Meta(digest=digest, size=size) for digest, size in self.chunks]
            return rpc_blobstore_pb2.StatBlobResponse(chunks=chunks)
        return super().Stat(request, context)

    def Read(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:  # noqa: N802
        self.reads.append(request.digest)
        if request.digest != DIGEST or self.answer is None:
            yield from super().Read(request, context)
            return
        context.add_callback(self.gone.set)
        for message in self.answer(context):
            yield message
            self.sent += 1


@contextlib.contextmanager
def client_of(blobs: object, parameters: str = "") -> Iterator[BlobService]:
    """A client of a server with these blobs; leaves nothing behind."""
    with foreign_server(blobs=blobs) as url, nothing_left():
        service = BLOB_SERVICES.open(url + parameters)
        try:
            yield service
        finally:
            service.close()


def of(*pieces: bytes) -> Callable[[Any], Iterator[Any]]:
    return lambda _: (Chunk(data=piece) for piece in pieces)


def endless(piece: bytes) -> Callable[[Any], Iterator[Any]]:
    def answer(context: Any) -> Iterator[Any]:
        while context.is_active():
            yield Chunk(data=piece)

    return answer


def everything(service: BlobService, pieces: list[bytes]) -> None:
    """Reads the blob with ``stream``; keeps what came."""
    for piece in service.stream(DIGEST):
        pieces.append(piece)


WRONG = {
    "another": of(b"x" * len(BLOB)),
    "one bit": of(*PARTS[:-1], PARTS[-1][:-1] + b"\x00"),
    "too short": of(*PARTS[:-1]),
    "a byte short": of(*PARTS[:-1], PARTS[-1][:-1]),
    "too long": of(*PARTS, b"x"),
    "twice": of(*PARTS, *PARTS),
    "nothing": of(),
    "an empty message": of(b""),
    "out of order": of(*reversed(PARTS)),
}


@pytest.mark.parametrize("answer", WRONG.values(), ids=list(WRONG))
def test_wrong_contents(answer: Callable[[Any], Iterator[Any]]) -> None:
    blobs = Blobs(answer)
    ways: list[Callable[[BlobService], object]] = [
        lambda service: service.read(DIGEST),
        lambda service: service.open_read(DIGEST),
        lambda service: service.chunks(DIGEST),
        lambda service: list(service.read_many([DIGEST])),
        lambda service: everything(service, pieces),
    ]
    with client_of(blobs) as service:
        for way in ways:
            pieces: list[bytes] = []
            with pytest.raises(Corrupt, match="does not match the digest") as failed:
                way(service)
            assert format_digest(DIGEST) in str(failed.value)
            assert "grpc+unix:///" in str(failed.value)
            # The last message was not given out, whatever came before.
            sent = sum(len(message.data) for message in answer(None))
            assert sum(map(len, pieces)) < max(sent, 1)
    assert blobs.reads == [DIGEST] * len(ways)


def test_right_contents_in_odd_messages() -> None:
    with client_of(
        Blobs(of(b"", *[BLOB[i : i + 997] for i in range(0, len(BLOB), 997)], b"", b""))
    ) as service:
        assert service.read(DIGEST) == BLOB
        assert max(map(len, service.stream(DIGEST, 100))) == 100


def test_endless_answer() -> None:
    blobs = Blobs(endless(b"x" * 1_000_000))
    with client_of(blobs) as service:
        with pytest.raises(LimitExceeded, match="at most 5000000 are wanted"):
            service.read(DIGEST, 5_000_000)
        assert blobs.gone.wait(20)
        stream = service.stream(DIGEST)
        for _ in range(10):
            assert len(next(stream)) == 1_000_000
        blobs.gone.clear()
        stream.close()  # type: ignore[attr-defined]
        assert blobs.gone.wait(20)
    assert blobs.sent < 100


def test_endless_answer_of_nothing() -> None:
    blobs = Blobs(endless(b""))
    with client_of(blobs) as service:
        with pytest.raises(Corrupt, match="sends nothing, and does not end"):
            service.read(DIGEST, 100)
        assert blobs.gone.wait(20)


def test_garbage_instead_of_messages() -> None:
    def answer(_: Any) -> Iterator[Any]:
        yield Chunk(data=PARTS[0])
        yield b"\xff" * 100

    blobs = Blobs(answer)
    with client_of(blobs) as service, pytest.raises(Unavailable, match=r"Read: .*deserializing"):
        service.read(DIGEST)
    assert blobs.reads == [DIGEST]


def test_a_message_that_is_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused before it is received."""
    monkeypatch.setattr(channel, "MAX_MESSAGE_BYTES", 100_000)
    too_long = pytest.raises(LimitExceeded, match=r"grpc\+unix:///.*larger than max \(\d+ vs\. 100000\)")
    with client_of(Blobs(of(BLOB))) as service, too_long:
        service.read(DIGEST)


# Streams that are cut.


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "_FIRST_PAUSE", 0.001)


@pytest.mark.usefixtures("short_pauses")
@pytest.mark.parametrize("came", [0, 1, 3, len(PARTS)])
@pytest.mark.parametrize(
    ("code", "error"),
    [
        (grpc.StatusCode.UNAVAILABLE, Unavailable),
        (grpc.StatusCode.INTERNAL, Unavailable),
        (grpc.StatusCode.CANCELLED, Unavailable),
        (grpc.StatusCode.DATA_LOSS, Corrupt),
        (grpc.StatusCode.NOT_FOUND, NotFound),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, LimitExceeded),
    ],
)
def test_cut_in_the_middle(came: int, code: grpc.StatusCode, error: type[NeveError]) -> None:
    def answer(context: Any) -> Iterator[Any]:
        for part in PARTS[:came]:
            yield Chunk(data=part)
        context.abort(code, "had enough")

    blobs = Blobs(answer)
    with client_of(blobs) as service:
        pieces: list[bytes] = []
        with pytest.raises(error, match="had enough" if error is not NotFound else "not in the store"):
            everything(service, pieces)
        assert pieces == PARTS[: max(came - 1, 0)]
        # Nothing came: the call is repeated. Something came: it cannot be.
        repeated = code is grpc.StatusCode.UNAVAILABLE and not came
        assert len(blobs.reads) == (channel._ATTEMPTS if repeated else 1)
        if error is NotFound:
            assert service.open_read(DIGEST) is None
        else:
            with pytest.raises(error):
                service.open_read(DIGEST)


@pytest.mark.usefixtures("short_pauses")
def test_unavailable_for_a_moment() -> None:
    """Also where it is the first call of all."""
    blobs = Blobs()
    blobs.stored[DIGEST] = BLOB
    left = [0]
    calls: list[int] = []

    def moody(context: grpc.ServicerContext) -> None:
        calls.append(1)
        if left[0]:
            left[0] -= 1
            context.abort(grpc.StatusCode.UNAVAILABLE, "one moment")

    class Moody(Blobs):
        def Stat(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
            moody(context)
            return blobs.Stat(request, context)

        def Read(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:  # noqa: N802
            moody(context)
            yield from blobs.Read(request, context)

    with client_of(Moody()) as service:
        questions: list[Callable[[], bool]] = [
            lambda: service.has(DIGEST),
            lambda: service.read(DIGEST) == BLOB,
        ]
        for call in questions:
            left[0], calls[:] = 2, []
            assert call()
            assert len(calls) == 3
            left[0], calls[:] = 1000, []
            with pytest.raises(Unavailable, match=r"grpc\+unix:///.*one moment"):
                call()
            assert len(calls) == channel._ATTEMPTS


# Lists of chunks.


def chunk(data: bytes) -> tuple[bytes, int]:
    return b3_digest(data), len(data)


def with_chunks(chunks: Sequence[tuple[bytes, int]], *there: bytes) -> Blobs:
    blobs = Blobs(of(*PARTS))
    blobs.chunks = chunks
    blobs.stored |= {b3_digest(data): data for data in there}
    return blobs


GOOD = [chunk(part) for part in PARTS]
ZEROS = bytes(1000)

LIES: dict[str, tuple[list[tuple[bytes, int]], str]] = {
    "a chunk longer than stated": ([*GOOD[:2], (GOOD[2][0], 299_999), *GOOD[3:]], "300000 bytes, its list"),
    "chunks longer than stated": ([(digest, 1000) for digest, _ in GOOD], "longer than its list says"),
    "a chunk shorter than stated": ([*GOOD[:2], (GOOD[2][0], 300_001), *GOOD[3:]], "300000 bytes, its list"),
    "the first one shorter": ([(GOOD[0][0], 1_000_000), *GOOD[1:]], "300000 bytes, its list"),
    "chunks of another blob": ([chunk(ZEROS), chunk(ZEROS)], "do not make the blob"),
    "one chunk too few": (GOOD[:-1], "do not make the blob"),
    "one chunk too many": ([*GOOD, chunk(ZEROS)], "do not make the blob"),
    "out of order": ([GOOD[1], GOOD[0], *GOOD[2:]], "do not make the blob"),
    "an empty chunk": ([GOOD[0], (b3_digest(b""), 0), chunk(ZEROS)], "chunk 1 of 3 has no bytes"),
    "a chunk that is not there": ([*GOOD, (bytes(32), 5)], "its chunks are not all there"),
    "a short digest": ([*GOOD, (bytes(31), 5)], "chunk digest has 31 bytes"),
    "no digest": ([*GOOD, (b"", 5)], "chunk digest has 0 bytes"),
    "a long digest": ([*GOOD, (bytes(33), 5)], "chunk digest has 33 bytes"),
    "over 64 bits": ([GOOD[0], (GOOD[1][0], 2**64 - 1)], "do not fit 64 bits"),
    "one that is another": ([chunk(ZEROS)], "its only chunk is"),
}


def read_on(service: BlobService, given: list[bytes]) -> None:
    reader = service.open_read(DIGEST)
    assert reader is not None
    with reader:
        while piece := reader.read_piece(100_000):
            given.append(piece)


@pytest.mark.parametrize(("chunks", "match"), LIES.values(), ids=list(LIES))
def test_false_lists_of_chunks(chunks: list[tuple[bytes, int]], match: str) -> None:
    blobs = with_chunks(chunks, ZEROS, *PARTS)
    with client_of(blobs) as service:
        given: list[bytes] = []
        with pytest.raises(Corrupt, match=match):
            read_on(service, given)
        # The last chunk was not given out, whatever came before.
        assert sum(map(len, given)) < sum(size for _, size in chunks)


def test_a_server_that_has_too_much_to_do() -> None:
    """A limit of the server's says nothing about the chunks."""

    class Busy(Blobs):
        busy = True

        def Read(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:  # noqa: N802
            if self.busy and request.digest == GOOD[2][0]:
                context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "5 calls are open, no more are taken")
            yield from super().Read(request, context)

    blobs = Busy()
    blobs.chunks = GOOD
    blobs.stored |= {b3_digest(part): part for part in PARTS}
    with client_of(blobs) as service:
        reader = service.open_read(DIGEST)
        assert reader is not None
        for start in (0, 700_000):
            reader.seek(start)
            with pytest.raises(LimitExceeded, match="no more are taken"):
                reader.read()
        blobs.busy = False
        reader.seek(0)
        assert reader.read() == BLOB
        reader.close()


def test_false_lists_read_elsewhere() -> None:
    """Seeking about in a list of chunks that are another blob's does not make it pass at the end."""
    blobs = with_chunks(
        [chunk(ZEROS), chunk(ZEROS + b"x"), chunk(ZEROS + b"y")], ZEROS, ZEROS + b"x", ZEROS + b"y"
    )
    with client_of(blobs) as service:
        reader = service.open_read(DIGEST)
        assert reader is not None
        with reader:
            reader.seek(2500)
            assert reader.read(10)
            reader.seek(0)
            with pytest.raises(Corrupt, match="do not make the blob"):
                reader.read()


def test_huge_chunks() -> None:
    """A chunk is held in memory, so one that is said to be huge is not read as one."""
    blobs = with_chunks([GOOD[0], (b3_digest(b"huge"), 2**62)])
    with client_of(blobs) as service:
        reader = service.open_read(DIGEST)
        assert reader is not None
        with reader:
            assert reader.size == len(BLOB)
            assert reader.read() == BLOB


def test_very_many_chunks() -> None:
    blobs = with_chunks([chunk(ZEROS)] * 250_000, ZEROS)
    with client_of(blobs) as service:
        reader = service.open_read(DIGEST)
        assert reader is not None
        with reader:
            assert reader.size == 250_000_000
            assert reader.read(10) == ZEROS[:10]
            reader.seek(50_000_500)
            assert reader.read(10) == ZEROS[:10]


# Uploads.


@pytest.mark.parametrize("digest", [b"", bytes(31), bytes(32), b3_digest(BLOB[1:])])
def test_put_answers_with_another_digest(digest: Digest) -> None:
    class Liar(ForeignBlobs):
        def Put(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Any:  # noqa: N802
            super().Put(requests, context)
            return rpc_blobstore_pb2.PutBlobResponse(digest=digest)

    liar = Liar()
    with client_of(liar) as service:
        writer = service.open_write()
        writer.write(BLOB)
        with pytest.raises(Corrupt, match="arrived as another") as failed:
            writer.close()
        assert format_digest(DIGEST) in str(failed.value)
        with pytest.raises(InvalidRequest, match="previously closed with an error"):
            writer.close()
        liar.stored.clear()
        with pytest.raises(Corrupt, match="arrived as another"):
            service.put_many([BLOB])


def write_on(writer: BlobWriter) -> None:
    for _ in range(200):
        writer.write(BLOB)


@pytest.mark.parametrize("code", [None, grpc.StatusCode.RESOURCE_EXHAUSTED])
def test_put_ends_before_everything_was_sent(code: grpc.StatusCode | None) -> None:
    class Hasty(ForeignBlobs):
        def Put(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Any:  # noqa: N802
            next(requests)
            if code is not None:
                context.abort(code, "no more")
            return rpc_blobstore_pb2.PutBlobResponse(digest=DIGEST)

    error, match = (LimitExceeded, "no more") if code else (Unavailable, "ended the call before its end")
    with client_of(Hasty()) as service:
        writer = service.open_write()
        with pytest.raises(error, match=match):
            write_on(writer)
        with pytest.raises(InvalidRequest, match="previously closed with an error"):
            writer.write(b"more")


def test_a_writer_that_is_abandoned_ends_its_call() -> None:
    seen: list[bytes] = []
    begun, ended = threading.Event(), threading.Event()

    class Watching(ForeignBlobs):
        def Put(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Any:  # noqa: N802
            context.add_callback(ended.set)
            with contextlib.suppress(grpc.RpcError):
                for request in requests:
                    seen.append(request.data)
                    begun.set()
            return rpc_blobstore_pb2.PutBlobResponse()

    with client_of(Watching()) as service:
        with service.open_write() as writer:
            writer.write(BLOB * 2)
            assert begun.wait(20)
        assert ended.wait(20)
        ended.clear()
        with service.open_write() as writer:
            writer.write(b"too little to be sent")
        assert not ended.is_set()
    assert (BLOB * 2).startswith(b"".join(seen))
