"""Uploads that are wrong in every way that one can think of: 4xx with one line, nothing stored, and the
server goes on."""

from __future__ import annotations

import base64
import json
import random
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from neve.nix import base32
from neve.nix.compression import COMPRESSIONS
from neve.nix.hashes import CAHash
from neve.store.services import Services, open_services
from neve.tree import BeginFile, Data, EndFile, Event
from tests.http_cache.samples import Sample, nar_url, push, put_narinfo, sample, sha256
from tests.http_cache.serving import Served, serving, until
from tests.nix.compressing import COMPRESSORS
from tests.store.helpers import encoded, everything

VECTORS = Path(__file__).parents[1] / "vectors"
BAD_NARS = json.loads((VECTORS / "bad_nars.json").read_text())
LIMITS = {"max_nar_bytes": 4_000_000, "max_small_file_bytes": 10_000}


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    opened = open_services(f"local://{tmp_path_factory.mktemp('store')}")
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def cache(services: Services) -> Iterator[Served]:
    with serving(services, limits=LIMITS) as served:
        yield served


@pytest.fixture(autouse=True)
def _unharmed(cache: Served, services: Services) -> Iterator[None]:
    """Nothing is stored, and the server answers as before."""
    before = everything(services)
    yield
    assert everything(services) == before
    assert cache.is_fine()
    until(lambda: cache.metric("neve_http_active_uploads") == 0)


