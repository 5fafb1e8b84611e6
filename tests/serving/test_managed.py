"""Servers as processes, under somebody who does for them what systemd does."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.server.test_daemon_process import is_healthy
from tests.serving.listening_manager import SECONDS, ListeningManager

NEVE = [sys.executable, "-m", "neve.cli"]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def watchdog(workers: int) -> float:
    """Seconds; one of several workers that is late by so many is ended, so that they must not be too few."""
    return 12 if workers > 1 else 0.4


@contextlib.contextmanager
def running(
    manager: ListeningManager, *arguments: str, program: list[str] = NEVE
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that the manager has started; told to stop at the end, if it still runs."""
    with subprocess.Popen([*program, *arguments], env=manager.inherited()) as process:
        try:
            yield process
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            assert process.wait(SECONDS) == 0
        finally:
            if process.poll() is None:
                process.kill()


def workers_of(process: subprocess.Popen[bytes]) -> list[int]:
    text = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [int(child) for child in text.split()]


@pytest.mark.parametrize("server", ["daemon", "serve"])
@pytest.mark.parametrize("workers", [1, 2])
def test_from_ready_to_stopping(tmp_path: Path, server: str, workers: int) -> None:
    store, where = f"local://{tmp_path}/store", tmp_path / "socket"
    with ListeningManager(tmp_path, abstract=workers == 2, watchdog_seconds=watchdog(workers)) as manager:
        with running(
            manager, server, "-l", str(where), "--store", store, "--workers", str(workers), "--grace", "7"
        ) as process:
            manager.until("READY=1")
            # Whoever waits for that can connect.
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(where))
            manager.until("WATCHDOG=1", 2)
            for child in workers_of(process):
                assert b"NOTIFY_SOCKET" not in Path(f"/proc/{child}/environ").read_bytes()
        manager.rest()
    assert f"STATUS=listening on unix:{where}" in manager.told
    end = manager.told[manager.told.index("STOPPING=1") :]
    assert "EXTEND_TIMEOUT_USEC=17000000" in end
    assert any(re.match("STATUS=stopping; (calls|requests) in flight have 7 s", line) for line in end)
    assert not any("workers serve" in line for line in end)


def test_a_failure_is_not_ready(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with ListeningManager(tmp_path) as manager:
        command = [*NEVE, "daemon", "-l", f"{tmp_path}/socket", "--store", f"local://{tmp_path}/file"]
        done = subprocess.run(command, env=manager.inherited(), stderr=subprocess.PIPE, timeout=SECONDS)
        assert done.returncode == 1
        assert manager.rest() == []


def test_a_worker_that_hangs_is_replaced(tmp_path: Path) -> None:
    where = tmp_path / "socket"
    with (
        ListeningManager(tmp_path, watchdog_seconds=8) as manager,
        running(
            manager, "daemon", "-l", str(where), "--store", f"local://{tmp_path}/store", "--workers", "2"
        ) as process,
    ):
        manager.until("READY=1")
        before = workers_of(process)
        os.kill(before[0], signal.SIGSTOP)
        # Meanwhile the other one serves.
        manager.until("STATUS=1 of 2 workers serve")
        manager.until("STATUS=2 of 2 workers serve")
        assert before[0] not in workers_of(process)
        assert before[1] in workers_of(process)
        assert is_healthy(f"unix:{where}")
        assert "WATCHDOG=1" in manager.told


@pytest.mark.systemd
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("server", ["daemon", "serve"])
def test_started_by_a_connection(tmp_path: Path, server: str, workers: int) -> None:
    """systemd's own tool listens, starts the server when somebody connects, and passes the sockets on."""
    where = tmp_path / "socket"
    with ListeningManager(tmp_path, abstract=True, watchdog_seconds=watchdog(workers)) as manager:
        activate = ["systemd-socket-activate", "-l", str(where), "--fdname=neve"]
        for name in manager.environment:
            activate += ["-E", name]
        arguments = [server, "-l", "sd-listen:neve", "--store", f"local://{tmp_path}/store"]
        arguments += ["--workers", str(workers)]
        with running(manager, *arguments, program=[*activate, *NEVE]):
            until(where.exists)
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(where))
                manager.until("READY=1")
                manager.until("WATCHDOG=1", 2)
                if server == "daemon":
                    assert is_healthy(f"unix:{where}")
                else:
                    client.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
                    client.settimeout(SECONDS)
                    assert client.recv(12) == b"HTTP/1.1 200"
        # The socket is not ours: it stays.
        assert where.exists()
        manager.rest()
    assert f"STATUS=listening on unix:{where} (sd-listen)" in manager.told
    assert "STOPPING=1" in manager.told


@pytest.mark.fuse
def test_a_mount(tmp_path: Path) -> None:
    folder = tmp_path / "mnt"
    folder.mkdir()
    store = f"local://{tmp_path}/store"
    subprocess.run([*NEVE, "import", __file__, "--store", store], check=True, stdout=subprocess.DEVNULL)
    with ListeningManager(tmp_path, watchdog_seconds=0.4) as manager:
        with running(manager, "mount", str(folder), "--store", store):
            manager.until("READY=1")
            assert os.path.ismount(folder)
            manager.until("WATCHDOG=1", 3)
        manager.rest()
    assert not os.path.ismount(folder)
    assert f"STATUS=mounted {store} at {folder}" in manager.told
    assert "STOPPING=1" in manager.told


def test_a_device_for_guests(tmp_path: Path) -> None:
    store, where = f"local://{tmp_path}/store", tmp_path / "socket"
    subprocess.run([*NEVE, "import", __file__, "--store", store], check=True, stdout=subprocess.DEVNULL)
    with ListeningManager(tmp_path, watchdog_seconds=0.4) as manager:
        with running(manager, "virtiofs", str(where), "--store", store):
            manager.until("READY=1")
            assert where.exists()
            manager.until("WATCHDOG=1", 3)
            # A front-end that is connected and says nothing does not keep it from that.
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(where))
                manager.until("WATCHDOG=1", 3)
        manager.rest()
    assert "STOPPING=1" in manager.told
