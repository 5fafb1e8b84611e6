"""Traces of real processes, as they get to a collector: whole, by one trace, and in nobody's way."""

from __future__ import annotations

import io
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from neve.telemetry import otlp
from tests.http_cache.serving import process as serve_process
from tests.logged import logged
from tests.server.test_daemon_process import Process as Daemon
from tests.telemetry.collector import (
    SECONDS,
    Collector,
    Seen,
    ancestors,
    grpc_collector,
    http_collector,
    nobody,
    silent_collector,
    without_telemetry,
)

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{SPAN}-01"

NEVE = [sys.executable, "-m", "neve.cli"]

DROPPED = "neve: warning: traces do not get through to the collector, and are dropped\n"

Environment = dict[str, str]


@pytest.fixture(params=[http_collector, grpc_collector])
def collector(request: pytest.FixtureRequest) -> Iterator[Collector]:
    make: Callable[[], Iterator[Collector]] = request.param
    with make() as collector:  # type: ignore[attr-defined]
        yield collector


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "folder").mkdir(parents=True)
    (root / "folder" / "small").write_bytes(b"small\n")
    (root / "large").write_bytes(os.urandom(3 << 20))
    return root


def neve(
    environment: Environment, tmp_path: Path, *arguments: str | Path
) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end. It must have one, whatever becomes of its traces."""
    return subprocess.run(
        [*NEVE, *map(str, arguments)],
        env={"NEVE_STORE": f"local://{tmp_path}/store", "XDG_CACHE_HOME": str(tmp_path), **environment},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )


def of(spans: list[Seen], name: str, kind: str = "") -> list[Seen]:
    return [each for each in spans if each.name == name and (not kind or kind_of(each) == kind)]


def kind_of(seen: Seen) -> str:
    return seen.span.SpanKind.Name(seen.span.kind).removeprefix("SPAN_KIND_")


def test_an_import(collector: Collector, tree: Path, tmp_path: Path) -> None:
    done = neve(collector.environment(), tmp_path, "import", tree)
    assert (done.returncode, done.stderr) == (0, "")
    spans = collector.spans()
    (command,) = of(spans, "neve import")
    assert command.parent == ""
    assert {each.trace for each in spans} == {command.trace}
    assert {each.resource["service.name"] for each in spans} == {"neve"}
    for name in ("import.walk", "import.hash", "import.store", "import.finish", "import.register"):
        (stage,) = of(spans, name)
        assert ancestors(stage, spans) == ["neve import"], name
    assert of(spans, "import.walk")[0].attributes["neve.pieces"] > 1
    (put,) = of(spans, "path_infos.put")
    assert put.attributes["neve.scheme"] == "local"
    assert ancestors(put, spans) == ["import.register", "neve import"]
    assert "packs.commit" in {each.name for each in spans if ancestors(each, spans)[:1] == ["path_infos.put"]}
    assert not [each.name for each in spans if each.has_failed]


def test_one_trace_leads_through_a_daemon(
    collector: Collector, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in collector.environment().items():
        monkeypatch.setenv(name, value)
    daemon = Daemon(tmp_path, "-l", f"unix:{tmp_path}/socket")
    try:
        environment = {**collector.environment(), "NEVE_STORE": f"grpc+unix://{daemon.address()[5:]}"}
        done = neve(environment, tmp_path, "import", tree)
        assert (done.returncode, done.stderr) == (0, "")
    finally:
        assert daemon.end() == 0
    spans = collector.spans()
    (command,) = of(spans, "neve import")
    theirs = str(daemon.process.pid)
    assert {each.trace for each in spans} == {command.trace}
    assert len({each.resource["process.pid"] for each in spans}) == 2
    by_id = {each.id: each for each in spans}
    served = [each for each in spans if kind_of(each) == "SERVER"]
    assert {"neve.castore.v1.BatchService/Put", "tvix.store.v1.PathInfoService/Put"} <= {
        each.name for each in served
    }
    for each in served:
        asked = by_id[each.parent]
        assert (asked.name, kind_of(asked)) == (each.name, "CLIENT")
        assert each.resource["process.pid"] == theirs
        assert asked.resource["process.pid"] != theirs
        assert ancestors(each, spans)[-1] == "neve import"
        assert each.attributes["rpc.system"] == "grpc"
    # What the daemon does for it belongs to it, also in its threads.
    (put,) = [each for each in of(spans, "path_infos.put") if each.resource["process.pid"] == theirs]
    assert by_id[put.parent].name == "tvix.store.v1.PathInfoService/Put"
    batches = [each for each in of(spans, "blobs.batch.commit") if each.resource["process.pid"] == theirs]
    assert {by_id[each.parent].name for each in batches} == {"neve.castore.v1.BatchService/Put"}
    # Whether he may administer, a client finds out by trying.
    assert not [each.name for each in served if each.has_failed]


def test_the_last_spans_of_workers_are_sent_when_they_end(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with http_collector() as collector:
        environment = {**collector.environment(), "OTEL_BSP_SCHEDULE_DELAY": "3600000"}
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        daemon = Daemon(tmp_path, "-l", f"unix:{tmp_path}/socket", "--workers", "2")
        try:
            environment["NEVE_STORE"] = f"grpc+unix://{daemon.address()[5:]}"
            daemon.says("listening")
            workers = set(map(str, daemon.workers()))
            assert neve(environment, tmp_path, "import", tree).returncode == 0
            assert not [each for each in collector.spans() if kind_of(each) == "SERVER"]
        finally:
            assert daemon.end() == 0
        served = [each for each in collector.spans() if kind_of(each) == "SERVER"]
        assert {each.resource["process.pid"] for each in served} <= workers
        assert served


def test_errors_are_told_by_their_kind(collector: Collector, tmp_path: Path) -> None:
    done = neve(collector.environment(), tmp_path, "import", tmp_path / "secret-name")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    (command,) = collector.spans("neve import")
    assert command.has_failed
    assert command.attributes["error.type"] == "NotFound"
    assert "secret-name" not in str(collector.spans())


def test_a_cache_goes_on_with_the_trace_of_who_asks(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = neve(without_telemetry(), tmp_path, "import", tree).stdout.strip()
    digest = path.removeprefix("/nix/store/")[:32]
    with http_collector() as collector:
        for name, value in collector.environment().items():
            monkeypatch.setenv(name, value)
        with serve_process(tmp_path / "store") as cache, cache.client() as client:
            assert client.get(f"/{digest}.narinfo", headers={"traceparent": TRACEPARENT}).status_code == 200
            assert client.get("/nonsense.narinfo?token=x").status_code == 404
            assert client.get("/healthz").status_code == 200
            assert cache.end() == 0
        spans = collector.spans()
        (asked,) = of(spans, "GET narinfo")
        assert (asked.trace, asked.parent, kind_of(asked)) == (TRACE, SPAN, "SERVER")
        assert asked.attributes["http.response.status_code"] == 200
        (described,) = of(spans, "path_infos.describe")
        assert ancestors(described, spans) == ["GET narinfo"]
        assert not [each for each in spans if "healthz" in each.name or "token" in str(each.span)]


def test_one_trace_leads_through_a_binary_cache(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = neve(without_telemetry(), tmp_path, "import", tree).stdout.strip()
    with http_collector() as collector:
        for name, value in collector.environment().items():
            monkeypatch.setenv(name, value)
        with serve_process(tmp_path / "store") as cache:
            far = f"nix+{cache.url}"
            environment = {**collector.environment(), "NEVE_STORE": f"local://{tmp_path}/near"}
            done = neve(environment, tmp_path, "ls", "--path-info-service-addr", far, path)
            assert (done.returncode, done.stdout) == (0, "folder\nlarge\n"), done.stderr
            assert cache.end() == 0
        spans = collector.spans()
        (command,) = of(spans, "neve ls")
        by_id = {each.id: each for each in spans}
        served = [each for each in spans if kind_of(each) == "SERVER"]
        assert {"GET narinfo", "GET nar"} <= {each.name for each in served}
        for each in served:
            assert each.trace == command.trace
            assert (by_id[each.parent].name, kind_of(by_id[each.parent])) == ("GET", "CLIENT")
        (fetched,) = of(spans, "substitute.fetch")
        assert ancestors(fetched, spans)[-1] == "neve ls"
        (nar,) = of(served, "GET nar")
        assert "substitute.fetch" in ancestors(nar, spans)


def test_whoever_starts_a_command_may_have_a_trace(tmp_path: Path) -> None:
    with http_collector() as collector:
        environment = {**collector.environment(), "TRACEPARENT": TRACEPARENT}
        assert neve(environment, tmp_path, "path-info", "--store", "memory://").returncode == 0
        (command,) = collector.spans("neve path-info")
        assert (command.trace, command.parent) == (TRACE, SPAN)


def test_the_standard_variables(tmp_path: Path) -> None:
    with http_collector() as collector:
        environment = {
            **collector.environment(),
            "OTEL_SERVICE_NAME": "build-farm",
            "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment=test,service.name=less",
            "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20open-sesame",
        }
        done = neve(environment, tmp_path, "--log-level", "debug", "path-info", "--store", "memory://")
        assert done.returncode == 0
        assert "sesame" not in done.stderr
        (command,) = collector.spans("neve path-info")
        assert command.resource["service.name"] == "build-farm"
        assert command.resource["deployment.environment"] == "test"
        assert collector.headers[0]["authorization"] == "Bearer open-sesame"


def test_an_exporter_that_fails_keeps_its_secrets() -> None:
    """What it says may repeat a header. That spans are dropped is told once."""

    class Failing(SpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            raise ValueError("not a header: 'open-sesame'")

    exporter = otlp._Quiet(Failing())
    logger = logging.getLogger("neve")
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    logger.addHandler(handler)
    try:
        with logged(logging.DEBUG) as lines:
            for _ in range(2):
                assert exporter.export([]) is SpanExportResult.FAILURE
    finally:
        logger.removeHandler(handler)
    assert "sesame" not in written.getvalue()
    assert lines.count("spans cannot be sent: ValueError") == 2
    assert lines.count(DROPPED.strip().removeprefix("neve: warning: ")) == 1


def test_an_exporter_that_fails_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Is told in one line, without what it says."""

    class Failing(SpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            return SpanExportResult.SUCCESS

        def shutdown(self) -> None:
            raise ValueError("not a header: 'open-sesame'")

    monkeypatch.setattr(otlp, "_exporter", Failing)
    sending = otlp.Sending("1")
    with logged(logging.DEBUG) as lines:
        sending.stop(SECONDS)
    assert lines == [
        "the last spans cannot be sent: ValueError",
        DROPPED.strip().removeprefix("neve: warning: "),
    ]


@pytest.mark.parametrize(
    "variables",
    [
        {"OTEL_SDK_DISABLED": "true"},
        {"OTEL_TRACES_EXPORTER": "none"},
        {"OTEL_TRACES_SAMPLER": "always_off"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
    ],
)
def test_variables_that_forbid_it(variables: Environment, tmp_path: Path) -> None:
    with http_collector() as collector:
        environment = {**collector.environment(), **variables}
        done = neve(environment, tmp_path, "path-info", "--store", "memory://")
        assert (done.returncode, done.stderr, collector.spans()) == (0, "", [])


@pytest.mark.parametrize("name", ["OTEL_BSP_EXPORT_TIMEOUT", "OTEL_BSP_SCHEDULE_DELAY"])
def test_numbers_beyond_all_bounds(name: str, tmp_path: Path) -> None:
    """Are for nobody's good, and harm nobody either."""
    with http_collector() as collector:
        environment = {**collector.environment(), name: "9" * 400}
        done = neve(environment, tmp_path, "path-info", "--store", "memory://")
        assert done.returncode == 0
        assert "Traceback" not in done.stderr


def test_options_come_before_variables(tmp_path: Path) -> None:
    with http_collector() as collector:
        done = neve(collector.environment(), tmp_path, "--no-otlp", "path-info", "--store", "memory://")
        assert (done.returncode, done.stderr, collector.spans()) == (0, "", [])
        environment = {**collector.environment(), "OTEL_SDK_DISABLED": "false"}
        assert neve(environment, tmp_path, "--otlp", "path-info", "--store", "memory://").returncode == 0
        assert collector.spans("neve path-info")


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
@pytest.mark.parametrize("gone", [True, False])
def test_a_collector_that_does_not_answer(gone: bool, protocol: str, tree: Path, tmp_path: Path) -> None:
    """The command says the same and ends, long before the collector's time is up."""
    expected = neve(without_telemetry(), tmp_path, "import", tree)
    with silent_collector() as silent:
        environment = {
            **without_telemetry(),
            "OTEL_EXPORTER_OTLP_ENDPOINT": nobody() if gone else silent,
            "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
            "OTEL_EXPORTER_OTLP_TIMEOUT": "3600",
        }
        done = neve(environment, tmp_path, "import", tree)
        assert (done.returncode, done.stdout, done.stderr) == (0, expected.stdout, DROPPED)
        failed = neve(environment, tmp_path, "import", tmp_path / "nothing")
        assert failed.returncode == 1
        assert failed.stderr.removeprefix(DROPPED).startswith("neve: ")
        assert failed.stderr.count("\n") == 2


def test_a_daemon_whose_collector_does_not_answer(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with silent_collector() as silent:
        for name in [name for name in os.environ if name.startswith("OTEL_")]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", silent)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "3600")
        # What waits is bounded: with room for four spans most are dropped.
        monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "4")
        monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "2")
        daemon = Daemon(tmp_path, "-l", f"unix:{tmp_path}/socket")
        environment = {**without_telemetry(), "NEVE_STORE": f"grpc+unix://{daemon.address()[5:]}"}
        for _ in range(3):
            assert neve(environment, tmp_path, "import", tree).returncode == 0
        assert daemon.end() == 0
        assert daemon.log.count(DROPPED.strip()) == 1


def test_an_interrupted_command(tmp_path: Path) -> None:
    """Its trace tells of it."""
    with http_collector() as collector:
        os.mkfifo(tmp_path / "pipe")
        command = [*NEVE, "nar", "import", "--name", "x", "--store", f"local://{tmp_path}/store", "pipe"]
        with (
            subprocess.Popen(
                command, env=collector.environment(), cwd=tmp_path, stderr=subprocess.PIPE
            ) as started,
            # Returns when the command has opened the other end.
            open(tmp_path / "pipe", "wb"),
        ):
            started.send_signal(signal.SIGTERM)
            _, errors = started.communicate(timeout=SECONDS)
        assert started.returncode == 128 + signal.SIGTERM
        assert errors == b"neve: interrupted\n"
        (seen,) = collector.wait(lambda spans: of(spans, "neve nar"))
        assert seen.attributes["error.type"] == "Interrupted"


def test_without_the_libraries(tree: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "from neve.cli.__main__ import main\nsys.exit(main(sys.argv[1:]))"
    )

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments), "--store", f"local://{tmp_path}/store"],
            env={**without_telemetry(), "OTEL_EXPORTER_OTLP_ENDPOINT": nobody()},
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )

    done = run("--otlp", "import", tree)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "neve: --otlp needs opentelemetry, not installed here: install neve[otlp]\n"
    # An environment that is meant for everything that runs in it must not stop anything.
    done = run("import", tree)
    assert done.returncode == 0
    assert done.stderr.startswith("neve: warning: --otlp needs opentelemetry")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("variables", "complaint"),
    [
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "pigeon"}, "OTEL_EXPORTER_OTLP_PROTOCOL is 'pigeon'"),
        (
            {"OTEL_EXPORTER_OTLP_TIMEOUT": "long", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            "OTEL_EXPORTER_OTLP_* cannot be used (ValueError)",
        ),
        (
            {"OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "9", "OTEL_BSP_MAX_QUEUE_SIZE": "1"},
            "OTEL_* cannot be used: max_export_batch_size must be less",
        ),
    ],
)
def test_variables_that_make_no_sense(variables: Environment, complaint: str, tmp_path: Path) -> None:
    environment = {**without_telemetry(), "OTEL_EXPORTER_OTLP_ENDPOINT": nobody(), **variables}
    arguments = ("path-info", "--store", "memory://")
    done = neve(environment, tmp_path, "--otlp", *arguments)
    assert done.returncode == 1
    assert complaint in done.stderr
    assert done.stderr.count("\n") == 1
    done = neve(environment, tmp_path, *arguments)
    assert done.returncode == 0
    assert complaint in done.stderr
    assert done.stderr.endswith("going on without traces\n")


