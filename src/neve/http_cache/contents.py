"""Short bodies, received whole, as they were before they were encoded for the way."""

from __future__ import annotations

from neve.errors import LimitExceeded
from neve.http_cache.exchange import Exchange
from neve.http_cache.statuses import Refused
from neve.http_cache.threads import Threads
from neve.nix.compression import decompressed

# The names of HTTP, and those of narinfos that newer versions of Nix write there.
_ENCODINGS = {"gzip": "gzip", "x-gzip": "gzip", "zstd": "zstd", "br": "br", "xz": "xz", "bzip2": "bzip2"}


async def received(exchange: Exchange, threads: Threads, limit: int, what: str) -> bytes:
    """The body, decoded. Raises ``LimitExceeded`` if it has more than ``limit`` bytes in either form,
    ``InvalidRequest`` if it cannot be decoded, ``Refused`` (415) for an encoding that is not known,
    ``Unavailable`` if others hold too much already."""
    data = await exchange.whole_body(limit, what)
    encoding = exchange.content_encoding()
    if encoding is None:
        return data
    compression = _ENCODINGS.get(encoding)
    if compression is None:
        raise Refused(415, f"the Content-Encoding {encoding[:40]} is not known")
    with exchange.working():
        contents = await threads.work(_decoded, data, compression, limit, what)
    exchange.hold(len(contents))
    return contents


def _decoded(data: bytes, compression: str, limit: int, what: str) -> bytes:
    pieces: list[bytes] = []
    size = 0
    for piece in decompressed([data], compression):
        size += len(piece)
        if size > limit:
            raise LimitExceeded(f"{what} is longer than the limit of {limit} bytes")
        pieces.append(piece)
    return b"".join(pieces)
