"""``neve daemon`` as a process: starts, serves, ends, with one process that serves or with several."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from neve.proto.tvix.castore.protos import rpc_blobstore_pb2
from neve.rpc.methods import methods_of
from neve.server.settings import Endpoint, Settings, to_json
from neve.testing.servers import Certificates, make_certificates

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SECONDS = 90


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


NEVE = (sys.executable, "-m", "neve.cli")


class Process:
    """A running ``neve daemon``."""

    def __init__(self, folder: Path, *arguments: str, program: Sequence[str] = NEVE, **options: Any) -> None:
        self.log: list[str] = []
        command = [*program, "daemon", *arguments]
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("LISTEN_")},
            "NEVE_STORE": f"local://{folder}/store",
        }
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env=environment, cwd=folder, **options
        )
        self._reading = threading.Thread(target=self._read)
        self._reading.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line.rstrip("\n"))

    def says(self, pattern: str, count: int = 1) -> list[re.Match[str]]:
        """Waits until so many lines match."""
        found: list[re.Match[str]] = []

        def there() -> bool:
            found[:] = [match for line in self.log if (match := re.search(pattern, line))]
            return len(found) >= count or self.process.poll() is not None

        until(there)
        assert len(found) >= count, self.log
        return found

    def address(self, number: int = 0) -> str:
        """An address that it listens on."""
        return self.says(r"listening on (\S+)", number + 1)[number][1]

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Sends a signal and waits; the exit code."""
        self.send(number)
        return self.wait()

    def wait(self) -> int:
        code = self.process.wait(timeout=SECONDS)
        self._reading.join()
        assert self.process.stderr is not None
        self.process.stderr.close()
        return code

    def folders(self, beginning: str) -> list[str]:
        """What it has open below a place."""
        descriptors = Path(f"/proc/{self.process.pid}/fd").iterdir()
        return [path for each in descriptors if (path := os.readlink(each)).startswith(beginning)]

    def workers(self) -> list[int]:
        """The processes that it has started."""
        pid = self.process.pid
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
        return sorted(int(child) for child in text.split() if alive(int(child)))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False


Start = Callable[..., Process]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Start]:
    started: list[Process] = []

    def start(*arguments: str, **options: Any) -> Process:
        started.append(Process(tmp_path, *arguments, **options))
        return started[-1]

    yield start
    for each in started:
        if each.process.poll() is None:
            each.process.kill()
        each.wait()


@contextlib.contextmanager
def channel(address: str, credentials: grpc.ChannelCredentials | None = None) -> Iterator[grpc.Channel]:
    # A connection of its own, not one that another channel of this process has to the same address.
    options = [("grpc.use_local_subchannel_pool", 1)]
    if credentials is None:
        made = grpc.insecure_channel(address, options)
    else:
        made = grpc.secure_channel(address, credentials, options)
    with made:
        yield made


def checking(connection: grpc.Channel) -> grpc.UnaryUnaryMultiCallable[Any, Any]:
    return connection.unary_unary(
        "/grpc.health.v1.Health/Check",
        health_pb2.HealthCheckRequest.SerializeToString,
        health_pb2.HealthCheckResponse.FromString,
    )


def health(connection: grpc.Channel, service: str = "") -> int:
    request = health_pb2.HealthCheckRequest(service=service)
    return int(checking(connection)(request, timeout=SECONDS, wait_for_ready=True).status)


def is_healthy(address: str, credentials: grpc.ChannelCredentials | None = None) -> bool:
    with channel(address, credentials) as connection:
        return health(connection) == SERVING


def refusal(address: str, credentials: grpc.ChannelCredentials | None = None) -> grpc.StatusCode:
    """How a call fails."""
    with channel(address, credentials) as connection, pytest.raises(grpc.RpcError) as failure:
        checking(connection)(health_pb2.HealthCheckRequest(), timeout=SECONDS)
    code = failure.value.code()
    assert isinstance(code, grpc.StatusCode)
    return code


