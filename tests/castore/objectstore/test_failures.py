"""Object stores that fail in all the ways that they do: nothing lost, no wrong bytes, one clear error."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TypeVar

import pytest
import zstandard

from neve.castore.blobs.base import BlobService, Chunk
from neve.castore.blobs.objectstore import ObjectBlobService
from neve.castore.blobs.urls import BLOB_SERVICES
from neve.castore.digest import b3_digest, format_digest
from neve.castore.directories.objectstore import ObjectDirectoryService
from neve.castore.directories.urls import DIRECTORY_SERVICES
from neve.castore.objectstore.layout import (
    BLOBS,
    CHUNKS,
    DIRECTORIES,
    key_of,
    pack_chunk,
    pack_closure,
    pack_list,
)
from neve.errors import (
    Corrupt,
    InvalidRequest,
    LimitExceeded,
    NeveError,
    PermissionDenied,
    Unavailable,
    Unsupported,
)
from neve.testing.blob_reading import KIB, MIB, incompressible, put, reader_of
from neve.testing.directories import put_closure, tree
from tests.castore.objectstore.interference import Fault, Proxy, Request, proxy_before
from tests.s3 import S3Server, s3_url

T = TypeVar("T")


@contextmanager
def blobs_at(url: str) -> Iterator[ObjectBlobService]:
    service = BLOB_SERVICES.open(url)
    assert isinstance(service, ObjectBlobService)
    try:
        yield service
    finally:
        service.close()


@contextmanager
def through(s3: S3Server, plan: Callable[[Request], Fault | None]) -> Iterator[tuple[Proxy, str]]:
    """A proxy before a new bucket, and the address there."""
    bucket = s3.bucket()
    with proxy_before(s3.port, plan) as proxy:
        yield proxy, s3.url(bucket, port=proxy.port, retry_timeout=30)


# The server.


def test_throttling_for_a_while_is_waited_for(s3: S3Server) -> None:
    """Each request is refused twice before it is heard."""
    seen: dict[tuple[str, str], int] = {}
    lock = threading.Lock()

    def plan(request: Request) -> Fault | None:
        with lock:
            key = request.method, request.path
            seen[key] = seen.get(key, 0) + 1
            return Fault(503) if seen[key] <= 2 else None

    contents = [b"%d" % number * 100 for number in range(20)] + [incompressible(MIB)]
    with through(s3, plan) as (_, url), blobs_at(url) as blobs:
        digests = blobs.put_many(contents)
        assert list(blobs.read_many(digests)) == contents
        assert blobs.list() == sorted(digests)
    assert max(seen.values()) >= 3


@pytest.mark.parametrize("status", [500, 503, 429])
def test_throttling_for_ever_is_one_error(s3: S3Server, status: int) -> None:
    with through(s3, lambda _: Fault(status)) as (proxy, url), blobs_at(url + "&max_retries=2") as blobs:
        with pytest.raises(Unavailable) as error:
            blobs.read(b3_digest(b"any"))
        assert proxy.count("GET") == 3
        message = str(error.value)
        assert "cannot read chunks/b3/" in message
        assert f"{status} " in message
        assert "SlowDown: Please reduce your request rate." in message
        assert "after 2 retries" in message
        assert_clean(message)
        with pytest.raises(Unavailable):
            blobs.put_many([b"%d" % number for number in range(500)])


def assert_clean(message: str) -> None:
    """One line, and nobody's secrets."""
    assert "\n" not in message
    assert "hush" not in message
    assert "somebody" not in message
    assert len(message) < 700


def test_answers_that_break_off_are_asked_for_again(s3: S3Server) -> None:
    contents = incompressible(3 * MIB)
    cut: list[str] = []

    def plan(request: Request) -> Fault | None:
        if request.method == "GET" and "/chunks/" in request.path and cut.count(request.path) < 2:
            cut.append(request.path)
            return Fault(cut=True)
        return None

    with through(s3, plan) as (_, url), blobs_at(url) as blobs:
        digest = put(blobs, contents)
        assert blobs.read(digest) == contents
    assert len(cut) > 10


def test_answers_that_always_break_off_are_an_error(s3: S3Server) -> None:
    with through(s3, lambda request: Fault(cut=True) if request.method == "GET" else None) as (_, url):
        with blobs_at(url + "&max_retries=1") as blobs:
            digest = put(blobs, incompressible(100 * KIB))
            with pytest.raises(Unavailable, match="chunks/b3/") as error:
                blobs.read(digest)
            assert_clean(str(error.value))
        directories = DIRECTORY_SERVICES.open(url + "&max_retries=1")
        root = put_closure(directories, tree())
        with pytest.raises(Unavailable, match="dirs/b3/"):
            list(directories.get_recursive(root))
        directories.close()


