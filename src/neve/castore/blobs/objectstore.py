"""Blobs in an object store, as tvix and snix keep them: reading them. ``objectstore_write`` stores them.

A chunk of a blob's own digest is the blob, whatever else is there: so what is small comes with one request,
and only what is not found that way is looked for among the chunk lists.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future

from blake3 import blake3

from neve.castore.ages import SLACK, Aged
from neve.castore.blobs.base import (
    BlobReader,
    BlobService,
    BlobWriter,
    Chunk,
    blob_not_found,
    too_long,
)
from neve.castore.blobs.bundle import Answer
from neve.castore.blobs.chunks import BytesReader, ChunkedReader
from neve.castore.blobs.objectstore_write import ObjectBlobBatch, ObjectBlobWriter
from neve.castore.digest import EMPTY_BLOB, Digest, check_digest, format_digest
from neve.castore.objectstore.bucket import Bucket, Listed, Meta
from neve.castore.objectstore.layout import (
    BLOBS,
    CHUNKS,
    MAX_LIST_BYTES,
    key_of,
    packed_bound,
    unpack_chunk,
    unpack_list,
)
from neve.errors import Corrupt, LimitExceeded, NotFound
from neve.registry import Address
from neve.tree import WHOLE_FILE_LIMIT

_CHUNKS_AHEAD = 16
"""Of a blob that is read in order: with 50 ms for a request that is 80 MiB in a second."""


class ObjectBlobService(BlobService):
    """Blobs of one store. Owns ``bucket``."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._longest = bucket.settings.max_chunk_bytes

    # What is there.

    def has(self, digest: Digest) -> bool:
        return not self.missing([digest])

    def missing(self, digests: Sequence[Digest]) -> list[Digest]:
        gone = self._gone(digests)
        there = zip(gone, self._bucket.map(self._counts_on_chunk, gone), strict=True)
        absent = {digest for digest, is_there in there if not is_there}
        return [digest for digest in digests if digest in absent]

    def missing_blobs(self, digests: Sequence[Digest]) -> list[Digest]:
        absent = set(self._gone(digests))
        return [digest for digest in digests if digest in absent]

    def _gone(self, digests: Sequence[Digest]) -> list[Digest]:
        """The different ones of ``digests`` that are not there as blobs. The others are made to stay, their
        chunks first, and all of that at once."""
        wanted = list(dict.fromkeys(check_digest(digest) for digest in digests if digest != EMPTY_BLOB))
        metas = self._bucket.map(lambda digest: self._bucket.head(key_of(BLOBS, digest)), wanted)
        found = dict(zip(wanted, metas, strict=True))
        stale = {digest: meta for digest, meta in found.items() if meta is not None and meta.age > SLACK}
        gone = {digest for digest, meta in found.items() if meta is None}
        if stale:
            # With a chunk missing, it is put again by who can.
            of_blobs: deque[Digest] = deque()
            for is_kept in self._bucket.map(self._counts_on_chunk, self._chunks_of(stale, of_blobs)):
                blob = of_blobs.popleft()
                if not is_kept:
                    gone.add(blob)
            whole = [digest for digest in stale if digest not in gone]
            fresh = self._bucket.map(lambda one: self._bucket.freshen(key_of(BLOBS, one), stale[one]), whole)
            gone.update([digest for digest, is_fresh in zip(whole, fresh, strict=True) if not is_fresh])
        return [digest for digest in wanted if digest in gone]

    def _chunks_of(self, blobs: Mapping[Digest, Meta], of_blobs: deque[Digest]) -> Iterator[Digest]:
        """The chunks of blobs; of which one each is goes into ``of_blobs``."""
        lists = self._bucket.map(lambda digest: self._list(digest) if blobs[digest].size else None, blobs)
        for digest, chunks in zip(blobs, lists, strict=True):
            for chunk in chunks or [Chunk(digest, 0)]:
                of_blobs.append(digest)
                yield chunk.digest

    def counts_on(self, digest: Digest) -> bool:
        """Whether a blob is there; then it is made to stay, its chunks first. For the bucket's own threads,
        and who puts what is small: one after the other."""
        key = key_of(BLOBS, digest)
        meta = self._bucket.head(key)
        if meta is None or meta.age <= SLACK:
            return meta is not None
        chunks = (self._list(digest) if meta.size else None) or [Chunk(digest, 0)]
        if digest != EMPTY_BLOB and not all(self._counts_on_chunk(chunk.digest) for chunk in chunks):
            return False
        return self._bucket.freshen(key, meta)

    def is_fresh(self, key: str) -> bool:
        """Whether an object is there, and so young that who has its contents need not write them again."""
        meta = self._bucket.head(key)
        return meta is not None and meta.age <= SLACK

    def _counts_on_chunk(self, digest: Digest) -> bool:
        return self._bucket.is_kept(key_of(CHUNKS, digest))

    # Reading. What begins with an underscore and asks the bucket runs in its threads.

    def open_read(self, digest: Digest) -> BlobReader | None:
        found = self._bucket.call(self._found, check_digest(digest))
        if isinstance(found, list):
            return _Reader(digest, found, self)
        return None if found is None else BytesReader(found)

    def _found(self, digest: Digest) -> bytes | list[Chunk] | None:
        """The contents of a blob that is one chunk, the list of another, or None."""
        if check_digest(digest) == EMPTY_BLOB:
            return b""
        contents = self._chunk(digest)
        if contents is not None:
            return contents
        chunks = self._list(digest)
        if chunks:
            return chunks
        if chunks is None:
            return None
        contents = self._chunk(digest)  # It may have come in between: it comes before the list.
        if contents is None:
            raise Corrupt(f"blob {format_digest(digest)} is one chunk by its list, and that is missing")
        return contents

    def _chunk(self, digest: Digest) -> bytes | None:
        packed = self._packed(digest, self._longest)
        return None if packed is None else unpack_chunk(digest, packed, self._longest)

    def _packed(self, digest: Digest, size: int) -> bytes | None:
        try:
            return self._bucket.get(key_of(CHUNKS, digest), packed_bound(size))
        except Corrupt as error:
            raise Corrupt(f"chunk {format_digest(digest)} is too long: {error}") from error

    def _list(self, digest: Digest) -> list[Chunk] | None:
        packed = self._bucket.get(key_of(BLOBS, digest), MAX_LIST_BYTES)
        return None if packed is None else unpack_list(digest, packed, self._longest)

    def _listed_chunk(self, chunk: Chunk) -> bytes:
        """A chunk of a blob that is there, of the length that its list says."""
        packed = self._packed(chunk.digest, chunk.size)
        if packed is None:
            raise Corrupt(f"chunk {format_digest(chunk.digest)} is missing, a blob in the store needs it")
        try:
            contents = unpack_chunk(chunk.digest, packed, chunk.size)
        except LimitExceeded as error:
            raise Corrupt(
                f"chunk {format_digest(chunk.digest)} has more than the {chunk.size} bytes that its list says"
            ) from error
        if len(contents) != chunk.size:
            raise Corrupt(
                f"chunk {format_digest(chunk.digest)} has {len(contents)} bytes, its list says {chunk.size}"
            )
        return contents

    def fetch(self, chunk: Chunk) -> Future[bytes]:
        """The verified contents of a chunk, on their way."""
        return self._bucket.calls.submit(self._listed_chunk, chunk)

    def chunks(self, digest: Digest) -> list[Chunk] | None:
        found = self._bucket.call(self._found, check_digest(digest))
        if found is None or isinstance(found, list):
            return found
        return [Chunk(digest, len(found))] if found else []

    def stored_chunks(self, digest: Digest) -> list[Chunk]:
        chunks = None if digest == EMPTY_BLOB else self._bucket.call(self._list, check_digest(digest))
        return chunks or []

    def read(self, digest: Digest, limit: int | None = None) -> bytes:
        return self._whole(digest, self._bucket.call(self._found, check_digest(digest)), limit)

    def read_many(self, digests: Iterable[Digest], limit: int | None = None) -> Iterator[bytes]:
        asked: deque[Digest] = deque()

        def noted() -> Iterator[Digest]:
            for digest in digests:
                asked.append(digest)
                yield digest

        with contextlib.closing(self._bucket.map(self._found, noted())) as answers:
            for found in answers:
                yield self._whole(asked.popleft(), found, limit)

    def _whole(self, digest: Digest, found: bytes | list[Chunk] | None, limit: int | None) -> bytes:
        """All contents of what was found. Asks for the chunks, so not in the bucket's threads."""
        if found is None:
            raise blob_not_found(digest)
        size = sum(chunk.size for chunk in found) if isinstance(found, list) else len(found)
        if limit is not None and size > limit:
            raise too_long(digest, size, limit)
        if isinstance(found, bytes):
            return found
        with _Reader(digest, found, self) as reader:
            return reader.read()

    def read_bundles(self, digests: Sequence[Digest], limit: int = WHOLE_FILE_LIMIT) -> Iterator[Answer]:
        with contextlib.closing(self._bucket.map(self._readable, digests)) as answers:
            for place, found in enumerate(answers):
                answer = Answer()
                try:
                    answer.add(place, self._whole(digests[place], found, limit))
                except NotFound:
                    answer.absent.append(place)
                except (LimitExceeded, Corrupt):
                    answer.apart.append(place)
                yield answer

    def _readable(self, digest: Digest) -> bytes | list[Chunk] | None:
        """Like ``_found``; what is damaged is one chunk that is longer than anybody takes."""
        try:
            return self._found(digest)
        except (LimitExceeded, Corrupt):
            return [Chunk(digest, 2**63)]

    # Writing.

    def open_write(self) -> BlobWriter:
        batch = self.batch()
        return ObjectBlobWriter(batch, owns_batch=True, average=batch.average)

    def batch(self) -> ObjectBlobBatch:
        return ObjectBlobBatch(self._bucket, self)

    # Care.

    def list_with_ages(self, after: Digest = b"", limit: int = 1000) -> list[Aged]:
        return [Aged(one.digest, one.age, not one.size) for one in self._listed(after, limit)]

    def list_chunks_with_ages(self, after: Digest = b"", limit: int = 1000) -> list[Aged]:
        return [Aged(one.digest, one.age, True) for one in self._bucket.page(CHUNKS, after, limit)]

    def list(self, after: Digest = b"", limit: int = 1000) -> list[Digest]:
        return [one.digest for one in self._listed(after, limit)]

    def _listed(self, after: Digest, limit: int) -> Sequence[Listed]:
        page = self._bucket.page(BLOBS, after, limit)
        if not any(one.digest == EMPTY_BLOB for one in page):
            return page
        # Some software writes the empty blob. It is there in any case.
        rest = [one for one in page if one.digest != EMPTY_BLOB]
        return [*rest, *self._listed(page[-1].digest, limit - len(rest))]

    def delete_many(self, digests: Sequence[Digest], *, unused_for: float | None = None) -> int:
        """Deletes blobs and chunks by those digests; not the chunks that a blob consists of. By age only
        blobs: a chunk of that digest may be one of another blob, too."""
        gone = self._delete(digests, BLOBS, unused_for)
        if unused_for is None:
            gone |= self._delete(digests, CHUNKS, None)
        return len(gone)

    def delete_chunks(self, digests: Sequence[Digest], *, unused_for: float | None = None) -> int:
        """Deletes chunks; returns how many."""
        return len(self._delete(digests, CHUNKS, unused_for))

    def _delete(self, digests: Sequence[Digest], table: str, unused_for: float | None) -> set[Digest]:
        """Deletes objects of a table; the digests of those that are gone."""
        wanted = sorted({check_digest(digest) for digest in digests} - {EMPTY_BLOB})
        found = self._bucket.map(lambda digest: self._bucket.head(key_of(table, digest)), wanted)
        gone = [
            digest
            for digest, meta in zip(wanted, found, strict=True)
            if meta is not None and (unused_for is None or meta.age >= unused_for)
        ]
        self._bucket.delete([key_of(table, digest) for digest in gone])
        return set(gone)

    def remove_leftovers(self, unused_for: float) -> int:
        return sum(self._bucket.remove_leftovers(table, unused_for) for table in (BLOBS, CHUNKS))

    def close(self) -> None:
        self._bucket.close()


