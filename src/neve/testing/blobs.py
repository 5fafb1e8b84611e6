"""The contract of blob services. A backend's tests subclass it and supply ``service``."""

from __future__ import annotations

import contextlib
import io
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from neve.castore.blobs.base import BlobService
from neve.castore.digest import EMPTY_BLOB, Digest, b3_digest, format_digest
from neve.errors import InvalidRequest, LimitExceeded, NotFound, PermissionDenied, Unsupported
from neve.testing.blob_reading import (
    KIB,
    MIB,
    BlobReadingContract,
    incompressible,
    put,
    reader_of,
    repetitive,
)

SIZES = [
    0, 1, 2, 31, 32, 33, 4096,
    *(size + d for size in (64 * KIB, 128 * KIB, 256 * KIB, 512 * KIB, MIB) for d in (-1, 0, 1)),
    3 * MIB + 5,
]  # fmt: skip
"""Around where backends change their ways: frames, chunks, messages."""


def all_listed(service: BlobService, limit: int = 1000) -> list[Digest]:
    """The whole listing, page by page."""
    listed: list[Digest] = []
    while page := service.list(listed[-1] if listed else b"", limit):
        assert len(page) <= limit
        listed += page
    return listed


class BlobServiceContract(BlobReadingContract):
    """What every ``BlobService`` does. One that cannot list, delete or find damage says so."""

    can_list = True
    can_delete = True
    # What is there, and what is not.

    def test_the_empty_blob_is_always_there(self, service: BlobService) -> None:
        assert service.has(EMPTY_BLOB)
        assert service.missing([EMPTY_BLOB]) == []
        assert service.chunks(EMPTY_BLOB) == []
        assert service.read(EMPTY_BLOB) == b""
        assert list(service.read_many([EMPTY_BLOB, EMPTY_BLOB])) == [b"", b""]
        assert list(service.stream(EMPTY_BLOB)) == []
        with reader_of(service, EMPTY_BLOB) as reader:
            assert (reader.size, reader.read(), reader.seek(0, io.SEEK_END)) == (0, b"", 0)
        assert put(service, b"") == EMPTY_BLOB
        assert service.put_many([b"", b""]) == [EMPTY_BLOB, EMPTY_BLOB]

    def test_absence(self, service: BlobService) -> None:
        there, absent = put(service, b"there"), b3_digest(b"absent")
        assert not service.has(absent)
        assert service.open_read(absent) is None
        assert service.chunks(absent) is None
        assert service.missing([absent, there, absent]) == [absent, absent]
        readings: list[Callable[[], object]] = [
            lambda: service.read(absent),
            lambda: list(service.stream(absent)),
            lambda: list(service.read_many([there, absent])),
        ]
        for reading in readings:
            with pytest.raises(NotFound) as error:
                reading()
            assert format_digest(absent) in str(error.value)

    @pytest.mark.parametrize("size", [0, 1, 20, 31, 33, 64])
    def test_digests_have_32_bytes(self, service: BlobService, size: int) -> None:
        wrong, there = bytes(size), put(service, b"there")
        calls: list[Callable[[], object]] = [
            lambda: service.has(wrong),
            lambda: service.open_read(wrong),
            lambda: service.chunks(wrong),
            lambda: service.missing([there, wrong]),
            lambda: service.read(wrong),
            lambda: list(service.read_many([wrong])),
            lambda: list(service.read_many([there, wrong, there])),
            lambda: service.batch().keep_many([there, wrong]),
        ]
        if self.can_delete:
            calls.append(lambda: service.delete_many([there, wrong]))
        for call in calls:
            with pytest.raises(InvalidRequest, match=f"has {size} bytes"):
                call()
        assert service.read(there) == b"there"

    # Writing.

    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("make", [incompressible, repetitive])
    def test_round_trip(self, service: BlobService, make: Callable[[int], bytes], size: int) -> None:
        contents = make(size)
        digest = put(service, contents)
        assert digest == b3_digest(contents)
        assert service.has(digest)
        assert service.missing([digest]) == []
        assert service.read(digest) == contents
        assert b"".join(service.stream(digest, 100_000)) == contents
        assert list(service.read_many([digest])) == [contents]
        with reader_of(service, digest) as reader:
            assert reader.size == size
        chunks = service.chunks(digest)
        assert chunks is not None
        assert all(chunk.size > 0 for chunk in chunks)
        assert b"".join(service.read(chunk.digest) for chunk in chunks) == contents
        for chunk in chunks:
            assert service.has(chunk.digest)
            assert reader_of(service, chunk.digest).size == chunk.size

    def test_it_does_not_matter_how_a_blob_is_written(self, service: BlobService) -> None:
        contents = incompressible(2 * MIB + 77)
        cut = []
        for piece in (len(contents), 1000, 512 * KIB, 700_001):
            digest = put(service, contents, piece)
            assert digest == b3_digest(contents)
            cut.append(service.chunks(digest))
        [by_put_many] = service.put_many([contents])
        assert by_put_many == b3_digest(contents)
        cut.append(service.chunks(by_put_many))
        assert all(chunks == cut[0] for chunks in cut)
        assert service.read(by_put_many) == contents

    def test_close_can_be_called_again(self, service: BlobService) -> None:
        for contents in (b"small", incompressible(MIB)):
            writer = service.open_write()
            writer.write(contents)
            assert writer.close() == writer.close() == b3_digest(contents)
            writer.abandon()
            assert writer.close() == b3_digest(contents)
            with pytest.raises(InvalidRequest):
                writer.write(b"more")
            assert service.read(b3_digest(contents)) == contents

    @pytest.mark.parametrize("size", [5, 300 * KIB, 3 * MIB])
    def test_an_abandoned_blob_leaves_nothing(self, service: BlobService, size: int) -> None:
        contents = incompressible(size)
        with service.open_write() as writer:
            writer.write(contents)
        left = service.open_write()
        left.write(contents)
        left.abandon()
        with contextlib.suppress(ZeroDivisionError), service.open_write() as failed:
            failed.write(contents)
            raise ZeroDivisionError
        put(service, b"another, whose commit might take along what lies around")
        assert not service.has(b3_digest(contents))
        assert service.open_read(b3_digest(contents)) is None
        if self.can_list:
            assert b3_digest(contents) not in all_listed(service)
        for abandoned in (writer, left, failed):
            with pytest.raises(InvalidRequest):
                abandoned.close()

    def test_the_same_blob_again(self, service: BlobService) -> None:
        for contents in (b"same", incompressible(700 * KIB)):
            assert put(service, contents) == put(service, contents) == service.put_many([contents] * 2)[1]
            assert service.read(b3_digest(contents)) == contents
        if self.can_list:
            assert len(all_listed(service)) == 2

    def test_writers_side_by_side(self, service: BlobService) -> None:
        contents = [incompressible(600 * KIB, seed) for seed in range(4)]
        writers = [service.open_write() for _ in contents]
        for at in range(0, 600 * KIB, 100 * KIB):
            for writer, data in zip(writers, contents, strict=True):
                writer.write(data[at : at + 100 * KIB])
        digests = [writer.close() for writer in reversed(writers)]
        assert list(service.read_many(reversed(digests))) == contents

    # Many at once.

    def test_many_at_once(self, service: BlobService) -> None:
        blobs = [b"%d" % (i % 700) * (i % 97) for i in range(1500)]
        digests = service.put_many(blobs)
        assert digests == [b3_digest(blob) for blob in blobs]
        assert service.put_many([]) == []
        assert service.missing(digests) == []
        assert list(service.read_many(iter(digests))) == blobs
        shuffled = random.Random(1).sample(digests, len(digests))
        assert [b3_digest(blob) for blob in service.read_many(shuffled)] == shuffled

    def test_many_of_all_sizes(self, service: BlobService) -> None:
        blobs = [incompressible(size, seed) for seed, size in enumerate(SIZES)]
        digests = service.put_many(blobs)
        assert list(service.read_many(digests)) == blobs

    def test_what_comes_before_a_missing_one_is_read(self, service: BlobService) -> None:
        digests = service.put_many([b"one", b"two", b"three"])
        reading = service.read_many([*digests, b3_digest(b"absent"), digests[0]])
        assert [next(reading) for _ in digests] == [b"one", b"two", b"three"]
        with pytest.raises(NotFound):
            next(reading)

    def test_reading_many_that_are_too_long(self, service: BlobService) -> None:
        contents = [b"%d" % number * 1000 for number in range(3)]
        digests = service.put_many([*contents, large := incompressible(600 * KIB)])
        assert list(service.read_many(digests[:3], 1000)) == contents
        assert list(service.read_many(digests, len(large))) == [*contents, large]
        for wanted, limit in ((digests[:3], 999), (digests, len(large) - 1), (digests[3:], 1000)):
            with pytest.raises(LimitExceeded, match=f"at most {limit} are wanted"):
                list(service.read_many(wanted, limit))

    def test_reading_bundles(self, service: BlobService) -> None:
        """What is not sent is named; what is sent compressed is for the receiver to verify."""
        blobs = [incompressible(size) for size in (1, 5000, 70 * KIB)] + [repetitive(3000), b""]
        long, absent = put(service, incompressible(3 * MIB)), b3_digest(b"absent")
        digests = [*(put(service, blob) for blob in blobs), long, absent]
        found: dict[int, bytes] = {}
        unsent: dict[int, str] = {}
        for answer in service.read_bundles(digests):
            contents = answer.contents()
            for place, start, size in zip(answer.places, answer.starts, answer.sizes, strict=True):
                found[place] = bytes(contents[start : start + size])
            unsent |= dict.fromkeys(answer.absent, "absent") | dict.fromkeys(answer.apart, "apart")
        assert found == dict(enumerate(blobs))
        assert unsent == {len(blobs): "apart", len(blobs) + 1: "absent"}
        assert list(service.read_bundles([])) == [] or not any(a.places for a in service.read_bundles([]))

    def test_chunks_as_they_are_stored(self, service: BlobService) -> None:
        small, large = incompressible(1000), incompressible(3 * MIB)
        assert service.stored_chunks(put(service, small)) == []
        assert service.stored_chunks(b3_digest(b"absent")) == []
        assert service.stored_chunks(EMPTY_BLOB) == []
        chunks = service.stored_chunks(put(service, large))
        # A cache may have another list near; it is those of far that are meant.
        assert not chunks or b"".join(service.read_many([chunk.digest for chunk in chunks])) == large

    def test_reading_many_may_be_given_up(self, service: BlobService) -> None:
        digests = service.put_many([incompressible(50_000, seed) for seed in range(100)])
        consumed: list[Digest] = []

        def source() -> Iterator[Digest]:
            for digest in digests * 100:
                consumed.append(digest)
                yield digest

        reading = service.read_many(source())
        assert b3_digest(next(reading)) == digests[0]
        del reading
        assert len(consumed) < 100 * len(digests)

    def test_from_many_threads(self, service: BlobService) -> None:
        def work(number: int) -> None:
            own = [b"%d of %d" % (i, number) * 300 for i in range(20)]
            shared = incompressible(600 * KIB)
            digests = service.put_many(own)
            digests += [put(service, shared), put(service, own[0] + shared)]
            assert list(service.read_many(digests)) == [*own, shared, own[0] + shared]
            assert service.missing(digests) == []

        with ThreadPoolExecutor(8) as threads:
            for future in [threads.submit(work, number) for number in range(16)]:
                future.result()

    # Batches.

    def test_a_batch(self, service: BlobService) -> None:
        before = put(service, b"before")
        small = [b"small %d" % number for number in range(300)]
        large = [incompressible(size, size) for size in (600 * KIB, 100 * KIB, 2 * MIB)]
        with service.batch() as batch:
            digests = batch.put_many(small)
            for contents in large:
                with batch.open_write() as writer:
                    writer.write(contents)
                    digests.append(writer.close())
            absent = b3_digest(b"absent")
            assert batch.keep_many([before, absent, digests[0], EMPTY_BLOB, digests[-1]]) == [absent]
            with batch.open_write() as writer:
                writer.write(b"given up")
            batch.commit()
            assert service.missing(digests) == []
            later = batch.put_many([b"later", small[0]])
            batch.commit()
        batch.close()
        assert list(service.read_many(digests)) == small + large
        assert service.read(later[0]) == b"later"
        assert not service.has(b3_digest(b"given up"))
        if self.can_list:
            assert set(all_listed(service)) == {before, *digests, later[0]}

    def test_what_is_visible_of_a_batch_is_whole(self, service: BlobService) -> None:
        contents = [incompressible(800 * KIB, seed) for seed in range(5)]
        with service.batch() as batch:
            digests = [put(batch, one) for one in contents]
            for digest, one in zip(digests, contents, strict=True):
                assert not service.has(digest) or service.read(digest) == one
        for digest, one in zip(digests, contents, strict=True):
            assert not service.has(digest) or service.read(digest) == one

    # Listing and deleting.

    def test_listing(self, service: BlobService) -> None:
        if not self.can_list:
            with pytest.raises((Unsupported, PermissionDenied)):
                service.list()
            return
        assert service.list() == []
        digests = service.put_many([b"%d" % number for number in range(250)])
        digests.append(put(service, incompressible(3 * MIB)))
        put(service, b"")
        for limit in (1, 7, 250, 251, 1000):
            assert all_listed(service, limit) == sorted(digests)
        assert service.list(limit=0) == []
        assert service.list(after=sorted(digests)[10], limit=2) == sorted(digests)[11:13]
        assert service.list(after=b"\xff" * 32) == []

    def test_a_chunk_is_listed_once_it_is_a_blob(self, service: BlobService) -> None:
        if not self.can_list:
            return
        contents = incompressible(3 * MIB)
        digest = put(service, contents)
        chunks = service.chunks(digest) or []
        expected = {digest, put(service, service.read(chunks[0].digest))}
        # Where those that are there are not sent, a chunk is none of them.
        expected |= set(service.put_many([service.read(chunk.digest) for chunk in chunks[1:3]]))
        assert service.missing_blobs([digest, EMPTY_BLOB, *expected]) == []
        assert set(all_listed(service)) == expected
        assert service.read(digest) == contents

    def test_deleting(self, service: BlobService) -> None:
        if not self.can_delete:
            with pytest.raises((Unsupported, PermissionDenied)):
                service.delete_many([])
            return
        small, large, kept = put(service, b"small"), put(service, incompressible(MIB)), put(service, b"kept")
        assert service.delete_many([small, b3_digest(b"absent"), small, large]) == 2
        assert service.missing([small, kept, large]) == [small, large]
        assert service.open_read(small) is service.open_read(large) is None
        with pytest.raises(NotFound):
            service.read(small)
        if self.can_list:
            assert service.list() == [kept]
        assert (
            service.delete_many([small]) == service.delete_many([]) == service.delete_many([EMPTY_BLOB]) == 0
        )
        assert put(service, b"small") == small
        assert put(service, incompressible(MIB)) == large
        assert list(service.read_many([small, large])) == [b"small", incompressible(MIB)]
