"""``neve serve`` as a process: starts, serves with one process or several, ends with grace."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from neve.http_cache.routes import encoded_node
from neve.store.importer import import_nar
from neve.store.services import open_services
from neve.store.wire import encode_node
from neve.testing.servers import Certificates, make_certificates
from neve.tree import BeginFile, Data, EndFile
from tests.http_cache.samples import Sample, nar_url, push, put_narinfo, sample, sha256
from tests.http_cache.serving import SECONDS, Process, all_of, client_of, process, until
from tests.store.helpers import encoded

LARGE = b"".join(sha256(b"%d" % i) for i in range(32 * 1024)) * 16
LARGE_NAR = encoded([BeginFile(b"", False, len(LARGE)), Data(LARGE), EndFile()])
GET = b"GET /nix-cache-info HTTP/1.1\r\nhost: x\r\n\r\n"


def pulled(http: httpx.Client, what: Sample) -> None:
    url = next(line for line in http.get(what.narinfo_url).text.splitlines() if line.startswith("URL: "))
    assert http.get("/" + url.removeprefix("URL: ")).content == what.nar


def connect(cache: Process) -> socket.socket:
    host, _, port = cache.address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=SECONDS)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A store, and the address of a NAR in it that no buffer holds."""
    store = tmp_path_factory.mktemp("large") / "store"
    services = open_services(f"local://{store}")
    node = import_nar(services, [LARGE_NAR], name="large").node
    services.close()
    return store, f"/nar/tvix-castore/{encoded_node(encode_node(node))}"