@pytest.mark.parametrize("variables", [{}, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}])
def test_nothing_is_loaded_for_who_does_not_want_it(
    variables: Environment, tree: Path, tmp_path: Path
) -> None:
    code = (
        "import sys\nfrom neve.cli.__main__ import main\ncode = main(sys.argv[1:])\n"
        "found = {name.partition('.')[0] for name in sys.modules}\n"
        "print(code, sorted(found & {'opentelemetry', 'prometheus_client', 'requests', 'grpc'}))"
    )
    off = ["--no-otlp"] if variables else []
    done = subprocess.run(
        [sys.executable, "-c", code, *off, "import", tree, "--store", f"local://{tmp_path}/store"],
        env={**without_telemetry(), **variables},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr


def test_addresses_of_caches_keep_their_secrets(tree: Path, tmp_path: Path) -> None:
    """Neither the password of an address nor a bearer token gets into spans or log lines."""
    path = neve(without_telemetry(), tmp_path, "import", tree).stdout.strip()
    (tmp_path / "token").write_text("open-sesame")
    with http_collector() as collector, serve_process(tmp_path / "store") as cache:
        for far in (
            f"nix+http://me:open-sesame@{cache.address}",
            f"nix+http://{cache.address}?token-file={quote(str(tmp_path / 'token'))}",
        ):
            environment = {**collector.environment(), "NEVE_STORE": f"local://{tmp_path}/near"}
            done = neve(
                environment,
                tmp_path,
                *("--json", "--log-level", "debug", "ls", "--path-info-service-addr", far, path),
            )
            assert "sesame" not in done.stderr
        assert collector.spans("GET")
        assert "sesame" not in str(collector.spans())


@pytest.mark.fuse
def test_a_mount_in_the_background(collector: Collector, tree: Path, tmp_path: Path) -> None:
    """What sends its spans begins after the fork."""
    path = neve(without_telemetry(), tmp_path, "import", tree).stdout.strip()
    place = tmp_path / "mounted"
    place.mkdir()
    environment = {**os.environ, **collector.environment()}
    command = [*NEVE, "mount", "--background", str(place), "--store", f"local://{tmp_path}/store"]
    try:
        subprocess.run(command, env=environment, check=True, timeout=SECONDS, stderr=subprocess.DEVNULL)
        assert (place / path[11:] / "folder" / "small").read_bytes() == b"small\n"
    finally:
        subprocess.run(["umount", place], check=True, timeout=SECONDS)
    spans = collector.wait(lambda spans: of(spans, "path_infos.get"))
    assert "neve mount" not in {each.name for each in spans}
