"""Caches that lie, are broken, or want something from us: a clear error, and nothing of it is stored."""

from __future__ import annotations

import gzip
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
import zstandard

from neve.errors import LimitExceeded, PermissionDenied, Unavailable
from neve.nix.hashes import CAHash
from neve.nix.narinfo import MAX_NARINFO_BYTES, NarInfo
from neve.nix.store_path import StorePath, content_addressed_path
from neve.store.pathinfos.nix_cache import NixCachePathInfoService, Untrusted
from neve.store.services import Services, open_services
from neve.store.substitute.files import InvalidAnswer, Transient
from neve.store.substitute.folder import FolderCache
from neve.store.substitute.http import MAX_REDIRECTS
from neve.testing.pathinfos import store_path
from neve.tree import File
from tests.logged import logged
from tests.nix.compressing import COMPRESSORS
from tests.nix.nar.cases import load_bad_nars
from tests.store.helpers import encoded, everything, leaving_nothing_open, memory_services
from tests.store.substitute.caches import (
    CACHE_INFO,
    KEY,
    OTHER_KEY,
    Cache,
    assert_refused,
    assert_substituted,
    context_of,
    http_cache,
    narinfo_name,
    sha256,
    substituting,
)
from tests.store.substitute.server import (
    Answer,
    Server,
    breaking,
    dripping,
    endless,
    head,
    plain,
    redirect,
    running_server,
    silent,
    status,
)
from tests.store.substitute.test_honest import folder_cache, written

BAD_NARS = load_bad_nars()


@pytest.fixture
def server() -> Iterator[Server]:
    with running_server() as server:
        yield server


@pytest.fixture(params=["memory", "local"])
def services(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Services]:
    services = open_services("memory://" if request.param == "memory" else f"local://{tmp_path / 'store'}")
    yield services
    services.close()


@pytest.fixture
def memory() -> Iterator[Services]:
    services = memory_services()
    yield services
    services.close()


# What a narinfo says is not so.


