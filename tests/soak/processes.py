"""Processes that are started, and killed at random."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

SECONDS = 120
"""Whatever takes longer hangs."""


@dataclass(eq=False)
class Running:
    """A process, or what became of it."""

    process: subprocess.Popen[bytes]
    errors: Path
    killed: bool = False
    started: float = field(default_factory=time.monotonic)

    def failure(self) -> str:
        """What to say about one that should not have failed."""
        return f"{self.process.args!r} ended with {self.process.returncode}: {self.errors.read_text()}"


class Processes:
    """Those that run. Thread-safe."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: list[Running] = []
        self._started: list[Running] = []
        self._lock = threading.Lock()
        self._count = 0
        self.kills = 0

    def start(self, arguments: Sequence[str | Path]) -> Running:
        """Starts ``neve`` with these arguments."""
        command = [sys.executable, "-m", "neve.cli", *map(str, arguments)]
        with self._lock:
            self._count += 1
            errors = self._folder / f"errors-{self._count}"
            with errors.open("wb") as file:
                # In a group of its own, so that the workers of a server die with it.
                process = subprocess.Popen(
                    command, stdout=subprocess.PIPE, stderr=file, start_new_session=True
                )
            running = Running(process, errors)
            self._running.append(running)
            self._started.append(running)
            return running

    def run(self, arguments: Sequence[str | Path]) -> tuple[Running, bytes]:
        """The same, to its end; with what it has written to stdout."""
        running = self.start(arguments)
        try:
            output, _ = running.process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            self.kill(running)
            running.process.communicate()
            raise AssertionError(f"{running.process.args!r} takes longer than {SECONDS} s") from None
        finally:
            self.ended(running)
        return running, output

    def ended(self, running: Running) -> None:
        """It need not be killed any more."""
        with self._lock:
            if running in self._running:
                self._running.remove(running)

    def kill(self, running: Running) -> None:
        """Ends it at once, with all that it has started."""
        running.killed = True
        with self._lock:
            if running in self._running:
                self._running.remove(running)
                self.kills += 1
        if running.process.poll() is None:
            os.killpg(running.process.pid, signal.SIGKILL)

    def kill_one(self, numbers: random.Random, spare: Callable[[Running], bool]) -> None:
        """Kills one of those that run, but for those that are spared."""
        with self._lock:
            found = [running for running in self._running if not spare(running)]
        if found:
            self.kill(numbers.choice(found))

    def stop_all(self) -> None:
        """Ends what is left."""
        with self._lock:
            left = list(self._running)
        for running in left:
            self.kill(running)
        # Servers too that were killed last, and that nobody has started again.
        for running in self._started:
            running.process.wait()
            if running.process.stdout is not None:
                running.process.stdout.close()
