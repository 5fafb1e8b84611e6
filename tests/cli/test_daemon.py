"""What ``neve daemon`` takes on its command line, and what it makes of it."""

from __future__ import annotations

import dataclasses
import grp
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from neve.cli import daemon as module
from neve.cli.commands import cli
from neve.cli.daemon import LIMIT_HELP
from neve.cli.server_options import GroupType, ModeType, SizeType, shown_size
from neve.server.daemon import DaemonOptions
from neve.server.limits import Limits
from neve.serving.main import WorkerStart
from neve.testing.servers import make_certificates
from tests.cli.conftest import Neve, Spawn


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[tuple[DaemonOptions, WorkerStart]]:
    """What the command asks for, instead of doing it."""
    calls: list[tuple[DaemonOptions, WorkerStart]] = []

    def run(options: DaemonOptions, _environment: object, _open: object, worker: WorkerStart) -> None:
        calls.append((options, worker))

    monkeypatch.setattr("neve.server.daemon.run_daemon", run)
    return calls


Given = list[tuple[DaemonOptions, WorkerStart]]


def test_defaults(neve: Neve, given: Given, tmp_path: Path) -> None:
    assert neve("daemon").code == 0
    ((options, worker),) = given
    assert options.workers == 1
    assert options.listen.addresses == ("[::1]:8000",)
    assert options.listen.admin_addresses == ()
    assert (options.listen.socket_mode, options.listen.admin_socket_mode) == (0o600, 0o600)
    assert options.settings.limits == Limits()
    assert options.settings.grace == 30.0
    assert not options.settings.read_only
    assert worker.command[0] == sys.executable
    assert worker.command[-1] == "daemon-worker"
    assert worker.store["url"] == f"local://{tmp_path}/store"
    assert worker.store["write"] is True


def test_everything_given(neve: Neve, given: Given, tmp_path: Path) -> None:
    files = make_certificates(tmp_path)
    neve(
        *("--json", "--log-level", "debug", "daemon", "--workers", "3", "--read-only", "--insecure"),
        *("-l", "unix:/a", "--listen", "sd-listen", "--admin-listen", "/b", "--grace", "1.5"),
        *("--socket-mode", "0666", "--admin-socket-mode", "660", "--socket-group", "0"),
        *(f"--tls-cert={files.server_certificate}", f"--tls-key={files.server_key}"),
        *(f"--tls-client-ca={files.ca}", f"--tls-admin-ca={files.ca}"),
        *("--max-message-bytes", "5MiB", "--stream-idle-seconds", "0.5", "--max-directories=7"),
    )
    ((options, worker),) = given
    assert options.workers == 3
    assert options.listen.addresses == ("unix:/a", "sd-listen")
    assert options.listen.admin_addresses == ("/b",)
    assert (options.listen.socket_mode, options.listen.admin_socket_mode) == (0o666, 0o660)
    assert options.listen.socket_group == 0
    assert options.listen.insecure
    assert options.listen.tls is options.settings.tls is not None
    assert options.settings.tls.admin_ca == files.ca.read_text()
    expected = dataclasses.replace(
        Limits(), max_message_bytes=5 << 20, stream_idle_seconds=0.5, max_directories=7
    )
    assert options.settings.limits == expected
    assert (options.settings.grace, options.settings.read_only) == (1.5, True)
    assert list(worker.command[-4:]) == ["--log-level", "debug", "--json", "daemon-worker"]
    assert worker.store["write"] is False
    assert json.loads(json.dumps(worker.store)) == worker.store


def test_a_group_gets_access(neve: Neve, given: Given) -> None:
    name = grp.getgrgid(os.getgid()).gr_name
    neve("daemon", "--socket-group", name)
    neve("daemon", "--socket-group", name, "--socket-mode", "0600")
    assert [options.listen.socket_mode for options, _ in given] == [0o660, 0o600]
    assert given[0][0].listen.socket_group == os.getgid()