class _Reader(ChunkedReader):
    """Reads over a list of chunks, the next ones ahead.

    That the list itself belongs to the blob shows only when all is read in order: then the whole is compared
    with the blob's digest too, before the last chunk is given out.
    """

    def __init__(self, digest: Digest, chunks: Sequence[Chunk], service: ObjectBlobService) -> None:
        sizes = {chunk.digest: chunk for chunk in chunks}
        super().__init__(
            chunks,
            lambda chunk: service.fetch(sizes[chunk]).result(),
            lambda chunk: service.fetch(sizes[chunk]),
            ahead=_CHUNKS_AHEAD,
        )
        self._digest = digest
        # Of what was read in order from the start.
        self._hasher = blake3()
        self._hashed = 0

    def _load(self, number: int) -> bytes:
        contents = super()._load(number)
        if number == self._hashed:
            self._hasher.update(contents)
            self._hashed += 1
            if self._hashed == len(self._chunks) and self._hasher.digest() != self._digest:
                raise Corrupt(f"the chunks of blob {format_digest(self._digest)} do not make the blob")
        return contents

    def close(self) -> None:
        self.cancel_ahead()
        super().close()


def open_objectstore(address: Address) -> ObjectBlobService:
    """``objectstore+s3://bucket/prefix``, and so on with ``file``, ``memory``, ``gs``, ``az``, ``http(s)``"""
    return ObjectBlobService(Bucket.open(address))
