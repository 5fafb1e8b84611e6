"""Blobs, chunks and Directories from another store, in the place of damaged ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

from blake3 import blake3

from neve.castore.at_once import CallsAtOnce
from neve.castore.blobs.base import BlobService, Chunk
from neve.castore.blobs.chunks import Chunker, decode_chunk_list, encode_chunk_list
from neve.castore.blobs.local_write import BLOB, BLOBS, CHUNK, LIST, LocalBlobBatch
from neve.castore.blobs.transfer import BlobCopies
from neve.castore.digest import Digest, b3_digest, format_digest
from neve.castore.directories.base import DirectoryService, directory_not_found
from neve.castore.directories.local import DIRECTORIES
from neve.errors import Corrupt, LimitExceeded, NeveError, NotFound
from neve.packstore.frames import Record, group_records
from neve.packstore.store import PackStore, Table, TableTransaction, seal, unseal
from neve.store.mirror.report import CONCERNS_ALL
from neve.telemetry import Progress
from neve.tree import WHOLE_FILE_LIMIT

Failed = Callable[[Digest, NeveError], None]

_PAGE = 1000
_COPIED_TOGETHER = 64
_UPDATE_BYTES = 4 * 1024 * 1024
"""Records that are replaced by one commit, which holds them."""


def replace_records(packs: PackStore, table: Table, records: Iterable[Record]) -> None:
    """Puts records, durable on return, in the place of what is there, damaged or not."""
    for group in group_records(records, _UPDATE_BYTES):
        packs.update(partial(_put_all, table, group))


def _put_all(table: Table, records: Sequence[Record], transaction: TableTransaction) -> None:
    for record in records:
        transaction.put(table, record)


class ObjectRepair:
    """Repairs what is addressed by its content. ``failed`` is told what cannot be repaired, and why."""

    def __init__(
        self,
        packs: PackStore,
        blobs: BlobService,
        source_blobs: BlobService,
        source_directories: DirectoryService,
        failed: Failed,
        progress: Progress,
    ) -> None:
        self._packs = packs
        self._blobs = blobs
        self._source = source_blobs
        self._source_directories = source_directories
        self._failed = failed
        self._progress = progress
        self._calls = CallsAtOnce()

    def close(self) -> None:
        self._calls.close()

    # Directories.

    def directories(self, digests: Sequence[Digest]) -> None:
        """Replaces Directories, or adds them."""
        replace_records(self._packs, DIRECTORIES, self._fetched(digests, self._directory))

    def _directory(self, digest: Digest) -> Record:
        directory = self._source_directories.get(digest)
        if directory is None:
            raise directory_not_found(digest)
        return Record(1, digest, directory.encode())

    def _fetched(self, digests: Sequence[Digest], fetch: Callable[[Digest], Record]) -> Iterator[Record]:
        """The records of those that can be fetched, several at once."""

        def tried(digest: Digest) -> Record | NeveError:
            try:
                return fetch(digest)
            except CONCERNS_ALL:
                raise
            except NeveError as error:
                return error

        for digest, result in zip(digests, self._calls.map(tried, digests), strict=True):
            self._progress.advance(0, format_digest(digest))
            if isinstance(result, Record):
                yield result
            else:
                self._failed(digest, result)

    # Blobs.

    def blobs(self, digests: Sequence[Digest]) -> None:
        """Replaces blobs and chunks, or adds them."""
        tags = {digest: self._tag(digest) for digest in digests}
        self._add([digest for digest, tag in tags.items() if tag == 0])
        for digest, tag in tags.items():
            if tag == LIST:
                self._large(digest)
        left: dict[Digest, NeveError] = {}
        failed, self._failed = self._failed, left.__setitem__
        try:
            small = [digest for digest, tag in tags.items() if tag not in (0, LIST)]
            replace_records(self._packs, BLOBS, self._fetched(small, lambda d: self._small(d, tags[d])))
        finally:
            self._failed = failed
        self._second_try(left, tags)

    def _tag(self, digest: Digest) -> int | None:
        """What the index says of the record; 0: it has none, None: its entry is damaged."""
        try:
            location = self._packs.find(BLOBS, [digest]).get(digest)
        except Corrupt:
            return None
        return 0 if location is None else location.tag

    def _add(self, digests: Sequence[Digest]) -> None:
        with BlobCopies(self._source, self._blobs) as copies:
            for start in range(0, len(digests), _COPIED_TOGETHER):
                copies.add(dict.fromkeys(digests[start : start + _COPIED_TOGETHER]))
            copies.finish()
            for (digest, _), error in copies.failures.items():
                self._failed(digest, error)

    def _small(self, digest: Digest, tag: int | None) -> Record:
        data = self._source.read(digest, WHOLE_FILE_LIMIT)
        return Record(tag or BLOB, digest, _proven(digest, data))

    def _second_try(self, left: dict[Digest, NeveError], tags: dict[Digest, int | None]) -> None:
        """Those that the source does not give by their digests may be parts of large blobs, or such blobs."""
        chunks = {digest for digest, error in left.items() if tags[digest] in (CHUNK, None)}
        found = list(self._from_large(chunks)) if chunks else []
        replace_records(self._packs, BLOBS, found)
        for digest, error in left.items():
            if digest in {record.key for record in found}:
                continue
            if isinstance(error, LimitExceeded):
                self._large(digest)
            else:
                self._failed(digest, error)

    def _from_large(self, wanted: set[Digest]) -> Iterator[Record]:
        """Chunks, as the source has them in the blobs that they are chunks of here."""
        left = set(wanted)
        for blob, chunks in self._chunk_lists():
            offset = 0
            for chunk in chunks:
                if chunk.digest in left and (data := self._part(blob, offset, chunk)) is not None:
                    left.discard(chunk.digest)
                    yield Record(CHUNK, chunk.digest, data)
                offset += chunk.size
            if not left:
                return

    def _chunk_lists(self) -> Iterator[tuple[Digest, list[Chunk]]]:
        """All large blobs here whose lists of chunks can be read."""
        after = b""
        while page := self._packs.page(BLOBS, after, _PAGE):
            after = page[-1][0]
            for digest, location in page:
                if location.tag == LIST:
                    self._progress.advance(0)
                    try:
                        data = self._packs.read_unproven(BLOBS, digest, location)
                        yield digest, decode_chunk_list(unseal(BLOBS.id, digest, data))
                    except (Corrupt, NotFound):
                        continue

    def _part(self, blob: Digest, offset: int, chunk: Chunk) -> bytes | None:
        """The bytes of a chunk from its place in a blob of the source."""
        try:
            reader = self._source.open_read(blob)
            if reader is None:
                return None
            with reader:
                reader.seek(offset)
                return _proven(chunk.digest, reader.read(chunk.size))
        except CONCERNS_ALL:
            raise
        except NeveError:
            return None

    def _large(self, digest: Digest) -> None:
        """Makes a large blob whole: its list of chunks, and those that are missing."""
        try:
            chunks = self._cut(digest)
            data = seal(BLOBS.id, digest, encode_chunk_list(chunks))
            replace_records(self._packs, BLOBS, [Record(LIST, digest, data)])
        except CONCERNS_ALL:
            raise
        except NeveError as error:
            self._failed(digest, error)

    def _cut(self, digest: Digest) -> list[Chunk]:
        """The blob of the source in chunks, all of which are there then; damaged ones stay as they are."""
        hasher = blake3()
        chunker = Chunker()
        chunks: list[Chunk] = []
        with self._blobs.batch() as batch:
            assert isinstance(batch, LocalBlobBatch)
            for piece in self._source.stream(digest):
                self._progress.advance(0, format_digest(digest))
                hasher.update(piece)
                chunks += batch.put_chunks(chunker.feed([piece]))
            chunks += batch.put_chunks(chunker.finish())
            if hasher.digest() != digest:
                raise Corrupt(
                    f"blob {format_digest(digest)}: what the source gives does not match the digest"
                )
            batch.commit()
        return chunks


def _proven(digest: Digest, data: bytes) -> bytes:
    if b3_digest(data) != digest:
        raise Corrupt(f"{format_digest(digest)}: what the source gives does not match the digest")
    return data