def test_every_limit_is_an_option(neve: Neve) -> None:
    text = " ".join(neve("daemon", "--help").out.decode().split())
    fields = dataclasses.fields(Limits)
    assert {field.name for field in fields} == set(LIMIT_HELP)
    for field in fields:
        assert f"--{field.name.replace('_', '-')} " in text
    assert "[default: 64MiB]" in text
    assert "[default: 300]" in text
    assert neve("daemon", "--help").out == neve("daemon", "--help").out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["-l", "8000"], "'8000' is no address to listen on"),
        (["--admin-listen", "unix:x"], "must be absolute"),
        (["-l", "/" + 200 * "x"], "at most 107"),
        (["--workers", "0"], "'--workers'"),
        (["--socket-mode", "rw"], "no permission bits; write for example 0660"),
        (["--socket-mode", "7777"], "no permission bits"),
        (["--socket-group", "no such group"], "there is no group 'no such group'"),
        (["--grace", "-1"], "'--grace'"),
        (["--max-blob-bytes", "many"], "'many' is no size; write for example 65536 or 64MiB"),
        (["--max-blob-bytes", "1MB"], "no size"),
        (["--max-blob-bytes", "0"], "no whole number"),
        (["--max-message-bytes", "2GiB"], "at most 2147483647"),
        (["--max-message-bytes", "4095KiB"], "with less than 4MiB contents could not be read"),
        (["--max-directories", "0"], "'--max-directories'"),
        (["--stream-idle-seconds", "0"], "'--stream-idle-seconds'"),
        (["--tls-cert", "/"], "is a directory"),
    ],
)
def test_wrong_usage(neve: Neve, given: Given, arguments: list[str], complaint: str) -> None:
    done = neve("daemon", *arguments)
    assert done.code == 2
    assert complaint in done.err
    assert done.err.count("\n") == 1
    assert given == []


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--workers", "2", "--store", "memory://"], "memory:// exists in one process only"),
        (["--workers", "2", "--store", "local://"], "name a folder, local:///srv/neve"),
        (["--workers", "2", "--path-info-service-addr", "memory://"], "cannot be shared by several workers"),
        (["-l", "0.0.0.0:0"], "--insecure to let everybody in"),
        (["-l", "no-such-host.invalid:1"], "cannot listen on no-such-host.invalid:1: "),
        (["-l", "192.0.2.1:1", "--insecure"], "cannot listen on 192.0.2.1:1: Cannot assign"),
        (["-l", "sd-listen"], "no such socket was passed on by systemd"),
        (["-l", "/no/such/folder/s"], "cannot listen on unix:/no/such/folder/s: No such file"),
        (["--admin-listen", "localhost:0", "-l", "localhost:0"], "--tls-admin-ca"),
        (["-l", "localhost:0", "--store", "local:///proc/none"], "/proc/none"),
        (["-l", "localhost:0", "--read-only"], "name another with --store"),
    ],
)
def test_failures(neve: Neve, arguments: list[str], complaint: str) -> None:
    assert complaint in neve("daemon", *arguments).failure


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--tls-cert", "/none"], "--tls-key is missing"),
        (["--tls-cert", "/none", "--tls-key", "/none"], "--tls-cert /none: No such file"),
        (["--tls-cert", "/dev/null", "--tls-key", "/dev/null"], "--tls-cert /dev/null: "),
    ],
)
def test_what_is_wrong_with_certificates_is_wrong_usage(
    neve: Neve, arguments: list[str], complaint: str
) -> None:
    """A service manager need not try again."""
    result = neve("daemon", *arguments)
    assert result.code == 2
    assert complaint in result.err
    assert result.err.count("\n") == 1


def test_sizes() -> None:
    size = SizeType()
    for text, value in (
        ("1", 1),
        ("65536", 65536),
        ("64KiB", 65536),
        ("64 mib", 64 << 20),
        ("1.5GiB", 3 << 29),
        ("2TiB", 2 << 40),
    ):
        assert size.convert(text, None, None) == value
    for text in ("", "-1", "1.3KiB", "1 KB", "KiB", "1_000", "1e3", "9" * 5000):
        with pytest.raises(click.BadParameter):
            size.convert(text, None, None)
    for value in (1, 1000, 1024, 1536, 3 << 20, 5 << 30, 1 << 40):
        assert size.convert(shown_size(value), None, None) == value
    assert shown_size(64 << 20) == "64MiB"
    for text in ("9" * 5000, "\u0663", "no such group"):
        with pytest.raises(click.BadParameter):
            GroupType().convert(text, None, None)
    assert GroupType().convert("4000000000", None, None) == 4_000_000_000
    assert ModeType().convert("0660", None, None) == ModeType().convert("660", None, None) == 0o660


def test_it_is_not_loaded_for_others() -> None:
    heavy = ("grpc", "asyncio", "neve.server")
    code = f"import sys, neve.cli.program; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code]) == b"[]\n"


def test_workers_are_not_for_people(neve: Neve) -> None:
    assert "daemon-worker" not in neve("--help").out.decode()
    assert "daemon " in neve("--help").out.decode()
    assert isinstance(cli.commands["daemon"], module._DaemonCommand)


def test_it_serves_and_ends(spawn: Spawn, tmp_path: Path) -> None:
    with spawn("--json", "daemon", "-l", f"unix:{tmp_path}/socket", "--workers", "2") as process:
        assert process.stderr is not None
        line: dict[str, Any] = json.loads(process.stderr.readline())
        assert line["message"] == f"listening on unix:{tmp_path}/socket"
        assert (tmp_path / "socket").is_socket()
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, b"")
    assert json.loads(err)["message"] == "stopping; calls in flight have 30 s"


def test_ended_while_starting(spawn: Spawn, tmp_path: Path) -> None:
    """Whenever the signal comes, the process ends and leaves no socket."""
    for delay in range(0, 10, 3):
        with spawn("daemon", "-l", f"{tmp_path}/socket", "--workers", "2") as process:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.05 + delay / 20)
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=60)
        assert process.returncode in (0, -signal.SIGTERM, 128 + signal.SIGTERM)
        assert set(os.listdir(tmp_path)) <= {"store"}
