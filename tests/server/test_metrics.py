"""The figures of a real daemon, as Prometheus reads them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import grpc
import httpx
import pytest

from neve.castore.blobs.grpc import GrpcBlobService
from neve.castore.digest import b3_digest
from neve.errors import NotFound
from neve.library import open_store
from neve.proto.tvix.castore.protos import rpc_blobstore_pb2
from neve.server.figures import METHODS, SERVICES
from tests.castore.damage import damage_blob
from tests.server.test_daemon_process import Process, Start, channel, daemon, until
from tests.serving.test_metrics import figures

__all__ = ["daemon"]


def putting(connection: grpc.Channel, family: str = "tvix") -> Any:
    """The call that puts a blob."""
    return connection.stream_unary(
        f"/{family}.castore.v1.BlobService/Put",
        request_serializer=rpc_blobstore_pb2.BlobChunk.SerializeToString,
    )


Found = dict[tuple[str, tuple[tuple[str, str], ...]], float]


class Scraped:
    """A daemon with an address for figures."""

    def __init__(self, process: Process, socket: Path) -> None:
        self.process = process
        self.target = f"unix:{socket}"
        self.url = f"grpc+unix://{socket}"
        self._http = f"http://{process.address(1)}/metrics"

    def figures(self) -> Found:
        answer = httpx.get(self._http, timeout=90, trust_env=False)
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        return figures(answer.content)

    def value(self, name: str, **labels: str) -> float:
        return self.figures().get((name, tuple(sorted(labels.items()))), 0.0)

    def comes(self, method: str, code: str = "OK", count: int = 1) -> None:
        """Waits until so many calls have ended: they are answered a moment before that."""
        until(lambda: self.calls(method, code) == count)

    def calls(self, method: str, code: str = "OK") -> float:
        service, _, name = method.partition(".")
        return self.value("neve_grpc_requests_total", service=service, method=name, code=code)


def scraped(daemon: Start, tmp_path: Path, *arguments: str) -> Scraped:
    socket = tmp_path / "socket"
    process = daemon("-l", f"unix:{socket}", "--metrics-listen", "127.0.0.1:0", *arguments)
    assert process.says(r"listening on 127\.0\.0\.1:\d+ \(metrics\)")
    return Scraped(process, socket)


def test_every_method_has_its_figures() -> None:
    assert len(set(METHODS)) == len(METHODS)
    assert {service.name for service in SERVICES} == {service for service, _ in METHODS}


def test_figures_grow(daemon: Start, tmp_path: Path) -> None:
    scrape = scraped(daemon, tmp_path)
    before = scrape.figures()
    assert before["neve_grpc_active_requests", ()] == 0
    assert before["neve_grpc_received_bytes_total", ()] == 0
    contents = [os.urandom(100_000) for _ in range(3)]
    with open_store(scrape.url) as store:
        digests = store.blobs.put_many(contents)
        assert list(store.blobs.read_many(digests)) == contents
        sent = scrape.value("neve_grpc_sent_bytes_total")
        assert sent > 300_000
        assert list(store.blobs.read_many(digests)) == contents
        assert scrape.value("neve_grpc_sent_bytes_total") >= sent + 300_000
    assert scrape.value("neve_grpc_received_bytes_total") > 300_000
    until(lambda: scrape.value("neve_grpc_active_requests") == 0)
    assert scrape.calls("BatchService.Put") + scrape.calls("BatchService.Put", "CANCELLED") == 1
    assert scrape.calls("BatchService.Read") >= 2
    labels = (("method", "Read"), ("service", "BatchService"))
    found = scrape.figures()
    count = found["neve_grpc_request_seconds_count", labels]
    assert count == scrape.calls("BatchService.Read") + scrape.calls("BatchService.Read", "CANCELLED")
    assert found["neve_grpc_request_seconds_sum", labels] > 0
    for pool in ("work", "ingest", "commit", "fetch"):
        assert found["neve_grpc_queued_work", (("pool", pool),)] == 0
    assert found["neve_grpc_held_bytes", ()] == found["neve_grpc_waiting_uploads", ()] == 0


def test_what_is_known_already_is_told(daemon: Start, tmp_path: Path) -> None:
    scrape = scraped(daemon, tmp_path)
    contents = os.urandom(100_000)
    with channel(scrape.target) as connection:
        put = putting(connection)
        for expected in (0, 1):
            put(iter([rpc_blobstore_pb2.BlobChunk(data=contents)]), timeout=90)
            assert scrape.value("neve_blobs_total", state="new") == 1
            assert scrape.value("neve_blob_bytes_total", state="new") == 100_000
            assert scrape.value("neve_blobs_total", state="known") == expected
            assert scrape.value("neve_blob_bytes_total", state="known") == expected * 100_000
    # Both names of a service are one.
    with channel(scrape.target) as connection:
        putting(connection, "snix")(iter([]), timeout=90)
    scrape.comes("BlobService.Put", count=3)


def test_an_open_call_is_told_while_it_is_open(daemon: Start, tmp_path: Path) -> None:
    scrape = scraped(daemon, tmp_path)
    with channel(scrape.target) as connection:
        call = putting(connection).future(_endless())
        until(lambda: scrape.value("neve_grpc_active_requests") == 1)
        call.cancel()
        until(lambda: scrape.value("neve_grpc_active_requests") == 0)
    scrape.comes("BlobService.Put", "CANCELLED")
    assert {value for (name, _), value in scrape.figures().items() if name == "neve_errors_total"} == {0}


def _endless() -> Iterator[rpc_blobstore_pb2.BlobChunk]:
    while True:
        yield rpc_blobstore_pb2.BlobChunk(data=b"x" * 1000)


def test_errors_by_their_kind(daemon: Start, tmp_path: Path) -> None:
    with open_store(f"local://{tmp_path}/store") as store:
        (digest,) = store.blobs.put_many([os.urandom(100_000)])
        damage_blob(store.blobs, digest)
    scrape = scraped(daemon, tmp_path, "--read-only")
    with channel(scrape.target) as connection:
        for name, asked, code, kind in (
            ("Read", digest, "DATA_LOSS", "Corrupt"),
            ("Read", bytes(32), "NOT_FOUND", "NotFound"),
            ("Stat", b"short", "INVALID_ARGUMENT", "InvalidRequest"),
        ):
            request = getattr(rpc_blobstore_pb2, f"{name}BlobRequest")(digest=asked)
            call: Any = connection.unary_stream(
                f"/tvix.castore.v1.BlobService/{name}", request_serializer=type(request).SerializeToString
            )
            with pytest.raises(grpc.RpcError) as failure:
                list(call(request, timeout=90))
            assert failure.value.code().name == code
            assert scrape.value("neve_errors_total", kind=kind) == 1
            scrape.comes(f"BlobService.{name}", code)
        with pytest.raises(grpc.RpcError):
            putting(connection)(iter([]), timeout=90)
        assert scrape.value("neve_errors_total", kind="PermissionDenied") == 1


def test_workers_add_up(daemon: Start, tmp_path: Path) -> None:
    """Also one that takes another's place."""
    scrape = scraped(daemon, tmp_path, "--workers", "2")

    def ask() -> None:
        for _ in range(20):
            # A connection each: they are spread over the workers.
            with channel(scrape.target) as connection:
                stat: Any = connection.unary_unary(
                    "/tvix.castore.v1.BlobService/Stat",
                    request_serializer=rpc_blobstore_pb2.StatBlobRequest.SerializeToString,
                )
                stat(rpc_blobstore_pb2.StatBlobRequest(digest=b3_digest(b"")), timeout=90)

    ask()
    scrape.comes("BlobService.Stat", count=20)
    workers = scrape.process.workers()
    os.kill(workers[0], signal.SIGKILL)
    scrape.process.says(r"worker \d \(pid \d+\) serves")
    ask()
    scrape.comes("BlobService.Stat", count=40)
    assert scrape.process.end() == 0


