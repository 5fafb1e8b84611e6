"""Mounting with the real kernel, and never leaving anything mounted behind."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

SECONDS = 120
"""How long anything may take on a machine that has a lot else to do."""

NEVE = (sys.executable, "-m", "neve.cli")


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.02)


def is_mounted(folder: Path) -> bool:
    """Whether the kernel has anything mounted there; asks nobody who could hang."""
    points = [line.split(" ")[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return re.sub(r"[ \\]", lambda m: f"\\{ord(m[0]):03o}", str(folder)) in points


class Mount:
    """A running ``neve mount``."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self.process = process
        self.folder = folder
        self.log: list[str] = []
        self._reading = threading.Thread(target=self._read)
        self._reading.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line.rstrip("\n"))

    def path(self, base_name: str, *below: str) -> Path:
        """A path in it."""
        return Path(self.folder, base_name, *below)

    def says(self, pattern: str) -> list[str]:
        """Waits until a line of the log matches; all that do."""
        with contextlib.suppress(TimeoutError):
            until(lambda: self._matching(pattern) or self.process.poll() is not None)
        self._reading.join(0 if self.process.poll() is None else SECONDS)
        found = self._matching(pattern)
        assert found, self.log
        return found

    def _matching(self, pattern: str) -> list[str]:
        return [line for line in self.log if re.search(pattern, line)]

    def ended(self) -> int:
        """Waits until the process ends; its exit code."""
        code = self.process.wait(SECONDS)
        self._reading.join()
        return code

    def memory(self, name: str = "VmHWM") -> int:
        """Bytes of memory that it has taken at most."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(rf"^{name}:\s+(\d+) kB", status, re.MULTILINE)
        assert found is not None
        return int(found[1]) * 1024


@contextlib.contextmanager
def mounting(
    store: str,
    folder: Path,
    *options: str | Path,
    program: Sequence[str] = NEVE,
    environment: dict[str, str] | None = None,
) -> Iterator[Mount]:
    """``neve mount`` at ``folder``, which is made. At the end it is told to stop, if it still runs, and what
    does not go is removed by force."""
    folder.mkdir(exist_ok=True)
    command = [*program, "mount", str(folder), "--store", store, *map(str, options)]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as process:
        # Whoever waits for a file system that does not answer would wait for ever.
        watchdog = threading.Timer(4 * SECONDS, process.kill)
        watchdog.start()
        mount = Mount(process, folder)
        try:
            mount.says("mounted .* at ")
            yield mount
            if process.poll() is None:
                process.terminate()
                assert mount.ended() == 0
            assert not is_mounted(folder)
        finally:
            watchdog.cancel()
            process.kill()
            mount.ended()
            remove(folder)


def remove(folder: Path) -> None:
    """Unmounts whatever is left."""
    while is_mounted(folder):
        subprocess.run(["umount", "--lazy", folder], check=True)


def run(*command: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs a program that uses a mount."""
    return subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=SECONDS,
        check=False,
        **options,
    )


def python(code: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs Python code that uses a mount, in a process of its own: a system call that waits for the file
    system must not keep the tests from ending."""
    return run(sys.executable, "-c", code, *arguments)


@contextlib.contextmanager
def in_parallel(*command: str | Path) -> Iterator[subprocess.Popen[str]]:
    """A program that runs during the block."""
    with subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