def test_a_server_that_hangs_is_not_waited_for_for_ever(s3: S3Server) -> None:
    with (
        through(s3, lambda _: Fault(hangs=True)) as (_, url),
        blobs_at(url + "&timeout=0.5&max_retries=1") as blobs,
    ):
        for call in (lambda: blobs.has(b3_digest(b"x")), lambda: put(blobs, b"x"), blobs.list):
            with pytest.raises(Unavailable) as error:
                call()
            assert_clean(str(error.value))


def test_a_server_that_is_not_there() -> None:
    with blobs_at(s3_url(1, "bucket", max_retries=0)) as blobs:
        with pytest.raises(Unavailable, match=r"objectstore.s3://bucket: cannot ask for blobs") as error:
            blobs.has(b3_digest(b"x"))
        assert_clean(str(error.value))


def test_a_password_in_an_endpoint_is_not_told() -> None:
    url = s3_url(1, "bucket", max_retries=0, endpoint="http://somebody:hush@127.0.0.1:1")
    with blobs_at(url) as blobs, pytest.raises(Unavailable, match=r"HEAD http://\*\*\*@127") as error:
        blobs.has(b3_digest(b"x"))
    assert_clean(str(error.value))


def test_a_value_of_several_lines_is_not_told() -> None:
    with pytest.raises(InvalidRequest) as error:
        BLOB_SERVICES.open("objectstore+http://127.0.0.1:1/x?user_agent=hush%0Ahush")
    assert str(error.value).endswith(": a parameter has a value that cannot be used")


# Who asks, and for what.


def test_a_bucket_that_is_not_there_is_not_an_empty_one(s3: S3Server) -> None:
    with blobs_at(s3.url("nobodys-bucket")) as blobs:
        absent = b3_digest(b"x")
        calls: list[Callable[[], object]] = [
            lambda: blobs.has(absent),
            lambda: blobs.open_read(absent),
            lambda: list(blobs.read_many([absent])),
            lambda: blobs.missing([absent]),
            lambda: put(blobs, b"x"),
            blobs.list,
            lambda: blobs.delete_many([absent]),
        ]
        for call in calls:
            with pytest.raises(Unavailable, match="there is no such bucket or container") as error:
                call()
            assert_clean(str(error.value))
    directories = DIRECTORY_SERVICES.open(s3.url("nobodys-bucket"))
    with pytest.raises(Unavailable, match="no such bucket"):
        directories.get(absent)
    with pytest.raises(Unavailable, match="no such bucket"):
        put_closure(directories, tree())
    directories.close()


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (403, "InvalidAccessKeyId"),
        (403, "SignatureDoesNotMatch"),
        (403, "AccessDenied"),
        (400, "ExpiredToken"),
        (401, "AuthenticationFailed"),
    ],
)
def test_credentials_that_are_wrong_or_expired(s3: S3Server, status: int, code: str) -> None:
    body = b"<Error><Code>%s</Code><Message>No.</Message><AWSAccessKeyId>somebody</AWSAccessKeyId></Error>"
    with through(s3, lambda _: Fault(status, body % code.encode())) as (proxy, url), blobs_at(url) as blobs:
        for call in (lambda: blobs.read(b3_digest(b"x")), blobs.list):
            with pytest.raises(PermissionDenied, match=rf"{code}: No\.") as error:
                call()
            assert_clean(str(error.value))
        with pytest.raises(PermissionDenied if status != 400 else NeveError):  # A HEAD says no more.
            put(blobs, b"x")
        assert len(proxy.requests) == 3, "repeating does not help"


# What lies there.


@pytest.fixture
def store(s3: S3Server) -> Iterator[ObjectBlobService]:
    with blobs_at(s3.url(s3.bucket())) as blobs:
        yield blobs


def assert_refused(blobs: BlobService, digest: bytes, named: bytes, what: str) -> None:
    calls: list[Callable[[], object]] = [
        lambda: blobs.read(digest),
        lambda: list(blobs.read_many([digest])),
        lambda: list(blobs.stream(digest)),
        lambda: reader_of(blobs, digest).read(),
    ]
    for call in calls:
        with pytest.raises(Corrupt, match=what) as error:
            call()
        assert format_digest(named) in str(error.value)
    [answer] = blobs.read_bundles([digest])
    assert (answer.places, answer.apart) == ([], [0])


GOOD = b"what a chunk holds " * 50


