"""What a client gets: narinfos, NARs in every form, listings."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Sequence
from email.parser import BytesParser
from email.policy import HTTP
from pathlib import Path

import httpx
import pytest
import zstandard

from neve.castore.node import DirectoryNode, FileNode, SymlinkNode
from neve.http_cache.routes import encoded_node
from neve.nix import base32
from neve.nix.narinfo import NarInfo
from neve.store.importer import import_nar
from neve.store.path_info import PathInfo
from neve.store.services import Services, open_services
from neve.store.wire import encode_node
from neve.tree import LEAVE_DIRECTORY, BeginFile, Data, EndFile, EnterDirectory, Event, File, Symlink
from tests.http_cache.samples import sample, sha256, stored
from tests.http_cache.serving import Served, serving, until
from tests.store.helpers import encoded

LARGE = bytes(range(256)) * 12_000
"""Takes several chunks, and gets smaller when it is compressed."""
NOISE = b"".join(sha256(b"%d" % i) for i in range(60_000))
"""The same, and does not get smaller."""


def large_file(name: bytes, contents: bytes) -> list[Event]:
    return [BeginFile(name, False, len(contents)), Data(contents), EndFile()]


TREE: list[Event] = [
    EnterDirectory(b""),
    File(b"empty", False, b""),
    *large_file(b"large", LARGE),
    *large_file(b"noise", NOISE),
    File(b"run", True, b"#!/bin/sh\n"),
    EnterDirectory(b"sub"),
    *[File(b"%04d" % i, False, b"%d\n" % i * (i % 50)) for i in range(500)],
    Symlink(b"to", b"../run"),
    LEAVE_DIRECTORY,
    LEAVE_DIRECTORY,
]
NAR = encoded(TREE)


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    opened = open_services(f"local://{tmp_path_factory.mktemp('store')}")
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def cache(services: Services) -> Iterator[Served]:
    with serving(services) as served:
        yield served


@pytest.fixture(scope="module")
def path_info(services: Services) -> PathInfo:
    return import_nar(services, [NAR], name="tree-1.0")


@pytest.fixture(scope="module")
def url(path_info: PathInfo) -> str:
    return node_url(path_info)


def node_url(path_info: PathInfo) -> str:
    return f"/nar/tvix-castore/{encoded_node(encode_node(path_info.node))}"


def narinfo_of(cache: Served, path_info: PathInfo) -> NarInfo:
    answer = cache.http.get(f"/{base32.encode(path_info.digest)}.narinfo")
    assert answer.status_code == 200
    return NarInfo.parse(answer.content, expected_digest=path_info.digest)


def test_what_the_cache_is(cache: Served) -> None:
    answer = cache.http.get("/nix-cache-info")
    assert answer.text == "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 39\n"
    assert answer.headers["content-type"] == "text/x-nix-cache-info"
    head = cache.http.head("/nix-cache-info")
    assert (head.content, head.headers["content-length"]) == (b"", str(len(answer.content)))
    assert "date" in head.headers
    assert "server" not in head.headers


def test_a_narinfo(cache: Served, path_info: PathInfo) -> None:
    address = f"/{base32.encode(path_info.digest)}.narinfo"
    answer = cache.http.get(address)
    assert answer.headers["content-type"] == "text/x-nix-narinfo"
    nix32 = base32.encode(sha256(NAR))
    node = encoded_node(encode_node(path_info.node))
    assert answer.text.splitlines()[:7] == [
        f"StorePath: {path_info.store_path}",
        f"URL: nar/tvix-castore/{node}?narsize={len(NAR)}",
        "Compression: none",
        f"FileHash: sha256:{nix32}",
        f"FileSize: {len(NAR)}",
        f"NarHash: sha256:{nix32}",
        f"NarSize: {len(NAR)}",
    ]
    assert cache.http.get(address).content == answer.content  # As it is kept.
    head = cache.http.head(address)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(answer.content))


def test_the_nar_that_a_narinfo_names(cache: Served, path_info: PathInfo) -> None:
    answer = cache.http.get(f"/{narinfo_of(cache, path_info).url}")
    assert answer.content == NAR
    assert answer.headers["content-type"] == "application/x-nix-nar"
    assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["vary"] == "accept-encoding"
    assert answer.headers["content-length"] == str(len(NAR))


@pytest.mark.parametrize("prefix", ["tvix", "snix"])
def test_both_names_of_the_route(cache: Served, url: str, prefix: str) -> None:
    assert cache.http.get(url.replace("tvix", prefix)).content == NAR


def test_head_tells_the_length(cache: Served, url: str) -> None:
    head = cache.http.head(url)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(NAR))
    assert head.headers["etag"] == cache.http.get(url).headers["etag"]


def test_the_nar_by_its_hash(cache: Served, path_info: PathInfo, url: str) -> None:
    by_hash = f"/nar/{base32.encode(sha256(NAR))}.nar"
    assert cache.http.get(by_hash).content == NAR
    assert cache.http.head(by_hash).headers["content-length"] == str(len(NAR))
    assert cache.http.get(by_hash).headers["etag"] == cache.http.get(url).headers["etag"]
    packed = cache.http.get(by_hash + ".zst")
    assert zstandard.ZstdDecompressor().stream_reader(packed.content, read_across_frames=True).read() == NAR
    assert packed.headers["content-type"] == "application/zstd"
    assert "content-encoding" not in packed.headers


@pytest.mark.parametrize("ending", [".nar", ".nar.zst", ".nar.xz", ".nar.bz2"])
def test_a_nar_that_is_not_there(cache: Served, ending: str) -> None:
    for address in (
        f"/nar/{base32.encode(bytes(32))}{ending}",
        f"/nar/{'z' * 52}{ending}",
        f"/nar/x{ending}",
    ):
        assert cache.http.get(address).status_code == 404
        # Never 400 or 405: with those, Nix ends its copying.
        assert cache.http.head(address).status_code == 404


def test_the_length_is_computed(cache: Served, url: str) -> None:
    assert cache.http.get(f"{url}?narsize={len(NAR)}").content == NAR
    for wrong in (str(len(NAR) + 1), f"0{len(NAR)}", "x", "", "-1", f"{len(NAR)}&narsize={len(NAR)}"):
        answer = cache.http.get(f"{url}?narsize={wrong}")
        assert answer.status_code == 400
        assert answer.text.count("\n") == 1


@pytest.mark.parametrize(
    ("header", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=100-299", 100, 300),
        ("bytes=5000000-5000999", 5_000_000, 5_001_000),
        (f"bytes={len(NAR) - 5}-", len(NAR) - 5, len(NAR)),
        ("bytes=-16", len(NAR) - 16, len(NAR)),
        (f"bytes=1-{len(NAR) * 2}", 1, len(NAR)),
        ("bytes=300000-3900000", 300_000, 3_900_001),
    ],
)
def test_a_range(cache: Served, url: str, header: str, start: int, stop: int) -> None:
    answer = cache.http.get(url, headers={"range": header})
    assert answer.status_code == 206
    assert answer.content == NAR[start:stop]
    assert answer.headers["content-range"] == f"bytes {start}-{stop - 1}/{len(NAR)}"
    assert answer.headers["content-length"] == str(stop - start)


def test_every_place_can_be_resumed(cache: Served, services: Services) -> None:
    small = stored(services, sample("resumed"))
    nar = sample("resumed").nar
    for start in range(0, len(nar), 3):
        answer = cache.http.get(node_url(small), headers={"range": f"bytes={start}-"})
        assert answer.content == nar[start:]


def parts_of(answer: httpx.Response) -> Sequence[tuple[str, bytes]]:
    """The parts of an answer: what range, and its bytes."""
    head = b"Content-Type: " + answer.headers["content-type"].encode() + b"\r\n\r\n"
    message = BytesParser(policy=HTTP).parsebytes(head + answer.content)
    found = []
    for part in message.walk():
        if not part.is_multipart():
            contents = part.get_payload(decode=True)
            assert isinstance(contents, bytes)
            found.append((str(part["content-range"]), contents))
    return found


def test_several_ranges(cache: Served, services: Services) -> None:
    text = stored(services, sample("several", b"words " * 1000))
    nar = sample("several", b"words " * 1000).nar
    answer = cache.http.get(node_url(text), headers={"range": "bytes=104-203,-4,8-15"})
    assert answer.status_code == 206
    assert answer.headers["content-length"] == str(len(answer.content))
    assert parts_of(answer) == [
        (f"bytes {start}-{stop - 1}/{len(nar)}", nar[start:stop])
        for start, stop in ((104, 204), (len(nar) - 4, len(nar)), (8, 16))
    ]


def test_ranges_that_cannot_be(cache: Served, url: str) -> None:
    for header in (f"bytes={len(NAR)}-", "bytes=2-1", "bytes=x", "bytes=" + "1-2," * 17):
        answer = cache.http.get(url, headers={"range": header})
        assert answer.status_code == 416
        assert answer.headers["content-range"] == f"bytes */{len(NAR)}"
    # All of it, if the unit is not known or they overlap.
    for header in ("lines=1-2", "bytes=0-,1-"):
        answer = cache.http.get(url, headers={"range": header})
        assert (answer.status_code, answer.content) == (200, NAR)


def test_ranges_of_the_same_thing_only(cache: Served, url: str) -> None:
    tag = cache.http.get(url).headers["etag"]
    part = {"range": "bytes=0-9"}
    assert cache.http.get(url, headers={**part, "if-range": tag}).status_code == 206
    for other in ('"other"', f"W/{tag}", "Wed, 21 Oct 2015 07:28:00 GMT"):
        answer = cache.http.get(url, headers={**part, "if-range": other})
        assert (answer.status_code, answer.content) == (200, NAR)


def unzstd(data: bytes) -> bytes:
    reader = zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True)
    contents: bytes = reader.read()
    return contents


def raw_body(cache: Served, url: str, encoding: str) -> tuple[httpx.Response, bytes]:
    """An answer, and its body as it came."""
    with cache.http.stream("GET", url, headers={"accept-encoding": encoding}) as answer:
        return answer, b"".join(answer.iter_raw())


def test_transfers_are_compressed_for_who_wants_it(cache: Served, url: str) -> None:
    plain = cache.http.get(url)
    tags = {plain.headers["etag"]}
    for encoding, unpack in (("zstd", unzstd), ("gzip", lambda data: zlib.decompress(data, wbits=31))):
        answer, body = raw_body(cache, url, f"{encoding};q=0.5, br")
        assert unpack(body) == NAR
        assert len(body) < len(NAR) - len(LARGE) / 2
        assert answer.headers["content-encoding"] == encoding
        assert answer.headers["vary"] == "accept-encoding"
        assert "content-length" not in answer.headers
        tags.add(answer.headers["etag"])
        head = cache.http.head(url, headers={"accept-encoding": encoding})
        assert head.headers["content-encoding"] == encoding
        assert "content-length" not in head.headers
    assert len(tags) == 3
    assert "content-encoding" not in plain.headers


def test_a_range_is_one_of_the_nar(cache: Served, url: str) -> None:
    headers = {"accept-encoding": "zstd", "range": "bytes=8-20"}
    answer = cache.http.get(url, headers=headers)
    assert (answer.status_code, answer.content) == (206, NAR[8:21])
    assert "content-encoding" not in answer.headers


def test_old_clients_get_it_plain(cache: Served, url: str) -> None:
    """They know no chunks, and take the end of the connection for the end of the body."""
    answer = cache.raw(f"GET {url} HTTP/1.0\r\naccept-encoding: zstd\r\n\r\n".encode())
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-encoding" not in head
    assert body == NAR


def test_something_else_than_the_client_wants(cache: Served, url: str) -> None:
    tag = cache.http.head(url).headers["etag"]
    for method in ("GET", "HEAD"):
        assert cache.http.request(method, url, headers={"if-match": tag}).status_code == 200
        answer = cache.http.request(method, url, headers={"if-match": '"x"', "range": "bytes=0-5"})
        assert answer.status_code == 412


@pytest.mark.parametrize("version", ["1.0", "0.9", "2.0"])
def test_they_get_no_chunks(cache: Served, path_info: PathInfo, version: str) -> None:
    """Where nobody knows the length beforehand, either."""
    for path in (f"/{base32.encode(path_info.digest)}.ls", f"/nar/{base32.encode(sha256(NAR))}.nar.zst"):
        expected = cache.http.get(path).content
        answer = cache.raw(f"GET {path} HTTP/{version}\r\nconnection: keep-alive\r\n\r\n".encode())
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        assert b"connection: close" in head
        assert b"transfer-encoding" not in head
        assert body == expected
        answer = cache.raw(f"HEAD {path} HTTP/{version}\r\n\r\n".encode())
        assert answer.partition(b"\r\n\r\n")[2] == b""


def test_what_the_client_has_is_not_sent_again(cache: Served, url: str) -> None:
    for encoding in ("identity", "zstd", "gzip"):
        headers = {"accept-encoding": encoding}
        tag = cache.http.head(url, headers=headers).headers["etag"]
        for known in (tag, f'"x", {tag}', "*"):
            again = cache.http.get(url, headers={**headers, "if-none-match": known})
            assert (again.status_code, again.content) == (304, b"")
            assert again.headers["etag"] == tag
    other = cache.http.head(url, headers={"accept-encoding": "zstd"}).headers["etag"]
    assert cache.http.get(url, headers={"if-none-match": other}).status_code == 200


@pytest.mark.parametrize("events", [[File(b"", True, b"x")], large_file(b"", LARGE), [Symlink(b"", b"/a")]])
def test_a_root_that_is_no_directory(cache: Served, services: Services, events: list[Event]) -> None:
    nar = encoded(events)
    path_info = import_nar(services, [nar], name="no-directory")
    url = node_url(path_info)
    assert cache.http.get(url).content == nar
    assert unzstd(raw_body(cache, url, "zstd")[1]) == nar
    assert cache.http.get(url, headers={"range": "bytes=20-90"}).content == nar[20:91]


def test_a_nar_of_what_is_not_there(cache: Served) -> None:
    for node in (DirectoryNode(bytes(32), 3), FileNode(bytes(32), 3, False)):
        answer = cache.http.get(f"/nar/tvix-castore/{encoded_node(encode_node(node))}")
        assert answer.status_code == 404
        assert answer.text.count("\n") == 1
    # A symlink is all in its address.
    answer = cache.http.get(f"/nar/tvix-castore/{encoded_node(encode_node(SymlinkNode(b'/x')))}")
    assert answer.content == encoded([Symlink(b"", b"/x")])


def test_a_size_that_is_not_true(cache: Served, services: Services) -> None:
    """The node says another length than the blob has."""
    digest = services.blobs.put_many([b"four"])[0]
    for size in (3, 5, 600_000, 1 << 62):
        url = f"/nar/tvix-castore/{encoded_node(encode_node(FileNode(digest, size, False)))}"
        answer = cache.http.get(url)
        assert answer.status_code == 400
        assert answer.text.count("\n") == 1
        # Whose length nobody must keep for ever.
        assert cache.http.head(url).status_code == 400
    assert cache.is_fine()


def test_what_is_no_node(cache: Served) -> None:
    for text in ("", "A", "%00", "AAAA", "A" * 7000):
        answer = cache.http.get(f"/nar/tvix-castore/{text}")
        assert answer.status_code == 400
        assert answer.text.count("\n") == 1


def test_paths_that_are_not_there(cache: Served) -> None:
    for ending in ("narinfo", "ls"):
        answer = cache.http.get(f"/{'0' * 32}.{ending}")
        assert answer.status_code == 404
        assert answer.text.count("\n") == 1


def test_a_path_without_nar_details_gets_them(cache: Served, services: Services) -> None:
    first, second = stored(services, sample("first")), sample("second")
    known = stored(services, second)
    services.path_infos.put(PathInfo(second.path, known.node, (first.digest,), None), replace=True)
    narinfo = narinfo_of(cache, known)
    assert (narinfo.nar_sha256, narinfo.nar_size) == (sha256(second.nar), len(second.nar))
    assert narinfo.references == (first.store_path,)
    filled = services.path_infos.get(known.digest)
    assert filled is not None
    assert filled.nar is not None


def test_a_changed_path_is_seen_at_once(cache: Served, services: Services, path_info: PathInfo) -> None:
    """Also if somebody else changes it, by whatever way."""
    from neve.nix.signing import SecretKey

    key = SecretKey.generate("later-1")
    assert narinfo_of(cache, path_info).signatures == ()
    with_it = open_services(f"local://{services.packs.path}" if services.packs else None)
    with_it.path_infos.add_signatures(path_info.digest, [key.sign(path_info.fingerprint())])
    with_it.close()
    assert [signature.name for signature in narinfo_of(cache, path_info).signatures] == ["later-1"]
    services.path_infos.delete_many([path_info.digest])
    assert cache.http.get(f"/{base32.encode(path_info.digest)}.narinfo").status_code == 404
    services.path_infos.put(path_info)
    assert narinfo_of(cache, path_info).signatures == ()


def test_a_listing(cache: Served, path_info: PathInfo) -> None:
    answer = cache.http.get(f"/{base32.encode(path_info.digest)}.ls")
    assert answer.headers["content-type"] == "application/json"
    listing = json.loads(answer.text)
    assert listing["version"] == 1
    entries = listing["root"]["entries"]
    assert list(entries) == ["empty", "large", "noise", "run", "sub"]
    assert entries["sub"]["entries"]["to"] == {"type": "symlink", "target": "../run"}
    assert entries["run"]["executable"] is True
    for name, contents in (("large", LARGE), ("noise", NOISE)):
        start = entries[name]["narOffset"]
        assert NAR[start : start + entries[name]["size"]] == contents
    head = cache.http.head(f"/{base32.encode(path_info.digest)}.ls")
    assert (head.status_code, head.content) == (200, b"")


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd",
        "/nar/../../etc/passwd",
        "/nar/..%2f..%2fetc%2fpasswd",
        "/nar/%2e%2e/%2e%2e/etc/passwd",
        "/nar/%2e%2e%5c%2e%2e%5cetc",
        "/log/..%2f..%2fetc%2fpasswd",
        "/log/%00",
        "/log//etc/passwd",
        "/realisations/..%2f..%2fx.doi",
        "/debuginfo/..%2f..%2fetc%2fpasswd",
        "/debuginfo/%00",
        "/%00.narinfo",
        "/%ff%fe.narinfo",
        "//etc/passwd",
        "/\u202e.narinfo",
        "/" + "a" * 8000,
        "/favicon.ico",
    ],
)
def test_paths_that_lead_nowhere(cache: Served, path: str) -> None:
    for method in ("GET", "HEAD"):
        target = path.encode()
        answer = cache.raw(
            method.encode() + b" " + target + b" HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        )
        assert answer.split(b" ")[1] in (b"404", b"400")
    assert cache.is_fine()


def test_methods(cache: Served, path_info: PathInfo, url: str) -> None:
    narinfo = f"/{base32.encode(path_info.digest)}.narinfo"
    for method, address in (
        *((method, narinfo) for method in ("POST", "DELETE", "PATCH")),
        *(("PUT", address) for address in ("/", "/nix-cache-info", "/metrics", "/healthz", url, "/else")),
    ):
        answer = cache.http.request(method, address, content=b"x")
        assert answer.status_code == 405
        assert answer.headers["allow"].startswith("GET, HEAD")
    assert cache.http.request("OPTIONS", narinfo).status_code in (404, 405)
    assert cache.http.request("GET", narinfo, content=b"x").status_code == 400


def test_the_settings_show(services: Services, path_info: PathInfo) -> None:
    with serving(services, priority=7, narinfo_compression="zstd", private=False) as cache:
        assert "Priority: 7\n" in cache.http.get("/nix-cache-info").text
        narinfo = narinfo_of(cache, path_info)
        assert narinfo.compression == "zstd"
        assert narinfo.file_size is None
        assert narinfo.url.startswith(f"nar/{base32.encode(sha256(NAR))}.nar.zst")
        assert unzstd(cache.http.get(f"/{narinfo.url}").content) == NAR
        # Whatever the client can unpack by itself: these are the bytes of the file.
        packed = cache.http.get(
            f"/{narinfo.url}", headers={"accept-encoding": "zstd, gzip", "range": "bytes=0-3"}
        )
        assert packed.status_code == 200
        assert "content-encoding" not in packed.headers
        assert unzstd(packed.content) == NAR


def test_metrics(cache: Served, url: str) -> None:
    parts = 'neve_http_requests_total{method="read",route="nar",status="206"}'
    before = cache.metric(parts)
    sent = cache.metric("neve_http_sent_bytes_total")
    cache.http.get(url, headers={"range": "bytes=0-999"})
    until(lambda: cache.metric(parts) == before + 1)  # It counts when the last byte is on its way.
    assert cache.metric("neve_http_sent_bytes_total") >= sent + 1000
    assert cache.metric("neve_http_active_requests") == 1  # This one.
    assert cache.http.get("/metrics").headers["content-type"].startswith("text/plain; version=")


def test_health(cache: Served) -> None:
    assert cache.http.get("/healthz").text == "ready\n"
    assert cache.http.get("/healthz/live").text == "alive\n"
    assert cache.http.head("/healthz").status_code == 200


@pytest.mark.parametrize("which", ["small", "chunk"])
def test_damage_is_an_error_and_never_wrong_bytes(tmp_path: Path, which: str) -> None:
    """A blob whose stored bytes are not what they should be, served in every way."""
    small = b"".join(sha256(b"small %d" % i) for i in range(30))
    events = [EnterDirectory(b""), File(b"a", False, small), *large_file(b"b", NOISE), LEAVE_DIRECTORY]
    nar = encoded(events)
    services = open_services(f"local://{tmp_path}/store")
    path_info = import_nar(services, [nar], name="damaged")
    services.close()
    [pack] = (tmp_path / "store" / "packs").iterdir()
    data = bytearray(pack.read_bytes())
    place = data.index(small if which == "small" else NOISE[1_000_000:1_000_100])
    data[place] ^= 0xFF
    pack.write_bytes(data)
    services = open_services(f"local://{tmp_path}/store")
    try:
        with serving(services) as cache:
            for headers in ({}, {"accept-encoding": "zstd"}, {"accept-encoding": "gzip"}):
                try:
                    answer = cache.http.get(node_url(path_info), headers=headers)
                except httpx.RemoteProtocolError:
                    continue  # Broken off in the middle.
                assert answer.status_code == 500
                assert "blob" in answer.text
            assert cache.is_fine()
    finally:
        services.close()