def test_what_was_found_near(daemon: Start, tmp_path: Path) -> None:
    far = tmp_path / "far"
    with open_store(f"local://{far}") as store:
        (digest,) = store.blobs.put_many([b"x" * 1000])
    near, there = (quote(f"local://{tmp_path}/{name}", safe="") for name in ("near", "far"))
    scrape = scraped(daemon, tmp_path, "--blob-service-addr", f"cache://?near={near}&far={there}")
    with open_store(scrape.url) as store:
        assert isinstance(store.blobs, GrpcBlobService)
        for _ in range(2):
            assert store.blobs.read(digest) == b"x" * 1000
    assert scrape.value("neve_lookups_total", what="blobs", result="miss") == 1
    assert scrape.value("neve_lookups_total", what="blobs", result="hit") == 1
    with open_store(scrape.url) as store, pytest.raises(NotFound):
        store.blobs.read(bytes(32))
    assert scrape.value("neve_lookups_total", what="blobs", result="miss") == 2


def test_over_a_socket(daemon: Start, tmp_path: Path) -> None:
    process = daemon("-l", f"unix:{tmp_path}/socket", "--metrics-listen", f"unix:{tmp_path}/figures")
    process.says("figures")
    assert (tmp_path / "figures").stat().st_mode & 0o777 == 0o600
    transport = httpx.HTTPTransport(uds=str(tmp_path / "figures"))
    with httpx.Client(transport=transport, timeout=90) as client:
        assert b"neve_grpc_active_requests 0.0" in client.get("http://x/metrics").content
        assert client.get("http://x/").status_code == 404
    assert process.end() == 0
    assert not (tmp_path / "figures").exists()


def test_an_address_that_is_taken(daemon: Start, tmp_path: Path) -> None:
    first = scraped(daemon, tmp_path)
    process = daemon("-l", f"unix:{tmp_path}/other", "--metrics-listen", first.process.address(1))
    assert process.wait() == 1
    assert "already in use" in process.log[-1]
    assert not (tmp_path / "other").exists()


def test_without_the_library(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['prometheus_client'] = None\n"
        "import importlib.util\nfind = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *more: None if name == 'prometheus_client' else find(name)\n"
        "from neve.cli.__main__ import main\nsys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "daemon", "--store", f"local://{tmp_path}/store"]
    done = subprocess.run([*command, "--metrics-listen", "[::1]:0"], capture_output=True, timeout=90)
    assert done.returncode == 1
    assert (
        done.stderr
        == b"neve: --metrics-listen needs prometheus_client, not installed here: install neve[metrics]\n"
    )