@pytest.mark.parametrize(
    ("stored", "what"),
    [
        (b"", "ends after 0 bytes"),
        (b"rubbish", "not the magic number"),
        (pack_chunk(GOOD)[:-5], "ends after"),
        (pack_chunk(GOOD) + b"more", "not the magic number"),
        (pack_chunk(GOOD + b"!"), "do not match its digest"),
        (pack_chunk(b"of another key"), "do not match its digest"),
        (pack_chunk(b""), "do not match its digest"),
        (GOOD, "not the magic number"),
    ],
    ids=["empty", "rubbish", "truncated", "longer", "other", "of-another-key", "nothing", "not-compressed"],
)
def test_a_chunk_that_is_damaged(store: ObjectBlobService, stored: bytes, what: str) -> None:
    digest = b3_digest(GOOD)
    store._bucket.put(key_of(BLOBS, digest), b"")
    store._bucket.put(key_of(CHUNKS, digest), stored)
    assert_refused(store, digest, digest, what)


def test_a_chunk_that_is_longer_than_anybody_takes(s3: S3Server) -> None:
    with blobs_at(s3.url(s3.bucket(), max_chunk_bytes=100_000, avg_chunk_size=50_000)) as blobs:
        bomb = bytes(200_000)
        digest = b3_digest(bomb)
        blobs._bucket.put(key_of(CHUNKS, digest), pack_chunk(bomb))
        with pytest.raises(LimitExceeded, match="more than the 100000 bytes"):
            blobs.read(digest)
        blobs._bucket.put(key_of(CHUNKS, digest), incompressible(300_000))
        with pytest.raises(Corrupt, match="300000 bytes, at most"):
            blobs.read(digest)


