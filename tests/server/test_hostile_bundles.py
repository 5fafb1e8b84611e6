"""Clients whose batches lie: what packed blobs say is not what they hold."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import zstandard

from neve.castore.blobs.bundle import MAX_BUNDLE_BYTES
from neve.castore.blobs.chunks import Chunker
from neve.castore.digest import EMPTY_BLOB, b3_digest
from neve.proto.neve.castore.protos import rpc_batch_pb2 as batch
from neve.server import batches
from neve.tree import WHOLE_FILE_LIMIT

from .peer import BACKENDS, Peer, serving
from .raw import status
from .test_hostile_batches import bomb, stating

Code = grpc.StatusCode

ONE, TWO = b"one" * 100, b"two" * 200
RAW = ONE + TWO
RUN = b3_digest(ONE) + b3_digest(TWO)
SIZES = [len(ONE), len(TWO)]
ZSTD = zstandard.compress(RAW)
LARGE = os.urandom(2_000_000)


def bundle(**changed: Any) -> batch.Bundle:
    """A right bundle, but for what is changed."""
    right: dict[str, Any] = {"digests": RUN, "sizes": SIZES, "data": ZSTD, "zstd": True}
    return batch.Bundle(**(right | changed))


def cut(blob: bytes) -> list[bytes]:
    chunker = Chunker()
    return [bytes(chunk) for chunk in [*chunker.feed([blob]), *chunker.finish()]]


def chunks_of(*pieces: bytes) -> batch.Bundle:
    """Chunks in a bundle of their own."""
    return batch.Bundle(
        digests=b"".join(map(b3_digest, pieces)), sizes=[len(p) for p in pieces], data=b"".join(pieces)
    )


def put(peer: Peer, *requests: batch.PutRequest, commit: bool = True) -> list[Any]:
    """Sends messages, and commits."""
    last = [batch.PutRequest(commit=True)] if commit else []
    return list(peer.batches("Put")(iter([*requests, *last]), timeout=60))


def parts(*what: batch.Part) -> batch.PutRequest:
    return batch.PutRequest(parts=what)


@pytest.fixture(params=BACKENDS)
def peer(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Peer]:
    with serving(request.param, tmp_path) as peer:
        yield peer


@pytest.mark.parametrize("backend", BACKENDS)
def test_right_ones(backend: str, tmp_path: Path) -> None:
    pieces = cut(LARGE)
    requests = [
        batch.PutRequest(blobs=[bundle(), bundle(data=RAW, zstd=False), bundle()]),
        parts(*[batch.Part(writer=7, chunks=chunks_of(piece)) for piece in pieces[:2]]),
        parts(batch.Part(writer=8, data=LARGE), batch.Part(writer=9, data=b"never ended")),
        parts(batch.Part(writer=7, chunks=chunks_of(*pieces[2:]))),
        parts(batch.Part(writer=7, end=b3_digest(LARGE)), batch.Part(writer=8, abandon=True)),
    ]
    new = [b3_digest(ONE), b3_digest(TWO), b3_digest(LARGE)]
    with serving(backend, tmp_path, new=new) as peer:
        assert len(put(peer, *requests)) == 1
        assert peer.stored() == set(new)
        for digest, contents in zip(new, [ONE, TWO, LARGE], strict=True):
            assert peer.daemon.services.blobs.read(digest) == contents


INVALID = {
    "digests in another order": bundle(digests=b3_digest(TWO) + b3_digest(ONE)),
    "another digest": bundle(digests=b3_digest(ONE) + bytes(32)),
    "sizes in another order": bundle(sizes=SIZES[::-1]),
    "a size too few": bundle(sizes=SIZES[:1]),
    "a size too many": bundle(sizes=[*SIZES, 0]),
    "no sizes": bundle(sizes=[]),
    "no digests": bundle(digests=b""),
    "sizes that are too small": bundle(sizes=[1, 1]),
    "sizes that are too large": bundle(sizes=[SIZES[0], SIZES[1] + 1]),
    "no data": bundle(data=b""),
    "a bit flipped": bundle(data=RAW[:-1] + b"x", zstd=False),
    "too little data": bundle(data=RAW[:-1], zstd=False),
    "too much data": bundle(data=RAW + b"x", zstd=False),
    "zstd that is none": bundle(data=RAW),
    "zstd that is not named": bundle(zstd=False),
    "zstd that is cut": bundle(data=ZSTD[:-3]),
    "zstd and garbage": bundle(data=ZSTD + b"x"),
    "two frames": bundle(data=ZSTD * 2),
    "a frame that states 8 EiB": bundle(data=stating(ZSTD, 2**63)),
    "a frame that states nothing": bundle(
        data=zstandard.ZstdCompressor(write_content_size=False).compress(RAW)
    ),
    "a frame that states too little": bundle(data=stating(ZSTD, 10)),
    "a frame that holds more than is stated": bundle(data=stating(bomb(2**30), len(RAW))),
    "an empty blob that is not": bundle(digests=EMPTY_BLOB * 2),
}

TOO_MUCH = {
    "a blob of 4 GiB": bundle(sizes=[2**32 - 1, 1]),
    "a blob over the limit": bundle(sizes=[WHOLE_FILE_LIMIT + 1, 1]),
    "all together over the limit": bundle(
        digests=RUN * 9, sizes=[WHOLE_FILE_LIMIT] * 18, data=bomb(18 * WHOLE_FILE_LIMIT)
    ),
    "a bomb": bundle(
        digests=bytes(32) * (MAX_BUNDLE_BYTES // WHOLE_FILE_LIMIT + 1),
        sizes=[WHOLE_FILE_LIMIT] * (MAX_BUNDLE_BYTES // WHOLE_FILE_LIMIT + 1),
        data=bomb(2**30),
    ),
}


@pytest.mark.parametrize("lie", INVALID.values(), ids=list(INVALID))
def test_bundles_that_lie(peer: Peer, lie: batch.Bundle) -> None:
    # As chunks of a large blob as well, after a good one.
    started = parts(batch.Part(writer=1, data=LARGE[:100_000]))
    for request in (batch.PutRequest(blobs=[lie]), parts(batch.Part(writer=1, chunks=lie))):
        with status(Code.INVALID_ARGUMENT, "."):
            put(peer, started, request)


@pytest.mark.parametrize("lie", TOO_MUCH.values(), ids=list(TOO_MUCH))
def test_bundles_that_are_too_large(peer: Peer, lie: batch.Bundle) -> None:
    for request in (batch.PutRequest(blobs=[lie]), parts(batch.Part(writer=1, chunks=lie))):
        with status(Code.RESOURCE_EXHAUSTED, "over the limit of"):
            put(peer, request)


def test_large_blobs_that_lie(tmp_path: Path) -> None:
    end = batch.Part(writer=1, end=b3_digest(LARGE))
    pieces = [batch.Part(writer=1, chunks=chunks_of(piece)) for piece in cut(LARGE)]
    invalid: dict[str, list[batch.Part]] = {
        "announced was": [batch.Part(writer=1, data=LARGE[:-1]), end],
        "b3:.* announced was": [batch.Part(writer=1, data=LARGE[:1_000_000]), end],
        "announced was b3:": [*pieces[::-1], end],
        "make b3:": [end],
        "an empty chunk": [pieces[0], batch.Part(writer=1, chunks=chunks_of(b"a", b""))],
        "holds nothing": [batch.Part(writer=1)],
    }
    with serving("local", tmp_path) as peer:
        for match, lie in invalid.items():
            with status(Code.INVALID_ARGUMENT, match):
                put(peer, parts(*lie))


def test_chunks_that_are_not_there(peer: Peer) -> None:
    known = b"".join(b3_digest(piece) for piece in cut(LARGE))
    with status(Code.NOT_FOUND, "named as known, but is not in the store"):
        put(peer, parts(batch.Part(writer=1, known=known), batch.Part(writer=1, end=b3_digest(LARGE))))


def test_a_known_chunk_that_is_a_large_blob(tmp_path: Path) -> None:
    with serving("local", tmp_path, new=[b3_digest(LARGE)]) as peer:
        digest = peer.put(LARGE)
        with status(Code.RESOURCE_EXHAUSTED, f"at most {WHOLE_FILE_LIMIT}"):
            put(peer, parts(batch.Part(writer=1, known=digest * 2), batch.Part(writer=1, end=digest)))


def test_a_blob_of_one_chunk(tmp_path: Path) -> None:
    """Its list would have the key of the chunk."""
    chunk = LARGE[:300_000]
    pieces = batch.Part(writer=1, chunks=chunks_of(chunk)), batch.Part(writer=1, end=b3_digest(chunk))
    with serving("local", tmp_path) as peer, status(Code.INVALID_ARGUMENT, "is to be sent whole"):
        put(peer, parts(*pieces))


def test_very_many_writers(peer: Peer) -> None:
    with status(Code.RESOURCE_EXHAUSTED, "blobs are on their way in one stream"):
        put(peer, parts(*[batch.Part(writer=number, data=b"x" * 1000) for number in range(500)]))


def test_writers_may_follow_each_other(tmp_path: Path) -> None:
    """It is those on their way that count."""
    blobs = [b"%d" % number * 1000 for number in range(100)]
    requests = [
        parts(batch.Part(writer=i, data=blob), batch.Part(writer=i, end=b3_digest(blob)))
        for i, blob in enumerate(blobs)
    ]
    with serving("local", tmp_path, new=map(b3_digest, blobs)) as peer:
        put(peer, *requests)
        assert len(peer.stored()) == 100


def test_questions_that_are_too_long(peer: Peer) -> None:
    run = bytes(32) * (batches.MAX_DIGESTS + 1)
    match = f"{batches.MAX_DIGESTS + 1} digests in one message, the limit is {batches.MAX_DIGESTS}"
    with status(Code.RESOURCE_EXHAUSTED, match):
        peer.batches("Missing")(batch.MissingRequest(digests=run))
    with status(Code.RESOURCE_EXHAUSTED, match):
        list(peer.batches("Read")(batch.ReadRequest(digests=run)))
    with status(Code.RESOURCE_EXHAUSTED, match):
        list(peer.batches("GetDirectories")(batch.GetDirectoriesRequest(digests=run)))
    with status(Code.RESOURCE_EXHAUSTED, match):
        put(peer, batch.PutRequest(keep=run))
    with status(Code.RESOURCE_EXHAUSTED, match):
        put(peer, parts(batch.Part(writer=1, known=run)))
    assert len(peer.batches("Missing")(batch.MissingRequest(digests=run[32:])).missing) == batches.MAX_DIGESTS


def test_long_work_ends_with_its_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small message can name very much that the server is to read again."""
    with serving("local", tmp_path, new=None) as peer:
        blobs = peer.daemon.services.blobs
        digests = b"".join(peer.put(os.urandom(1000)) for _ in range(3))
        reading, read = threading.Event(), []
        read_many = blobs.read_many

        def slowly(*arguments: Any) -> Iterator[bytes]:
            for data in read_many(*arguments):
                read.append(1)
                reading.set()
                threading.Event().wait(0.01)
                yield data

        monkeypatch.setattr(blobs, "read_many", slowly)
        known = digests * 20_000
        call = peer.batches("Put")(iter([parts(batch.Part(writer=1, known=known))]))
        assert reading.wait(20)
        call.cancel()
    assert len(read) < 5000


@pytest.mark.parametrize("requests", [[], [batch.PutRequest()], [batch.PutRequest()] * 1000])
def test_messages_of_nothing(peer: Peer, requests: list[batch.PutRequest]) -> None:
    assert put(peer, *requests, commit=False) == []
    (answer,) = put(peer, *requests)
    assert not answer.missing


def test_nothing_is_stored_without_a_commit(tmp_path: Path) -> None:
    with serving("local", tmp_path) as peer:
        assert put(peer, batch.PutRequest(blobs=[bundle()]), commit=False) == []
        assert list(peer.batches("Missing")(batch.MissingRequest(digests=RUN)).missing) == [0, 1]


def test_an_error_takes_along_what_was_not_committed(tmp_path: Path) -> None:
    """But not what was: that was promised."""
    first, second = os.urandom(1000), os.urandom(1000)
    with serving("local", tmp_path, new=[b3_digest(first)]) as peer:
        with status(Code.INVALID_ARGUMENT, "."):
            put(
                peer,
                batch.PutRequest(blobs=[chunks_of(first)], commit=True),
                batch.PutRequest(blobs=[chunks_of(second)]),
                batch.PutRequest(blobs=[bundle(sizes=[])]),
            )
        assert peer.stored() == {b3_digest(first)}
