"""What the pages say when a store is slow, damaged or far, and what they ask of one that is large."""

from __future__ import annotations

import http.client
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from neve.castore.node import DirectoryNode, FileNode, Node
from neve.errors import Corrupt, InvalidRequest, LimitExceeded, NeveError, PermissionDenied, Unavailable
from neve.http_cache.pages.lookup import Missing, Neighbours, looking_into, part_bounds, references
from neve.http_cache.pages.referrers import KeptReferrers
from neve.nix import base32
from neve.store.path_info import PathDescription, PathInfo
from neve.store.pathinfos.base import PathInfoService
from neve.store.services import Services, open_services
from neve.tree import END_FILE, LEAVE_DIRECTORY, BeginFile, Data, EnterDirectory, Event, File
from tests.http_cache.pages.samples import address_of, named, put, put_hello
from tests.http_cache.pages.served import Served, serving
from tests.store.helpers import memory_services

HELLO = named("hello-2.12")
LIBRARY = named("snowlib-2.36")
USER = named("user-of-hello-1")


class Troubled(PathInfoService):
    """Path infos of ``inner``, with a question here and there that goes wrong."""

    def __init__(self, inner: PathInfoService) -> None:
        self._inner = inner
        self.errors: dict[bytes, NeveError] = {}
        self.listing: NeveError | None = None
        self.listed_before = 0
        self.asked_for_referrers = 0
        self.asked_in: set[str] = set()
        """The names of threads."""

    def get(self, digest: bytes) -> PathInfo | None:
        return self._inner.get(digest)

    def describe(self, digest: bytes) -> PathInfo | PathDescription | None:
        self.asked_in.add(threading.current_thread().name)
        if digest in self.errors:
            raise self.errors[digest]
        return self._inner.describe(digest)

    def put(self, path_info: PathInfo, *, replace: bool = False) -> PathInfo:
        return self._inner.put(path_info, replace=replace)

    def list(self, after: bytes = b"", limit: int = 1000) -> Sequence[PathInfo]:
        self.asked_in.add(threading.current_thread().name)
        if self.listing is None:
            return self._inner.list(after, limit)
        if not after and self.listed_before:
            return self._inner.list(after, self.listed_before)
        raise self.listing

    def referrers(self, digest: bytes) -> Sequence[bytes]:
        self.asked_in.add(threading.current_thread().name)
        self.asked_for_referrers += 1
        return self._inner.referrers(digest)


@pytest.fixture
def services() -> Iterator[Services]:
    opened = memory_services()
    opened.path_infos = Troubled(opened.path_infos)
    put_hello(opened)
    yield opened
    opened.close()


@pytest.fixture
def troubled(services: Services) -> Troubled:
    assert isinstance(services.path_infos, Troubled)
    return services.path_infos


@pytest.fixture
def served(services: Services) -> Iterator[Served]:
    with serving(services) as running:
        yield running


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/search?q=hello",
        f"/search?q={base32.encode(HELLO.digest)}",
        address_of(HELLO),
        address_of(HELLO, b"bin"),
        address_of(HELLO, b"no"),
        address_of(HELLO, b"bin", b"hello", route="raw"),
    ],
)
def test_nobody_waits_for_the_store_but_who_asked(served: Served, troubled: Troubled, path: str) -> None:
    """It is asked in threads of its own, not in the one in which all requests come in."""
    assert served.get(path).status in (200, 303, 404)
    assert troubled.asked_in
    assert "pages" not in troubled.asked_in


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (InvalidRequest("what it says is no narinfo"), 502, "no narinfo"),
        (LimitExceeded("a narinfo of 3 GiB"), 502, "3 GiB"),
        (PermissionDenied("secret reasons"), 502, "refuses access"),
        (Unavailable("secret address"), 503, "does not answer right now"),
        (Corrupt("the bits have flipped"), 500, "have flipped"),
    ],
)
def test_whose_fault_it_is(
    served: Served, troubled: Troubled, error: NeveError, status: int, text: str
) -> None:
    troubled.errors[HELLO.digest] = error
    for address in (address_of(HELLO), address_of(HELLO, b"share"), address_of(HELLO, b"bin", b"hello")):
        answer = served.get(address)
        assert answer.status == status
        assert text in answer.page.text
        assert "secret" not in answer.page.text
        assert ("retry-after" in answer.headers) == (status == 503)
    raw = served.get(address_of(HELLO, b"bin", b"hello", route="raw"))
    assert (raw.status, raw.headers["content-type"]) == (status, "text/html; charset=utf-8")
    assert served.get(f"/search?q={base32.encode(HELLO.digest)}").status == status
    assert served.get(address_of(LIBRARY)).status == 200


