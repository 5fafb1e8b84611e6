"""Blobs near, and far: what is read is looked for near first, and kept there once it has come from far."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from neve.castore.absences import Absences, absences_of
from neve.castore.ages import Aged, refuse_ages
from neve.castore.blobs.base import BlobBatch, BlobReader, BlobService, BlobWriter, Chunk
from neve.castore.blobs.chunks import BytesReader
from neve.castore.blobs.keeping import (
    BothBatch,
    BothWriter,
    CombinedBatch,
    Keeper,
    KeepingReader,
    NearReader,
)
from neve.castore.blobs.urls import BLOB_SERVICES
from neve.castore.digest import EMPTY_BLOB, Digest, check_digest
from neve.castore.near import NEAR_FAILURES, NearCopy, from_near, keep_near
from neve.registry import Address
from neve.telemetry import LOGGER, count_found
from neve.tree import WHOLE_FILE_LIMIT

_WINDOW = 1024
"""Digests that are looked for together by ``read_many``; of their contents, near and far bound what is
held."""


class CombinedBlobService(BlobService):
    """Owns ``near`` and ``far``. What is put is put near; what is there is there near or far."""

    def __init__(self, near: BlobService, far: BlobService, *, absences: Absences | None = None) -> None:
        self._near = near
        self._far = far
        self._absences = Absences(None) if absences is None else absences

    def has(self, digest: Digest) -> bool:
        return not self.missing([digest])

    def missing(self, digests: Sequence[Digest]) -> list[Digest]:
        absent = self._missing_near(digests)
        if not absent:
            return []
        gone = {digest for digest in absent if digest in self._absences}
        asked = [digest for digest in absent if digest not in gone]
        if asked:
            not_far = self._far.missing(asked)
            self._absences.add(not_far)
            gone.update(not_far)
        return [digest for digest in absent if digest in gone]

    def _missing_near(self, digests: Sequence[Digest]) -> list[Digest]:
        return from_near(lambda: self._near.missing(digests), list(digests))

    def open_read(self, digest: Digest) -> BlobReader | None:
        check_digest(digest)
        reader = from_near(lambda: self._near.open_read(digest), None)
        count_found("blobs", reader is not None, reader is None)
        if reader is not None:
            return NearReader(digest, reader, self._far)
        if digest in self._absences:
            return None
        reader = self._far.open_read(digest)
        if reader is None:
            self._absences.add([digest])
            return None
        if reader.size > WHOLE_FILE_LIMIT:
            return KeepingReader(digest, reader, self._near)
        with reader:
            contents = reader.read()
        keep_near(lambda: self._near.put_many([contents]))
        return BytesReader(contents)

    def chunks(self, digest: Digest) -> list[Chunk] | None:
        found = from_near(lambda: self._near.chunks(digest), None)
        if found is not None or digest in self._absences:
            return found
        return self._far.chunks(digest)

    def read_many(self, digests: Iterable[Digest], limit: int | None = None) -> Iterator[bytes]:
        source = iter(digests)
        with Keeper(self._near) as keeper:
            while part := list(islice(source, _WINDOW)):
                yield from self._window(part, limit, keeper)

    def _window(self, digests: list[Digest], limit: int | None, keeper: Keeper) -> Iterator[bytes]:
        absent = set(self._missing_near(digests))
        count_found("blobs", len(digests) - len(absent), len(absent))
        near = self._near_contents([digest for digest in digests if digest not in absent], limit)
        far = iter(self._far.read_many([digest for digest in digests if digest in absent], limit))
        for digest in digests:
            contents = next(far) if digest in absent else next(near)
            if contents is None:
                contents = self._far.read(digest, limit)
            if digest in absent:
                keeper.keep(contents)
            yield contents

    def _near_contents(self, digests: list[Digest], limit: int | None) -> Iterator[bytes | None]:
        """The contents of blobs that should be near; None for one that far has to give after all."""
        while digests:
            done = 0
            try:
                for contents in self._near.read_many(digests, limit):
                    done += 1
                    yield contents
            except NEAR_FAILURES as error:
                LOGGER.warning("asking far, because near does not answer: %s", error)
                done += 1
                yield None
            digests = digests[done:]

    def open_write(self) -> BlobWriter:
        return self._near.open_write()

    def batch(self) -> BlobBatch:
        return CombinedBatch(self._near.batch(), self._far)

    def list(self, after: Digest = b"", limit: int = 1000) -> list[Digest]:
        return sorted({*self._near.list(after, limit), *self._far.list(after, limit)})[:limit]

    def delete_many(self, digests: Sequence[Digest], *, unused_for: float | None = None) -> int:
        refuse_ages(self, unused_for)
        there = {*digests}.difference(self.missing(digests), [EMPTY_BLOB])
        self._far.delete_many(digests)
        self._near.delete_many(digests)
        return len(there)

    def close(self) -> None:
        with contextlib.ExitStack() as closing:
            closing.callback(self._near.close)
            closing.callback(self._far.close)


class CachedBlobService(CombinedBlobService):
    """Like the other, but far is what counts: what is put is stored when it is stored there, and its
    listing is the listing."""

    @property
    def tells_ages(self) -> bool:
        return self._far.tells_ages

    def missing(self, digests: Sequence[Digest]) -> list[Digest]:
        if not self.tells_ages:
            return super().missing(digests)
        # Of what is near too, far must know that somebody counts on it.
        gone = {digest for digest in digests if digest in self._absences}
        not_far = self._far.missing([digest for digest in digests if digest not in gone])
        self._absences.add(not_far)
        gone.update(not_far)
        return [digest for digest in digests if digest in gone]

    def stored_chunks(self, digest: Digest) -> list[Chunk]:
        return self._far.stored_chunks(digest)

    def open_write(self) -> BlobWriter:
        far = self._far.open_write()
        return BothWriter(far, NearCopy(self._near.open_write, lambda one: one.abandon()), self._absences)

    def batch(self) -> BlobBatch:
        far = self._far.batch()
        return BothBatch(far, NearCopy(self._near.batch, lambda one: one.close()), self._absences)

    def list(self, after: Digest = b"", limit: int = 1000) -> list[Digest]:
        return self._far.list(after, limit)

    def delete_many(self, digests: Sequence[Digest], *, unused_for: float | None = None) -> int:
        deleted = self._far.delete_many(digests, unused_for=unused_for)
        self._near.delete_many(digests)
        return deleted

    def list_with_ages(self, after: Digest = b"", limit: int = 1000) -> Sequence[Aged]:
        return self._far.list_with_ages(after, limit)

    def list_chunks_with_ages(self, after: Digest = b"", limit: int = 1000) -> Sequence[Aged]:
        return self._far.list_chunks_with_ages(after, limit)

    def delete_chunks(self, digests: Sequence[Digest], *, unused_for: float | None = None) -> int:
        return self._far.delete_chunks(digests, unused_for=unused_for)

    def freshen(self, digests: Sequence[Digest]) -> Sequence[Digest]:
        return self._far.freshen(digests)

    def remove_leftovers(self, unused_for: float) -> int:
        return self._far.remove_leftovers(unused_for)


def open_combined(address: Address) -> CombinedBlobService:
    """``combined://?near=URL&far=URL``"""
    address.check_parameters("near", "far")
    return CombinedBlobService(*_open_both(address))


def open_cached(address: Address) -> CachedBlobService:
    """``cache://?near=URL&far=URL``, with ``negative-ttl=SECONDS`` if wanted"""
    address.check_parameters("near", "far", "negative-ttl")
    absences = absences_of(address)
    return CachedBlobService(*_open_both(address), absences=absences)


def _open_both(address: Address) -> tuple[BlobService, BlobService]:
    if address.host or address.path:
        raise address.refuse(f"{address.scheme}:// takes neither host nor path")
    near = BLOB_SERVICES.open_nested(address, "near")
    try:
        return near, BLOB_SERVICES.open_nested(address, "far")
    except BaseException:
        near.close()
        raise