def refused(answer: httpx.Response, *statuses: int) -> str:
    """What the one line says."""
    assert answer.status_code in (statuses or (400,)), answer.text
    assert answer.text.endswith("\n")
    assert answer.text.count("\n") == 1
    assert answer.text[:-1].isprintable()
    return answer.text


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_another_hash_than_the_name_says(cache: Served, compression: str) -> None:
    file = sample("wrong").file(compression)
    url = nar_url(b"something else", compression)
    assert base32.encode(sha256(file)) in refused(cache.http.put(url, content=file))
    assert cache.http.head(url).status_code == 404
    assert cache.http.head(nar_url(file, compression)).status_code == 404


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_truncated(cache: Served, compression: str) -> None:
    """In the middle, and by a byte; the name is that of what comes."""
    file = sample("truncated", b"some text" * 1000).file(compression)
    for cut in (0, 1, 10, len(file) // 2, len(file) - 1):
        part = file[:cut]
        refused(cache.http.put(nar_url(part, compression), content=part))


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_something_behind_it(cache: Served, compression: str) -> None:
    file = sample("more").file(compression) + b"more"
    refused(cache.http.put(nar_url(file, compression), content=file))


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_compressed_garbage(cache: Served, compression: str) -> None:
    """Garbage that is compressed, and garbage where something compressed should be."""
    noise = random.Random(1).randbytes(50_000)
    for file in (COMPRESSORS[compression](noise), noise, COMPRESSORS[compression](noise)[:40] + noise):
        refused(cache.http.put(nar_url(file, compression), content=file))


@pytest.mark.parametrize(
    ("named", "sent"), [("none", "xz"), ("none", "zstd"), ("xz", "none"), ("zstd", "gzip")]
)
def test_another_compression_than_the_name_says(cache: Served, named: str, sent: str) -> None:
    file = sample("otherwise").file(sent)
    refused(cache.http.put(nar_url(file, named), content=file))


@pytest.mark.parametrize("case", BAD_NARS, ids=lambda case: case["name"])
def test_bad_nars(cache: Served, case: dict[str, str]) -> None:
    nar = base64.b64decode(case["nar_b64"])
    refused(cache.http.put(nar_url(nar), content=nar))


def bomb(compression: str) -> bytes:
    """A NAR of one file of zeros, far over the limit."""
    size = 64 << 20
    events: list[Event] = [BeginFile(b"", False, size), *[Data(bytes(1 << 20))] * 64, EndFile()]
    return COMPRESSORS[compression](encoded(events))


@pytest.mark.parametrize("compression", [each for each in COMPRESSIONS if each != "none"])
def test_bombs(cache: Served, compression: str) -> None:
    file = bomb(compression)
    assert len(file) < LIMITS["max_nar_bytes"]
    assert "max_nar_bytes" in refused(cache.http.put(nar_url(file, compression), content=file), 413)


def test_over_the_limits(cache: Served) -> None:
    nar = bytes(LIMITS["max_nar_bytes"] + 1)
    assert "max_nar_bytes" in refused(cache.http.put(nar_url(nar), content=nar), 413)
    # Also if its length is not announced.
    file = COMPRESSORS["zstd"](b"") * (LIMITS["max_nar_bytes"] // 9)
    answer = cache.http.put(nar_url(file, "zstd"), content=iter([file]))
    assert "max_nar_bytes" in refused(answer, 413)
    small = bytes(LIMITS["max_small_file_bytes"] + 1)
    for url in (
        *(f"/{'0' * 32}.ls", f"/log/{'0' * 32}-x.drv", f"/realisations/sha256:{'0' * 64}!out.doi"),
        f"/debuginfo/{'0' * 40}.debug",
    ):
        for body in (small, iter([small])):
            assert "max_small_file_bytes" in refused(cache.http.put(url, content=body), 413)
        packed = COMPRESSORS["zstd"](bytes(1 << 20))
        answer = cache.http.put(url, content=packed, headers={"content-encoding": "zstd"})
        assert "max_small_file_bytes" in refused(answer, 413)
        assert cache.http.get(url).status_code == 404


def test_more_than_memory_is_to_hold(services: Services) -> None:
    """Of uploads that have begun; those that come after them are taken."""
    log = f"/log/{'0' * 32}-x.drv"
    head = f"PUT {log} HTTP/1.1\r\nhost: x\r\ncontent-length: 9000\r\n\r\n".encode()
    with serving(services, limits={**LIMITS, "max_held_bytes": 20_000}) as cache:
        with cache.connect() as one, cache.connect() as two:
            for connection in (one, two):
                connection.sendall(head + bytes(8999))
            until(lambda: cache.metric("neve_http_active_requests") == 3)

            def is_refused() -> bool:
                answer = cache.http.put(log, content=bytes(9000))
                return answer.status_code == 503 and "max_held_bytes" in answer.text

            until(is_refused)
        until(lambda: cache.http.put(log, content=b"").status_code == 201)


def test_more_than_memory_is_to_hold_when_it_is_decoded(services: Services) -> None:
    packed = COMPRESSORS["zstd"](bytes(9000))
    with serving(services, limits={**LIMITS, "max_held_bytes": 5000}) as cache:
        for url in (f"/{'0' * 32}.ls", f"/log/{'0' * 32}-x.drv", f"/{'0' * 32}.narinfo"):
            answer = cache.http.put(url, content=packed, headers={"content-encoding": "zstd"})
            assert "max_held_bytes" in refused(answer, 503)


def test_a_narinfo_that_is_too_long(cache: Served) -> None:
    what = sample("long")
    text = what.narinfo().render() + "Unknown: " + "x" * (2 << 20) + "\n"
    for body in (text.encode(), iter([text.encode()])):
        refused(cache.http.put(what.narinfo_url, content=body), 413)


@pytest.mark.parametrize(
    "name",
    ["", "x", "x.nar", f"{'0' * 52}.nar.rar", f"{'z' * 52}.nar", f"{'0' * 51}.nar", f"{'e' * 52}.nar", "%00"],
)
def test_names_of_nars(cache: Served, name: str) -> None:
    refused(cache.http.put(f"/nar/{name}", content=sample("x").nar))


@pytest.mark.parametrize(
    "path",
    [
        "/nar/..%2f..%2f..%2ftmp%2fx.nar",
        "/nar/../../tmp/x.nar",
        "/nar/%2e%2e/%2e%2e/x.narinfo",
        "/log/..%2f..%2ftmp%2fx",
        "/log/../x",
        "/log/" + "0" * 32 + "-x%2f..%2fy.drv",
        "/log/" + "0" * 32 + "-x%00.drv",
        "/log/" + "0" * 32 + "-" + "x" * 300,
        "/log/",
        "/realisations/..%2fx.doi",
        "/realisations/sha256:00!../x.doi",
        "/realisations/x",
        "/debuginfo/..%2f..%2ftmp%2fx.debug",
        "/debuginfo/" + "0" * 40 + "%2f..%2fx.debug",
        "/debuginfo/" + "0" * 40 + ".debug%00",
        "/debuginfo/" + "0" * 40 + ".other",
        "/debuginfo/" + "0" * 15,
        "/debuginfo/" + "F" * 40,
        "/debuginfo/",
        "/..%2fx.narinfo",
        "/%2e%2e/" + "0" * 32 + ".narinfo",
        "//" + "0" * 32 + ".narinfo",
    ],
)
def test_paths_that_lead_elsewhere(cache: Served, path: str) -> None:
    """As they are on the wire: no client makes them shorter on the way."""
    body = sample("x").nar
    head = f"PUT {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
    answer = cache.raw(head.encode() + body)
    assert answer.split(b" ")[1] in (b"400", b"404", b"405"), answer


# Narinfos. The NAR of this one is there, and it is not.
KNOWN, UNKNOWN = sample("known"), sample("unknown")


@pytest.fixture(scope="module", autouse=True)
def _known(cache: Served) -> None:
    assert cache.http.put(nar_url(KNOWN.nar), content=KNOWN.nar).status_code == 201
    file = KNOWN.file("xz")
    assert cache.http.put(nar_url(file, "xz"), content=file).status_code == 201


def test_a_narinfo_before_its_nar(cache: Served) -> None:
    assert "upload it before" in refused(put_narinfo(cache.http, UNKNOWN))


def test_another_path_than_the_address_says(cache: Served) -> None:
    answer = cache.http.put(UNKNOWN.narinfo_url, content=KNOWN.narinfo().render())
    assert "not the path asked for" in refused(answer)


def test_another_size_than_the_nar_has(cache: Served) -> None:
    for size in (1, len(KNOWN.nar) - 8, len(KNOWN.nar) + 8, 2**63):
        assert "NarSize" in refused(put_narinfo(cache.http, KNOWN, nar_size=size))


def test_the_hash_of_a_compressed_file_is_no_nar_hash(cache: Served) -> None:
    answer = put_narinfo(cache.http, KNOWN, nar_sha256=sha256(KNOWN.file("xz")))
    refused(answer)


def test_missing_references(cache: Served) -> None:
    answer = put_narinfo(cache.http, KNOWN, references=(UNKNOWN.path,))
    assert UNKNOWN.path.base_name in refused(answer, 409)


def test_a_content_address_of_another_path(cache: Served) -> None:
    ca = CAHash.parse("fixed:r:sha256:" + "0" * 52)
    assert "belongs to" in refused(put_narinfo(cache.http, KNOWN, ca=ca), 400)


def _without(key: str) -> Callable[[str], str]:
    return lambda text: "".join(line for line in text.splitlines(True) if not line.startswith(f"{key}:"))


@pytest.mark.parametrize(
    "change",
    [
        lambda _: "",
        lambda _: "nonsense\n",
        lambda text: text[:-1],
        lambda text: text + "NarSize: 3\n",
        lambda text: text.replace("NarSize: ", "NarSize: -"),
        lambda text: text.replace("NarHash: sha256:", "NarHash: md5:"),
        lambda text: text.replace("NarHash: sha256:", "NarHash: sha256:0"),
        lambda text: text.replace("/nix/store/", "/gnu/store/"),
        lambda text: text.replace("References: ", "References: ../../x"),
        lambda text: text + "Sig: nobody\n",
        lambda text: text + "CA: fixed:r:sha256:short\n",
        lambda text: text + "Deriver: x\n",
        lambda text: text.replace("\n", "\r"),
        lambda text: text + "\udcff\n",
        *map(_without, ("StorePath", "URL", "NarHash", "NarSize")),
    ],
)
def test_narinfos_that_are_none(cache: Served, change: Callable[[str], str]) -> None:
    text = change(KNOWN.narinfo().render()).encode("utf-8", "surrogateescape")
    refused(cache.http.put(KNOWN.narinfo_url, content=text))


def test_bodies_that_cannot_be_decoded(cache: Served) -> None:
    log = f"/log/{'0' * 32}-x.drv"
    for url in (KNOWN.narinfo_url, log):
        for encoding in ("gzip", "zstd", "br", "xz", "bzip2"):
            refused(cache.http.put(url, content=b"\0 garbage", headers={"content-encoding": encoding}))
        for encoding in ("deflate", "gzip, gzip", "x" * 500):
            answer = cache.http.put(url, content=b"x", headers={"content-encoding": encoding})
            refused(answer, 415)
    answer = cache.http.put(nar_url(KNOWN.nar), content=KNOWN.nar, headers={"content-encoding": "gzip"})
    refused(answer, 415)


def test_a_client_that_leaves_in_the_middle(cache: Served) -> None:
    """Also one that was about to send the last byte."""
    nar = sample("leaving", b"text" * 10_000).nar
    url = nar_url(nar)
    for sent in (0, 100, len(nar) // 2, len(nar) - 1):
        for goodbye in (socket.SHUT_WR, socket.SHUT_RDWR):
            with cache.connect() as connection:
                head = f"PUT {url} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(nar)}\r\n\r\n"
                connection.sendall(head.encode() + nar[:sent])
                until(lambda: cache.metric("neve_http_active_uploads") == 1)
                connection.shutdown(goodbye)
                if goodbye == socket.SHUT_WR:
                    connection.close()
            until(lambda: cache.metric("neve_http_active_uploads") == 0)
    with cache.connect() as connection:
        head = f"PUT {url} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
        connection.sendall(head.encode() + b"%x\r\n" % len(nar) + nar + b"\r\n")
        until(lambda: cache.metric("neve_http_active_uploads") == 1)
    until(lambda: cache.metric("neve_http_active_uploads") == 0)
    assert cache.http.head(url).status_code == 404


def test_who_is_refused_hears_why(cache: Served) -> None:
    """Although he still has a lot to send."""
    body = bytes(30 << 20)
    head = f"PUT {nar_url(b'')} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
    answer = cache.raw(head.encode() + body)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert answer.endswith(b"(max_nar_bytes) is longer than the limit of 4000000 bytes\n")
    # One that asks first is not told to go on.
    head = head[:-2] + "expect: 100-continue\r\n\r\n"
    with cache.connect() as connection:
        connection.sendall(head.encode())
        assert connection.recv(12) == b"HTTP/1.1 413"


def test_who_asks_first_is_told_to_go_on(cache: Served, services: Services) -> None:
    nar = KNOWN.nar
    head = f"PUT {nar_url(nar)} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(nar)}\r\n"
    head += "expect: 100-continue\r\n\r\n"
    with cache.connect() as connection:
        connection.sendall(head.encode())
        assert connection.recv(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(nar)
        assert connection.recv(12) == b"HTTP/1.1 201"


def test_all_of_it_in_a_row_and_then_a_good_one(tmp_path: Path) -> None:
    """What was wrong leaves nothing that a good upload would trip over."""
    opened = open_services(f"local://{tmp_path}/store")
    try:
        with serving(opened) as cache:
            what = sample("finally")
            file = what.file("zstd")
            for broken in (file[:-1], file + b"x", file[:20] + b"\xff" + file[21:]):
                cache.http.put(nar_url(file, "zstd"), content=broken)
            refused(put_narinfo(cache.http, what))
            push(cache.http, what, "zstd")
            assert cache.http.get(what.narinfo_url).status_code == 200
            refused(put_narinfo(cache.http, Sample(what.path, what.nar), nar_size=1))
            assert cache.http.get(what.narinfo_url).status_code == 200
    finally:
        opened.close()