def test_what_others_say_cannot_steer_the_page_of_an_error(served: Served, troubled: Troubled) -> None:
    troubled.errors[HELLO.digest] = Corrupt("<script>\u202e\x1b[2J\n" + "x" * 10_000)
    page = served.get(address_of(HELLO)).page
    assert "<script>\\u202e\\x1b[2J\\nxxx" in page.text
    assert len(page.text) < 4000


def test_what_cannot_be_looked_up_is_still_told(served: Served, troubled: Troubled) -> None:
    troubled.errors = {digest: Unavailable("gone") for digest in (LIBRARY.digest, USER.digest)}
    page = served.page(address_of(HELLO))
    assert page.linked(LIBRARY.base_name)
    # Of a referrer that is all there is to tell. The link leads on as soon as somebody knows more.
    search = page.link(f"{base32.encode(USER.digest)}-…")
    troubled.errors = {}
    found = served.get(search)
    assert found.status == 303
    assert found.headers["location"].endswith(address_of(USER))


def test_without_time_left_nothing_counts_as_absent(services: Services) -> None:
    path_info = services.path_infos.get(HELLO.digest)
    assert path_info is not None
    hurried = references(Neighbours(services.path_infos, seconds=0), path_info, 1)
    assert [related.store_path is None for related in hurried.items] == [False] * 3
    part = references(Neighbours(services.path_infos), path_info, 1)
    assert [r.text for r in part.items if r.store_path is None] == [named("absent-1.0").base_name]


@pytest.mark.parametrize("number", [2, 10**9])
def test_pages_that_there_are_not(number: int) -> None:
    assert part_bounds(1, 100, 0) == (0, 0)
    with pytest.raises(Missing, match=f"no page {number:,}"):
        part_bounds(number, 100, 100)


def test_a_store_that_cannot_be_counted_has_a_start_page(served: Served, troubled: Troubled) -> None:
    troubled.listing = Unavailable("secret address")
    page = served.page("/")
    assert "cannot be counted right now" in page.text
    assert "extra-substituters" in page.text
    assert "secret" not in page.text
    answer = served.get("/search?q=hello")
    assert answer.status == 503
    assert "secret" not in answer.page.text


def test_what_is_listed_before_damage_is_found(served: Served, troubled: Troubled) -> None:
    troubled.listing, troubled.listed_before = Corrupt("a record is damaged"), 2
    for address in ("/", "/search"):
        page = served.page(address)
        assert "is damaged" in page.text
        assert sum("/path/" in link.address for link in page.links) == 2


def test_many_referrers_have_pages() -> None:
    services = memory_services()
    put_hello(services)
    for number in range(150):
        put(services, f"needs-hello-{number:03}", [File(b"", False, b"")], references=[HELLO])
    with serving(services) as served:
        first = served.page(address_of(HELLO))
        assert "152" in first.text
        second = served.page(first.link("Next").partition("#")[0])
        texts = {link.text for page in (first, second) for link in page.links if "-needs-hello-" in link.text}
        assert len(texts) == 150
        assert served.get(address_of(HELLO) + "?referrers=3").status == 404
        assert served.get(address_of(HELLO) + "?referrers=0").status == 400


