"""Files of store paths themselves.

A store path may hold a page that was made to attack who looks at it. So a file is never sent as
what a browser would run: plain text or a download, with no guessing, in a sandbox that may load nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse

from neve.castore.blobs.base import BlobService
from neve.castore.node import FileNode
from neve.castore.traverse import large_file
from neve.errors import NeveError
from neve.http_cache.negotiation import is_known, range_applies
from neve.http_cache.pages.contents import head_of, text_of
from neve.http_cache.pages.text import disposition
from neve.http_cache.ranges import parse_ranges
from neve.http_cache.statuses import Refused, line_of
from neve.telemetry import LOGGER

RAW_HEADERS = {
    "Content-Security-Policy": "sandbox; default-src 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    # Not for shared caches: who may read is asked for each request.
    "Cache-Control": "private, max-age=3600",
}


def file_response(
    blobs: BlobService, node: FileNode, name: bytes, request: Mapping[str, str], *, body: bool = True
) -> Response:
    """The answer with the contents of a file, or a range of them; ``request`` are the headers.

    Without ``body``, what HEAD gets, for which ranges do not count. Reads the beginning, so that what is
    wrong there is an error instead of an answer. Raises ``NotFound``, ``Corrupt``.
    """
    etag = f'"{node.digest.hex()}"'
    headers = {**RAW_HEADERS, "ETag": etag, "Accept-Ranges": "bytes"}
    if is_known(request.get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    is_text = text_of(head_of(blobs, node), node) is not None
    headers["Content-Disposition"] = disposition("inline" if is_text else "attachment", name)
    headers["Content-Type"] = "text/plain; charset=utf-8" if is_text else "application/octet-stream"
    wanted = request.get("range") if body and range_applies(request.get("if-range"), etag) else None
    try:
        ranges = parse_ranges(wanted, node.size)
    except Refused as error:
        headers |= {"Content-Range": f"bytes */{node.size}", "Content-Type": "text/plain; charset=utf-8"}
        return Response(line_of(error), error.status, headers)
    start, stop, status = 0, node.size, 200
    if ranges is not None and len(ranges) == 1:  # For several, all may be sent, and is.
        start, stop = ranges[0]
        status = 206
        headers["Content-Range"] = ranges[0].header(node.size).decode()
    headers["Content-Length"] = str(stop - start)
    if not body:
        return Response(None, status, headers)
    pieces = large_file(blobs, node, start, stop)
    return StreamingResponse(_body(next(pieces, b""), pieces), status, headers)


async def _body(first: bytes, pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    """The pieces, each read in a thread when the one before is on its way."""
    piece: bytes | None = first
    while piece:
        yield piece
        try:
            piece = await run_in_threadpool(next, pieces, None)
        except NeveError as error:
            # The connection breaks off, which is all that can be told by now.
            LOGGER.error("a file ends early for who downloads it: %s", error)
            raise
