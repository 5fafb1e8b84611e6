"""A daemon in a process of its own, that can be killed: ``python -m tests.server.serve STORE SOCKET LIMITS``.

It says ``ready`` when it listens, and with SIGUSR1 makes a mark among its system calls and says ``marked``.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from neve.server.limits import Limits
from neve.server.process import serve
from neve.server.settings import Endpoint, Settings
from neve.serving.process import Course
from neve.serving.stopping import Stop, stop_signals
from neve.store.services import open_services

MARK = "mark-made-by-the-test"
"""In the name of the file that is synced for a mark."""


class Served:
    """A daemon that runs, from outside."""

    def __init__(self, process: subprocess.Popen[str], pid: int, socket: Path) -> None:
        self.process = process
        self.pid = pid
        """Of the daemon itself, where ``process`` is what watches it."""
        self.url = f"grpc+unix://{socket}"
        self.target = f"unix:{socket}"

    def kill(self) -> None:
        """Ends it at once."""
        os.kill(self.pid, signal.SIGKILL)
        self.process.wait()

    def mark(self) -> None:
        """Makes a mark among its system calls."""
        os.kill(self.pid, signal.SIGUSR1)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "marked\n"

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """It does nothing during the block."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)

    def memory(self, name: str = "VmHWM") -> int:
        """Bytes of memory that it has taken at most."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
        raise AssertionError(f"no {name}")


@contextlib.contextmanager
def served(store: str, socket: Path, *, under: Sequence[str] = (), **limits: Any) -> Iterator[Served]:
    """A daemon over ``store`` at ``socket``, told to stop at the end if it still runs. ``under`` is a
    command that runs it."""
    command = [*under, sys.executable, "-m", "tests.server.serve", store, str(socket), json.dumps(limits)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        word, _, pid = process.stdout.readline().partition(" ")
        assert word == "ready"
        try:
            yield Served(process, int(pid), socket)
        finally:
            if process.poll() is None:
                os.kill(int(pid), signal.SIGTERM)
            process.wait()


def _main(store: str, socket: str, limits: str) -> None:
    services = open_services(store)
    stop = Stop()

    def marked(*_: object) -> None:
        with tempfile.NamedTemporaryFile(prefix=MARK) as file:
            os.fdatasync(file.fileno())
        print("marked", flush=True)

    signal.signal(signal.SIGUSR1, marked)
    with stop_signals(stop.request, lambda: None):
        serve(
            services,
            [Endpoint(f"unix:{socket}", admin=True)],
            Settings(limits=Limits(**json.loads(limits)), grace=2),
            Course(
                stop=stop,
                ready=lambda: print(f"ready {os.getpid()}", flush=True),
                stopping=lambda: None,
            ),
        )
    services.close()


if __name__ == "__main__":
    _main(*sys.argv[1:])
