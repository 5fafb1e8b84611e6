"""NARs that are uploaded: taken in while they come.

The name of the file says what its bytes hash to, compressed as they are. They go to a thread that unpacks,
checks and stores them; only when all of them have come and the hash is right does anything become visible
(``ingest_nar``). What is remembered then, durably, is which tree the NAR holds, by the hash of the NAR and by
that of the file: the narinfo that makes a store path of it may come to another process, or much later.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import chain

from neve.errors import InvalidRequest, LimitExceeded, NotFound
from neve.http_cache.exchange import Exchange
from neve.http_cache.limits import Limits
from neve.http_cache.nar import is_present
from neve.http_cache.routes import NarName, parse_nar_name
from neve.http_cache.statuses import Refused
from neve.http_cache.threads import Pipe, Threads, broken_off, settled
from neve.nix import base32
from neve.nix.compression import decompressed, sniffed
from neve.store.nar.ingest import ingest_nar
from neve.store.nar_nodes import Nar
from neve.store.one_commit import one_commit
from neve.store.services import Services
from neve.telemetry import LOGGER

_HEAD_BYTES = 16
"""What tells the compression of a file."""


class Uploads:
    """Takes NARs in. Belongs to the event loop."""

    def __init__(self, services: Services, limits: Limits, threads: Threads) -> None:
        self._services = services
        self._limits = limits
        self._threads = threads
        self._turns = asyncio.Semaphore(limits.max_uploads)

    async def put(self, exchange: Exchange, name: str, under_way: Callable[[float], None]) -> None:
        """``PUT /nar/<nix32>.nar[.xz...]``. ``under_way`` is told of uploads that begin (1) and end (-1).

        Raises ``InvalidRequest`` and its kin, ``ClientGoneError``, and what the services raise.
        """
        parsed = parse_nar_name(name)
        if parsed is None:
            raise InvalidRequest("a NAR is uploaded as /nar/<hash of the file>.nar[.<compression>]")
        if (encoding := exchange.content_encoding()) is not None:
            raise Refused(415, f"a NAR is not taken with the Content-Encoding {encoding[:40]}")
        exchange.check_length(self._limits.max_nar_bytes, "the upload (max_nar_bytes)")
        with exchange.working():
            await self._turns.acquire()
        under_way(1)
        try:
            await self._take(exchange, parsed)
        finally:
            under_way(-1)
            self._turns.release()
        await exchange.answer_line(201, "taken in")

    async def _take(self, exchange: Exchange, name: NarName) -> None:
        pipe = Pipe()
        taking = self._threads.upload(_take_in, self._services, self._limits, name, pipe)
        taking.add_done_callback(lambda _: pipe.close())
        try:
            async for piece in exchange.body():
                with exchange.working():
                    await pipe.put(piece)
                if taking.done():
                    break  # It is refused already: the rest is not worth waiting for.
            else:
                pipe.finish()
        except BaseException:
            pipe.finish(broken_off())
            with contextlib.suppress(Exception):
                await settled(taking)
            raise
        with exchange.working():
            await settled(taking)


def _take_in(services: Services, limits: Limits, name: NarName, pipe: Pipe) -> None:
    began = time.monotonic()
    file = _File(pipe, limits.max_nar_bytes)
    compression, pieces = _told(file, name.compression)
    # The NAR is hashed in any case; what is not compressed need not be hashed twice.
    file.hashes = compression != "none"

    def accept(nar: Nar) -> None:
        found = file.sha256() if file.hashes else nar.sha256
        if found != name.sha256:
            raise InvalidRequest(f"the hash of what came is {base32.encode(found)}, its name says another")

    unpacked = _bounded(decompressed(pieces, compression), limits.max_nar_bytes)
    blobs, directories = services.blobs, services.directories
    with one_commit(blobs, directories, services.nar_nodes):
        node, nar = ingest_nar(unpacked, blobs, directories, accept=accept, size_rule=services.size_rule)
        services.nar_nodes.put(node, nar, file_sha256=name.sha256 if file.hashes else None)
    if not is_present(services, node):
        raise NotFound("the store lost what was uploaded before it was remembered; upload it again")
    LOGGER.debug("took in a NAR of %d bytes in %.3f s", nar.size, time.monotonic() - began)


class _File:
    """The bytes as they were sent: counted, and hashed from the beginning unless told otherwise."""

    def __init__(self, pipe: Pipe, limit: int) -> None:
        self.hashes = True
        self._pieces = iter(pipe)
        self._limit = limit
        self._size = 0
        self._hash = hashlib.sha256()

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._pieces:
            self._size += len(piece)
            if self._size > self._limit:
                raise LimitExceeded(f"the upload is longer than {self._limit} bytes (max_nar_bytes)")
            if self.hashes:
                self._hash.update(piece)
            yield piece

    def sha256(self) -> bytes:
        """Of all of it."""
        return self._hash.digest()


def _told(file: Iterable[bytes], named: str) -> tuple[str, Iterator[bytes]]:
    """How a file is compressed, by its name or, where that says nothing, by its beginning; and the file.

    Nix names files that it has compressed with gzip like those that it has not compressed.
    """
    pieces = iter(file)
    if named != "none":
        return named, pieces
    head = b""
    while len(head) < _HEAD_BYTES and (piece := next(pieces, b"")):
        head += piece
    found = sniffed(head)
    # Only what Nix does. A file that is named wrongly is no NAR, and is refused as such.
    return ("gzip" if found == "gzip" else "none"), chain((head,), pieces)


def _bounded(pieces: Iterable[bytes], limit: int) -> Iterator[bytes]:
    size = 0
    for piece in pieces:
        size += len(piece)
        if size > limit:
            raise LimitExceeded(f"the NAR is longer than {limit} bytes (max_nar_bytes)")
        yield piece
