"""Clients that send rubbish, too much, too slowly or nothing, that do not read, that leave, and that are too
many. They get no further than their own connection, and cost a bounded amount."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from neve.http_cache.connection import MAX_HEAD_BYTES, MAX_HEADERS, MAX_WAITING
from neve.http_cache.routes import encoded_node
from neve.store.importer import import_nar
from neve.store.services import Services, open_services
from neve.store.wire import encode_node
from neve.tree import BeginFile, Data, EndFile, Event
from tests.http_cache.samples import nar_url, sample, sha256
from tests.http_cache.serving import SECONDS, Served, all_of, process, serving, until
from tests.store.helpers import encoded, everything

QUICK = {"idle_seconds": 0.3}
LOG = f"/log/{'0' * 32}-x.drv"
UNSEEN = f"/log/{'1' * 32}-x.drv"
"""What nobody here manages to store."""
GET = b"GET /nix-cache-info HTTP/1.1\r\nhost: x\r\n\r\n"


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
def impatient(services: Services) -> Iterator[Served]:
    """A cache that waits for nobody."""
    with serving(services, limits=QUICK) as served:
        yield served


LARGE = b"".join(sha256(b"%d" % i) for i in range(32 * 1024)) * 24
"""24 MiB: more than the buffers of any socket hold."""


def file_events(contents: bytes) -> list[Event]:
    return [BeginFile(b"", False, len(contents)), Data(contents), EndFile()]


@pytest.fixture(scope="module")
def large(services: Services) -> str:
    """Where a large NAR is."""
    node = import_nar(services, [encoded(file_events(LARGE))], name="large").node
    return f"/nar/tvix-castore/{encoded_node(encode_node(node))}"


def status_of(answer: bytes) -> int:
    """The status of an answer that is complete, and the last one."""
    match = re.fullmatch(rb"HTTP/1\.1 ([0-9]{3}) [^\r]*\r\n(.*?)\r\n\r\n(.*)", answer, re.DOTALL)
    assert match is not None, answer
    assert b"connection: close" in match[2]
    assert f"content-length: {len(match[3])}".encode() in match[2]
    assert match[3].count(b"\n") == 1
    return int(match[1])


@pytest.mark.parametrize(
    "rubbish",
    [
        b"\0" * 100,
        b"nonsense\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\nna me: x\r\n\r\n",
        b"GET / HTTP/1.1\r\ncontent-length: x\r\n\r\n",
        b"GET / HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        b"PUT / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nxx",
        b"PUT / HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\n\r\n",
        b"CONNECT x:1 HTTP/1.1\r\nhost: x\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET http://[ HTTP/1.1\r\nhost: x\r\n\r\n",
    ],
)
def test_rubbish(cache: Served, rubbish: bytes) -> None:
    with cache.connect() as connection:
        connection.sendall(rubbish)
        connection.shutdown(socket.SHUT_WR)
        answer = all_of(connection)
    assert not answer or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 5")), answer
    assert b"Traceback" not in answer
    assert cache.is_fine()


@pytest.mark.parametrize("protocol", [b"websocket", b"h2c"])
def test_other_protocols(cache: Served, protocol: bytes) -> None:
    """There are none to change to."""
    upgrade = b"connection: upgrade, close\r\nupgrade: " + protocol + b"\r\n"
    answer = cache.raw(GET.replace(b"host", upgrade + b"host"))
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert cache.is_fine()


@pytest.mark.parametrize("framing", [b"content-length: 5", b"transfer-encoding: chunked"])
def test_a_change_of_protocol_with_a_body(cache: Served, framing: bytes) -> None:
    """The parser would take the body for that protocol, and nothing would be stored by its name."""
    body = b"5\r\nhello\r\n0\r\n\r\n" if b"chunked" in framing else b"hello"
    head = f"PUT {UNSEEN} HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: h2c\r\n".encode()
    assert status_of(cache.raw(head + framing + b"\r\n\r\n" + body)) == 400
    assert cache.http.get(UNSEEN).status_code == 404


def test_nobody_waits_after_a_change_of_protocol(cache: Served) -> None:
    """What follows is not understood any more, so the client is told to begin anew."""
    answer = cache.raw(GET.replace(b"host", b"connection: upgrade\r\nupgrade: h2c\r\nhost") + GET)
    assert answer.count(b"HTTP/1.1 200 ") == 1
    assert b"connection: close" in answer


@pytest.mark.parametrize(
    "coding",
    [b"gzip, chunked", b"gzip\r\ntransfer-encoding: chunked", b"identity", b"chunked, chunked", b"x"],
)
def test_transfers_in_another_form(cache: Served, coding: bytes) -> None:
    """They would be stored in that form."""
    head = f"PUT {UNSEEN} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: ".encode()
    answer = cache.raw(head + coding + b"\r\n\r\n5\r\nhello\r\n0\r\n\r\n" + GET)
    assert not answer or status_of(answer) in (400, 501)
    assert cache.http.get(UNSEEN).status_code == 404


@pytest.mark.parametrize(
    "head",
    [
        b"transfer-encoding: chunked\r\ncontent-length: 5",
        b"content-length: 5\r\ntransfer-encoding: chunked",
        b"content-length: 5\r\ncontent-length: 5",
        b"content-length: 5, 5",
        b"content-length: +5",
        b"content-length: 99999999999999999999999999",
        b"content-length : 5",
        b"content-length:\r\n 5",
        b"transfer-encoding:\x0bchunked",
        b"x: a\rcontent-length: 5",
        b"x: \0\r\ncontent-length: 5",
        b"host: y\r\ncontent-length: 5",
        b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\ncontent-length: 9",
    ],
)
def test_what_others_may_read_in_another_way(cache: Served, head: bytes) -> None:
    """A request in a body, say, which a proxy before us did not see. Nothing of it is done."""
    inner = f"PUT {UNSEEN} HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\nx".encode()
    answer = cache.raw(f"PUT {UNSEEN} HTTP/1.1\r\nhost: x\r\n".encode() + head + b"\r\n\r\n0\r\n\r\n" + inner)
    assert not answer or status_of(answer) == 400
    assert cache.http.get(UNSEEN).status_code == 404


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_request_in_the_body_of_one_that_has_none(cache: Served, method: str) -> None:
    inner = f"PUT {UNSEEN} HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\nx".encode()
    head = f"{method} /nix-cache-info HTTP/1.1\r\nhost: x\r\ncontent-length: {len(inner)}\r\n\r\n"
    answer = cache.raw(head.encode() + inner)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert cache.http.get(UNSEEN).status_code == 404


def test_nothing_is_done_behind_the_last_request(cache: Served) -> None:
    inner = f"PUT {UNSEEN} HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\nx".encode()
    answer = cache.raw(GET.replace(b"host", b"connection: close\r\nhost") + inner)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert cache.http.get(UNSEEN).status_code == 404


def test_heads_that_are_too_long(cache: Served) -> None:
    for head in (
        b"GET /" + b"a" * MAX_HEAD_BYTES + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nx: " + b"a" * MAX_HEAD_BYTES + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * (MAX_HEADERS + 1) + b"\r\n",
    ):
        assert status_of(cache.raw(head)) == 431
    fine = b"x: " + b"a" * (MAX_HEAD_BYTES // 2) + b"\r\n" + b"a: b\r\n" * (MAX_HEADERS // 2)
    answer = cache.raw(b"GET /nix-cache-info HTTP/1.1\r\nconnection: close\r\n" + fine + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ")


def test_a_head_in_pieces_and_a_body_behind_it(cache: Served) -> None:
    body = bytes(2 * MAX_HEAD_BYTES)
    head = f"PUT /{'0' * 32}.ls HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n".encode()
    with cache.connect() as connection:
        connection.sendall(head)
        time.sleep(0.1)
        connection.sendall(b"connection: close\r\n\r\n" + body)
        assert all_of(connection).startswith(b"HTTP/1.1 200 ")


CHUNKED = f"PUT /{'0' * 32}.ls HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n".encode()


def test_what_stands_behind_a_body_is_no_part_of_the_head(cache: Served) -> None:
    trailer = b"content-encoding: none-that-is-known\r\nauthorization: Bearer x\r\n"
    answer = cache.raw(CHUNKED + b"connection: close\r\n\r\n1\r\nx\r\n0\r\n" + trailer + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ")


def test_chunks_in_many_pieces(cache: Served) -> None:
    """However much stands around them."""
    count = 30
    with cache.connect() as connection:
        connection.sendall(CHUNKED + b"connection: close\r\n\r\n")
        for _ in range(count):
            connection.sendall(b"1;" + b"x" * (MAX_HEAD_BYTES // 10))
            time.sleep(0.01)
            connection.sendall(b"\r\nx\r\n")
        connection.sendall(b"0\r\n\r\n")
        assert all_of(connection).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "beginning",
    [
        b"GET /",
        b"GET / HTTP/1.1\r\nx: ",
        b"GET / HTTP/1.1\r\nx",
        CHUNKED + b"\r\n0\r\nx: ",
        CHUNKED + b"\r\n1\r\nx\r\n0\r\nx",
        CHUNKED + b"\r\n1;",
    ],
)
def test_a_head_without_end(cache: Served, beginning: bytes) -> None:
    """It is not held: the client is turned away while he still sends."""
    with cache.connect() as connection:
        connection.sendall(beginning)
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent < 64 << 20:
                connection.sendall(b"a" * 65536)
                sent += 65536
        assert sent < 64 << 20
    assert cache.is_fine()


def test_requests_without_waiting(cache: Served) -> None:
    """Some are fine, and answered in their order; too many are not."""
    few = b"".join(b"GET /%d HTTP/1.1\r\nhost: x\r\n\r\n" % i for i in range(MAX_WAITING - 1))
    answer = cache.raw(few + GET.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"))
    assert answer.count(b"HTTP/1.1 404") == MAX_WAITING - 1
    assert answer.endswith(b"Priority: 39\n")
    answer = cache.raw(GET * 10_000)
    assert answer.count(b"HTTP/1.1 200") < 10_000
    assert cache.is_fine()


def test_rubbish_behind_a_request_spoils_no_answer(cache: Served, large: str) -> None:
    """What is said of it must not pass for a part of the NAR."""
    with cache.connect() as connection:
        connection.sendall(f"GET {large} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        head = connection.recv(1000)
        assert head.startswith(b"HTTP/1.1 200 ")
        with contextlib.suppress(ConnectionError):
            connection.sendall(b"\0\0 nonsense\r\n\r\n")
        rest = all_of(connection)
    body = (head + rest).partition(b"\r\n\r\n")[2]
    nar = encoded(file_events(LARGE))
    assert len(body) < len(nar)
    assert nar.startswith(body)


def test_silence(impatient: Served) -> None:
    """Before, in and after a request."""
    beginnings = (b"", b"\r\n", b"GE", b"GET / HTTP/1.1\r\nhost", GET, GET + b"GET /")
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(impatient.connect()) for _ in beginnings]
        for connection, beginning in zip(connections, beginnings, strict=True):
            connection.sendall(beginning)
        for connection, beginning in zip(connections, beginnings, strict=True):
            assert all_of(connection).count(b"HTTP/1.1 200") == beginning.count(GET)


def test_a_head_that_comes_slowly(impatient: Served) -> None:
    """A byte at a time does not count as progress."""
    with impatient.connect() as connection:
        connection.settimeout(0.02)
        with contextlib.suppress(ConnectionError):
            for _ in range(SECONDS * 50):
                connection.sendall(b"a")
                with contextlib.suppress(TimeoutError):
                    if not connection.recv(1):
                        break
            else:
                pytest.fail("it still listens")


@pytest.mark.parametrize("pause", [None, 0.02])
def test_an_upload_that_stalls(impatient: Served, services: Services, pause: float | None) -> None:
    """Or goes on a byte at a time."""
    before = everything(services)
    nar = sample("stalling", bytes(100_000)).nar
    head = f"PUT {nar_url(nar)} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(nar)}\r\n\r\n"
    with impatient.connect() as connection:
        connection.sendall(head.encode() + nar[:50_000])
        connection.settimeout(pause or SECONDS)
        with contextlib.suppress(ConnectionError):
            for place in range(50_000, 50_000 + SECONDS * 50):
                if pause is not None:
                    connection.sendall(nar[place : place + 1])
                with contextlib.suppress(TimeoutError):
                    if not connection.recv(1):
                        break
            else:
                pytest.fail("it still listens")
    until(lambda: impatient.metric("neve_http_active_uploads") == 0)
    assert everything(services) == before


@pytest.mark.parametrize("encoding", ["identity", "zstd", "gzip"])
def test_a_client_that_does_not_read(impatient: Served, large: str, encoding: str) -> None:
    head = f"GET {large} HTTP/1.1\r\nhost: x\r\naccept-encoding: {encoding}\r\n\r\n"
    with impatient.connect() as connection:
        connection.sendall(head.encode())
        assert connection.recv(12) == b"HTTP/1.1 200"
        # Only the request that asks for the figure is left.
        until(lambda: impatient.metric("neve_http_active_requests") == 1)
        assert len(all_of(connection)) < len(LARGE)


def test_half_an_answer_does_not_pass_for_all_of_it(impatient: Served, large: str) -> None:
    """Also where the end of the connection is the end of the answer."""
    nar = encoded(file_events(LARGE))
    with impatient.connect() as connection:
        connection.sendall(f"GET {nar_url(nar)}.zst HTTP/1.0\r\n\r\n".encode())
        assert connection.recv(12) == b"HTTP/1.1 200"
        until(lambda: impatient.metric("neve_http_active_requests") == 1)
        received = iter(partial(connection.recv, 65536), b"")
        with pytest.raises(ConnectionResetError):
            deque(received, maxlen=0)


def test_a_page_that_takes_its_time(services: Services) -> None:
    """It is not the client who does nothing."""

    async def slow(_: Request) -> Response:
        await asyncio.sleep(1)
        return Response("slow")

    with serving(services, limits=QUICK, pages=[Route("/slow", slow)]) as cache:
        assert cache.http.get("/slow").text == "slow"


def test_a_log_for_a_slow_client(impatient: Served) -> None:
    """It takes him longer than he may do nothing."""
    assert impatient.http.put(LOG, content=LARGE).status_code == 201
    with impatient.connect() as connection:
        connection.sendall(f"GET {LOG} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
        received = bytearray()
        with contextlib.suppress(ConnectionResetError):
            while part := connection.recv(256 * 1024):
                received += part
                time.sleep(0.03)
    assert received.endswith(LARGE[-1000:])


def test_logs_that_nobody_reads_take_a_bounded_amount(services: Services) -> None:
    with serving(services, limits={"max_held_bytes": 60 << 20}) as cache, contextlib.ExitStack() as stack:
        assert cache.http.put(LOG, content=LARGE).status_code == 201
        for _ in range(2):
            connection = stack.enter_context(cache.connect())
            connection.sendall(f"GET {LOG} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
            assert connection.recv(12) == b"HTTP/1.1 200"
        answer = cache.http.get(LOG)
        assert answer.status_code == 503
        assert "max_held_bytes" in answer.text
        stack.close()
        until(lambda: cache.http.get(LOG).content == LARGE)


def test_a_client_that_leaves(cache: Served, large: str) -> None:
    """Nothing goes on for him: no request, no thread that works for it."""
    for encoding in ("identity", "zstd", "gzip"):
        for _ in range(5):
            with cache.connect() as connection:
                head = f"GET {large} HTTP/1.1\r\nhost: x\r\naccept-encoding: {encoding}\r\n\r\n"
                connection.sendall(head.encode())
                assert connection.recv(12) == b"HTTP/1.1 200"
    until(lambda: cache.metric("neve_http_active_requests") == 1)
    assert cache.http.get(large).content == encoded(file_events(LARGE))


def test_too_many_connections(services: Services) -> None:
    with serving(services, limits={"max_connections": 10}) as cache:
        with contextlib.ExitStack() as stack:
            crowd = [stack.enter_context(cache.connect()) for _ in range(10)]
            for each in crowd:
                each.sendall(GET)
                assert each.recv(12) == b"HTTP/1.1 200"
            answer = cache.raw(b"")
            assert status_of(answer) == 503
            assert b"max_connections" in answer
            # Those that are in are served.
            crowd[0].sendall(GET)
            until(lambda: crowd[0].recv(1000, socket.MSG_PEEK).count(b"HTTP/1.1 200") == 1)
        until(cache.is_fine)


def test_a_crowd_that_does_nothing(cache: Served) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(400):
            stack.enter_context(cache.connect()).sendall(b"GET / HTTP/1.1\r\n")
        assert cache.is_fine()
    assert cache.is_fine()


def test_slow_downloads_hold_up_nobody(cache: Served, large: str) -> None:
    """More of them than there are threads, and than may read ahead."""
    nar = encoded(file_events(LARGE))
    with contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(cache.connect()) for _ in range(40)]
        for each in crowd:
            each.sendall(f"GET {large} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
            assert each.recv(12) == b"HTTP/1.1 200"
        assert cache.http.get(large).content == nar
        # And they get all of it, if they want it after all.
        for each in crowd[:3] + crowd[-3:]:
            assert all_of(each).endswith(nar[-1000:])
    until(lambda: cache.metric("neve_http_active_requests") == 1)


def peak_memory(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM")


@pytest.mark.slow
def test_memory_with_a_crowd(tmp_path: Path) -> None:
    """200 that download and do not read, 200 that upload and do not end: all together they would hold
    gigabytes."""
    services = open_services(f"local://{tmp_path}/store")
    nar = encoded(file_events(LARGE))
    node = import_nar(services, [nar], name="large").node
    services.close()
    url = f"/nar/tvix-castore/{encoded_node(encode_node(node))}"
    with process(tmp_path / "store", "--insecure-allow-upload") as cache:
        host, _, port = cache.address.rpartition(":")
        with cache.client() as http:
            assert http.get(url).content == nar
        before = peak_memory(cache.process.pid)
        with contextlib.ExitStack() as stack:
            for _ in range(200):
                connection = stack.enter_context(socket.create_connection((host, int(port)), SECONDS))
                connection.sendall(f"GET {url} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
                assert connection.recv(12) == b"HTTP/1.1 200"
            downloads = peak_memory(cache.process.pid) - before
            head = f"PUT {nar_url(b'')} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(nar)}\r\n\r\n".encode()
            connections = [
                stack.enter_context(socket.create_connection((host, int(port)), SECONDS)) for _ in range(200)
            ]

            def upload(connection: socket.socket) -> None:
                connection.settimeout(1)
                with contextlib.suppress(TimeoutError):
                    connection.sendall(head + nar[:-1000])

            threads = [threading.Thread(target=upload, args=(each,)) for each in connections]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            with cache.client() as http:
                assert http.get("/healthz").status_code == 200
        both = peak_memory(cache.process.pid) - before
    assert downloads < 320 << 20
    assert both < 600 << 20