def test_long_lists_of_referrers_are_kept_and_short_ones_asked_for(
    services: Services, troubled: Troubled
) -> None:
    expected = b"".join(troubled.referrers(HELLO.digest))
    troubled.asked_for_referrers = 0
    short = KeptReferrers(services)
    assert short.get(HELLO.digest) == short.get(HELLO.digest) == expected
    assert troubled.asked_for_referrers == 2
    long = KeptReferrers(services, long_bytes=40)
    assert long.get(HELLO.digest) == long.get(HELLO.digest) == expected
    assert troubled.asked_for_referrers == 3
    # There is room for one list of these: the older one goes.
    put(services, "other-user-1", [File(b"", False, b"")], references=[LIBRARY])
    narrow = KeptReferrers(services, long_bytes=40, kept_bytes=60)
    for digest in (HELLO.digest, LIBRARY.digest, LIBRARY.digest, HELLO.digest):
        narrow.get(digest)
    assert troubled.asked_for_referrers == 6


def test_referrers_that_cannot_be_told_are_nothing_that_is_kept(troubled: Troubled) -> None:
    services = memory_services()
    services.path_infos = troubled
    kept = KeptReferrers(services, long_bytes=0)
    with pytest.raises(InvalidRequest, match="20"):
        kept.get(b"short")
    assert len(kept.get(HELLO.digest)) == 40


def tree(size: int) -> DirectoryNode:
    return DirectoryNode(bytes(32), size)


def test_large_directories_are_held_one_at_a_time() -> None:
    inside = most = 0

    def look(node: Node, meanwhile: Callable[[], None] = lambda: None) -> None:
        nonlocal inside, most
        with looking_into(node):
            inside += 1
            most = max(most, inside)
            meanwhile()
            inside -= 1

    def others() -> None:
        """Small ones wait for nobody, while a large one is held."""
        for node in (tree(10), FileNode(bytes(32), 10**12)):
            thread = threading.Thread(target=look, args=(node,))
            thread.start()
            thread.join()

    look(tree(10**6), others)
    assert most == 2
    most = 0
    threads = [threading.Thread(target=look, args=(tree(10**6),)) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


@pytest.fixture
def large(tmp_path: Path) -> Iterator[tuple[Services, bytes]]:
    """A store with a file of several pieces, and its contents."""
    services = open_services(f"local://{tmp_path}/store")
    contents = random.Random(1).randbytes(3 * 1024 * 1024)
    pieces = [Data(contents[at : at + 512 * 1024]) for at in range(0, len(contents), 512 * 1024)]
    file: list[Event] = [BeginFile(b"file", False, len(contents)), *pieces, END_FILE]
    put(services, "large-1", [EnterDirectory(b""), *file, LEAVE_DIRECTORY])
    yield services, contents
    services.close()


LARGE = address_of(named("large-1"), b"file", route="raw")


def test_large_files_come_in_pieces(large: tuple[Services, bytes]) -> None:
    services, contents = large
    with serving(services) as served:
        whole = served.get(LARGE)
        assert (whole.status, whole.body == contents) == (200, True)
        assert whole.headers["content-length"] == str(len(contents))
        part = served.get(LARGE, headers={"Range": "bytes=524280-2000000"})
        assert (part.status, part.body == contents[524280:2000001]) == (206, True)
        last = served.get(LARGE, headers={"Range": "bytes=-5"})
        assert (last.status, last.body) == (206, contents[-5:])
        # Ranges are for GET (RFC 9110).
        head = served.get(LARGE, method="HEAD", headers={"Range": "bytes=1-2"})
        assert (head.status, head.headers["content-length"]) == (200, str(len(contents)))


def test_a_file_that_is_damaged_further_on_does_not_pass_for_whole(large: tuple[Services, bytes]) -> None:
    services, contents = large
    node = services.path_infos.get(named("large-1").digest)
    assert node is not None
    assert isinstance(node.node, DirectoryNode)
    directory = services.directories.get(node.node.digest)
    assert directory is not None
    file = directory.get(b"file")
    assert isinstance(file, FileNode)
    chunks = services.blobs.chunks(file.digest)
    assert chunks is not None
    services.blobs.delete_many([chunks[-1].digest])
    with serving(services) as served:
        with pytest.raises(http.client.IncompleteRead) as caught:
            served.get(LARGE)
        assert contents.startswith(caught.value.partial)
        # What is intact is still there.
        part = served.get(LARGE, headers={"Range": "bytes=0-99"})
        assert (part.status, part.body) == (206, contents[:100])
