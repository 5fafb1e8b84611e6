"""Figures that processes count together, and who gives them out."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from neve.errors import Corrupt, DiskFull, InvalidRequest, NeveError, Unsupported
from neve.serving import metrics_server
from neve.serving.metrics import (
    BUCKETS,
    BUG,
    FEW,
    KINDS,
    Family,
    Layout,
    Row,
    SharedRows,
    inherited,
    kind_of,
    label,
)
from neve.serving.metrics_server import MAX_CONNECTIONS, MAX_HEAD_BYTES, MetricsServer, answer_to
from neve.serving.pools import Pool
from neve.telemetry import FIGURES

SECONDS = 90

CALLS = Family("counter", "test_calls", "Calls.", label("by", ("a", "b")), label("how", ("x", "y", "z")))
TIMES = Family("histogram", "test_seconds", "Times.", label("by", ("a", "b")))
OPEN = Family("gauge", "test_open", "Open.")
MANY = Family("counter", "test_many", "Many.", label("by", [str(number) for number in range(FEW + 1)]))
LAYOUT = Layout(CALLS, TIMES, OPEN, MANY)


def figures(text: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """The figures by name and labels, as Prometheus reads them."""
    families = text_string_to_metric_families(text.decode())
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


@pytest.fixture
def rows() -> Iterator[SharedRows]:
    rows = SharedRows(LAYOUT, 2)
    yield rows
    rows.close()


def test_places_do_not_overlap() -> None:
    places = [
        place + offset for family in LAYOUT.families for _, place in family for offset in range(family.width)
    ]
    assert sorted(places) == list(range(LAYOUT.size))
    assert set(LAYOUT.figures) == set(FIGURES)
    for family in LAYOUT.families:
        values = [range(len(each.values)) for each in family.labels]
        if len(values) == 2:
            assert [family.place(a, b) for a in values[0] for b in values[1]] == [p for _, p in family]


def test_rows_are_added_up(rows: SharedRows) -> None:
    one, two = Row(rows, 0), Row(rows, 1)
    one.add(CALLS.place(1, 2))
    two.add(CALLS.place(1, 2), 4)
    one.observe(TIMES.place(0), 0.02)
    two.observe(TIMES.place(0), 1000)
    one.set(OPEN.start, 2)
    two.set(OPEN.start, 3)
    two.error("Corrupt")
    two.count("blobs_known", 7)
    found = figures(rows.text())
    assert found["test_calls_total", (("by", "b"), ("how", "z"))] == 5
    assert found["test_open", ()] == 5
    assert found["neve_errors_total", (("kind", "Corrupt"),)] == 1
    assert found["neve_blobs_total", (("state", "known"),)] == 7
    # Nobody notices the first error of a kind that was not there before.
    assert found["neve_errors_total", (("kind", "DiskFull"),)] == 0
    assert ("test_many_total", (("by", "0"),)) not in found
    counts = [found["test_seconds_bucket", (("by", "a"), ("le", str(bound)))] for bound in BUCKETS]
    assert counts == [0, 0, *[1] * (len(BUCKETS) - 2)]
    assert found["test_seconds_bucket", (("by", "a"), ("le", "+Inf"))] == 2
    assert found["test_seconds_sum", (("by", "a"),)] == pytest.approx(1000.02)


def test_a_process_that_inherits(rows: SharedRows) -> None:
    share = rows.share(1)
    Row(rows, 1).add(OPEN.start)
    Row(rows, 1).add(CALLS.start)
    same, number = inherited(LAYOUT, {**share, "descriptor": os.dup(share["descriptor"])})
    Row(same, number).add(CALLS.start)
    found = figures(rows.text())
    # What was under way in the process before it, is not any more.
    assert found["test_open", ()] == 0
    assert found["test_calls_total", (("by", "a"), ("how", "x"))] == 2
    same.close()
    with pytest.raises(KeyError):
        inherited(LAYOUT, {})


def test_threads_count_together(rows: SharedRows) -> None:
    row = Row(rows, 0)

    def work() -> None:
        for _ in range(5000):
            row.count("blobs_new", 1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert figures(rows.text())["neve_blobs_total", (("state", "new"),)] == 20_000


def test_kinds_of_errors() -> None:
    class Odd(Unsupported):
        pass

    for error, kind in (
        (Corrupt("x"), "Corrupt"),
        (DiskFull("x"), "DiskFull"),
        (InvalidRequest("x"), "InvalidRequest"),
        (Odd("x"), "Unsupported"),
        (NeveError("x"), BUG),
        (ValueError("x"), BUG),
    ):
        assert kind_of(error) == kind
        assert kind in KINDS


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_waits_for_threads() -> None:
    async def run() -> list[int]:
        told: list[int] = []
        pool = Pool("test", 2, told.append)
        go = threading.Event()
        running = [pool.run(go.wait, SECONDS) for _ in range(5)]
        assert told == [1, 2, 3]
        go.set()
        assert await asyncio.gather(*running) == [True] * 5
        with pytest.raises(ValueError):
            await pool.run(int, "x")
        await asyncio.to_thread(pool.shutdown)
        return told

    assert asyncio.run(run()) == [1, 2, 3, 2, 1, 0]


@pytest.mark.parametrize(
    ("head", "status", "body"),
    [
        (b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n", b"200 OK", b"figures\n"),
        (b"GET /metrics?a=b HTTP/1.0\r\n\r\n", b"200 OK", b"figures\n"),
        (b"HEAD /metrics HTTP/1.1\r\n\r\n", b"200 OK", b""),
        (b"GET / HTTP/1.1\r\n\r\n", b"404 Not Found", b"there is only /metrics\n"),
        (b"GET http://x/metrics HTTP/1.1\r\n\r\n", b"404 Not Found", b"there is only /metrics\n"),
        (b"POST /metrics HTTP/1.1\r\n\r\n", b"405 Method Not Allowed", b"only GET and HEAD\n"),
        (b"GET /metrics\r\n\r\n", b"400 Bad Request", b"this is no HTTP request\n"),
        (b"GET /metrics HTTP/2\r\n\r\n", b"400 Bad Request", b"this is no HTTP request\n"),
        (b"\x16\x03\x01 \xff\r\n\r\n", b"400 Bad Request", b"this is no HTTP request\n"),
        (b"\r\n\r\n", b"400 Bad Request", b"this is no HTTP request\n"),
    ],
)
def test_requests_for_figures(head: bytes, status: bytes, body: bytes) -> None:
    top, _, rest = answer_to(head, lambda: b"figures\n").partition(b"\r\n\r\n")
    assert top.startswith(b"HTTP/1.1 " + status + b"\r\ncontent-type: text/plain;")
    assert rest == body
    if body:
        assert b"content-length: %d\r\n" % len(body) in top


@contextlib.contextmanager
def listening(family: int, tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.bind(("127.0.0.1", 0) if family == socket.AF_INET else str(tmp_path / "socket"))
        yield listener


def ask(listener: socket.socket, request: bytes) -> bytes:
    """All that is answered."""
    with socket.socket(listener.family, socket.SOCK_STREAM) as client:
        client.settimeout(SECONDS)
        until(lambda: client.connect_ex(listener.getsockname()) == 0)
        with contextlib.suppress(ConnectionError):
            client.sendall(request)
        parts = []
        with contextlib.suppress(ConnectionError):
            while part := client.recv(65536):
                parts.append(part)
        return b"".join(parts)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
def test_they_are_given_out(family: int, tmp_path: Path) -> None:
    with listening(family, tmp_path) as listener:
        server = MetricsServer([listener], lambda: b"x" * 1_000_000)
        try:
            for _ in range(3):
                assert ask(listener, b"GET /metrics HTTP/1.1\r\n\r\n").endswith(
                    b"\r\n\r\n" + b"x" * 1_000_000
                )
            # Whoever sends too much, or nothing, or too little, disturbs nobody.
            assert ask(listener, b"GET /metrics HTTP/1.1\r\nx: " + bytes(MAX_HEAD_BYTES * 4)) == b""
            with socket.socket(family, socket.SOCK_STREAM) as idle:
                idle.connect(listener.getsockname())
                idle.sendall(b"GET /met")
                assert ask(listener, b"GET /nothing HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 404 ")
        finally:
            server.close()
        server.close()


def test_connections_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = b"GET /metrics HTTP/1.1\r\n\r\n"
    with listening(socket.AF_UNIX, tmp_path) as listener, contextlib.ExitStack() as stack:
        server = MetricsServer([listener], lambda: b"fine")
        stack.callback(server.close)
        assert ask(listener, request).endswith(b"fine")
        idle = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(MAX_CONNECTIONS)]
        for each in idle:
            each.connect(listener.getsockname())
        until(lambda: ask(listener, request) == b"")
        for each in idle:
            each.close()
        until(lambda: ask(listener, request).endswith(b"fine"))
    monkeypatch.setattr(metrics_server, "_SECONDS", 0.05)
    with listening(socket.AF_INET, tmp_path) as listener:
        server = MetricsServer([listener], lambda: b"fine")
        # Nobody waits for ever for the rest.
        assert ask(listener, b"GET /metr") == b""
        server.close()


def test_whoever_reads_nothing_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """His connection ends in time, whatever is left of the answer."""
    monkeypatch.setattr(metrics_server, "_SECONDS", 0.05)
    request = b"GET /metrics HTTP/1.1\r\n\r\n"
    figures = bytes(16_000_000)
    with listening(socket.AF_UNIX, tmp_path) as listener, socket.socket(socket.AF_UNIX) as idle:
        server = MetricsServer([listener], lambda: figures)
        try:
            until(lambda: idle.connect_ex(listener.getsockname()) == 0)
            idle.sendall(request)
            # Tells that the other end is closed, while there is something left to read.
            watch = select.poll()
            watch.register(idle, select.POLLRDHUP)
            assert watch.poll(SECONDS * 1000)
        finally:
            server.close()


def test_figures_that_cannot_be_made(tmp_path: Path) -> None:
    def fail() -> bytes:
        raise RuntimeError("broken")

    with listening(socket.AF_UNIX, tmp_path) as listener:
        server = MetricsServer([listener], fail)
        try:
            for _ in range(2):
                answer = ask(listener, b"GET /metrics HTTP/1.1\r\n\r\n")
                assert answer.startswith(b"HTTP/1.1 500 Internal Server Error\r\n")
        finally:
            server.close()