@contextlib.contextmanager
def half_a_download(cache: Process, url: str) -> Iterator[socket.socket]:
    """A connection that has begun to get a NAR, and waits."""
    with connect(cache) as connection:
        connection.sendall(f"GET {url} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        assert connection.recv(12, socket.MSG_PEEK) == b"HTTP/1.1 200"
        yield connection


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("workers", [1, 2])
def test_what_is_in_flight_ends(large: tuple[Path, str], workers: int, number: signal.Signals) -> None:
    store, url = large
    with process(store, "--workers", str(workers)) as cache:
        with connect(cache) as idle, half_a_download(cache, url) as connection:
            idle.sendall(GET)
            assert idle.recv(12) == b"HTTP/1.1 200"
            cache.process.send_signal(number)
            cache.says("stopping; requests in flight have 30 s")
            # Who does nothing is sent away, and nobody comes any more.
            assert all_of(idle).endswith(b"39\n")
            until(lambda: refuses(cache))
            assert all_of(connection).endswith(LARGE_NAR)
        assert cache.wait() == 0


def refuses(cache: Process) -> bool:
    try:
        connect(cache).close()
    except ConnectionError:
        return True
    return False


def test_a_keep_alive_request_while_it_stops(large: tuple[Path, str]) -> None:
    """One that has begun is answered, with the word that no other will be."""
    store, url = large
    with process(store) as cache, half_a_download(cache, url) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")  # Waits behind the NAR.
        cache.process.send_signal(signal.SIGTERM)
        cache.says("stopping")
        rest = all_of(connection)
        last = rest.rpartition(LARGE_NAR)[2]
        assert last.startswith(b"HTTP/1.1 503")
        assert b"connection: close" in last
        assert last.endswith(b"stopping\n")
        assert cache.wait() == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_grace_has_an_end(large: tuple[Path, str], workers: int) -> None:
    store, url = large
    arguments = ("--workers", str(workers), "--grace", "0.2")
    with process(store, *arguments) as cache, half_a_download(cache, url) as connection:
        assert cache.end() == 0
        assert LARGE_NAR not in all_of(connection)


def test_a_second_signal_does_not_wait(large: tuple[Path, str], tmp_path: Path) -> None:
    store, url = large
    with process(store, listen=f"unix:{tmp_path}/socket") as cache:
        cache.says("listening")
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(f"{tmp_path}/socket")
            connection.sendall(f"GET {url} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
            assert connection.recv(12) == b"HTTP/1.1 200"
            cache.process.send_signal(signal.SIGTERM)
            cache.says("stopping")
            assert cache.end() == 128 + signal.SIGTERM
    assert not (tmp_path / "socket").exists()


def test_an_upload_in_flight_is_stored(tmp_path: Path) -> None:
    what = sample("in-flight", b"text" * 100_000)
    head = f"PUT {nar_url(what.nar)} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(what.nar)}\r\n\r\n"
    with process(tmp_path / "store", "--insecure-allow-upload") as cache, cache.client() as http:
        with connect(cache) as connection:
            connection.sendall(head.encode() + what.nar[:-1])
            until(lambda: "neve_http_active_uploads 1.0" in http.get("/metrics").text)
            cache.process.send_signal(signal.SIGTERM)
            cache.says("stopping")
            connection.sendall(what.nar[-1:])
            answer = all_of(connection)
        assert answer.startswith(b"HTTP/1.1 201")
        assert b"connection: close" in answer
        assert cache.wait() == 0
    # Between the NAR and its narinfo, the cache was started again.
    with process(tmp_path / "store", "--insecure-allow-upload") as cache, cache.client() as http:
        assert http.head(nar_url(what.nar)).status_code == 200
        assert put_narinfo(http, what).status_code == 200
        pulled(http, what)


@pytest.mark.parametrize("compression", ["none", "xz"])
def test_killed_between_a_nar_and_its_narinfo(tmp_path: Path, compression: str) -> None:
    what = sample("killed")
    file = what.file(compression)
    with process(tmp_path / "store", "--insecure-allow-upload") as cache, cache.client() as http:
        assert http.put(nar_url(file, compression), content=file).status_code == 201
        cache.process.kill()
        cache.wait()
    with process(tmp_path / "store", "--insecure-allow-upload") as cache, cache.client() as http:
        assert http.head(nar_url(file, compression)).status_code == 200
        assert put_narinfo(http, what).status_code == 200
        pulled(http, what)


def test_workers(tmp_path: Path) -> None:
    """They share the port, the store and the figures; one that dies is replaced."""
    whats = [sample(f"worker-{number}") for number in range(8)]
    with process(tmp_path / "store", "--insecure-allow-upload", "--workers", "2") as cache:
        url = cache.url
        pids = cache.workers()
        assert len(pids) == 2
        for what in whats:
            with client_of(url) as http:  # A new connection, to any of them.
                push(http, what)
        for what in whats:
            with client_of(url) as http:
                pulled(http, what)
        with client_of(url) as http:
            text = http.get("/metrics").text
        assert 'neve_http_requests_total{method="write",route="nar",status="201"} 8.0' in text
        os.kill(pids[0], signal.SIGKILL)
        cache.says("ended by SIGKILL; starting another")
        cache.says(r"worker \d \(pid \d+\) serves")
        assert len(set(cache.workers()) - set(pids)) == 1
        for _ in range(8):
            with client_of(url) as http:
                assert http.get("/healthz").status_code == 200
                text = http.get("/metrics").text
        # What the dead one has counted stays.
        assert 'neve_http_requests_total{method="write",route="nar",status="201"} 8.0' in text
        assert cache.end() == 0


def test_the_end_of_the_parent_is_the_end_of_its_workers(tmp_path: Path) -> None:
    with process(tmp_path / "store", "--workers", "2") as cache:
        assert cache.address
        pids = cache.workers()
        cache.process.kill()
        cache.wait()
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


def test_one_process_has_a_store_in_memory(tmp_path: Path) -> None:
    with process("memory://", "--insecure-allow-upload") as cache, cache.client() as http:
        push(http, sample("memory"))
    with process("memory://", "--workers", "2") as cache:
        assert cache.wait() == 1
        assert "one process only" in cache.log[-1]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_path(tmp_path: Path, workers: int) -> None:
    where = tmp_path / "socket"
    with process(tmp_path / "store", "--workers", str(workers), listen=f"unix:{where}") as cache:
        cache.says(f"listening on unix:{where}$")
        assert where.stat().st_mode & 0o777 == 0o600
        transport = httpx.HTTPTransport(uds=str(where))
        with httpx.Client(transport=transport, base_url="http://x", timeout=SECONDS) as http:
            assert http.get("/nix-cache-info").status_code == 200
        with process(tmp_path / "store", listen=f"unix:{where}") as second:
            assert second.wait() == 1
            assert "something is already listening" in second.log[-1]
        assert cache.end() == 0
    assert not where.exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_sockets_of_systemd(tmp_path: Path, workers: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        code = (
            f"import os; os.dup2({listener.fileno()}, 3); os.environ.update(LISTEN_PID=str(os.getpid()), "
            f"LISTEN_FDS='1', LISTEN_FDNAMES='web'); os.execv({sys.executable!r}, [{sys.executable!r}, '-m', "
            f"'neve.cli', 'serve', '-l', 'sd-listen:web', '--workers', '{workers}', "
            f"'--store', 'local://{tmp_path}/store'])"
        )
        started = subprocess.Popen(
            [sys.executable, "-c", code], pass_fds=[listener.fileno()], stderr=subprocess.PIPE
        )
    with started:
        try:
            with client_of(f"http://127.0.0.1:{port}") as http:
                assert http.get("/healthz").status_code == 200
        finally:
            started.send_signal(signal.SIGTERM)
        assert started.wait(SECONDS) == 0


def test_ports_that_are_taken(tmp_path: Path) -> None:
    with process(tmp_path / "store") as cache:
        with process(tmp_path / "store", listen=cache.address) as second:
            assert second.wait() == 1
            assert "already in use" in second.log[-1]
        with cache.client() as http:
            assert http.get("/healthz").status_code == 200


def test_several_addresses(tmp_path: Path) -> None:
    where = tmp_path / "socket"
    arguments = ("-l", f"unix:{where}", "-l", "127.0.0.2:0")
    with process(tmp_path / "store", *arguments) as cache:
        cache.says("listening", 3)
        for address in [match[1] for match in cache.says(r"listening on (127\S+)", 2)]:
            with client_of(f"http://{address}") as http:
                assert http.get("/healthz").status_code == 200
        assert where.is_socket()
        assert cache.end() == 0


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


def context(certificates: Certificates, *, shown: bool = False) -> ssl.SSLContext:
    made = ssl.create_default_context(cafile=certificates.ca)
    if shown:
        made.load_cert_chain(certificates.client_certificate, certificates.client_key)
    return made


@pytest.mark.parametrize("workers", [1, 2])
def test_tls(large: tuple[Path, str], certificates: Certificates, workers: int) -> None:
    store, url = large
    files = (f"--tls-cert={certificates.server_certificate}", f"--tls-key={certificates.server_key}")
    with process(store, *files, "--workers", str(workers)) as cache:
        cache.says(r"listening on \S+ \(TLS\)")
        with client_of(f"https://{cache.address}", verify=context(certificates)) as http:
            assert http.get(url).content == LARGE_NAR
            assert (
                http.get(url, headers={"range": "bytes=1000000-1000099"}).content
                == LARGE_NAR[1_000_000:1_000_100]
            )
        with client_of(f"http://{cache.address}") as http, pytest.raises(httpx.TransportError):
            http.get("/healthz")
        with connect(cache) as connection:
            connection.sendall(b"nothing of TLS\r\n\r\n")
            all_of(connection)
        with client_of(f"https://{cache.address}", verify=context(certificates)) as http:
            assert http.get("/healthz").status_code == 200
        assert cache.end() == 0


def test_tls_that_knows_its_clients(tmp_path: Path, certificates: Certificates) -> None:
    files = (
        f"--tls-cert={certificates.server_certificate}",
        f"--tls-key={certificates.server_key}",
        f"--tls-client-ca={certificates.ca}",
    )
    with process(tmp_path / "store", *files) as cache:
        address = f"https://{cache.address}"
        with client_of(address, verify=context(certificates, shown=True)) as http:
            assert http.get("/healthz").status_code == 200
        with client_of(address, verify=context(certificates)) as http, pytest.raises(httpx.TransportError):
            http.get("/healthz")


def test_a_store_that_is_only_read(large: tuple[Path, str]) -> None:
    store, url = large
    with process(store, "--read-only") as cache, cache.client() as http:
        assert http.get(url).content == LARGE_NAR
        assert http.put("/nar/x.nar", content=b"").status_code == 403
    with process(store.with_name("nothing"), "--read-only") as cache:
        assert cache.wait() == 1
