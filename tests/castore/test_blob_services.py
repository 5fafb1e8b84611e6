"""The contract of blob services, for memory and the embedded store, and what only the latter does."""

from __future__ import annotations

import errno
import os
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from neve.castore.blobs.base import BlobService
from neve.castore.blobs.chunks import AVERAGE_CHUNK, Chunker, decode_chunk_list, encode_chunk_list
from neve.castore.blobs.local_write import CHUNK
from neve.castore.blobs.memory import MemoryBlobService
from neve.castore.blobs.urls import BLOB_SERVICES
from neve.castore.digest import Digest, b3_digest, format_digest
from neve.errors import Corrupt, DiskFull, InvalidRequest, PermissionDenied, Unavailable
from neve.packstore.frames import Record
from neve.packstore.sessions import Session
from neve.packstore.store import PackStore, Table
from neve.testing.ages import BlobAgesContract
from neve.testing.blob_reading import KIB, MIB, incompressible, put
from neve.testing.blobs import BlobServiceContract
from tests.castore.damage import damage_blob


class TestMemory(BlobServiceContract, BlobAgesContract):
    finds_damage = False

    @pytest.fixture
    def service(self) -> Iterator[BlobService]:
        service = MemoryBlobService()
        yield service
        service.close()

    def make_older(self, service: Any, seconds: float) -> None:
        service._uses.make_older(seconds)


class TestLocal(BlobServiceContract):
    @pytest.fixture
    def service(self, tmp_path: Path) -> Iterator[BlobService]:
        service = BLOB_SERVICES.open(f"local://{tmp_path / 'store'}")
        yield service
        service.close()

    def damage(self, service: BlobService, digest: Digest) -> None:
        damage_blob(service, digest)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def service(folder: Path) -> Iterator[BlobService]:
    service = BLOB_SERVICES.open(f"local://{folder}")
    yield service
    service.close()


@pytest.mark.parametrize("mode", ["rw", "ro"])
def test_everything_is_there_after_reopening(folder: Path, mode: str) -> None:
    blobs = [b"small", incompressible(3 * MIB), *(b"%d" % number for number in range(100))]
    service = BLOB_SERVICES.open(f"local://{folder}")
    digests = [put(service, blob) for blob in blobs]
    service.close()
    service.close()
    service = BLOB_SERVICES.open(f"local://{folder}?mode={mode}")
    assert list(service.read_many(digests)) == blobs
    assert service.list() == sorted(digests)
    service.close()


def test_a_store_open_read_only_takes_nothing(folder: Path) -> None:
    BLOB_SERVICES.open(f"local://{folder}").close()
    service = BLOB_SERVICES.open(f"local://{folder}?mode=ro")
    for write in (service.open_write, service.batch, lambda: service.put_many([b"x"])):
        with pytest.raises(PermissionDenied):
            write()
    with pytest.raises(PermissionDenied):
        service.delete_many([b3_digest(b"x")])
    service.close()


