"""The contract of blob services, first part: readers, and finding damage."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator, Sequence

import pytest

from neve.castore.blobs.base import BlobBatch, BlobReader, BlobService
from neve.castore.digest import EMPTY_BLOB, Digest, format_digest
from neve.errors import Corrupt

KIB = 1024
MIB = 1024 * KIB


def incompressible(size: int, seed: int = 0) -> bytes:
    """Bytes that look random, the same ones each time."""
    return random.Random(seed).randbytes(size)


def repetitive(size: int) -> bytes:
    """Bytes that compress well, and whose chunks are all the same."""
    return (b"All work and no play. " * (size // 22 + 1))[:size]


def put(service: BlobService | BlobBatch, contents: bytes, piece: int = MIB) -> Digest:
    """Stores a blob through a writer, ``piece`` bytes with each call."""
    with service.open_write() as writer:
        for at in range(0, len(contents), piece):
            data = contents[at : at + piece]
            assert writer.write(data) == len(data)
        return writer.close()


def reader_of(service: BlobService, digest: Digest) -> BlobReader:
    reader = service.open_read(digest)
    assert reader is not None
    return reader


def read_fully(reader: BlobReader, size: int) -> bytes:
    """Reads until ``size`` bytes (-1: all) are there; a raw file may give less with one call."""
    pieces = []
    while size and (piece := reader.read(size)):
        pieces.append(piece)
        size = size if size < 0 else size - len(piece)
    return b"".join(pieces)


class BlobReadingContract:
    """What every reader of a ``BlobService`` does."""

    finds_damage = True
    """Whether the service proves what it reads; then ``damage`` must be there."""

    @pytest.fixture
    def service(self) -> Iterator[BlobService]:
        """An empty service."""
        raise NotImplementedError

    def damage(self, service: BlobService, digest: Digest) -> None:
        """Changes a bit of the blob or chunk stored under ``digest``, behind the back of ``service``."""
        raise NotImplementedError

    @pytest.mark.parametrize("size", [1000, 512 * KIB, 3 * MIB])
    def test_seeking(self, service: BlobService, size: int) -> None:
        contents = incompressible(size)
        rng = random.Random(size)
        with reader_of(service, put(service, contents)) as reader, io.BytesIO(contents) as model:
            assert reader.readable()
            assert reader.seekable()
            for _ in range(100):
                whence = rng.choice([io.SEEK_SET, io.SEEK_CUR, io.SEEK_END])
                target = rng.choice([0, size - 1, size, size + 10, rng.randrange(2 * size)])
                base = {io.SEEK_SET: 0, io.SEEK_CUR: model.tell(), io.SEEK_END: size}[whence]
                model.seek(target)
                assert reader.seek(target - base, whence) == reader.tell() == target
                wanted = rng.choice([0, 1, 100, 70_000, -1])
                assert read_fully(reader, wanted) == model.read(wanted)
                assert reader.tell() == model.tell()

    def test_past_the_end_there_is_nothing(self, service: BlobService) -> None:
        for contents in (b"abc", incompressible(600 * KIB)):
            with reader_of(service, put(service, contents)) as reader:
                assert reader.seek(10, io.SEEK_END) == len(contents) + 10
                assert reader.read() == reader.read(5) == b""
                assert reader.seek(-2, io.SEEK_CUR) == len(contents) + 8
                assert reader.seek(0) == 0
                assert reader.read(3) == contents[:3]

    @pytest.mark.parametrize("whence", [io.SEEK_SET, io.SEEK_CUR, io.SEEK_END])
    def test_before_the_start_there_is_no_place(self, service: BlobService, whence: int) -> None:
        for contents in (b"abc", incompressible(600 * KIB)):
            with reader_of(service, put(service, contents)) as reader:
                reader.read(2)
                base = {io.SEEK_SET: 0, io.SEEK_CUR: 2, io.SEEK_END: len(contents)}[whence]
                with pytest.raises((ValueError, OSError)):
                    reader.seek(-1 - base, whence)
                assert reader.read(1) == contents[2:3]

    def test_a_reader_is_a_file(self, service: BlobService) -> None:
        contents = incompressible(700 * KIB)
        digest = put(service, contents)
        assert io.BufferedReader(reader_of(service, digest)).read() == contents
        reader = reader_of(service, digest)
        assert b"".join(iter(lambda: reader.read_piece(100_000), b"")) == contents

    @pytest.mark.parametrize("size", [100, 300 * KIB])
    def test_damage_is_found(self, service: BlobService, size: int) -> None:
        if self.finds_damage:
            digest = put(service, incompressible(size))
            self.damage(service, digest)
            self.check_damage(service, digest, digest)

    def test_a_damaged_chunk_is_found(self, service: BlobService) -> None:
        if not self.finds_damage:
            return
        contents = incompressible(3 * MIB)
        digest = put(service, contents)
        chunks = service.chunks(digest) or []
        assert len(chunks) > 3
        self.damage(service, chunks[2].digest)
        self.check_damage(service, digest, chunks[2].digest)
        intact = chunks[0].size + chunks[1].size
        assert read_fully(reader_of(service, digest), intact) == contents[:intact]

    def check_damage(self, service: BlobService, digest: Digest, damaged: Digest) -> None:
        readings: Sequence[Callable[[], object]] = [
            lambda: service.read(digest),
            lambda: list(service.stream(digest)),
            lambda: list(service.read_many([digest])),
            lambda: list(service.read_many([EMPTY_BLOB, digest, EMPTY_BLOB])),
            lambda: reader_of(service, digest).read(),
        ]
        for reading in readings:
            with pytest.raises(Corrupt) as error:
                reading()
            assert format_digest(damaged) in str(error.value)
