"""Bundles: small blobs (or chunks) one behind the other, perhaps compressed together.

What travels between a client and a server that know each other, instead of a call for each blob. Who
receives a bundle believes nothing of it: lengths are bounded before anything is decompressed, and
every blob is hashed. No I/O.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import zstandard
from blake3 import blake3

from neve.castore.digest import DIGEST_SIZE, Digest, format_digest
from neve.errors import InvalidRequest, LimitExceeded
from neve.packstore.frames import FRAME_TARGET, Record, compress, group_records
from neve.tree import WHOLE_FILE_LIMIT

if TYPE_CHECKING:
    from neve.proto.neve.castore.protos import rpc_batch_pb2

MAX_BUNDLE_BYTES = 8 * 1024 * 1024
"""Most contents of one bundle, uncompressed."""


class InvalidBundle(InvalidRequest):
    """A bundle that does not hold what it says."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """Blobs, by digest and length in bytes, and their contents as one run of bytes."""

    digests: list[Digest]
    sizes: list[int]
    data: bytes | memoryview
    zstd: bool = False
    """Whether ``data`` is a zstd frame (one, which states its length)."""

    @property
    def raw_size(self) -> int:
        """Bytes of contents."""
        return sum(self.sizes)

    def contents(self) -> list[memoryview]:
        """The blobs. Raises ``InvalidBundle``, naming the blob, unless each matches its digest."""
        raw = memoryview(self.raw())
        blobs = []
        start = 0
        for digest, size in zip(self.digests, self.sizes, strict=True):
            blob = raw[start : start + size]
            if blake3(blob).digest() != digest:
                raise InvalidBundle(f"{size} bytes that were sent as {format_digest(digest)} do not match it")
            blobs.append(blob)
            start += size
        return blobs

    def raw(self) -> bytes | memoryview:
        """All contents, of the length stated, but not verified.

        Raises ``InvalidBundle``, ``LimitExceeded``.
        """
        size = self.raw_size
        return decompressed(self.data, size) if self.zstd else _exactly(self.data, size)


def decompressed(data: bytes | bytearray | memoryview, size: int) -> bytes:
    """The contents of a zstd frame that is to hold ``size`` bytes.

    Raises ``InvalidBundle``, and ``LimitExceeded`` if ``size`` is over ``MAX_BUNDLE_BYTES``. What the
    frame itself states is what the library allocates, so it is compared first.
    """
    if size > MAX_BUNDLE_BYTES:
        raise LimitExceeded(f"a bundle of {size} bytes is over the limit of {MAX_BUNDLE_BYTES} bytes")
    try:
        stated = zstandard.frame_content_size(data)
        if stated != size:
            raise InvalidBundle(f"a zstd frame states {stated} bytes, its bundle {size}")
        raw = zstandard.ZstdDecompressor().decompress(data, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise InvalidBundle(f"a zstd frame in a bundle is damaged: {error}") from error
    if len(raw) != size:
        raise InvalidBundle(f"a zstd frame holds {len(raw)} bytes, its bundle states {size}")
    return raw


def _exactly(data: bytes | memoryview, size: int) -> bytes | memoryview:
    """``data`` if it has ``size`` bytes."""
    if len(data) != size:
        raise InvalidBundle(f"a bundle has {len(data)} bytes of contents, its sizes say {size}")
    if size > MAX_BUNDLE_BYTES:
        raise LimitExceeded(f"a bundle of {size} bytes is over the limit of {MAX_BUNDLE_BYTES} bytes")
    return data


@dataclass(slots=True)
class Answer:
    """Blobs sent to who asked for many; ``places`` counts in what was asked for."""

    data: bytes | bytearray = b""
    """A zstd frame, or the contents themselves."""
    zstd: bool = False
    raw_size: int = 0
    """Bytes of contents; more may be there than was asked for."""
    places: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    absent: list[int] = field(default_factory=list)
    apart: list[int] = field(default_factory=list)

    def add(self, place: int, blob: bytes | memoryview) -> None:
        """Appends the contents of a blob."""
        if not isinstance(self.data, bytearray):
            self.data = bytearray(self.data)
        self.places.append(place)
        self.starts.append(self.raw_size)
        self.sizes.append(len(blob))
        self.data += blob
        self.raw_size += len(blob)

    def as_bundle(self, digests: Sequence[Digest]) -> Bundle | None:
        """All of it as a bundle, not verified; None if it holds what was not asked for. ``digests`` are what
        was asked for."""
        end = 0
        blobs = sorted(zip(self.starts, self.sizes, self.places, strict=True))
        for start, size, _ in blobs:
            if start != end:
                return None
            end += size
        if end != self.raw_size or not blobs:
            return None
        data = self.data if isinstance(self.data, bytes) else bytes(self.data)
        return Bundle(
            [digests[place] for _, _, place in blobs], [size for _, size, _ in blobs], data, self.zstd
        )

    def contents(self) -> bytes | memoryview:
        """The contents, of the length stated, but not verified.

        Raises ``InvalidBundle``, ``LimitExceeded``.
        """
        if len(self.places) != len(self.starts) or len(self.places) != len(self.sizes):
            raise InvalidBundle("an answer's lists of places, starts and sizes differ in length")
        if self.zstd:
            return decompressed(self.data, self.raw_size)
        return _exactly(bytes(self.data), self.raw_size)


def bundles(
    blobs: Sequence[tuple[Digest, bytes | memoryview]], target: int = FRAME_TARGET
) -> Iterator[Bundle]:
    """Packs blobs into bundles of about ``target`` bytes, compressed where that makes them smaller."""
    for group in group_records((Record(0, digest, data) for digest, data in blobs), target):
        raw = group[0].data if len(group) == 1 else b"".join([record.data for record in group])
        packed = compress(raw, alone=len(group) == 1)
        yield Bundle(
            [record.key for record in group],
            [len(record.data) for record in group],
            raw if packed is None else packed,
            zstd=packed is not None,
        )


def fill_bundle_message(message: rpc_batch_pb2.Bundle, bundle: Bundle) -> None:
    """Writes a bundle into a message, in its place in another: moving it there would copy its contents."""
    message.digests = b"".join(bundle.digests)
    message.sizes.extend(bundle.sizes)
    message.data = bytes(bundle.data)
    message.zstd = bundle.zstd


def bundle_from_message(message: rpc_batch_pb2.Bundle) -> Bundle:
    """Raises ``InvalidRequest`` if the message makes no bundle, ``LimitExceeded`` for a blob that is too
    long to be sent whole."""
    digests = split_digests(message.digests)
    sizes = list(message.sizes)
    if len(sizes) != len(digests):
        raise InvalidBundle(f"a bundle has {len(digests)} digests and {len(sizes)} sizes")
    if sizes and max(sizes) > WHOLE_FILE_LIMIT:
        raise LimitExceeded(
            f"a blob of {max(sizes)} bytes in a bundle is over the limit of {WHOLE_FILE_LIMIT} bytes"
        )
    return Bundle(digests, sizes, message.data, message.zstd)


def answer_message(answer: Answer) -> rpc_batch_pb2.ReadResponse:
    """The message of an answer."""
    from neve.proto.neve.castore.protos import rpc_batch_pb2

    return rpc_batch_pb2.ReadResponse(
        data=bytes(answer.data),
        zstd=answer.zstd,
        raw_size=answer.raw_size,
        places=answer.places,
        starts=answer.starts,
        sizes=answer.sizes,
        absent=answer.absent,
        apart=answer.apart,
    )


def answer_from_message(message: rpc_batch_pb2.ReadResponse) -> Answer:
    """The answer of a message; what it says is checked when it is used."""
    return Answer(
        message.data,
        message.zstd,
        message.raw_size,
        list(message.places),
        list(message.starts),
        list(message.sizes),
        list(message.absent),
        list(message.apart),
    )


def split_digests(run: bytes) -> list[Digest]:
    """The digests of a run of them. Raises ``InvalidRequest`` if its length is no multiple of theirs."""
    if len(run) % DIGEST_SIZE:
        raise InvalidRequest(f"a run of digests has {len(run)} bytes, no multiple of {DIGEST_SIZE}")
    return [run[i : i + DIGEST_SIZE] for i in range(0, len(run), DIGEST_SIZE)]