def test_a_batch_that_failed_promises_nothing(service: BlobService, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    blobs = [incompressible(300 * KIB, seed) for seed in range(4)]
    with service.batch() as batch:
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwritev", full)
            with pytest.raises(DiskFull):  # noqa: PT012 - the threads of the batch are not at once so far
                batch.put_many(blobs)
                batch.commit()
        for further in (batch.commit, lambda: batch.put_many([b"x"]), batch.open_write):
            with pytest.raises(Unavailable):
                further()
    assert service.missing([b3_digest(blob) for blob in blobs]) == [b3_digest(blob) for blob in blobs]
    assert list(service.read_many(service.put_many(blobs))) == blobs


def test_a_writer_that_failed_says_so(service: BlobService, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    writer = service.open_write()
    writer.write(b"some bytes")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", broken)
        with pytest.raises(Unavailable):
            writer.close()
    for _ in range(2):
        with pytest.raises(InvalidRequest, match="previously closed with an error"):
            writer.close()
    assert not service.has(b3_digest(b"some bytes"))
    assert service.read(put(service, b"some bytes")) == b"some bytes"


def test_a_list_of_chunks_that_were_given_up_is_never_published(
    service: BlobService, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    contents, other = incompressible(3 * MIB), b"by somebody else"
    with service.batch() as batch:
        writer = batch.open_write()
        writer.write(contents)
        batch.keep_many([])  # Now what has been cut so far is staged.
        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", broken)
            with pytest.raises(DiskFull):
                put(service, other)
        writer.close()
        with pytest.raises(DiskFull):
            batch.commit()
    put(service, other)
    assert not service.has(b3_digest(contents))
    assert service.list() == [b3_digest(other)]
    assert service.read(put(service, contents)) == contents


def test_a_closed_batch_takes_nothing(service: BlobService) -> None:
    batch = service.batch()
    batch.close()
    batch.close()
    for further in (batch.commit, lambda: batch.put_many([b"x"]), batch.open_write):
        with pytest.raises(InvalidRequest, match="closed"):
            further()


def test_a_chunk_list_is_never_visible_before_its_chunks(
    service: BlobService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The threads of a batch stage chunks late, and meanwhile somebody else commits."""
    staged, go_on = PackStore.stage, threading.Event()

    def late(self: PackStore, table: Table, records: Sequence[Record], session: Session) -> None:
        if any(record.tag == CHUNK for record in records):
            assert go_on.wait(60)
        staged(self, table, records, session)

    monkeypatch.setattr(PackStore, "stage", late)
    contents = incompressible(3 * MIB)
    with service.batch() as batch:
        digest = put(batch, contents)
        batch.put_many([b"%d" % number * 1000 for number in range(600)])
        put(service, b"by somebody else")
        assert not service.has(digest)
        go_on.set()
        batch.commit()
    assert service.read(digest) == contents


def test_what_is_staged_as_a_chunk_can_be_a_blob_too(service: BlobService) -> None:
    contents = incompressible(1200 * KIB)
    chunks = Chunker().feed([contents])
    with service.batch() as batch:
        digest = put(batch, contents)
        blobs = batch.put_many([bytes(chunk) for chunk in chunks])
        batch.commit()
    assert service.list() == sorted([digest, *blobs])


def test_a_missing_chunk_is_damage(service: BlobService) -> None:
    digest = put(service, incompressible(3 * MIB))
    chunk = (service.chunks(digest) or [])[1].digest
    assert service.delete_many([chunk]) == 1
    for read in (service.read, lambda digest: list(service.read_many([digest]))):
        with pytest.raises(Corrupt) as error:
            read(digest)
        assert format_digest(chunk) in str(error.value)


def test_a_damaged_chunk_list_is_found(service: BlobService) -> None:
    digest = put(service, incompressible(3 * MIB))
    TestLocal().damage(service, digest)
    for read in (service.read, service.chunks, service.open_read):
        with pytest.raises(Corrupt) as error:
            read(digest)
        assert format_digest(digest) in str(error.value)


def test_one_damaged_blob_of_many_is_named(service: BlobService) -> None:
    digests = service.put_many([incompressible(100, seed) for seed in range(50)])
    digests.append(put(service, incompressible(MIB // 4)))
    TestLocal().damage(service, digests[-1])
    reading = service.read_many(digests)
    assert [b3_digest(next(reading)) for _ in digests[:-1]] == digests[:-1]
    with pytest.raises(Corrupt) as error:
        next(reading)
    assert format_digest(digests[-1]) in str(error.value)


# Chunks.


def cut(contents: bytes, sizes: Callable[[], int]) -> list[bytes]:
    chunker, chunks, at = Chunker(), [], 0
    while at < len(contents):
        size = sizes()
        chunks += [
            bytes(chunk)
            for chunk in chunker.feed([contents[at : at + size // 3], contents[at + size // 3 : at + size]])
        ]
        at += size
    return chunks + [bytes(chunk) for chunk in chunker.finish()]


def test_where_chunks_are_cut() -> None:
    contents = incompressible(5 * MIB)
    whole = cut(contents, lambda: len(contents))
    assert b"".join(whole) == contents
    assert all(AVERAGE_CHUNK // 2 <= len(chunk) <= 2 * AVERAGE_CHUNK for chunk in whole[:-1])
    rng = random.Random(5)
    assert cut(contents, lambda: rng.randrange(1, 40_000)) == whole
    assert cut(contents, lambda: rng.randrange(1, 700_000)) == whole
    # The same bytes elsewhere are cut alike, after the first differences.
    moved = cut(b"in front" + contents, lambda: MIB)
    assert len(set(whole) & set(moved)) > len(whole) // 2
    assert cut(b"", lambda: 1) == []


def test_zeros_are_cut_at_the_longest() -> None:
    chunks = cut(bytes(3 * MIB), lambda: MIB)
    assert {len(chunk) for chunk in chunks} == {2 * AVERAGE_CHUNK}


def test_chunk_lists_are_stat_responses(service: BlobService) -> None:
    chunks = service.chunks(put(service, incompressible(2 * MIB))) or []
    assert len(chunks) > 2
    assert decode_chunk_list(encode_chunk_list(chunks)) == chunks
    first = chunks[:1]
    size = first[0].size
    field = (
        b"\n " + first[0].digest + b"\x10" + bytes([size & 0x7F | 0x80, size >> 7 & 0x7F | 0x80, size >> 14])
    )
    assert encode_chunk_list(first) == b"\x12" + bytes([len(field)]) + field
    for wrong in (b"\x12", b"\x12\x02\x0a\x00", b"\xff\xff"):
        with pytest.raises(InvalidRequest):
            decode_chunk_list(wrong)
