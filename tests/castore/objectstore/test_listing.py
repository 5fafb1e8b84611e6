"""Listing what is too much to be held: pages, in order, in bounded memory."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from neve.castore.blobs.urls import BLOB_SERVICES
from neve.castore.objectstore.layout import BLOBS, digest_in, key_of
from tests.s3 import S3Server, s3_url
from tests.store.helpers import resident

ROWS = 1_000_000
_AT_ONCE = 1000
_MODIFIED = "2026-11-01T00:00:00.000Z"


def digest_of(number: int) -> bytes:
    """Digests in the order of their numbers, over all folders."""
    return (number * (2**64 // ROWS)).to_bytes(8, "big") + bytes(24)


class _Lister(BaseHTTPRequestHandler):
    """A server with a bucket of a million blobs, which it makes up as they are asked for."""

    protocol_version = "HTTP/1.1"
    requests = 0

    def do_GET(self) -> None:
        type(self).requests += 1
        query = parse_qs(urlsplit(self.path).query)
        start = 0
        if "continuation-token" in query:
            start = int(query["continuation-token"][0])
        elif "start-after" in query:
            digest = digest_in(BLOBS, query["start-after"][0])
            assert digest is not None
            start = int.from_bytes(digest[:8], "big") // (2**64 // ROWS) + 1
        body = self._page(start).encode()
        self.send_response_only(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _page(self, start: int) -> str:
        end = min(start + _AT_ONCE, ROWS)
        rows = "".join(
            f"<Contents><Key>{key_of(BLOBS, digest_of(number))}</Key><LastModified>{_MODIFIED}</LastModified>"
            f"<Size>0</Size></Contents>"
            for number in range(start, end)
        )
        more = f"<NextContinuationToken>{end}</NextContinuationToken>" if end < ROWS else ""
        return f"<ListBucketResult>{rows}{more}</ListBucketResult>"

    def log_message(self, *_: object) -> None:
        return


@contextmanager
def _lister() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Lister)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.slow
def test_a_million_blobs_in_pages() -> None:
    """A request a page, and no more than a few pages are held."""
    with _lister() as port:
        service = BLOB_SERVICES.open(s3_url(port, "bucket"))
        after, count = b"", 0
        before = peak = resident()
        try:
            for number in range(ROWS // 10_000):
                page = service.list(after, 10_000)
                assert page[0] == digest_of(10_000 * number)
                assert page[-1] == digest_of(10_000 * (number + 1) - 1)
                count += len(page)
                after = page[-1]
                peak = max(peak, resident())
            assert service.list(after, 10_000) == []
        finally:
            service.close()
        assert count == ROWS
        assert peak - before < 64 * 1024 * 1024, "a million rows take several times as much"
        assert _Lister.requests <= ROWS // _AT_ONCE + 2 * (ROWS // 10_000)


@pytest.mark.slow
def test_many_blobs_in_folders() -> None:
    """Where folders are listed one after the other, some at once, each as a whole."""
    total = 250_000
    service = BLOB_SERVICES.open("objectstore+memory:///")
    store = service._bucket._store  # type: ignore[attr-defined]
    for number in range(total):
        store.put(key_of(BLOBS, digest_of(number * (ROWS // total))), b"")
    after, count = b"", 0
    before = peak = resident()
    while page := service.list(after, 10_000):
        assert after < page[0]
        count, after = count + len(page), page[-1]
        peak = max(peak, resident())
    service.close()
    assert count == total
    assert peak - before < 32 * 1024 * 1024, "all of them take several times as much"


def test_pages_that_are_not_those_of_the_server(each_s3: S3Server) -> None:
    """It gives a thousand at a time, and then says where to go on."""
    service = BLOB_SERVICES.open(each_s3.url(each_s3.bucket(), "/prefix"))
    bucket = service._bucket  # type: ignore[attr-defined]
    digests = [digest_of(number * (ROWS // 1300)) for number in range(1300)]
    list(bucket.map(lambda digest: bucket.put(key_of(BLOBS, digest), b""), digests))
    for limit in (700, 1000, 5000):
        listed: list[bytes] = []
        while page := service.list(listed[-1] if listed else b"", limit):
            assert len(page) == min(limit, len(digests) - len(listed))
            listed += page
        assert listed == digests
    bucket.delete([key_of(BLOBS, digest) for digest in digests])
    assert service.list() == []
    service.close()


@pytest.mark.parametrize("kind", ["file", "memory"])
def test_folders_are_listed_in_order(kind: str, tmp_path: Path) -> None:
    """Also where the store itself lists in any order, and with several in a folder."""
    service = BLOB_SERVICES.open(f"objectstore+{kind}://{tmp_path / 'store' if kind == 'file' else '/'}")
    bucket = service._bucket  # type: ignore[attr-defined]
    digests = [bytes([first, 0, second]) + bytes(29) for first in (0, 7, 255) for second in range(1, 30)]
    for digest in reversed(digests):
        bucket.put(key_of(BLOBS, digest), b"")
    for limit in (1, 2, 13, 1000):
        listed: list[bytes] = []
        while page := service.list(listed[-1] if listed else b"", limit):
            listed += page
        assert listed == digests
    for number in (0, 28, 29, 50):
        assert service.list(digests[number], 3) == digests[number + 1 : number + 4]
    service.close()


def test_a_page_takes_no_more_than_its_folders(tmp_path: Path) -> None:
    service = BLOB_SERVICES.open("objectstore+memory:///")
    bucket = service._bucket  # type: ignore[attr-defined]
    for number in range(300):
        bucket.put(key_of(BLOBS, number.to_bytes(2, "big") + bytes(30)), b"")
    asked: list[str] = []
    listed = bucket._listed

    def counted(table: str, prefix: str, offset: str | None, limit: int) -> Iterator[object]:
        asked.append(prefix)
        yield from listed(table, prefix, offset, limit)

    bucket._listed = counted
    assert len(service.list(limit=5)) == 5
    assert all(re.fullmatch("blobs/b3/000[0-9]", prefix) for prefix in asked)
    service.close()
