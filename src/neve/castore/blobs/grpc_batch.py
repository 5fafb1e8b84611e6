"""Storing many small blobs per message: a batch on a server that has BatchService.

Blobs are hashed where they are put; threads ask in groups which of them the server misses, and compress
those. Large blobs are cut here, so that only chunks that the server misses travel.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from typing import Any, TypeVar

from blake3 import blake3

from neve.castore.blobs.base import BlobBatch, BlobWriter
from neve.castore.blobs.bundle import Bundle, bundles, fill_bundle_message
from neve.castore.blobs.grpc_batch_writer import MESSAGE_BYTES, BatchWriter
from neve.castore.blobs.grpc_read import BATCHES, RemoteReads, chosen, has_batches
from neve.castore.digest import EMPTY_BLOB, Digest, check_digest
from neve.errors import InvalidRequest, Unavailable
from neve.proto.neve.castore.protos import rpc_batch_pb2
from neve.rpc.channel import Connection
from neve.rpc.upload import Exchange
from neve.telemetry import carried
from neve.tree import WHOLE_FILE_LIMIT

T = TypeVar("T")

_GROUP_BYTES = 4 * 1024 * 1024
_GROUP_BLOBS = 1024
"""Blobs that are asked for and sent together."""

_MAX_QUEUED_GROUPS = 3
_MAX_KEPT = 16 * 1024
"""Digests in one question whether they can be kept."""

_QUIET_SECONDS = 20.0
Blob = tuple[Digest, bytes | memoryview]


class RemoteBatch(BlobBatch):
    """A batch on a server with batches; one on another is left to ``fallback``."""

    def __init__(self, connection: Connection, reads: RemoteReads, fallback: BlobBatch) -> None:
        self._connection = connection
        self._reads = reads
        self._fallback = fallback
        self._exchange: Exchange | None = None
        self._offered: bool | None = None
        self._group: list[Blob] = []
        self._group_bytes = 0
        # What threads are making, and what takes it when its turn has come.
        self._queued: deque[tuple[Future[Any], Callable[[Any], None]]] = deque()
        self._writers = 0
        self.parts_sent: set[int] = set()
        """Large blobs of which something was sent and not yet the end."""
        # Whoever uses the stream: the caller, or the thread that ends it when it is quiet.
        self._turn = threading.RLock()
        self._last_sent = 0.0
        self._quiet: _Repeated | None = None
        self._failure: BaseException | None = None
        self._closed = False

    # State.

    def _check_usable(self) -> None:
        if self._closed:
            raise InvalidRequest("the blob batch is closed")
        if self._failure is not None:
            raise Unavailable(f"the blob batch has failed before: {self._failure}") from self._failure

    def offered(self) -> bool:
        """Whether the server has batches."""
        if self._offered is None:
            self._offered = has_batches(self._connection)
        return self._offered

    def guarded(self, function: Callable[[], T]) -> T:
        """Runs a step. If it fails, something of what was put is lost, and ``commit`` must not work."""
        with self._turn:
            self._check_usable()
            try:
                return function()
            except BaseException as error:
                self._failure = error
                raise

    # Putting.

    def put_many(self, blobs: Sequence[bytes]) -> list[Digest]:
        self._check_usable()
        if not self.offered():
            return self.guarded(lambda: self._fallback.put_many(blobs))
        digests = []
        for blob in blobs:
            if len(blob) > WHOLE_FILE_LIMIT:
                digests.append(self._put_large(blob))
                continue
            digests.append(digest := blake3(blob).digest())
            if blob:
                self._group.append((digest, blob))
                self._group_bytes += len(blob)
        if self._group_bytes >= _GROUP_BYTES or len(self._group) >= _GROUP_BLOBS:
            self.guarded(self._submit_group)
        return digests

    def put_bundle(self, bundle: Bundle) -> None:
        self._check_usable()
        contents = bundle.contents()
        if not self.offered() or max(bundle.sizes, default=0) > WHOLE_FILE_LIMIT:
            self.put_many([bytes(blob) for blob in contents])
        else:
            # Whoever has it packed has asked what the server misses.
            self.guarded(lambda: self._send_bundles([bundle]))

    def _put_large(self, blob: bytes) -> Digest:
        with self.open_write() as writer:
            writer.write(blob)
            return writer.close()

    def _submit_group(self) -> None:
        group, self._group, self._group_bytes = self._group, [], 0
        if group:
            self.submit(lambda: self.to_send(group), self._send_bundles)

    def submit(self, make: Callable[[], T], send: Callable[[T], None]) -> None:
        """Has a thread ``make`` something; ``send`` gets it, here and in the order of submission."""
        while len(self._queued) >= _MAX_QUEUED_GROUPS or (self._queued and self._queued[0][0].done()):
            self._send_first()
        self._queued.append((self._reads.executor().submit(carried(make)), send))

    def _send_first(self) -> None:
        made, send = self._queued.popleft()
        send(made.result())

    def send(self, message: rpc_batch_pb2.PutRequest) -> None:
        """Sends a message."""
        self._stream().send(message)

    def _stream(self) -> Exchange:
        self._last_sent = time.monotonic()
        if self._exchange is None:
            self._exchange = self._connection.exchange(BATCHES, "Put")
            self._quiet = _Repeated(_QUIET_SECONDS, self._end_quiet_stream)
        return self._exchange

    def _end_quiet_stream(self) -> None:
        """Commits and ends a stream on which nothing was sent for some time: servers end such without.

        Runs in a thread of its own; what is sent afterwards goes on a new stream. Blobs of which parts were
        sent keep theirs.
        """
        with self._turn:
            quiet = time.monotonic() - self._last_sent >= _QUIET_SECONDS
            if self._exchange is not None and quiet and not self.parts_sent and self._failure is None:
                try:
                    self._exchange.send(rpc_batch_pb2.PutRequest(commit=True))
                    self._exchange.receive()
                    self._exchange.finish()
                except BaseException as error:
                    self._failure = error
                self._end_stream()

    def _end_stream(self) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.cancel()
        if self._quiet is not None:
            self._quiet.stop()
            self._quiet = None

    def missing(self, digests: Sequence[Digest], *, as_blobs: bool = True) -> set[Digest]:
        """Those of ``digests`` that the server does not have, or only as chunks of others."""
        return set(self._reads.missing(digests, as_blobs=as_blobs))

    def to_send(self, blobs: Sequence[Blob], *, alone: bool = False) -> list[Bundle]:
        """Bundles of those of ``blobs`` that the server does not have; ``alone``: one for each, of chunks."""
        missing = self.missing([digest for digest, _ in blobs], as_blobs=not alone)
        new = list({blob[0]: blob for blob in blobs if blob[0] in missing}.values())
        return list(bundles(new, 1)) if alone else list(bundles(new))

    def _send_bundles(self, made: list[Bundle]) -> None:
        message = rpc_batch_pb2.PutRequest()
        size = 0
        for bundle in made:
            fill_bundle_message(message.blobs.add(), bundle)
            size += len(bundle.data)
            if size >= MESSAGE_BYTES:
                self.send(message)
                message, size = rpc_batch_pb2.PutRequest(), 0
        if size:
            self.send(message)

    def give_up(self, writer: int) -> None:
        """Tells the server that a blob is not wanted any more."""
        if self._failure is None and not self._closed:
            message = rpc_batch_pb2.PutRequest()
            message.parts.add(writer=writer, abandon=True)
            self.parts_sent.discard(writer)
            self.guarded(lambda: self.submit(lambda: message, self.send))

    def open_write(self) -> BlobWriter:
        self._check_usable()
        if not self.offered():
            return self._fallback.open_write()
        self._writers += 1
        return BatchWriter(self, self._writers)

    # The end.

    def drain(self) -> None:
        """Sends everything put so far."""
        self._submit_group()
        while self._queued:
            self._send_first()

    def keep_many(self, digests: Sequence[Digest]) -> list[Digest]:
        wanted = [check_digest(digest) for digest in digests if digest != EMPTY_BLOB]
        self._check_usable()
        if not self.offered():
            return self._fallback.keep_many(digests)
        if not wanted:
            return []

        def ask() -> list[Digest]:
            self.drain()
            missing: list[Digest] = []
            for start in range(0, len(wanted), _MAX_KEPT):
                part = wanted[start : start + _MAX_KEPT]
                self._stream().send(rpc_batch_pb2.PutRequest(keep=b"".join(part)))
                missing += chosen(part, self._stream().receive().missing, self._connection.url)
            return missing

        return self.guarded(ask)

    def commit(self) -> None:
        self._check_usable()
        if not self.offered():
            self._fallback.commit()
            return

        def finish() -> None:
            self.drain()
            if self._exchange is not None:
                self._exchange.send(rpc_batch_pb2.PutRequest(commit=True))
                self._exchange.receive()

        self.guarded(finish)

    def close(self) -> None:
        self._closed = True
        wait([future for future, _ in self._queued if not future.cancel()])
        self._queued.clear()
        self._group = []
        with self._turn:
            self._end_stream()
        self._fallback.close()


class _Repeated:
    """Calls a function every so many seconds, in a thread, until it is stopped."""

    def __init__(self, seconds: float, function: Callable[[], None]) -> None:
        self._seconds = seconds
        self._function = function
        self._over = threading.Event()
        threading.Thread(target=self._run, name="neve-batch-quiet", daemon=True).start()

    def _run(self) -> None:
        while not self._over.wait(self._seconds):
            self._function()

    def stop(self) -> None:
        """It may be in the middle of a call, which is the last."""
        self._over.set()