class Upload:
    """A blob on its way, for as long as it is to last."""

    SIZE = 4 << 20
    """So much is not sent before the server takes it: then the call is in flight there too."""

    def __init__(self, connection: grpc.Channel, end: bytes = b"") -> None:
        self._last = end
        method = methods_of(rpc_blobstore_pb2.DESCRIPTOR.services_by_name["BlobService"])["Put"]
        put = connection.stream_unary(
            method.path, method.request.SerializeToString, method.response.FromString
        )
        self._end = threading.Event()
        self._begun = threading.Event()
        self._call = put.future(self._parts(), timeout=SECONDS, wait_for_ready=True)
        until(lambda: self._begun.is_set() or self._call.done())

    def _parts(self) -> Iterator[Any]:
        for _ in range(16):
            yield rpc_blobstore_pb2.BlobChunk(data=bytes(self.SIZE // 16))
        self._begun.set()
        self._end.wait(SECONDS)
        yield rpc_blobstore_pb2.BlobChunk(data=self._last)

    def finish(self) -> bytes:
        """Sends the rest; the digest."""
        self._end.set()
        digest: bytes = self._call.result().digest
        return digest

    def failure(self) -> grpc.StatusCode:
        error = self._call.exception(timeout=SECONDS)
        self._end.set()
        assert isinstance(error, grpc.RpcError)
        code: grpc.StatusCode = error.code()
        return code


def test_one_process(daemon: Start, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    running = daemon("-l", str(path), "-l", "127.0.0.1:0", "--admin-listen", f"{tmp_path}/admin")
    addresses = [running.address(i) for i in range(3)]
    assert addresses[0] == f"unix:{path}"
    assert addresses[2] == f"unix:{tmp_path}/admin"
    assert re.fullmatch(r"127\.0\.0\.1:[1-9]\d+", addresses[1])
    for address in addresses:
        assert is_healthy(address)
    assert running.workers() == []
    # Nobody else gets the addresses.
    for taken in addresses[:2]:
        second = daemon("-l", taken)
        assert second.wait() == 1
        assert len(second.log) == 1
        assert "already" in second.log[0]
        assert taken in second.log[0]
    assert is_healthy(addresses[0])
    assert running.end() == 0
    assert sorted(os.listdir(tmp_path)) == ["store"]
    assert refusal(addresses[1]) is grpc.StatusCode.UNAVAILABLE
    assert running.log[-1].startswith("neve: stopping")


@pytest.mark.parametrize("workers", [1, 2])
def test_calls_in_flight_finish(daemon: Start, tmp_path: Path, workers: int) -> None:
    running = daemon("-l", f"{tmp_path}/socket", "--workers", str(workers))
    with channel(running.address()) as connection:
        upload = Upload(connection)
        running.send(signal.SIGINT)
        running.says("stopping")
        until(lambda: not (tmp_path / "socket").exists())
        until(lambda: health(connection) == NOT_SERVING)  # A worker is told after that.
        assert health(connection, "tvix.castore.v1.BlobService") == NOT_SERVING
        assert running.process.poll() is None
        assert len(upload.finish()) == 32
    assert running.wait() == 0
    assert os.listdir(tmp_path) == ["store"]


@pytest.mark.parametrize("workers", [1, 2])
def test_the_grace_time_is_bounded(daemon: Start, tmp_path: Path, workers: int) -> None:
    running = daemon("-l", f"{tmp_path}/socket", "--workers", str(workers), "--grace", "0.2")
    with channel(running.address()) as connection:
        upload = Upload(connection)
        assert running.end() == 0
        assert upload.failure() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_second_signal_does_not_wait(daemon: Start, tmp_path: Path, workers: int) -> None:
    running = daemon("-l", f"{tmp_path}/socket", "--workers", str(workers))
    with channel(running.address()) as connection:
        Upload(connection)
        children = running.workers()
        running.send(signal.SIGTERM)
        running.says("stopping")
        assert running.end() == 128 + signal.SIGTERM
    assert os.listdir(tmp_path) == ["store"]
    until(lambda: not any(map(alive, children)))


def test_ignored_signals_stay_so(daemon: Start, tmp_path: Path) -> None:
    def ignore() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    running = daemon("-l", f"{tmp_path}/socket", preexec_fn=ignore)
    running.address()
    running.send(signal.SIGHUP)
    assert is_healthy(running.address())
    assert running.end(signal.SIGINT) == 0
    running = daemon("-l", f"{tmp_path}/socket")
    running.address()
    assert running.end(signal.SIGHUP) == 0


def connections_of(pid: int) -> int:
    """The connections to a process that are open, as it sees them: sockets that were accepted."""
    inodes = set()
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(FileNotFoundError):
                target = os.readlink(f"/proc/{pid}/fd/{name}")
                inodes.add(target[8:-1] if target.startswith("socket:[") else "")
    connected = 0
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        fields = line.split()
        connected += fields[5] == "03" and fields[6] in inodes
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            connected += fields[3] == "01" and fields[9] in inodes
    return connected


def test_workers_share_the_load(daemon: Start, tmp_path: Path) -> None:
    running = daemon("-l", f"{tmp_path}/socket", "-l", "127.0.0.1:0", "--workers", "2")
    unix, tcp = running.address(0), running.address(1)
    workers = running.workers()
    assert len(workers) == 2

    def share(address: str, count: int) -> list[int]:
        before = [connections_of(pid) for pid in workers]
        with contextlib.ExitStack() as stack:
            for _ in range(count):
                assert health(stack.enter_context(channel(address))) == SERVING
            shares = [connections_of(pid) - old for pid, old in zip(workers, before, strict=True)]
        until(lambda: [connections_of(pid) for pid in workers] == before)
        return shares

    assert share(unix, 6) == [3, 3]
    on_tcp = share(tcp, 24)
    assert sum(on_tcp) == 24
    assert min(on_tcp) > 0
    # What one has stored, the other one has.
    method = methods_of(rpc_blobstore_pb2.DESCRIPTOR.services_by_name["BlobService"])["Stat"]
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(channel(unix)) for _ in range(4)]
        digest = Upload(connections[0]).finish()
        for connection in connections:
            stat = connection.unary_unary(
                method.path, method.request.SerializeToString, method.response.FromString
            )
            stat(method.request(digest=digest), timeout=SECONDS)
    assert running.end() == 0
    assert os.listdir(tmp_path) == ["store"]
    until(lambda: not any(map(alive, workers)))


def test_a_worker_that_is_killed(daemon: Start, tmp_path: Path) -> None:
    running = daemon("-l", f"{tmp_path}/socket", "-l", "127.0.0.1:0", "--workers", "2")
    unix, tcp = running.address(0), running.address(1)
    workers = running.workers()
    os.kill(workers[0], signal.SIGKILL)
    for address in (unix, unix, tcp, tcp):
        assert is_healthy(address)
    running.says(rf"worker \d \(pid {workers[0]}\) was ended by SIGKILL; starting another one in 0.1 s")
    running.says("serves")
    after = running.workers()
    assert workers[1] in after
    assert workers[0] not in after
    assert len(after) == 2
    # Ctrl-C on a terminal goes to all of them; they leave it to their parent.
    for pid in after:
        os.kill(pid, signal.SIGINT)
    for address in (unix, tcp):
        assert is_healthy(address)
    assert running.workers() == after
    assert running.end() == 0


@pytest.mark.parametrize("call", [False, True])
def test_the_parent_is_killed(daemon: Start, tmp_path: Path, call: bool) -> None:
    running = daemon("-l", f"{tmp_path}/socket", "--workers", "2")
    running.address()
    workers = running.workers()
    (private,) = running.folders(f"{tempfile.gettempdir()}/neve-")
    assert len(os.listdir(private)) == 2
    with channel(running.address()) as connection:
        if call:
            Upload(connection)
        assert running.end(signal.SIGKILL) == -signal.SIGKILL
        until(lambda: not any(map(alive, workers)))
    assert not os.path.exists(private)
    # What it left is no obstacle.
    assert sorted(os.listdir(tmp_path)) == ["socket", "store"]
    running = daemon("-l", f"{tmp_path}/socket")
    assert is_healthy(running.address())


def test_two_at_once_for_one_path(daemon: Start, tmp_path: Path) -> None:
    both = [daemon("-l", f"{tmp_path}/socket") for _ in range(2)]
    until(lambda: any(each.process.poll() is not None for each in both))
    until(lambda: any("listening" in line for each in both for line in each.log))
    loser, winner = sorted(both, key=lambda each: each.process.poll() is None)
    assert loser.wait() == 1
    assert loser.log[-1] == f"neve: something is already listening on unix:{tmp_path}/socket"
    assert is_healthy(winner.address())
    assert winner.end() == 0


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


def tls_options(certificates: Certificates) -> list[str]:
    return [
        f"--tls-cert={certificates.server_certificate}",
        f"--tls-key={certificates.server_key}",
        f"--tls-client-ca={certificates.ca}",
    ]


@pytest.mark.parametrize("workers", [1, 2])
def test_client_certificates(daemon: Start, certificates: Certificates, tmp_path: Path, workers: int) -> None:
    (tmp_path / "others").mkdir()
    others = make_certificates(tmp_path / "others")
    # Clients that trust the server, and have a certificate of another authority.
    stranger = grpc.ssl_channel_credentials(
        certificates.ca.read_bytes(), others.client_key.read_bytes(), others.client_certificate.read_bytes()
    )
    administrator = grpc.ssl_channel_credentials(
        certificates.ca.read_bytes(), others.client_key.read_bytes(), others.client_certificate.read_bytes()
    )
    arguments = ["-l", "localhost:0", "--admin-listen", "localhost:0", f"--tls-admin-ca={others.ca}"]
    running = daemon(*arguments, *tls_options(certificates), "--workers", str(workers))
    use, admin = running.address(0), running.address(1)
    assert is_healthy(use, certificates.channel_credentials())
    assert is_healthy(admin, administrator)
    for address, credentials in (
        (use, certificates.channel_credentials(client=False)),
        (use, stranger),
        (use, None),
        (use, others.channel_credentials()),
        (admin, certificates.channel_credentials()),
        (admin, certificates.channel_credentials(client=False)),
    ):
        assert refusal(address, credentials) is grpc.StatusCode.UNAVAILABLE
    assert running.end() == 0
    assert all(line.startswith("neve: ") for line in running.log), running.log


@pytest.mark.parametrize("workers", [1, 2])
def test_certificates_are_renewed(
    daemon: Start, certificates: Certificates, tmp_path: Path, workers: int
) -> None:
    """One file after the other, so that for a moment they do not belong together."""
    (tmp_path / "others").mkdir()
    others = make_certificates(tmp_path / "others")
    live = [tmp_path / "live.pem", tmp_path / "live.key", tmp_path / "ca.pem"]

    def renew(source: Certificates) -> list[Callable[[], object]]:
        files = (source.server_certificate, source.server_key, source.ca)
        return [partial(shutil.copy, file, path) for file, path in zip(files, live, strict=True)]

    def is_let_in(source: Certificates) -> bool:
        """By all workers, most likely."""
        return all(is_healthy(address, source.channel_credentials()) for _ in range(3 * workers))

    for step in renew(certificates):
        step()
    options = [f"--tls-cert={live[0]}", f"--tls-key={live[1]}", f"--tls-client-ca={live[2]}"]
    running = daemon("-l", "localhost:0", *options, "--workers", str(workers))
    address = running.address()
    assert is_let_in(certificates)
    first, *rest = renew(others)
    first()
    assert is_let_in(certificates)
    running.says(r"--tls-key .* does not belong to the certificate .*; what was known before stays")
    for step in rest:
        step()
    assert is_let_in(others)
    assert refusal(address, certificates.channel_credentials()) is grpc.StatusCode.UNAVAILABLE
    assert running.end() == 0


def test_from_outside(daemon: Start, certificates: Certificates) -> None:
    refused = daemon("-l", "0.0.0.0:0")
    assert refused.wait() == 1
    assert len(refused.log) == 1
    assert "--insecure" in refused.log[0]
    open_to_all = daemon("-l", "0.0.0.0:0", "--insecure")
    port = open_to_all.address().rpartition(":")[2]
    assert is_healthy(f"127.0.0.1:{port}")
    assert open_to_all.end() == 0
    with_certificates = daemon("-l", "0.0.0.0:0", *tls_options(certificates))
    port = with_certificates.address().rpartition(":")[2]
    assert is_healthy(f"localhost:{port}", certificates.channel_credentials())
    assert with_certificates.end() == 0


LIKE_SYSTEMD = """
import fcntl, os, sys
names, descriptors, command = sys.argv[1], sys.argv[2].split(","), sys.argv[3:]
moved = [fcntl.fcntl(int(descriptor), fcntl.F_DUPFD, 100) for descriptor in descriptors]
for i, descriptor in enumerate(moved):
    os.dup2(descriptor, 3 + i, inheritable=True)
os.environ.update(LISTEN_FDS=str(len(moved)), LISTEN_PID=str(os.getpid()), LISTEN_FDNAMES=names)
os.execv(sys.executable, [sys.executable, "-m", "neve.cli", *command])
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_sockets_from_systemd(
    daemon: Start, tmp_path: Path, certificates: Certificates, workers: int
) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_UNIX) as unix,
        socket.socket(socket.AF_UNIX) as admin,
    ):
        for each, name in ((unix, "unix"), (admin, "admin")):
            each.bind(str(tmp_path / name))
            os.chmod(tmp_path / name, 0o600)
            each.listen()
        port = tcp.getsockname()[1]
        given = [each.fileno() for each in (tcp, unix, admin)]
        systemd = (sys.executable, "-c", LIKE_SYSTEMD, "tcp:unix:admin", ",".join(map(str, given)))
        arguments = ["-l", "sd-listen", "--admin-listen", "sd-listen:admin", *tls_options(certificates)]
        arguments += ["--tls-admin-ca", str(certificates.ca), "--workers", str(workers)]
        # Connections that come before the daemon does are served too.
        with channel(f"unix:{tmp_path}/unix") as early:
            waiting = checking(early).future(
                health_pb2.HealthCheckRequest(), timeout=SECONDS, wait_for_ready=True
            )
            running = daemon(*arguments, program=systemd, pass_fds=given)
            running.says("listening", 3)
            assert waiting.result().status == SERVING
        assert is_healthy(f"unix:{tmp_path}/admin")
        assert is_healthy(f"localhost:{port}", certificates.channel_credentials())
        assert refusal(f"localhost:{port}") is grpc.StatusCode.UNAVAILABLE
        assert running.end() == 0
    assert [line for line in running.log if "listening" in line] == [
        f"neve: listening on unix:{tmp_path}/admin (sd-listen) (administration)",
        f"neve: listening on 127.0.0.1:{port} (sd-listen) (TLS)",
        f"neve: listening on unix:{tmp_path}/unix (sd-listen)",
    ]
    # They belong to systemd.
    assert sorted(os.listdir(tmp_path)) == ["admin", "store", "unix"]


def test_a_worker_that_does_not_start(daemon: Start, tmp_path: Path) -> None:
    """What all of them would say is said once."""
    (tmp_path / "file").touch()
    running = daemon("-l", f"{tmp_path}/socket", "--workers", "2", "--store", f"local://{tmp_path}/file")
    assert running.wait() == 1
    assert len(running.log) == 1
    assert running.log[0].startswith(f"neve: {tmp_path}/file is not a folder")
    assert os.listdir(tmp_path) == ["file"]


def test_a_worker_says_why(tmp_path: Path) -> None:
    """To its parent, and to nobody else."""

    def worker(configuration: bytes) -> subprocess.CompletedProcess[bytes]:
        command = [*NEVE, "daemon-worker"]
        return subprocess.run(command, input=configuration, capture_output=True, cwd=tmp_path)

    (tmp_path / "file").touch()
    store = {"url": f"local://{tmp_path}/file", "write": True}
    done = worker(json.dumps({"store": store, "folder": None, **to_json(Settings(), [])}).encode() + b"\n")
    assert (done.returncode, done.stderr) == (1, b"")
    assert json.loads(done.stdout)["failed"].startswith(f"{tmp_path}/file is not a folder")
    store = {"url": f"local://{tmp_path}/store", "write": True}
    nowhere = [Endpoint(f"unix:{tmp_path}/none/socket")]
    done = worker(
        json.dumps({"store": store, "folder": None, **to_json(Settings(), nowhere)}).encode() + b"\n"
    )
    assert done.returncode == 1
    assert json.loads(done.stdout)["failed"].startswith(f"cannot listen on unix:{tmp_path}/none/socket")
    # Told to stop before it began: it does not serve for long.
    here = [Endpoint(f"unix:{tmp_path}/socket")]
    done = worker(
        json.dumps({"store": store, "folder": None, **to_json(Settings(), here)}).encode() + b"\nstop\n"
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert [json.loads(line) for line in done.stdout.splitlines()] == [{"ready": True}, {"stopping": True}]
    done = worker(b"")
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr == b"neve: a worker is started by the daemon, which says what to do\n"


def test_limits_and_reading_only(daemon: Start, tmp_path: Path) -> None:
    """Settings reach the workers."""
    first = daemon("-l", f"{tmp_path}/socket", "--workers", "2", "--max-blob-bytes", "4MiB")
    with channel(first.address()) as connection:
        digest = Upload(connection).finish()
        with pytest.raises(grpc.RpcError) as failure:
            Upload(connection, b"too much").finish()
        assert failure.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "max_blob_bytes" in str(failure.value.details())
    assert first.end() == 0
    running = daemon("-l", f"{tmp_path}/socket", "--read-only", "--workers", "2")
    with channel(running.address()) as connection:
        method = methods_of(rpc_blobstore_pb2.DESCRIPTOR.services_by_name["BlobService"])["Stat"]
        stat = connection.unary_unary(
            method.path, method.request.SerializeToString, method.response.FromString
        )
        stat(method.request(digest=digest), timeout=SECONDS)
        with pytest.raises(grpc.RpcError) as failure:
            Upload(connection).finish()
        assert "read-only" in str(failure.value.details())
    assert running.end() == 0
