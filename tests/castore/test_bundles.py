"""Bundles: what is believed of them (nothing), and which are kept in the embedded store as they came."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from neve.castore.blobs.base import BlobBatch, BlobService
from neve.castore.blobs.bundle import (
    MAX_BUNDLE_BYTES,
    Answer,
    Bundle,
    InvalidBundle,
    answer_from_message,
    answer_message,
    bundle_from_message,
    bundles,
    fill_bundle_message,
    split_digests,
)
from neve.castore.blobs.local import LocalBlobService
from neve.castore.blobs.local_write import BLOB, BLOBS, CHUNK
from neve.castore.blobs.memory import MemoryBlobService
from neve.castore.blobs.urls import BLOB_SERVICES
from neve.castore.digest import b3_digest
from neve.errors import DiskFull, InvalidRequest, LimitExceeded, Unavailable
from neve.packstore.frames import FRAME_TARGET, MAX_FRAME_RECORDS
from neve.packstore.store import PackStore
from neve.proto.neve.castore.protos import rpc_batch_pb2
from neve.testing.blob_reading import KIB, MIB, incompressible
from neve.tree import WHOLE_FILE_LIMIT


def text(size: int, seed: int = 0) -> bytes:
    """Contents that compress to about a half, different for each seed."""
    return random.Random(seed).randbytes(size // 2).hex().encode()


def bundle_of(*blobs: bytes, compress: bool = True) -> Bundle:
    raw = b"".join(blobs)
    data = zstandard.ZstdCompressor().compress(raw) if compress else raw
    return Bundle([b3_digest(blob) for blob in blobs], [len(blob) for blob in blobs], data, compress)


@pytest.fixture
def local(tmp_path: Path) -> Iterator[LocalBlobService]:
    service = BLOB_SERVICES.open(f"local://{tmp_path}/store")
    assert isinstance(service, LocalBlobService)
    yield service
    service.close()


@pytest.fixture(params=["memory", "local"])
def service(request: pytest.FixtureRequest, local: LocalBlobService) -> BlobService:
    return local if request.param == "local" else MemoryBlobService()


# Packing and unpacking.


@given(st.lists(st.binary(max_size=300), max_size=20))
def test_round_trip(blobs: list[bytes]) -> None:
    received = []
    for bundle in bundles([(b3_digest(blob), blob) for blob in blobs]):
        message = rpc_batch_pb2.Bundle()
        fill_bundle_message(message, bundle)
        again = bundle_from_message(rpc_batch_pb2.Bundle.FromString(message.SerializeToString()))
        assert again == Bundle(bundle.digests, bundle.sizes, bytes(bundle.data), bundle.zstd)
        received += [bytes(blob) for blob in again.contents()]
    assert received == blobs


def test_packing() -> None:
    blobs = [text(100 * KIB, seed) for seed in range(6)]
    made = list(bundles([(b3_digest(blob), blob) for blob in blobs]))
    assert [len(bundle.digests) for bundle in made] == [2, 2, 2]
    assert all(bundle.zstd and len(bundle.data) < bundle.raw_size for bundle in made)
    assert [len(bundle.digests) for bundle in bundles([(b"", blob) for blob in blobs], 1)] == [1] * 6
    (alone,) = bundles([(b"", incompressible(300 * KIB))])
    assert not alone.zstd


LIES = {
    "another digest": Bundle([b3_digest(b"other")], [4], b"blob"),
    "a size too small": Bundle([b3_digest(b"blo")], [3], b"blob"),
    "a size too large": Bundle([b3_digest(b"blob")], [5], b"blob"),
    "no zstd frame": Bundle([b3_digest(b"blob")], [4], b"blob", True),
    "a frame of another length": Bundle([b3_digest(b"blob")], [4], zstandard.compress(b"blobs"), True),
    "a frame without a length": Bundle(
        [b3_digest(b"blob")], [4], zstandard.ZstdCompressor(write_content_size=False).compress(b"blob"), True
    ),
    "a frame cut off": Bundle([b3_digest(b"blob")], [4], zstandard.compress(b"blob")[:-2], True),
    "bytes behind the frame": Bundle([b3_digest(b"blob")], [4], zstandard.compress(b"blob") + b"x", True),
    "two frames": Bundle(
        [b3_digest(b"blob")], [4], zstandard.compress(b"bl") + zstandard.compress(b"ob"), True
    ),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_a_bundle_that_lies(service: BlobService, lie: Bundle) -> None:
    with pytest.raises(InvalidBundle):
        lie.contents()
    with service.batch() as batch, pytest.raises(InvalidRequest):
        batch.put_bundle(lie)
    assert service.missing([b3_digest(b"blob"), b3_digest(b"other")]) != []
    assert service.list() == []


def test_a_bomb_is_not_unpacked() -> None:
    size = MAX_BUNDLE_BYTES + 1
    bomb = Bundle([b3_digest(b"")], [size], zstandard.compress(bytes(size)), True)
    with pytest.raises(LimitExceeded, match="over the limit"):
        bomb.contents()


def test_messages_that_make_no_bundle() -> None:
    with pytest.raises(InvalidRequest, match="31 bytes, no multiple of 32"):
        split_digests(bytes(31))
    with pytest.raises(InvalidBundle, match="1 digests and 2 sizes"):
        bundle_from_message(rpc_batch_pb2.Bundle(digests=bytes(32), sizes=[1, 2], data=b"abc"))
    with pytest.raises(LimitExceeded, match="524289 bytes"):
        bundle_from_message(rpc_batch_pb2.Bundle(digests=bytes(32), sizes=[WHOLE_FILE_LIMIT + 1]))


# Storing.


def stored_frame(service: LocalBlobService, blob: bytes) -> bytes:
    (location,) = service._store.find(BLOBS, [b3_digest(blob)]).values()
    return service._store.stored(location)


def put_bundle(service: BlobService, bundle: Bundle) -> None:
    with service.batch() as batch:
        batch.put_bundle(bundle)
        batch.commit()


def test_a_bundle_is_kept_as_it_is(local: LocalBlobService) -> None:
    blobs = [text(60 * KIB, seed) for seed in range(4)]
    bundle = bundle_of(*blobs)
    put_bundle(local, bundle)
    assert [stored_frame(local, blob) for blob in blobs] == [bundle.data] * 4
    assert list(local.read_many([b3_digest(blob) for blob in blobs])) == blobs
    raw = bundle_of(incompressible(200 * KIB), compress=False)
    put_bundle(local, raw)
    assert stored_frame(local, bytes(raw.data)) == raw.data


@pytest.mark.parametrize(
    "blobs",
    [
        [b"small", b"ones"],
        [text(60 * KIB), text(60 * KIB), text(60 * KIB)],
        [b"", text(200 * KIB)],
        [b"%08d" % number for number in range(MAX_FRAME_RECORDS * 5)],
        [text(200 * KIB), text(200 * KIB, 1), text(200 * KIB, 2)],
    ],
    ids=["too little", "the same again", "an empty one", "too many", "too much"],
)
def test_a_bundle_that_makes_no_good_frame_is_packed_anew(
    local: LocalBlobService, blobs: list[bytes]
) -> None:
    bundle = bundle_of(*blobs)
    put_bundle(local, bundle)
    digests = [b3_digest(blob) for blob in blobs]
    assert list(local.read_many(digests)) == blobs
    locations = local._store.find(
        BLOBS, [digest for digest, blob in zip(digests, blobs, strict=True) if blob]
    )
    assert all(location.raw_len <= 2 * FRAME_TARGET for location in locations.values())
    assert stored_frame(local, blobs[-1]) != bundle.data


def test_a_frame_that_is_longer_than_its_contents_is_packed_anew(local: LocalBlobService) -> None:
    blob = bytes(200 * KIB)
    empty_block = b"\0\0\0"  # raw, not the last, of length 0
    frame = zstandard.ZstdCompressor(write_checksum=False).compress(blob)
    head = 5 + zstandard.get_frame_parameters(frame).content_size.bit_length() // 16 * 2
    for at in range(5, head + 6):
        padded = frame[:at] + empty_block * 100_000 + frame[at:]
        try:
            if zstandard.decompress(padded) == blob and zstandard.frame_content_size(padded) == len(blob):
                break
        except zstandard.ZstdError:
            continue
    else:
        pytest.fail("no place for empty blocks found")
    put_bundle(local, Bundle([b3_digest(blob)], [len(blob)], padded, True))
    assert len(stored_frame(local, blob)) < 1000
    assert local.read(b3_digest(blob)) == blob


def test_whoever_compresses_nothing_is_helped(local: LocalBlobService) -> None:
    blob = text(200 * KIB)
    put_bundle(local, bundle_of(blob, compress=False))
    assert len(stored_frame(local, blob)) < len(blob) * 2 // 3


def test_a_full_disk_is_not_forgotten(local: LocalBlobService, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise DiskFull("the disk is full")

    bundle = bundle_of(text(200 * KIB))
    with local.batch() as batch:
        with monkeypatch.context() as patched:
            patched.setattr(PackStore, "stage_packed", full)
            with pytest.raises(DiskFull):
                batch.put_bundle(bundle)
        with pytest.raises(Unavailable, match="has failed before"):
            batch.put_bundle(bundle)
        with pytest.raises(Unavailable, match="has failed before"):
            batch.commit()
    put_bundle(local, bundle)
    assert local.missing(bundle.digests) == []


# Chunks.


def chunked(contents: bytes, size: int) -> list[bytes]:
    return [contents[at : at + size] for at in range(0, len(contents), size)]


def put_chunks(batch: BlobBatch, chunks: list[bytes]) -> None:
    with batch.open_write() as writer:
        for chunk in chunks:
            writer.write_bundle(bundle_of(chunk))
        writer.close()


def test_chunks_of_somebody_else(service: BlobService) -> None:
    contents = text(3 * MIB)
    with service.batch() as batch, batch.open_write() as writer:
        writer.write(contents[: 100 * KIB])
        for chunk in chunked(contents[100 * KIB : 2 * MIB], 300 * KIB):
            writer.write_bundle(bundle_of(chunk))
        writer.write(contents[2 * MIB :])
        assert writer.close() == b3_digest(contents)
        batch.commit()
    assert service.read(b3_digest(contents)) == contents


@pytest.mark.parametrize("size", [400 * KIB, 200 * KIB, 1])
def test_a_small_blob_cannot_be_replaced_by_chunks(local: LocalBlobService, size: int) -> None:
    contents = text(400 * KIB)
    (digest,) = local.put_many([contents])
    with local.batch() as batch, pytest.raises(InvalidRequest):
        put_chunks(batch, chunked(contents, size))
    assert local._store.find(BLOBS, [digest])[digest].tag == BLOB
    assert local.read(digest) == contents


def test_a_large_blob_cannot_be_cut_to_dust(local: LocalBlobService) -> None:
    with local.batch() as batch, pytest.raises(InvalidRequest, match="too small"):
        put_chunks(batch, chunked(text(2 * MIB), 1000))


def test_an_empty_chunk_is_refused(local: LocalBlobService) -> None:
    with (
        local.batch() as batch,
        batch.open_write() as writer,
        pytest.raises(InvalidRequest, match="1 to 524288"),
    ):
        writer.write_bundle(bundle_of(text(MIB // 4), b""))


# Reading.


def answers_of(service: BlobService, blobs: list[bytes]) -> tuple[dict[int, bytes], set[int], set[int]]:
    found, absent, apart = {}, set(), set()
    for sent in service.read_bundles([b3_digest(blob) for blob in blobs]):
        answer = answer_from_message(answer_message(sent))
        raw = answer.contents()
        for place, start, size in zip(answer.places, answer.starts, answer.sizes, strict=True):
            found[place] = bytes(raw[start : start + size])
        absent |= set(answer.absent)
        apart |= set(answer.apart)
    return found, absent, apart


def test_answers(service: BlobService) -> None:
    small = [text(1000, seed) for seed in range(50)]
    large = incompressible(WHOLE_FILE_LIMIT + 1)
    service.put_many([*small, large])
    found, absent, apart = answers_of(service, [*small, b"absent", large, b""])
    assert found == {**dict(enumerate(small)), 52: b""}
    assert (absent, apart) == ({50}, {51})


def test_a_frame_goes_out_as_it_lies_there_if_most_of_it_is_wanted(local: LocalBlobService) -> None:
    blobs = [text(60 * KIB, seed) for seed in range(4)]
    put_bundle(local, bundle_of(*blobs))
    most = list(local.read_bundles([b3_digest(blob) for blob in blobs[:3]]))
    assert [answer.data for answer in most if answer.places] == [stored_frame(local, blobs[0])]
    (little,) = [answer for answer in local.read_bundles([b3_digest(blobs[1])]) if answer.places]
    assert (little.zstd, bytes(little.data)) == (False, blobs[1])


def test_a_chunk_is_no_less_than_a_blob(local: LocalBlobService) -> None:
    """What is stored as a chunk and put as a blob in a bundle is listed from then on."""
    contents = incompressible(MIB)
    local.put_many([contents])
    chunk = (local.chunks(b3_digest(contents)) or [])[0]
    part = local.read(chunk.digest)
    assert local._store.find(BLOBS, [chunk.digest])[chunk.digest].tag == CHUNK
    put_bundle(local, bundle_of(part, compress=False))
    assert chunk.digest in local.list()


def test_an_answer_that_makes_no_sense() -> None:
    with pytest.raises(InvalidBundle, match="differ in length"):
        Answer(b"x", False, 1, [0], [], [1]).contents()
    with pytest.raises(InvalidBundle):
        Answer(b"x", False, 2, [0], [0], [2]).contents()
