"""Copying blobs from one service to another: many at once, and compressed as they are where both can.

What the source gives is believed only once it matches its digest. A blob that the source does not have, or
that is damaged there, is told and keeps no other from being copied; anything else that fails ends it all.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Self, TypeVar

from blake3 import blake3

from neve.castore.blobs.base import BlobBatch, BlobService, Chunk
from neve.castore.blobs.bundle import Answer, Bundle, InvalidBundle
from neve.castore.digest import EMPTY_BLOB, Digest, format_digest
from neve.errors import Corrupt, InvalidRequest, LimitExceeded, NeveError, PermissionDenied, Unavailable
from neve.tree import WHOLE_FILE_LIMIT

T = TypeVar("T")

Wanted = Mapping[Digest, int | None]
"""Blobs to be copied, and how many bytes they have to have, if that is known."""

GROUP_BLOBS = 1024
GROUP_BYTES = 8 * 1024 * 1024
"""Blobs that are asked for and read together."""

_COPIERS = 3
"""Groups on their way at once: some wait for the source while others are hashed."""

_COMMIT_BYTES = 128 * 1024 * 1024
"""A copier makes durable what it has copied when it is so much: it need not be copied again if all ends."""

_CHUNKS_AT_ONCE = 16
"""Chunks of a large blob that are held: 8 MiB at most."""

_PATIENCE_SECONDS = 0.1


class UnreadableBlobError(NeveError):
    """The source fails to give a blob; ``error`` says why. Goes from the reading to who notes it."""

    def __init__(self, error: NeveError) -> None:
        super().__init__(str(error))
        self.error = error


class BlobCopies:
    """Copies blobs that ``target`` misses. For one thread; leaving the ``with`` block without ``finish``
    gives up what was not committed."""

    def __init__(
        self, source: BlobService, target: BlobService, *, tick: Callable[[], None] = lambda: None
    ) -> None:
        """``tick`` is called now and then while a call of ``add`` or ``finish`` waits, in its thread."""
        self._source = source
        self._target = target
        self._tick = tick
        self._queue: queue.Queue[Wanted | None] = queue.Queue(_COPIERS)
        self._threads: list[threading.Thread] = []
        self._failure: BaseException | None = None
        self._given_up = False
        self._lock = threading.Lock()
        self._bytes = 0
        self.failures: dict[tuple[Digest, int | None], NeveError] = {}
        """What could not be copied, by digest and wanted length, and why."""
        self.copied = 0
        """Blobs that were."""
        self.copied_bytes = 0

    def add(self, wanted: Wanted) -> None:
        """Takes at most about ``GROUP_BLOBS`` blobs of ``GROUP_BYTES`` in all. Waits if many are under way.
        Raises what has ended a copier."""
        if wanted:
            if len(self._threads) < _COPIERS and (not self._threads or not self._queue.empty()):
                thread = threading.Thread(target=self._run, name="neve-transfer", daemon=True)
                self._threads.append(thread)
                thread.start()
            self._put(wanted)

    def _put(self, wanted: Wanted | None) -> None:
        # Again and again: who is interrupted in the middle of a put may wait for ever.
        while True:
            if self._failure is not None and wanted is not None:
                raise self._failure
            with contextlib.suppress(queue.Full):
                self._queue.put(wanted, timeout=_PATIENCE_SECONDS)
                return
            self._tick()

    def taken(self) -> int:
        """Bytes of the blobs that were dealt with since the last call."""
        with self._lock:
            taken, self._bytes = self._bytes, 0
        return taken

    def finish(self) -> None:
        """Returns when all that could be copied is durable. Raises what has ended a copier."""
        self._stop()
        if self._failure is not None:
            raise self._failure

    def _stop(self) -> None:
        for _ in self._threads:
            self._put(None)
        for thread in self._threads:
            while thread.is_alive():
                thread.join(_PATIENCE_SECONDS)
                self._tick()
        self._threads = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._given_up = True
        if kind is None or issubclass(kind, Exception):
            self._stop()  # An interrupt is to be quick, and a copier may be waiting for a server.

    # In the threads of the copiers.

    def _run(self) -> None:
        with _Copier(self._source, self._target, self) as copier:
            while (wanted := self._queue.get()) is not None:
                if self.goes_on():
                    self._guarded(lambda: copier.copy(wanted))
            if self.goes_on():
                self._guarded(copier.commit)

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            # Kept for the thread that adds; the queue is drained, so that it never waits.
            self._failure = self._failure or error

    def goes_on(self) -> bool:
        """Whether anybody still waits for what is copied."""
        return self._failure is None and not self._given_up

    def note_taken(self, size: int) -> None:
        """Something that was asked for is dealt with."""
        with self._lock:
            self._bytes += size

    def note_copied(self, sizes: Sequence[int]) -> None:
        """Blobs have been handed to the target."""
        with self._lock:
            self.copied += len(sizes)
            self.copied_bytes += sum(sizes)
            self._bytes += sum(sizes)

    def note_failure(self, digest: Digest, size: int | None, error: NeveError) -> None:
        """A blob cannot be copied."""
        with self._lock:
            self.failures[digest, size] = error


class _Copier:
    """Copies groups one after the other, in one thread, with one batch."""

    def __init__(self, source: BlobService, target: BlobService, copies: BlobCopies) -> None:
        self._source = source
        self._target = target
        self._copies = copies
        self._open: BlobBatch | None = None
        self._uncommitted = 0

    @property
    def _batch(self) -> BlobBatch:
        if self._open is None:
            self._open = self._target.batch()
        return self._open

    def copy(self, wanted: Wanted) -> None:
        missing = self._target.missing_blobs([digest for digest in wanted if digest != EMPTY_BLOB])
        absent = set(missing)
        self._copies.note_taken(sum(size or 0 for digest, size in wanted.items() if digest not in absent))
        small = [digest for digest in missing if (wanted[digest] or 0) <= WHOLE_FILE_LIMIT]
        apart = [digest for digest in missing if (wanted[digest] or 0) > WHOLE_FILE_LIMIT]
        apart += self._copy_together(small, wanted)
        for digest in apart:
            try:
                self._copy_apart(digest, wanted[digest])
            except UnreadableBlobError as unreadable:
                self._copies.note_failure(digest, wanted[digest], unreadable.error)
                self._copies.note_taken(wanted[digest] or 0)
        if self._uncommitted >= _COMMIT_BYTES:
            self.commit()

    def commit(self) -> None:
        if self._open is not None:
            self._open.commit()
        self._uncommitted = 0

    def _note(self, sizes: Sequence[int]) -> None:
        self._uncommitted += sum(sizes)
        self._copies.note_copied(sizes)

    def _copy_together(self, digests: Sequence[Digest], wanted: Wanted) -> list[Digest]:
        """Copies small blobs as the source gives them; those that are to be copied apart."""
        left = dict.fromkeys(digests)
        with contextlib.suppress(UnreadableBlobError):  # About one, and hides the others.
            for answer in _read(self._source.read_bundles(digests)) if digests else ():
                for digest in self._take(answer, digests, wanted):
                    left.pop(digest, None)
        return list(left)

    def _take(self, answer: Answer, digests: Sequence[Digest], wanted: Wanted) -> list[Digest]:
        """Passes on what is right of an answer."""
        whole = answer.as_bundle(digests)
        if whole is not None and all(map(_fits, whole.sizes, map(wanted.get, whole.digests))):
            try:
                self._batch.put_bundle(whole)
            except (InvalidBundle, LimitExceeded):
                return []
            self._note(whole.sizes)
            return whole.digests
        blobs = [bytes(blob) for digest, blob in proven(answer, digests) if _fits(len(blob), wanted[digest])]
        self._note([len(blob) for blob in blobs])
        return self._batch.put_many(blobs) if blobs else []

    def _copy_apart(self, digest: Digest, size: int | None) -> None:
        """Copies one blob: in chunks as the source has it, if it can tell."""
        chunks = _reading(lambda: self._source.stored_chunks(digest))
        if sum(chunk.size for chunk in chunks) <= WHOLE_FILE_LIMIT:
            chunks = []
        if chunks and max(chunk.size for chunk in chunks) <= WHOLE_FILE_LIMIT:
            # What is damaged, or was cut too finely to be kept, the way below tells or mends.
            with contextlib.suppress(UnreadableBlobError, InvalidRequest):
                self._write(digest, size, self._bundles(chunks))
                return
        self._write(digest, size, _read(self._source.stream(digest)))

    def _write(self, digest: Digest, size: int | None, pieces: Iterable[bytes | Bundle]) -> None:
        length = 0
        with self._batch.open_write() as writer:
            for piece in pieces:
                if not self._copies.goes_on():
                    raise UnreadableBlobError(Unavailable("the copy was given up"))
                if isinstance(piece, Bundle):
                    writer.write_bundle(piece)
                    length += piece.raw_size
                else:
                    length += writer.write(piece)
                if size is not None and length > size:
                    break
            if not _fits(length, size):
                raise UnreadableBlobError(
                    Corrupt(f"blob {format_digest(digest)} has another length than its node says, {size}")
                )
            if writer.close() != digest:
                raise UnreadableBlobError(
                    Corrupt(f"blob {format_digest(digest)}: what the source gives does not match the digest")
                )
        self._note([length])

    def _bundles(self, chunks: Sequence[Chunk]) -> Iterator[Bundle]:
        for start in range(0, len(chunks), _CHUNKS_AT_ONCE):
            part = chunks[start : start + _CHUNKS_AT_ONCE]
            found = self._fetched(list(dict.fromkeys(chunk.digest for chunk in part)))
            for digest, size in part:
                if (bundle := found.get(digest)) is None:
                    data = _reading(lambda: self._source.read(digest, size))  # noqa: B023 - called at once
                    bundle = Bundle([digest], [len(data)], data)
                yield bundle

    def _fetched(self, digests: Sequence[Digest]) -> dict[Digest, Bundle]:
        """Chunks, not verified: from the target those that it has at hand, the others from the source."""
        found: dict[Digest, Bundle] = {}
        if self._target.looks_up_at_once:
            missing = set(self._target.missing(digests))
            there = [digest for digest in digests if digest not in missing]
            with contextlib.suppress(UnreadableBlobError):
                _fetch(self._target, there, found)
        _fetch(self._source, [digest for digest in digests if digest not in found], found)
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._open is not None:
            self._open.close()


def _fetch(service: BlobService, digests: Sequence[Digest], found: dict[Digest, Bundle]) -> None:
    for answer in _read(service.read_bundles(digests)) if digests else ():
        whole = answer.as_bundle(digests)
        if whole is not None and len(whole.digests) == 1:
            found[whole.digests[0]] = whole
            continue
        for digest, blob in proven(answer, digests):
            found[digest] = Bundle([digest], [len(blob)], blob)


def _fits(length: int, wanted: int | None) -> bool:
    return wanted is None or length == wanted


def proven(answer: Answer, digests: Sequence[Digest]) -> Iterator[tuple[Digest, memoryview]]:
    """Those blobs of an answer that match their digests."""
    try:
        raw = memoryview(answer.contents())
    except (InvalidBundle, LimitExceeded):
        return
    for place, start, size in zip(answer.places, answer.starts, answer.sizes, strict=True):
        blob = raw[start : start + size]
        if blake3(blob).digest() == digests[place]:
            yield digests[place], blob


def _reading(read: Callable[[], T]) -> T:
    """What ``read`` gives. Raises ``UnreadableBlobError`` if it is about a blob, else what it raises."""
    try:
        return read()
    except (Unavailable, PermissionDenied, UnreadableBlobError):
        raise
    except NeveError as error:
        raise UnreadableBlobError(error) from error


def _read(items: Iterable[T]) -> Iterator[T]:
    """The items as they come; raises like ``_reading``."""
    source = iter(items)
    while True:
        item = _reading(lambda: next(source, None))
        if item is None:
            return
        yield item