LIES: dict[str, tuple[dict[str, Any], str]] = {
    "NarSize too small": ({"nar_size": 1000}, "longer than the 1000 bytes it should have"),
    "NarSize too large": ({"nar_size": 10**12}, "expected 1000000000000 bytes"),
    "NarHash": ({"nar_sha256": bytes(32)}, "expected .* bytes and " + "00" * 32),
    "FileHash": ({"file_hash": sha256(b"other")}, "FileHash is sha256:"),
    "FileSize too small": ({"file_size": 1000}, "longer than the 1000 bytes that it should have at most"),
    "FileSize too large": ({"file_size": 250_000}, "bytes long, FileSize is 250000"),
    "FileSize impossible": ({"file_size": 2**62}, "FileSize 4611686018427387904 is not that of a compressed"),
    "another Compression": ({"says": "xz"}, "xz data"),
    "Compression none": ({"says": "none"}, "byte 0|longer than the"),
    "unknown Compression": ({"says": "rar"}, "'rar' is not known"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_narinfo_that_lies(server: Server, services: Services, lie: str) -> None:
    changes, match = LIES[lie]
    cache = Cache()
    narinfo = cache.add("tool", compression="zstd", **changes)
    server.serve(cache.files)
    assert_refused(server, services, narinfo, match, keys=[KEY.public_key()])


def test_a_known_nar_whose_size_is_given_wrong(server: Server, memory: Services) -> None:
    cache = Cache()
    true = cache.add("true")
    lying = cache.add("lying", nar=cache.files[true.url], nar_size=true.nar_size + 8)
    server.serve(cache.files)
    assert_substituted(server, memory, true)
    with substituting(server, memory) as service:
        for ask in (service.get, service.describe):
            with pytest.raises(InvalidAnswer, match=f"NarSize is {true.nar_size + 8}, this NAR has"):
                ask(lying.store_path.digest)


def test_the_hash_of_a_known_file_is_not_that_of_a_nar(server: Server, memory: Services) -> None:
    """The map of NARs knows both."""
    cache = Cache()
    true = cache.add("true", compression="xz")
    assert true.file_hash is not None
    lying = cache.add("lying", nar=cache.files[true.url], nar_sha256=true.file_hash.digest)
    lying = replace(lying, nar_size=true.nar_size)
    cache.files[narinfo_name(lying.store_path)] = lying.render().encode()
    server.serve(cache.files)
    assert_substituted(server, memory, true)
    assert memory.nar_nodes.node(true.file_hash.digest) is not None
    with substituting(server, memory) as service, pytest.raises(InvalidAnswer):
        service.get(lying.store_path.digest)


FALSE_ADDRESSES = {
    "fixed:r:sha256:" + "0" * 52: "belongs to",
    "fixed:sha256:" + "0" * 52: "cannot refer to itself",
    "text:sha256:" + "0" * 52: "cannot refer to itself",
}


@pytest.mark.parametrize("ca", FALSE_ADDRESSES)
def test_a_content_address_of_another_path(server: Server, memory: Services, ca: str) -> None:
    """The signature is right: it does not cover that."""
    cache = Cache()
    narinfo = cache.add("tool", ca=CAHash.parse(ca))
    server.serve(cache.files)
    assert_refused(server, memory, narinfo, FALSE_ADDRESSES[ca], keys=[KEY.public_key()])
    assert f"/{narinfo.url}" not in server.paths()


def test_a_content_address_of_another_nar(server: Server, memory: Services) -> None:
    cache = Cache()
    ca = CAHash.parse("fixed:r:sha256:" + "0" * 52)
    narinfo = cache.add("tool", store_path=content_addressed_path("tool", ca), references=(), ca=ca)
    server.serve(cache.files)
    assert_refused(server, memory, narinfo, "is not the hash of its NAR", keys=[KEY.public_key()])


def test_a_cache_that_swaps_paths(server: Server, services: Services) -> None:
    cache = Cache()
    asked, other = cache.add("asked"), cache.add("other")
    cache.files[narinfo_name(asked.store_path)] = cache.files[narinfo_name(other.store_path)]
    server.serve(cache.files)
    message = assert_refused(
        server, services, asked, "other is not the path asked for", keys=[KEY.public_key()]
    )
    assert f"{server.url}/{narinfo_name(asked.store_path)}" in message
    assert f"/{other.url}" not in server.paths()


# Signatures.


def _unsigned(cache: Cache) -> NarInfo:
    return cache.add("tool", sign=())


def _foreign(cache: Cache) -> NarInfo:
    return cache.add("tool", sign=[OTHER_KEY])


def _of_something_else(cache: Cache) -> NarInfo:
    narinfo = cache.add("tool")
    signed = replace(narinfo, signatures=(KEY.sign(cache.add("else").fingerprint()),))
    cache.files[narinfo_name(narinfo.store_path)] = signed.render().encode()
    return signed


def _under_our_name(cache: Cache) -> NarInfo:
    return cache.add("tool", sign=[replace(OTHER_KEY, name=KEY.name)])


def _references_changed(cache: Cache) -> NarInfo:
    narinfo = cache.add("tool")
    dependency = store_path("dependency").base_name
    cache.edit(narinfo, dependency, StorePath(bytes(20), "something-else").base_name)
    return narinfo


@pytest.mark.parametrize(
    "make", [_unsigned, _foreign, _of_something_else, _under_our_name, _references_changed]
)
def test_nobody_vouches_for_it(server: Server, services: Services, make: Callable[[Cache], NarInfo]) -> None:
    cache = Cache()
    narinfo = make(cache)
    server.serve(cache.files)
    match = r"no valid signature by a trusted key \(cache.example-1\)"
    assert_refused(server, services, narinfo, match, Untrusted, keys=[KEY.public_key()])
    # It was not even looked at.
    assert f"/{narinfo.url}" not in server.paths()
    with substituting(server, services, keys=[KEY.public_key()]) as service, pytest.raises(Untrusted):
        service.describe(narinfo.store_path.digest)


def test_one_of_several_signatures_and_keys_is_enough(server: Server, memory: Services) -> None:
    cache = Cache()
    narinfo = cache.add("tool", sign=[replace(OTHER_KEY, name=KEY.name), KEY])
    server.serve(cache.files)
    keys = [OTHER_KEY.public_key(), replace(OTHER_KEY, name=KEY.name).public_key(), KEY.public_key()]
    assert_substituted(server, memory, narinfo, keys=keys[2:])
    assert_substituted(server, memory, narinfo, keys=keys)


# Where the NAR is said to be.


@pytest.mark.parametrize(
    "url",
    [
        "https://elsewhere.example/nar/x.nar",
        "http://127.0.0.1:1/x.nar",
        "file:///etc/passwd",
        "//elsewhere.example/x.nar",
        "/etc/passwd",
        "../x.nar",
        "nar/../../x.nar",
        "nar/..",
        "./x.nar",
        "nar//x.nar",
        "nar/",
        "%2e%2e/x.nar",
        "nar/%2E%2e%2fx.nar",
        "nar/..%2fx.nar",
        "%252e%252e/x.nar",
        "%25252525252525252e/x.nar",
        "%2fetc/passwd",
        "nar/%5c..%5cx.nar",
        "nar\\x.nar",
        "nar/x%00.nar",
        "nar/x%0d%0aHost:y",
        "nar/x.nar#y",
        "mailto:x",
        "http:x",
    ],
)
def test_a_nar_that_lies_elsewhere(server: Server, memory: Services, url: str) -> None:
    cache = Cache()
    narinfo = cache.add("tool", url=url)
    server.serve(cache.files, "/cache")
    server.otherwise = plain(b"never to be read")
    with leaving_nothing_open():
        service = http_cache(f"{server.url}/cache", memory)
        with pytest.raises(InvalidAnswer, match="it must stay below the address of the cache") as refused:
            service.get(narinfo.store_path.digest)
        service.close()
        server.settle()
    assert f"{server.url}/cache/{narinfo_name(narinfo.store_path)}" in str(refused.value)
    assert server.paths() == ["/cache/nix-cache-info", f"/cache/{narinfo_name(narinfo.store_path)}"]


def test_an_address_that_only_begins_like_the_cache(server: Server, memory: Services) -> None:
    cache = Cache()
    for number, url in enumerate((f"{server.url}.evil.example/x", f"{server.url}@evil.example/x")):
        narinfo = cache.add(f"tool-{number}", url=url)
        server.serve(cache.files)
        assert_refused(server, memory, narinfo, "must stay below the address")
    assert set(server.paths()) <= {"/nix-cache-info", *(f"/{name}" for name in cache.files)}


# Garbage.


@pytest.mark.parametrize(
    ("contents", "match"),
    [
        (b"", "StorePath is missing"),
        (b"<html>Please log in</html>\n", "line 1: expected 'Key: value'"),
        (b"\xff\xfe", "is no UTF-8"),
        (b"StorePath: /nix/store/x\n", "line 1, StorePath"),
        (os.urandom(1000), "."),
    ],
)
def test_a_narinfo_that_is_none(server: Server, memory: Services, contents: bytes, match: str) -> None:
    cache = Cache()
    narinfo = cache.add("tool")
    cache.files[narinfo_name(narinfo.store_path)] = contents
    server.serve(cache.files)
    assert_refused(server, memory, narinfo, match)


def test_messages_stay_short(server: Server, memory: Services) -> None:
    """Whatever a cache says at length."""
    cache = Cache()
    narinfos = [
        cache.add("compression", says="x" * 100_000),
        cache.add("url", url="../" + "x" * 100_000),
        cache.add("signatures", sign=[replace(OTHER_KEY, name=f"{'k' * 240}{n}") for n in range(50)]),
        cache.add("redirect"),
        cache.add("encoding"),
    ]
    server.serve(cache.files)
    server.routes[f"/{narinfos[3].url}"] = [redirect("http://" + "x" * 50_000)]
    server.routes[f"/{narinfos[4].url}"] = [plain(b"", Content_Encoding="x" * 50_000)]
    for narinfo in narinfos:
        keys = [KEY.public_key()] if narinfo.store_path.name == "signatures" else []
        assert len(assert_refused(server, memory, narinfo, server.url, keys=keys)) < 1500


def test_a_narinfo_that_was_cut(server: Server, memory: Services) -> None:
    cache = Cache()
    narinfo = cache.add("tool")
    name = narinfo_name(narinfo.store_path)
    cache.files[name] = cache.files[name][:-20]
    server.serve(cache.files)
    assert_refused(server, memory, narinfo, "no line break at the end")


@pytest.mark.parametrize("stated", [True, False])
def test_a_narinfo_that_does_not_end(server: Server, memory: Services, stated: bool) -> None:
    cache = Cache()
    narinfo = cache.add("tool")
    server.serve(cache.files)
    before = head(200, 1 << 40) if stated else head(200, Connection="close")
    server.routes[f"/{narinfo_name(narinfo.store_path)}"] = [endless(b"X: " + b"x" * 1000 + b"\n", before)]
    match = f"longer than the limit of {MAX_NARINFO_BYTES} bytes"
    assert_refused(server, memory, narinfo, match, LimitExceeded)


@pytest.mark.parametrize(
    ("contents", "match"),
    [
        (None, "is not there: this is no binary cache, or not its address"),
        (b"StoreDir: /gnu/store\n", "StoreDir is '/gnu/store', expected '/nix/store'"),
        (b"Priority: 1\n", "StoreDir is missing"),
        (b"<html></html>", "expected 'Key: value'"),
    ],
)
def test_what_is_no_cache_for_us(
    server: Server, memory: Services, contents: bytes | None, match: str
) -> None:
    cache = Cache()
    narinfo = cache.add("tool")
    del cache.files["nix-cache-info"]
    if contents is not None:
        cache.files["nix-cache-info"] = contents
    server.serve(cache.files)
    message = assert_refused(server, memory, narinfo, match)
    assert f"{server.url}/nix-cache-info" in message
    assert server.paths() == ["/nix-cache-info"]


def test_a_cache_that_is_mended_is_asked_again(server: Server, memory: Services) -> None:
    cache = Cache()
    narinfo = cache.add("tool")
    server.serve(cache.files)
    server.routes["/nix-cache-info"] = [plain(b"StoreDir: /other\n"), plain(CACHE_INFO)]
    with substituting(server, memory) as service:
        with pytest.raises(InvalidAnswer):
            service.get(narinfo.store_path.digest)
        assert service.get(narinfo.store_path.digest) is not None


@pytest.mark.parametrize("name", BAD_NARS)
def test_a_nar_that_is_none(server: Server, memory: Services, name: str) -> None:
    cache = Cache()
    narinfo = cache.add("tool", nar=BAD_NARS[name] or b"\0", compression="zstd")
    server.serve(cache.files)
    assert_refused(server, memory, narinfo, f"{narinfo.url}: ")


@pytest.mark.parametrize("compression", ["xz", "gzip", "zstd", "bzip2", "br", "lz4", "lzip"])
def test_compressed_garbage(server: Server, services: Services, compression: str) -> None:
    cache = Cache()
    narinfo = cache.add("tool", compression=compression)
    contents = bytearray(cache.files[narinfo.url])
    contents[len(contents) // 2] ^= 0x40
    server.serve({**cache.files, narinfo.url: bytes(contents)})
    assert_refused(server, services, narinfo, narinfo.url)


def test_something_behind_the_nar(server: Server, memory: Services) -> None:
    cache = Cache()
    nar = encoded([File(b"", False, b"x")])
    narinfo = cache.add("tool", nar=nar, file_hash=None, file_size=None)
    server.serve({**cache.files, narinfo.url: nar + b"\0"})
    assert_refused(server, memory, narinfo, f"longer than the {len(nar)} bytes it should have")


def test_a_nar_that_is_not_there(server: Server, services: Services) -> None:
    """That is not what it is for a narinfo: the path is not just somewhere else."""
    cache = Cache()
    narinfo = cache.add("tool")
    del cache.files[narinfo.url]
    server.serve(cache.files)
    assert_refused(server, services, narinfo, "is not there, though the cache has a narinfo for it")


# Bombs.


def _stated(contents: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(contents)


BOMBS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "zstd that states its size": ("zstd", _stated),
    **{name: (name, compress) for name, compress in COMPRESSORS.items() if name != "none"},
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_not_undone(server: Server, memory: Services, bomb: str) -> None:
    """The NAR of a file of 64 MiB of zeros, said to be small. What was taken in shows by the blobs."""
    compression, compress = BOMBS[bomb]
    nar = encoded([File(b"", False, bytes(64 << 20))])
    small = encoded([File(b"", False, b"small")])
    file = compress(nar)
    cache = Cache()
    narinfo = cache.add("bomb", nar=small, compression=compression, file_hash=None, file_size=len(file))
    server.serve({**cache.files, narinfo.url: file})
    assert_refused(server, memory, narinfo, f"longer than the {len(small)} bytes it should have")
    assert memory.blobs.list() == []


def test_a_file_that_never_amounts_to_anything(server: Server, memory: Services) -> None:
    """Frames of zstd that are to be skipped, one after the other, without a size of the file."""
    cache = Cache()
    narinfo = cache.add("tool", compression="zstd", file_hash=None, file_size=None)
    server.serve(cache.files)
    skippable = b"\x50\x2a\x4d\x18" + (4096).to_bytes(4, "little") + bytes(4096)
    server.routes[f"/{narinfo.url}"] = [endless(skippable, head(200, Connection="close"))]
    assert_refused(server, memory, narinfo, "bytes that it should have at most")


@pytest.mark.parametrize("what", ["narinfo", "nar"])
def test_an_encoding_that_never_amounts_to_anything(server: Server, memory: Services, what: str) -> None:
    """Members of gzip with nothing in them, one after the other, as the encoding of a transfer."""
    cache = Cache()
    narinfo = cache.add("tool")
    server.serve(cache.files)
    name = narinfo_name(narinfo.store_path) if what == "narinfo" else narinfo.url
    before = head(200, Connection="close", Content_Encoding="gzip")
    server.routes[f"/{name}"] = [endless(gzip.compress(b"") * 1000, before)]
    assert_refused(server, memory, narinfo, "bytes of the encoding gzip amount to 0 bytes")


# Failures that may be over in a moment.


def half(contents: bytes) -> bytes:
    return head(200, len(contents)) + contents[: len(contents) // 2]


def transient(contents: bytes) -> dict[str, Answer]:
    return {
        "500": status(500),
        "502": status(502),
        "503 later": status(503, Retry_After="0"),
        "503 until then": status(503, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"),
        "503 some day": status(503, Retry_After="some day"),
        "408": status(408),
        "429": status(429),
        "no answer": breaking(b"", hard=False),
        "no answer, reset": breaking(b""),
        "half an answer": breaking(b"HTTP/1.1 200 OK\r\nConte", hard=False),
        "no HTTP": breaking(b"SSH-2.0-OpenSSH_9.2\r\n", hard=False),
        "cut": breaking(half(contents), hard=False),
        "reset": breaking(half(contents)),
        "cut chunk": breaking(
            head(200, Transfer_Encoding="chunked") + b"%x\r\n" % len(contents) + contents[:9], hard=False
        ),
        "cut without a length": breaking(head(200, Connection="close") + contents[:-50_000], hard=False),
    }


@pytest.mark.parametrize(
    ("asked", "least", "most"),
    [
        ("120", 120, 120),
        (timedelta(hours=1), 3000, 3600),
        (timedelta(hours=-1), 0, 0),
        *((nonsense, 0, 0) for nonsense in ("", "-1", "1.5", "\u0663", "9" * 100, "Wed, 99 Oct 99999")),
    ],
)
def test_how_long_a_server_asks_to_wait(
    server: Server, memory: Services, asked: str | timedelta, least: float, most: float
) -> None:
    if isinstance(asked, timedelta):
        asked = format_datetime(datetime.now(UTC) + asked, usegmt=True)
    server.routes["/x"] = [status(503, Retry_After=asked.encode().decode("latin-1"))]
    cache = http_cache(server.url, memory, attempts=1)
    with pytest.raises(Unavailable) as refused:
        cache._files.read("x", 10)
    cache.close()
    assert isinstance(refused.value.__cause__, Transient)
    assert least <= refused.value.__cause__.after <= most


@pytest.mark.parametrize("failure", transient(b""))
def test_a_nar_comes_at_the_third_attempt(server: Server, services: Services, failure: str) -> None:
    cache = Cache()
    narinfo = cache.add("tool", compression="zstd")
    server.serve(cache.files)
    contents = cache.files[narinfo.url]
    failing = transient(contents)[failure]
    server.routes[f"/{narinfo.url}"] = [failing, failing, plain(contents)]
    assert_substituted(server, services, narinfo)
    assert server.paths().count(f"/{narinfo.url}") == 3


@pytest.mark.parametrize("failure", [name for name in transient(b"") if name != "cut without a length"])
def test_a_narinfo_does_too(server: Server, memory: Services, failure: str) -> None:
    cache = Cache()
    narinfo = cache.add("tool")
    server.serve(cache.files)
    for name in ("nix-cache-info", narinfo_name(narinfo.store_path)):
        failing = transient(cache.files[name])[failure]
        server.routes[f"/{name}"] = [failing, failing, plain(cache.files[name])]
    with logged(logging.WARNING) as lines:
        assert_substituted(server, memory, narinfo)
    assert len([line for line in lines if "trying again" in line]) == 4
    assert server.url in lines[0]


@pytest.mark.parametrize("failure", transient(b""))
def test_but_not_for_ever(server: Server, services: Services, failure: str) -> None:
    cache = Cache()
    narinfo = cache.add("tool", compression="zstd")
    server.serve(cache.files)
    server.routes[f"/{narinfo.url}"] = [transient(cache.files[narinfo.url])[failure]]
    assert_refused(server, services, narinfo, r"\(tried 3 times\)", Unavailable)
    assert server.paths().count(f"/{narinfo.url}") == 3
    # It is not held against the cache.
    server.serve(cache.files)
    assert_substituted(server, services, narinfo)


def test_nobody_answers(memory: Services) -> None:
    narinfo = Cache().add("tool")
    with logged(logging.WARNING), leaving_nothing_open():
        service = http_cache("http://127.0.0.1:1", memory, attempts=2)
        with pytest.raises(Unavailable, match=r"refused.*\(tried 2 times\)") as refused:
            service.get(narinfo.store_path.digest)
        service.close()
    assert "http://127.0.0.1:1/nix-cache-info" in str(refused.value)


@pytest.mark.parametrize(
    ("code", "error", "match"),
    [
        (401, PermissionDenied, "status 401: it wants credentials"),
        (407, PermissionDenied, "status 407"),
        (400, InvalidAnswer, "status 400"),
        (410, InvalidAnswer, "status 410"),
        (204, InvalidAnswer, "status 204"),
        (206, InvalidAnswer, "status 206"),
        (304, InvalidAnswer, "status 304"),
    ],
)
def test_other_answers(
    server: Server, memory: Services, code: int, error: type[InvalidAnswer], match: str
) -> None:
    cache = Cache()
    narinfo = cache.add("tool")
    server.serve(cache.files)
    path = f"/{narinfo_name(narinfo.store_path)}"
    server.routes[path] = [plain(b"", code)]
    message = assert_refused(server, memory, narinfo, match, error)
    assert path in message
    assert server.paths().count(path) == 1


# Servers that keep us waiting. A proper answer may be late once.


def waiting(contents: bytes) -> dict[str, Answer]:
    whole = head(200, len(contents)) + contents
    return {
        "says nothing": silent(),
        "stops in the head": silent(whole[:20]),
        "stops in the body": silent(half(contents)),
        "a byte at a time": dripping(whole),
        "a byte at a time in the body": dripping(whole, start=len(whole) - len(contents)),
        "headers for ever": endless_headers(),
    }


def endless_headers() -> Answer:
    return dripping(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 10_000)


@pytest.mark.parametrize("what", ["nar", "narinfo"])
@pytest.mark.parametrize("way", waiting(b""))
def test_nobody_is_waited_for_in_vain(server: Server, memory: Services, way: str, what: str) -> None:
    cache = Cache()
    narinfo = cache.add("tool")
    server.serve(cache.files)
    name = narinfo.url if what == "nar" else narinfo_name(narinfo.store_path)
    server.routes[f"/{name}"] = [waiting(cache.files[name])[way]]
    if what == "narinfo" and way.startswith("a byte"):
        server.routes[f"/{name}"] = [dripping(head(200, 100_000) + b"x" * 100_000)]
    message = assert_refused(
        server, memory, narinfo, "in 0.8 seconds of waiting", Unavailable, timeout=0.8, attempts=2
    )
    assert name in message


def test_who_takes_turns_is_not_too_slow(server: Server, memory: Services) -> None:
    """The pace is that of the server: a consumer that takes its time is not held against it."""
    cache = Cache()
    narinfo = cache.add("tool")
    contents = cache.files[narinfo.url]
    server.serve(cache.files)
    whole = head(200, len(contents)) + contents

    def steps(exchange: Any) -> bool:
        for start in range(0, len(whole), 20_000):
            exchange.send(whole[start : start + 20_000])
        return True

    server.routes[f"/{narinfo.url}"] = [steps]
    assert_substituted(server, memory, narinfo, timeout=30)


# Redirects.


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_a_redirect_is_followed(server: Server, memory: Services, code: int) -> None:
    cache = Cache()
    narinfo = cache.add("tool")
    server.serve(cache.files)
    server.routes[f"/{narinfo.url}"] = [redirect("/somewhere/else", code)]
    server.routes["/somewhere/else"] = [redirect("../there ä", code)]
    server.routes["/there%20%C3%83%C2%A4"] = [redirect(f"{server.url}/there?a=%2f", code)]
    server.routes["/there?a=%2f"] = [plain(cache.files[narinfo.url])]
    assert_substituted(server, memory, narinfo)


def test_a_redirect_leads_to_nothing(server: Server, memory: Services) -> None:
    server.serve(Cache().files)
    name = narinfo_name(store_path("absent"))
    server.routes[f"/{name}"] = [redirect("/nowhere")]
    with substituting(server, memory) as service:
        assert service.get(store_path("absent").digest) is None


@pytest.mark.parametrize(
    ("location", "match"),
    [
        ("/again", f"redirected more than {MAX_REDIRECTS} times"),
        (None, "redirected to nowhere"),
        ("ftp://elsewhere.example/x", "'ftp' is not http or https"),
        ("file:///etc/passwd", "'file' is not http or https"),
        ("https:///x", "'' is no name of a host"),
        ("http://[::1/", "redirected to an address that is none"),
        ("http://a..b/", "'a..b' is no name of a host"),
        ("http://host:99999/", "Port out of range"),
        ("http://" + "a" * 70 + ".example/", "is no name of a host"),
    ],
)
def test_a_redirect_that_nobody_follows(
    server: Server, memory: Services, location: str | None, match: str
) -> None:
    cache = Cache()
    narinfo = cache.add("tool")
    server.serve(cache.files)
    server.routes[f"/{narinfo.url}"] = [status(302) if location is None else redirect(location)]
    server.routes["/again"] = [redirect("/again")]
    assert_refused(server, memory, narinfo, match)


# Folders.


def test_no_symlink_leads_out_of_a_folder(tmp_path: Path, memory: Services) -> None:
    cache = Cache()
    narinfo = cache.add("tool")
    for number, link in enumerate(("nar", narinfo.url, narinfo_name(narinfo.store_path), "nix-cache-info")):
        folder = tmp_path / str(number)
        written(cache, folder)
        (folder / link).rename(tmp_path / f"outside-{number}")
        (folder / link).symlink_to(tmp_path / f"outside-{number}")
        with leaving_nothing_open(), pytest.raises(InvalidAnswer, match="are not followed") as refused:
            folder_cache(folder, memory).get(narinfo.store_path.digest)
        assert str(folder / link) in str(refused.value)
    assert everything(memory)[1:] == ([], [])
    # The folder itself may be one.
    written(cache, tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert folder_cache(tmp_path / "link", memory).get(narinfo.store_path.digest) is not None


def test_what_is_no_file_is_not_waited_for(tmp_path: Path, memory: Services) -> None:
    cache = Cache()
    narinfo = cache.add("tool")
    written(cache, tmp_path)
    file = tmp_path / narinfo.url
    file.unlink()
    os.mkfifo(file)
    service = folder_cache(tmp_path, memory)
    with leaving_nothing_open(), pytest.raises(InvalidAnswer, match="is no file"):
        service.get(narinfo.store_path.digest)
    file.unlink()
    file.mkdir()
    with leaving_nothing_open(), pytest.raises(InvalidAnswer, match="is no file"):
        service.get(narinfo.store_path.digest)


@pytest.mark.parametrize("url", ["../x", "/etc/passwd", "file:///etc/passwd", "nar/%2e%2e/%2e%2e/x"])
def test_no_name_leads_out_of_a_folder(tmp_path: Path, memory: Services, url: str) -> None:
    cache = Cache()
    narinfo = cache.add("tool", url=url)
    cache.files = {name: contents for name, contents in cache.files.items() if name != url}
    written(cache, tmp_path / "cache")
    with pytest.raises(InvalidAnswer, match="it must stay below the address of the cache"):
        folder_cache(tmp_path / "cache", memory).get(narinfo.store_path.digest)


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_narinfo_in_a_folder(tmp_path: Path, memory: Services, lie: str) -> None:
    changes, match = LIES[lie]
    cache = Cache()
    narinfo = cache.add("tool", compression="zstd", **changes)
    written(cache, tmp_path)
    with leaving_nothing_open(), pytest.raises(InvalidAnswer, match=match) as refused:
        folder_cache(tmp_path, memory).get(narinfo.store_path.digest)
    assert str(tmp_path) in str(refused.value)
    assert everything(memory)[1:] == ([], [])


def test_a_folder_that_is_not_there(tmp_path: Path, memory: Services) -> None:
    service = NixCachePathInfoService(FolderCache(str(tmp_path / "absent")), context_of(memory))
    with pytest.raises(InvalidAnswer, match="absent/nix-cache-info is not there: this is no binary cache"):
        service.get(bytes(20))
