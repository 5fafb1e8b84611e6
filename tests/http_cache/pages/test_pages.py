"""The pages on a real server: what they show, of ordinary paths and of hostile ones."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from urllib.parse import quote, urljoin, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neve.errors import Unsupported
from neve.http_cache.pages.contents import ENTRIES
from neve.http_cache.pages.text import shown
from neve.http_cache.site import Site
from neve.nix import base32
from neve.nix.compression import decompressed
from neve.nix.store_path import StorePath
from neve.store.path_info import NarDetails, PathDescription, PathInfo
from neve.store.pathinfos.base import PathInfoService
from neve.store.services import Services, open_services
from neve.tree import LEAVE_DIRECTORY, EnterDirectory, Event, File, Symlink
from tests.http_cache.pages import samples
from tests.http_cache.pages.samples import address_of, named, put, put_hello, put_hostile
from tests.http_cache.pages.served import Answer, Served, serving
from tests.store.helpers import memory_services

MANY = 1234
VECTORS = Path(__file__).parents[2] / "vectors"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    services = open_services(f"local://{tmp_path_factory.mktemp('store')}")
    put_hello(services)
    put_hostile(services)
    many: list[Event] = [File(b"%06d" % i, False, b"") for i in range(MANY)]
    put(services, "many-1", [EnterDirectory(b""), *many, LEAVE_DIRECTORY])
    put(services, "single-file-1", [File(b"", True, b"#!/bin/sh\n")])
    with serving(services) as running:
        yield running
    services.close()


HELLO = named("hello-2.12")
LIBRARY = named("snowlib-2.36")


def unpacked_zstd(data: bytes) -> bytes:
    return b"".join(decompressed([data], "zstd"))


def assert_safe(answer: Answer) -> None:
    """Nothing in it can run, whatever the store holds."""
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script" not in policy
    assert "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    page = answer.page
    for tag, attributes in page.elements:
        assert tag not in ("script", "iframe", "object", "embed", "base", "template")
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
    for link in page.links:
        assert urlsplit(link.address)[:2] == urlsplit(answer.url)[:2]


def test_the_start_page_tells_how_to_use_the_cache(served: Served) -> None:
    page = served.page("/")
    assert page.title == "Test cache"
    assert "extra-substituters = https://cache.test\n" in page.text
    assert "extra-trusted-public-keys = test-1:bm90IGEga2V5\n" in page.text
    assert "Priority 37" in page.text
    assert any("hello-2.12" in link.text for link in page.links)


def test_a_cache_without_a_key_says_what_that_means(served: Served) -> None:
    with serving(served.services, Site(name="No key")) as other:
        text = other.page("/").text
    assert "?trusted=true" in text
    assert "--no-check-sigs" in text
    assert f"127.0.0.1:{other.port}" in text


def test_an_empty_store_is_no_error() -> None:
    services = memory_services()
    with serving(services) as empty:
        assert "Nothing is stored here yet." in empty.page("/").text
        assert "Nothing is stored here yet." in empty.page("/search").text


def test_from_the_start_page_to_a_file(served: Served) -> None:
    found = served.page("/search?q=HELLO-2")
    [address] = [link.address for link in found.links if "hello-2.12" in link.text]
    share = served.page(served.page(address).link("share"))
    readme = served.page(share.link("README.md"))
    assert readme.title == "README.md · hello-2.12 · Test cache"
    assert "Grüße aus dem Schnee ❄" in readme.text
    assert "81 bytes" in readme.text
    download = served.get(readme.link("Download"))
    assert download.body == samples.README


def test_a_store_path_shows_all_that_is_known(served: Served) -> None:
    path_info = served.services.path_infos.get(HELLO.digest)
    assert path_info is not None
    assert path_info.nar is not None
    page = served.page(address_of(HELLO))
    for text in (
        HELLO.absolute,
        base32.encode(path_info.nar.sha256),
        "fixed:r:sha256:",
        "test-1:",
        "hello-2.12-derivation.drv",
        f"nix copy --from https://cache.test {HELLO.absolute}",
    ):
        assert text in page.text
    assert page.link("narinfo").endswith(f"/{base32.encode(HELLO.digest)}.narinfo")
    assert page.linked(LIBRARY.base_name)
    assert page.linked(HELLO.base_name)
    assert page.linked(named("user-of-hello-1").base_name)
    assert not page.linked(named("absent-1.0").base_name)
    assert f"{named('absent-1.0').base_name} (not in this cache)" in page.text
    assert "(not in this cache)" not in served.page(page.link(LIBRARY.base_name)).text


def test_programs_and_symlinks(served: Served) -> None:
    page = served.page(address_of(HELLO, b"bin"))
    assert "program" in page.text
    assert page.link("hello") in (link.address for link in page.links)
    link = served.page(address_of(HELLO, b"lib"))
    assert link.link(LIBRARY.absolute + "/lib") == f"{served.url}{address_of(LIBRARY, b'lib')}"
    program = served.page(address_of(HELLO, b"bin", b"hello"))
    assert "executable file" in program.text
    assert "No preview" in program.text
    assert "This file is empty." in served.page(address_of(HELLO, b"share", b"empty.txt")).text
    assert "This directory is empty." in served.page(address_of(HELLO, b"empty")).text


def test_a_store_path_that_is_a_single_file(served: Served) -> None:
    page = served.page(address_of(named("single-file-1")))
    assert "#!/bin/sh" in page.text
    assert served.get(page.link("Download")).body == b"#!/bin/sh\n"


def test_a_long_directory_has_pages(served: Served) -> None:
    address = address_of(named("many-1"))
    seen: list[str] = []
    while True:
        page = served.page(address)
        seen += [link.text for link in page.links if link.text.isdecimal() and len(link.text) == 6]
        if not page.linked("Next"):
            break
        address = page.link("Next").partition("#")[0]
    assert seen == [f"{i:06d}" for i in range(MANY)]
    assert f"{ENTRIES * 2 + 1:,} to {MANY:,} on this page" in page.text
    assert served.get(f"{address_of(named('many-1'))}?page=4").status == 404
    assert served.get(f"{address_of(named('many-1'))}?page=x").status == 400


def test_deep_places_have_pages_of_ordinary_size(served: Served) -> None:
    """Links are as long as the way down, so not every page may have one for each step of it."""
    depth = 2000
    down: list[Event] = [EnterDirectory(b""), *[EnterDirectory(b"d")] * depth]
    leaves: list[Event] = [File(b"%03d" % i, False, b"deep") for i in range(ENTRIES)]
    deep = put(served.services, "deep-1", [*down, *leaves, *[LEAVE_DIRECTORY] * (depth + 1)]).store_path
    answer = served.get(address_of(deep, *[b"d"] * depth))
    assert answer.status == 200
    assert len(answer.body) < 8_000_000
    assert served.get(answer.page.link("499")).page.linked("Download")
    # From there, the way up is not cut off.
    above = [link.address for link in answer.page.links if link.text == "d"]
    assert len(above) == 16
    higher = served.get(min(above, key=len)).page
    assert min(len(link.address) for link in higher.links if link.text == "d") < len(min(above, key=len))


@pytest.mark.parametrize("path", ["/", "/search", "/search?q=%3Cscript%3E%22", address_of(HELLO), "/path/x"])
def test_every_page_is_safe(served: Served, path: str) -> None:
    assert_safe(served.get(path))


def test_hostile_names_and_targets_are_only_text(served: Served) -> None:
    hostile = named("hostile-1")
    answer = served.get(address_of(hostile))
    assert_safe(answer)
    page = answer.page
    assert "<script>document.title='pwned'" in page.text
    assert "turned\\u202etxt.exe" in page.text
    for name in samples.HOSTILE_NAMES:
        below = served.get(address_of(hostile, name))
        assert below.status == 200
        assert_safe(below)
        assert below.page.title.endswith("hostile-1 · Test cache")
    # What leaves the store is no link.
    assert not page.linked("//evil.example/x")
    assert not page.linked("../../../etc/passwd")


file_names = st.binary(min_size=1, max_size=40).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")
)


@settings(max_examples=25, deadline=None)
@given(st.sets(file_names, min_size=1, max_size=12))
def test_links_lead_to_files_whatever_their_names(served: Served, names: set[bytes]) -> None:
    name = f"names-{hashlib.sha256(repr(sorted(names)).encode()).hexdigest()}"
    files: list[Event] = [File(each, False, b"contents of " + each) for each in sorted(names)]
    put(served.services, name, [EnterDirectory(b""), *files, LEAVE_DIRECTORY])
    answer = served.get(address_of(named(name)))
    assert_safe(answer)
    entries = [link for link in answer.page.links if link.attributes.get("class") == "name"]
    assert [link.text for link in entries] == [shown(each) for each in sorted(names)]
    for each, link in zip(sorted(names), entries, strict=True):
        below = served.get(link.address)
        assert_safe(below)
        assert served.get(below.page.link("Download")).body == b"contents of " + each


@pytest.mark.parametrize(
    "path",
    [
        "/search?q=%ff%fe%3Cscript%3Ealert(1)%3C/script%3E",
        "/search?q=%22%20autofocus%20onfocus=alert(1)%20x=%22",
        "/search?q=%ed%a0%80",
        "/search?q=a%00b%0d%0aSet-Cookie:%20x",
        "/search?q=%7B%7B7*7%7D%7D",
    ],
)
def test_what_is_searched_for_is_only_text(served: Served, path: str) -> None:
    answer = served.get(path)
    assert answer.status == 200
    assert "set-cookie" not in answer.headers
    assert_safe(answer)
    [field] = [each for each in answer.page.all("input") if each["name"] == "q"]
    assert set(field) <= {
        "id",
        "name",
        "type",
        "placeholder",
        "autocomplete",
        "autocapitalize",
        "spellcheck",
        "value",
    }


def test_a_heading_shows_what_would_reorder_it(served: Served) -> None:
    """Somebody else may have made the address; the field has what to search for, unchanged."""
    page = served.page("/search?q=a%E2%80%AEb%00c")
    assert "with a\\u202eb\\x00c" in " ".join(page.text.split())
    assert page.title == "Search: a\\u202eb\\x00c · Test cache"
    [field] = [each for each in page.all("input") if each["name"] == "q"]
    assert field["value"] == "a\u202eb\x00c"


@pytest.mark.parametrize(
    "path",
    [
        f"/path/{HELLO.base_name}//share",
        f"/path/{HELLO.base_name}/",
        f"//evil.example/path/{HELLO.base_name}/",
        f"/path//evil.example/{HELLO.base_name}",
        f"/raw//{HELLO.base_name}/share//README.md",
        f"/search?q={HELLO.absolute}//evil.example",
        "/search?q=//evil.example",
        "/path/%2f%2fevil.example",
        "/path/%0d%0aLocation:%20//evil.example",
    ],
)
def test_nothing_leads_to_another_host(served: Served, path: str) -> None:
    answer = served.get(path)
    assert answer.status in (301, 303, 400, 404)
    location = urljoin(answer.url, answer.headers.get("location", ""))
    assert urlsplit(location).netloc == f"127.0.0.1:{served.port}"
    if answer.status in (301, 303) and "evil" not in path:
        assert served.get(location).status == 200


@pytest.mark.parametrize("path", ["/", "/search", address_of(HELLO), "/static/x.css", "/other"])
def test_pages_are_only_read(served: Served, path: str) -> None:
    answer = served.get(path, method="POST")
    assert (answer.status, sorted(answer.headers["allow"].split(", "))) == (405, ["GET", "HEAD"])


@pytest.mark.parametrize("path", ["/", "/search?q=hello", address_of(HELLO), "/no/such/page"])
def test_shared_caches_keep_nothing_that_may_be_private(served: Served, path: str) -> None:
    headers = served.get(path).headers
    assert headers["cache-control"] == "private, no-cache"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["x-frame-options"] == "DENY"


@pytest.mark.parametrize(
    ("encoding", "unpacked"), [("gzip", gzip.decompress), ("zstd", unpacked_zstd), ("br", bytes)]
)
def test_pages_travel_compressed(served: Served, encoding: str, unpacked: Callable[[bytes], bytes]) -> None:
    [style] = [link for link in served.page("/").all("link") if link["rel"] == "stylesheet"]
    for path in (address_of(named("many-1")), "/" + str(style["href"]).removeprefix("./")):
        whole = served.get(path)
        packed = served.get(path, headers={"Accept-Encoding": encoding})
        assert unpacked(packed.body) == whole.body
        assert packed.headers.get("content-encoding") == (None if encoding == "br" else encoding)
        assert encoding == "br" or len(packed.body) < len(whole.body) / 2
        assert packed.headers["vary"] == whole.headers["vary"] == "Accept-Encoding"
        head = served.get(path, method="HEAD", headers={"Accept-Encoding": encoding})
        assert head.headers["content-length"] == str(len(packed.body))


@pytest.mark.parametrize("name", [b"evil.svg", *samples.HOSTILE_NAMES])
def test_files_themselves_are_sandboxed(served: Served, name: bytes) -> None:
    answer = served.get(address_of(named("hostile-1"), name, route="raw"))
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["content-security-policy"] == "sandbox; default-src 'none'"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-disposition"].startswith("inline; filename=")


def test_what_is_no_text_is_a_download(served: Served) -> None:
    answer = served.get(address_of(HELLO, b"bin", b"hello", route="raw"))
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"].startswith('attachment; filename="hello"')
    assert len(answer.body) == 300_007


def test_ranges_and_tags_of_files(served: Served) -> None:
    address = address_of(HELLO, b"bin", b"hello", route="raw")
    part = served.get(address, headers={"Range": "bytes=1-3"})
    assert (part.status, part.body) == (206, b"ELF")
    assert part.headers["content-range"] == "bytes 1-3/300007"
    beyond = served.get(address, headers={"Range": "bytes=999999-"})
    assert (beyond.status, beyond.headers["content-range"]) == (416, "bytes */300007")
    assert beyond.headers["x-content-type-options"] == "nosniff"
    same = served.get(address, headers={"If-None-Match": part.headers["etag"]})
    assert (same.status, same.body) == (304, b"")
    several = served.get(address, headers={"Range": "bytes=1-3,5-6"})
    assert (several.status, len(several.body)) == (200, 300_007)
    old = served.get(address, headers={"Range": "bytes=1-3", "If-Range": '"other"'})
    assert (old.status, len(old.body)) == (200, 300_007)


@pytest.mark.parametrize(
    "path",
    ["/", "/search", address_of(HELLO), address_of(HELLO, b"share", b"README.md", route="raw"), "/nothing"],
)
def test_heads_are_those_of_the_answers(served: Served, path: str) -> None:
    whole, head = served.get(path), served.get(path, method="HEAD")
    assert head.body == b""
    assert head.status == whole.status
    for name in ("content-length", "content-type"):
        assert head.headers[name] == whole.headers[name]


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [
        (address_of(named("absent-1.0")), 404, "is not in this cache"),
        (address_of(HELLO, b"no", b"such"), 404, "has nothing at no/such"),
        ("/path/nonsense", 400, "nonsense"),
        (address_of(HELLO, *[b"a"] * 5000), 400, "10,043 bytes, at most 4,095"),
        (f"{address_of(HELLO)}?page={'0' * 19}1{'9' * 5000}", 400, "page must be a number"),
        (address_of(HELLO, b"share", route="raw"), 404, "is a directory"),
        ("/search?after=x", 400, "after"),
        ("/search?q=" + "a" * 9000, 400, "9,000 characters"),
        ("/search?q=/etc/passwd", 400, "/etc/passwd"),
        ("/static/other.css", 404, "no such file"),
        ("/no/such/page", 404, "no such page"),
        ("/%3Cscript%3E%0a", 404, "no such page"),
    ],
)
def test_what_is_wrong_has_a_page_that_says_so(served: Served, path: str, status: int, text: str) -> None:
    answer = served.get(path)
    assert answer.status == status
    assert text in answer.page.text
    assert answer.page.linked("To the start page")


def test_a_path_of_another_name_is_not_shown(served: Served) -> None:
    other = type(HELLO)(HELLO.digest, "other")
    assert "the path with this hash is" in served.get(address_of(other)).page.text


@pytest.mark.parametrize(
    ("query", "found"),
    [
        (HELLO.absolute, address_of(HELLO)),
        (HELLO.absolute + "/share/", address_of(HELLO, b"share")),
        (HELLO.base_name, address_of(HELLO)),
        (base32.encode(HELLO.digest), address_of(HELLO)),
    ],
)
def test_a_whole_name_or_hash_leads_to_the_path(served: Served, query: str, found: str) -> None:
    answer = served.get(f"/search?q={query}")
    assert answer.status == 303
    assert served.get(answer.headers["location"].replace("./", "/", 1)).status == 200
    assert answer.headers["location"].endswith(found)


def test_hashes_are_found_by_their_beginning(served: Served) -> None:
    page = served.page(f"/search?q={base32.encode(HELLO.digest)[:6]}")
    assert [link.text.split()[0] for link in page.links if "hello" in link.text] == ["hello-2.12"]


def test_the_style_sheet_is_kept_by_browsers(served: Served) -> None:
    [style] = [link for link in served.page("/").all("link") if link["rel"] == "stylesheet"]
    answer = served.get("/" + str(style["href"]).removeprefix("./"))
    assert answer.headers["content-type"] == "text/css; charset=utf-8"
    assert "immutable" in answer.headers["cache-control"]
    assert b"prefers-color-scheme" in answer.body


def test_pages_below_a_prefix(served: Served) -> None:
    with serving(served.services, prefix="/nix/cache") as below:
        page = below.page(address_of(HELLO))
        assert below.page(page.link("share").removeprefix(below.url)).linked("README.md")
        [style] = [link for link in page.all("link") if link["rel"] == "stylesheet"]
        assert below.get(urljoin(page.url, style["href"])).status == 200


class Silent(PathInfoService):
    """A backend that neither lists nor tells referrers, and has one path whose contents are elsewhere."""

    def __init__(self, description: PathDescription) -> None:
        self._description = description
        self.fetched = 0

    def get(self, digest: bytes) -> PathInfo | None:
        self.fetched += 1
        raise Unsupported("a page fetches nothing")

    def describe(self, digest: bytes) -> PathInfo | PathDescription | None:
        return self._description if digest == self._description.store_path.digest else None

    def put(self, path_info: PathInfo, *, replace: bool = False) -> PathInfo:
        raise Unsupported("read-only")


def far_services() -> tuple[Services, Silent]:
    far = named("far-away-1")
    nar = NarDetails(size=12_345, sha256=bytes(32), reference_names=(), signatures=())
    services = memory_services()
    silent = Silent(PathDescription(far, nar))
    services.path_infos = silent
    return services, silent


def test_a_backend_that_only_describes() -> None:
    services, silent = far_services()
    with serving(services) as far:
        assert "cannot list its paths" in far.page("/").text
        assert "cannot list its paths" in far.page("/search?q=far").text
        page = far.page(address_of(named("far-away-1")))
        assert "12.1 KiB" in page.text
        assert "The contents are in another cache" in page.text
        assert "cannot tell what refers to a path" in page.text
        below = far.get(address_of(named("far-away-1"), b"bin"))
        assert below.status == 404
        assert "not been fetched" in below.page.text
    assert silent.fetched == 0


def test_a_pull_through_cache(tmp_path: Path) -> None:
    """A real one: a page fetches nothing, and shows what came for somebody else."""
    told = json.loads((VECTORS / "cache.json").read_text())
    key = quote(told["public_key"], safe="")
    far = f"nix+file://{VECTORS / 'cache-xz'}?trusted-public-keys={key}"
    near = f"local://{tmp_path}/near"
    services = open_services(near, path_info_service=f"cache://?near={quote(near)}&far={quote(far)}")
    [(name, [referred_name])] = told["references"].items()
    reference, referred = StorePath.parse(name), StorePath.parse(referred_name)
    with serving(services) as served:
        page = served.page(address_of(reference))
        assert "The contents are in another cache" in page.text
        assert served.page(page.link(referred.base_name)).linked("narinfo")
        found = served.get(f"/search?q={base32.encode(reference.digest)}")
        assert (found.status, found.headers["location"]) == (303, f".{address_of(reference)}")
        for route in ("path", "raw"):
            assert served.get(address_of(reference, b"x", route=route)).status == 404
        assert list(services.blobs.list()) == []
        assert services.path_infos.get(reference.digest) is not None
        page = served.page(address_of(reference))
        assert referred.absolute in page.text
        assert page.link("Download").endswith(address_of(reference, route="raw"))
        # Far away is not asked who refers to a path; near is.
        referrers = served.page(address_of(referred))
        assert referrers.linked(reference.base_name)
    services.close()


def test_contents_that_are_missing_are_told(tmp_path: Path) -> None:
    services = open_services(f"local://{tmp_path}/store")
    events: Sequence[Event] = [EnterDirectory(b""), File(b"gone", False, b"x" * 100), Symlink(b"l", b"gone")]
    path_info = put(services, "broken-1", [*events, LEAVE_DIRECTORY])
    blobs = services.blobs
    services.blobs = memory_services().blobs
    with serving(services) as running:
        answer = running.get(address_of(path_info.store_path, b"gone"))
        assert answer.status == 500
        assert "Incomplete data" in answer.page.text
        assert running.get(address_of(path_info.store_path)).status == 200
    services.blobs = blobs
    services.close()