class _Endless(BaseHTTPRequestHandler):
    """A server that announces an object of a hundred bytes, and sends until nobody takes it any more."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response_only(200)
        for name, value in (
            ("Content-Length", "100"),
            ("Transfer-Encoding", "chunked"),
            ("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT"),
            ("ETag", '"x"'),
        ):
            self.send_header(name, value)
        self.end_headers()
        piece = b"10000\r\n" + bytes(0x10000) + b"\r\n"
        with contextlib.suppress(OSError):
            for _ in range(10_000):
                self.wfile.write(piece)

    def log_message(self, *_: object) -> None:
        return


def test_an_object_that_does_not_end() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Endless)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    url = s3_url(server.server_address[1], "bucket")
    try:
        with (
            blobs_at(url) as blobs,
            pytest.raises(Unavailable, match="more than the 100 bytes come that were"),
        ):
            blobs.read(bytes(32))
        with (
            contextlib.closing(DIRECTORY_SERVICES.open(url)) as directories,
            pytest.raises(Unavailable, match="more than the 100 bytes come that were"),
        ):
            directories.get(bytes(32))
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_single_chunk_that_is_missing(store: ObjectBlobService) -> None:
    digest = b3_digest(GOOD)
    store._bucket.put(key_of(BLOBS, digest), b"")
    assert store.has(digest)
    with pytest.raises(Corrupt, match="one chunk by its list, and that is missing"):
        store.read(digest)


@pytest.fixture
def large(store: ObjectBlobService) -> tuple[bytes, list[Chunk]]:
    digest = put(store, incompressible(2 * MIB))
    chunks = store.chunks(digest)
    assert chunks is not None
    assert len(chunks) > 3
    return digest, chunks


def test_chunks_of_a_list_that_are_not_what_it_says(
    store: ObjectBlobService, large: tuple[bytes, list[Chunk]]
) -> None:
    digest, chunks = large
    key = key_of(BLOBS, digest)
    first, second, *rest = chunks
    shorter = Chunk(second.digest, second.size - 1)
    longer = Chunk(second.digest, second.size + 1)
    other = Chunk(b3_digest(b"absent"), second.size)
    for wrong, what in (
        ([first, shorter, *rest], "its list says"),
        ([first, longer, *rest], "its list says"),
        ([first, other, *rest], "is missing, a blob in the store needs it"),
    ):
        store._bucket.put(key, pack_list(wrong))
        assert_refused(store, digest, wrong[1].digest, what)
    for wrong in ([second, first, *rest], [first, *rest], [*chunks, first]):
        store._bucket.put(key, pack_list(wrong))
        assert_refused(store, digest, digest, "do not make the blob")
    store._bucket.put(key, b"\x12\xff\xff\xff\xff rubbish")
    assert_refused(store, digest, digest, "chunk list of blob .* is damaged")
    store._bucket.put(key, pack_list([first, Chunk(second.digest, 0)]))
    assert_refused(store, digest, digest, "has an empty chunk")
    store._bucket.put(key, pack_list([first, Chunk(second.digest, 2**62)]))
    with pytest.raises(LimitExceeded, match="max_chunk_bytes"):
        store.read(digest)
    store._bucket.put(key, pack_list(chunks))
    assert store.read(digest) == incompressible(2 * MIB)


@pytest.mark.parametrize("kind", ["truncated", "another", "rubbish", "reversed", "incomplete", "longer"])
def test_a_closure_that_is_damaged(s3: S3Server, kind: str) -> None:
    service = DIRECTORY_SERVICES.open(s3.url(s3.bucket()))
    assert isinstance(service, ObjectDirectoryService)
    closure = tree()
    root = put_closure(service, closure)
    stored = service._bucket.get(key_of(DIRECTORIES, root), MIB) or b""
    order = [one.encode() for one in service.get_recursive(root)]
    service._held.clear()
    wrong = {
        "truncated": stored[:-3],
        "another": b"".join(pack_closure([closure[1].encode()])),
        "rubbish": b"rubbish",
        "reversed": b"".join(pack_closure(reversed(order))),
        "incomplete": b"".join(pack_closure(order[:-1])),
        "longer": zstandard.compress(zstandard.ZstdDecompressor().stream_reader(stored).read() + b"\0\0"),
    }
    service._bucket.put(key_of(DIRECTORIES, root), wrong[kind])
    for call in (lambda: service.get(root), lambda: list(service.get_recursive(root))):
        with pytest.raises(Corrupt) as error:
            call()
        assert format_digest(root) in str(error.value)
    service.close()


# Side by side.


def test_two_writers_of_one_key(s3: S3Server) -> None:
    """With chunks of different sizes, so that they write different lists."""
    contents = incompressible(3 * MIB)
    bucket = s3.bucket()
    with blobs_at(s3.url(bucket)) as one, blobs_at(s3.url(bucket, avg_chunk_size=65536)) as other:
        begun = threading.Barrier(2)

        def write(service: BlobService) -> None:
            begun.wait(60)
            for _ in range(3):
                assert put(service, contents) == b3_digest(contents)
                assert service.read(b3_digest(contents)) == contents

        threads = [threading.Thread(target=write, args=(service,)) for service in (one, other)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert one.read(b3_digest(contents)) == other.read(b3_digest(contents)) == contents
        assert one.list() == [b3_digest(contents)]


def test_an_upload_that_fails_leaves_no_blob(s3: S3Server) -> None:
    """Whatever request it is that fails for good: no list without its chunks."""
    contents = incompressible(MIB)
    digest = b3_digest(contents)
    for failing in range(8):
        puts = 0

        def plan(request: Request, failing: int = failing) -> Fault | None:
            nonlocal puts
            puts += request.method == "PUT"
            return Fault(500) if request.method == "PUT" and puts > failing else None

        with through(s3, plan) as (_, url), blobs_at(url + "&max_retries=0&parallel=1") as blobs:
            try:
                put(blobs, contents)
            except Unavailable:
                assert not blobs.has(digest)
                assert blobs.list() == []
            else:
                assert blobs.read(digest) == contents
                assert failing > 3


def test_a_deletion_of_which_a_part_fails_is_an_error(s3: S3Server) -> None:
    """That comes with status 200."""
    failed = b"<Error><Key>x</Key><Code>InternalError</Code><Message>oh</Message></Error>"

    def plan(request: Request) -> Fault | None:
        return Fault(200, b"<DeleteResult>%b</DeleteResult>" % failed) if request.method == "POST" else None

    with through(s3, plan) as (_, url), blobs_at(url) as blobs:
        digests = blobs.put_many([b"one", b"two"])
        with pytest.raises(Unavailable, match="cannot delete"):
            blobs.delete_many(digests)


@pytest.mark.parametrize("order", [(b"b", b"a"), (b"a", b"a")])
def test_a_listing_out_of_order_is_an_error(s3: S3Server, order: tuple[bytes, bytes]) -> None:
    """Pages would leave out what is there, and a collection drop what that needs. Some kinds of buckets are
    listed so."""
    rows = "".join(
        f"<Contents><Key>{key_of(BLOBS, 32 * one)}</Key><LastModified>2026-11-01T00:00:00.000Z</LastModified>"
        "<Size>0</Size></Contents>"
        for one in order
    )

    def plan(request: Request) -> Fault | None:
        is_listing = request.method == "GET" and "list-type=2" in request.path
        return Fault(200, f"<ListBucketResult>{rows}</ListBucketResult>".encode()) if is_listing else None

    with through(s3, plan) as (_, url), blobs_at(url) as blobs, pytest.raises(Unsupported, match="order"):
        blobs.list()
