"""Writing one large blob into a batch on a server: only the chunks that the server misses travel."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from blake3 import blake3

from neve.castore.blobs.bundle import Bundle, fill_bundle_message
from neve.castore.blobs.chunks import Chunker
from neve.castore.blobs.writing import GatheringWriter
from neve.castore.digest import Digest
from neve.proto.neve.castore.protos import rpc_batch_pb2
from neve.tree import WHOLE_FILE_LIMIT

if TYPE_CHECKING:
    from neve.castore.blobs.grpc_batch import RemoteBatch

MESSAGE_BYTES = 1024 * 1024
_WRITE_BLOCK = 2 * 1024 * 1024
_MAX_KNOWN = 4096
"""Digests of chunks that the server has in one message: about a gigabyte."""

_Made = tuple[list[Digest], dict[Digest, Bundle]]
"""Digests of chunks in their order, and those that the server misses."""


class BatchWriter(GatheringWriter):
    """Writes one blob of any length: whole if it stays small, else the chunks that the server misses.

    As long as the server has all of them nothing is sent: at the end it may have the blob too.
    """

    def __init__(self, batch: RemoteBatch, number: int) -> None:
        super().__init__(_WRITE_BLOCK)
        self._batch = batch
        self._number = number
        self._hasher = blake3()
        self._chunker: Chunker | None = None
        self._known: list[Digest] = []
        self._sent = False
        self._is_cut = False

    def _take(self, pieces: list[bytes]) -> None:
        self._batch.guarded(lambda: self._cut(pieces))

    def write_bundle(self, chunks: Bundle) -> None:
        self._check_open()
        contents = chunks.contents()
        if len(contents) != 1 or not 0 < chunks.sizes[0] <= WHOLE_FILE_LIMIT:
            for piece in contents:
                self.write(bytes(piece))
            return
        with self._failing():
            self._batch.guarded(lambda: self._pass_on(chunks, contents[0]))

    def _pass_on(self, chunk: Bundle, contents: memoryview) -> None:
        """Makes a chunk end where this one begins, and sends it as it is."""
        self._end_chunk()
        self._hasher.update(contents)
        self._submit_made(lambda: (chunk.digests, self._unless_there(chunk)))

    def _unless_there(self, chunk: Bundle) -> dict[Digest, Bundle]:
        missing = self._batch.missing(chunk.digests, as_blobs=False)
        return dict.fromkeys(missing, chunk)

    def _end_chunk(self) -> None:
        if self._block:
            self._cut(self._rest())
        if self._chunker is not None:
            self._submit(self._chunker.finish())
            self._chunker = None

    def _cut(self, pieces: list[bytes]) -> None:
        if self._chunker is None:
            self._chunker = Chunker()
        for piece in pieces:
            self._hasher.update(piece)
        self._submit(self._chunker.feed(pieces))

    def _submit(self, chunks: list[memoryview]) -> None:
        if chunks:
            self._submit_made(lambda: self._made(chunks))

    def _submit_made(self, make: Callable[[], _Made]) -> None:
        self._is_cut = True
        self._batch.submit(make, self._send_chunks)

    def _made(self, chunks: list[memoryview]) -> _Made:
        """The chunks' digests, and bundles of those that the server does not have."""
        blobs = [(blake3(chunk).digest(), chunk) for chunk in chunks]
        made = self._batch.to_send(blobs, alone=True)
        return [digest for digest, _ in blobs], {bundle.digests[0]: bundle for bundle in made}

    def _send_chunks(self, made: _Made) -> None:
        digests, new = made
        message = rpc_batch_pb2.PutRequest()
        size = 0
        for digest in digests:
            bundle = new.get(digest)
            if bundle is None:
                self._known.append(digest)
                continue
            self._flush_known(message)
            fill_bundle_message(message.parts.add(writer=self._number).chunks, bundle)
            size += len(bundle.data)
            # A piece that was written may be of any length, a message may not.
            if size >= MESSAGE_BYTES:
                self._send(message)
                message, size = rpc_batch_pb2.PutRequest(), 0
        self._send(message)

    def _flush_known(self, message: rpc_batch_pb2.PutRequest) -> None:
        # The server reads them, and must not take too long for one message. So many have gathered only if
        # nothing was sent before, so they do not overtake what is in the message.
        while len(self._known) > _MAX_KNOWN:
            self._send(self._part_of_known(rpc_batch_pb2.PutRequest()))
        if self._known:
            self._part_of_known(message)

    def _part_of_known(self, message: rpc_batch_pb2.PutRequest) -> rpc_batch_pb2.PutRequest:
        part, self._known = self._known[:_MAX_KNOWN], self._known[_MAX_KNOWN:]
        message.parts.add(writer=self._number, known=b"".join(part))
        return message

    def _send(self, message: rpc_batch_pb2.PutRequest) -> None:
        if message.parts and self._state != "abandoned":
            self._batch.parts_sent.add(self._number)
            self._batch.send(message)
            self._sent = True

    def _finish(self) -> Digest:
        return self._batch.guarded(self._send_rest)

    def _send_rest(self) -> Digest:
        if not self._is_cut and self._chunker is None and self._block_bytes <= WHOLE_FILE_LIMIT:
            return self._batch.put_many([b"".join(self._rest())])[0]
        self._end_chunk()
        digest: Digest = self._hasher.digest()
        self._batch.submit(lambda: bool(self._batch.missing([digest])), lambda m: self._send_end(digest, m))
        return digest

    def _send_end(self, digest: Digest, missing: bool) -> None:
        if self._sent or missing:
            message = rpc_batch_pb2.PutRequest()
            self._flush_known(message)
            message.parts.add(writer=self._number, end=digest)
            self._send(message)
            self._batch.parts_sent.discard(self._number)

    def _release(self) -> None:
        if self._state == "closed":
            return  # What it has submitted is sent when its turn comes.
        self._known, self._chunker = [], None
        if self._state == "abandoned" and self._sent:
            self._batch.give_up(self._number)
