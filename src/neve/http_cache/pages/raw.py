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
from neve.http_cache.pages.contents import head_of, text_of
from neve.http_cache.pages.ranges import RangeNotSatisfiable, parse_range
from neve.http_cache.pages.text import disposition
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
    if _matches(request.get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    is_text = text_of(head_of(blobs, node), node) is not None
    headers["Content-Disposition"] = disposition("inline" if is_text else "attachment", name)
    headers["Content-Type"] = "text/plain; charset=utf-8" if is_text else "application/octet-stream"
    wanted = request.get("range") if body and request.get("if-range", etag) == etag else None
    try:
        selected = parse_range(wanted, node.size)
    except RangeNotSatisfiable as error:
        headers |= {"Content-Range": f"bytes */{node.size}", "Content-Type": "text/plain; charset=utf-8"}
        return Response(f"{error}\n", 416, headers)
    start, stop = selected or (0, node.size)
    if selected is not None:
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{node.size}"
    headers["Content-Length"] = str(stop - start)
    status = 200 if selected is None else 206
    if not body:
        return Response(None, status, headers)
    pieces = large_file(blobs, node, start, stop)
    return StreamingResponse(_body(next(pieces, b""), pieces), status, headers)


def _matches(header: str | None, etag: str) -> bool:
    """Whether ``If-None-Match`` names this tag; weak ones compare like others here (RFC 9110)."""
    if header is None:
        return False
    tags = [tag.strip().removeprefix("W/") for tag in header.split(",")]
    return etag in tags or "*" in tags


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
