"""The processes that serve for a daemon: started, watched, started again, stopped.

Processes are spawned, never forked: neither gRPC nor LMDB survives a fork. What a worker is told and
what it reports is described in ``process``, where its side is.
"""

from __future__ import annotations

import contextlib
import json
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from neve.errors import Unavailable
from neve.serving.manager import Beat
from neve.serving.stopping import OVERTIME_SECONDS
from neve.telemetry import LOGGER

_FIRST_DELAY_SECONDS = 0.1
_LONGEST_DELAY_SECONDS = 5.0
_HEALTHY_SECONDS = 10.0
"""A worker that served for so long is started again without much delay."""
_START_SECONDS = 120.0
"""So long one that replaces another may take until it serves, and twice as long after each time that this was
not enough: there may be much to bring into order."""
_LONGEST_START_SECONDS = 3600.0
SILENT_BEATS = 4
"""A worker that missed so many hangs."""
_RECENT_BEATS = 2
"""Whoever was heard of within so many is taken for alive: one may be late."""


@dataclass(frozen=True, kw_only=True)
class Watch:
    """Who wants to know how the workers are."""

    beat_seconds: float | None = None
    """How often they are looked at; None: never. One that was not heard of for ``SILENT_BEATS`` of them is
    ended, and replaced like any that died."""
    alive: Callable[[], object] = lambda: None
    """Is called as often, while at least one worker serves and has been heard of just now."""
    serving: Callable[[int], object] = lambda count: None
    """Is told how many serve when that changes, or may have."""


class Worker:
    """One process. ``name`` is unique in its parent."""

    def __init__(self, slot: int, name: str, process: subprocess.Popen[bytes]) -> None:
        self.slot = slot
        self.name = name
        self.process = process
        self.ready_since: float | None = None
        self.late_at: float | None = None
        """When it is given up if it does not serve by then."""
        self.missed = 0
        """How often in a row it was looked at and had not been heard of since. Not seconds: after a machine
        was paused, or all of us were frozen, those would have passed, and nobody would be to blame."""
        self.failure: str | None = None
        """Why it does not start, in its own words."""

    def __str__(self) -> str:
        return f"worker {self.slot + 1} (pid {self.process.pid})"

    def end(self) -> str:
        """How it ended, for the log."""
        code = self.process.returncode
        if self.failure is not None:
            return f"does not start: {self.failure}"
        if code < 0:
            return f"was ended by {_signal_name(-code)}"
        return f"ended with exit code {code}" + ("" if self.ready_since else " before it was ready")


def _shortest(*seconds: float | None) -> float | None:
    """The shortest time; None stands for none at all."""
    return min((each for each in seconds if each is not None), default=None)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class _Event(NamedTuple):
    """What a worker reports; None: it has ended."""

    worker: Worker
    report: Mapping[str, Any] | None


class Workers:
    """A number of workers that do the same. To be used from one thread, but for ``request_stop`` and
    ``kill``."""

    def __init__(
        self,
        count: int,
        command: Sequence[str],
        configuration: Callable[[str], Mapping[str, Any]],
        *,
        ready: Callable[[Worker], None] = lambda _: None,
        gone: Callable[[Worker], None] = lambda _: None,
        descriptors: Sequence[int] = (),
    ) -> None:
        """``configuration`` says what to tell a worker by its name, as JSON; ``ready`` and ``gone`` are
        called when one has begun to serve, and when it takes no new clients or has ended (twice,
        maybe). Workers inherit ``descriptors``, under the same numbers."""
        self._count = count
        self._command = command
        self._configuration = configuration
        self._ready = ready
        self._gone = gone
        self._descriptors = descriptors
        self._events: queue.SimpleQueue[_Event | None] = queue.SimpleQueue()
        self._workers: dict[int, Worker] = {}
        self._due: dict[int, float] = {}
        """When the next worker of a slot is to be started."""
        self._delays = [_FIRST_DELAY_SECONDS] * count
        self._patience = [_START_SECONDS] * count
        self._started = 0
        self.watch = Watch()
        """To be set before they are started."""

    def request_stop(self) -> None:
        """Makes ``start`` and ``supervise`` return. From any thread or signal handler."""
        self._events.put(None)

    def kill(self) -> None:
        """Ends all of them at once. From any thread or signal handler."""
        for worker in list(self._workers.values()):
            worker.process.kill()

    def start(self) -> bool:
        """Starts all of them; True when all are ready, False if it was asked to stop before.

        Raises ``Unavailable`` if one of them does not start, with its own words if it had any.
        """
        for slot in range(self._count):
            self._spawn(slot)
        while not all(worker.ready_since for worker in self._workers.values()):
            event = self._events.get()
            if event is None:
                return False
            self._note(event)
            if event.report is None:
                raise Unavailable(event.worker.failure or f"{event.worker} {event.worker.end()}")
        return True

    def supervise(self) -> None:
        """Starts workers again that end, until it is asked to stop."""
        beat = Beat(self.watch.beat_seconds, self._look)
        while True:
            beat.beat()
            self._end_late()
            try:
                event = self._events.get(timeout=_shortest(self._idle(), beat.left()))
            except queue.Empty:
                self._restart()
                continue
            if event is None:
                return
            self._note(event)
            if event.report is None:
                self._schedule(event.worker)
            elif "ready" in event.report:
                LOGGER.info("%s serves", event.worker)

    def _idle(self) -> float | None:
        """Seconds until a worker is to be started, or given up."""
        late = (worker.late_at for worker in self._workers.values())
        next_one = _shortest(*self._due.values(), *late)
        return None if next_one is None else max(next_one - time.monotonic(), 0.0)

    def _end_late(self) -> None:
        """Ends those that should serve by now: others are started in their place."""
        for worker in self._workers.values():
            if worker.late_at is not None and worker.late_at <= time.monotonic():
                worker.late_at = None
                worker.failure = f"it was not ready after {self._patience[worker.slot]:g} s"
                self._patience[worker.slot] = min(2 * self._patience[worker.slot], _LONGEST_START_SECONDS)
                worker.process.kill()

    def _look(self) -> None:
        """Ends workers that hang, and tells whether any serves."""
        beat = self.watch.beat_seconds
        assert beat is not None
        serving = [worker for worker in self._workers.values() if worker.ready_since]
        for worker in serving:
            worker.missed += 1
            if worker.missed > SILENT_BEATS and worker.process.poll() is None:
                LOGGER.error("%s hangs: nothing was heard of it for %.3g s", worker, worker.missed * beat)
                worker.process.kill()
        if any(worker.missed <= _RECENT_BEATS for worker in serving):
            self.watch.alive()

    def stop(self, grace: float) -> None:
        """Tells all of them to stop, and waits for it: ``grace`` seconds and some more, then kills."""
        for worker in self._workers.values():
            _tell(worker, b"stop\n")
        if not self._all_ended(grace + OVERTIME_SECONDS):
            LOGGER.error("workers did not end in time; killing them: %s", self._names())
            self.kill()
            self._all_ended(None)

    def _all_ended(self, seconds: float | None) -> bool:
        deadline = None if seconds is None else time.monotonic() + seconds
        # This is going well too, and has an end.
        beat = Beat(self.watch.beat_seconds, self.watch.alive)
        while self._workers:
            beat.beat()
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                event = self._events.get(timeout=_shortest(left, beat.left()))
            except queue.Empty:
                if left == 0.0:
                    return False
                continue
            if event is not None:
                self._note(event)
        return True

    def _names(self) -> str:
        return ", ".join(str(worker) for worker in self._workers.values())

    def _spawn(self, slot: int) -> None:
        self._started += 1
        name = f"{slot}-{self._started}"
        with _blocked_signals():
            process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=self._descriptors
            )
        worker = Worker(slot, name, process)
        self._workers[slot] = worker
        threading.Thread(target=self._watch, args=(worker,), name=f"neve-{name}", daemon=True).start()
        configuration = {**self._configuration(name), "beat_seconds": self.watch.beat_seconds}
        _tell(worker, json.dumps(configuration).encode() + b"\n")

    def _watch(self, worker: Worker) -> None:
        """Passes on what a worker reports, and its end."""
        assert worker.process.stdout is not None
        with worker.process.stdout as reports:
            for line in reports:
                with contextlib.suppress(ValueError):  # Half a line: it was killed.
                    self._events.put(_Event(worker, json.loads(line)))
        worker.process.wait()
        self._events.put(_Event(worker, None))

    def _note(self, event: _Event) -> None:
        worker, report = event
        if report is None:
            assert worker.process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                worker.process.stdin.close()
            del self._workers[worker.slot]
            self._gone(worker)
            self._count_serving()
        elif "ready" in report:
            worker.ready_since, worker.missed, worker.late_at = time.monotonic(), 0, None
            self._patience[worker.slot] = _START_SECONDS
            self._ready(worker)
            self._count_serving()
        elif "alive" in report:
            worker.missed = 0
        elif "stopping" in report:
            self._gone(worker)
        elif "failed" in report:
            worker.failure = report["failed"]

    def _count_serving(self) -> None:
        self.watch.serving(sum(1 for worker in self._workers.values() if worker.ready_since))

    def _schedule(self, worker: Worker) -> None:
        now = time.monotonic()
        if worker.ready_since is not None and now - worker.ready_since >= _HEALTHY_SECONDS:
            self._delays[worker.slot] = _FIRST_DELAY_SECONDS
        delay = self._delays[worker.slot]
        self._delays[worker.slot] = min(2 * delay, _LONGEST_DELAY_SECONDS)
        self._due[worker.slot] = now + delay
        LOGGER.error("%s %s; starting another one in %g s", worker, worker.end(), delay)

    def _restart(self) -> None:
        for slot, due in list(self._due.items()):
            if due <= time.monotonic():
                try:
                    self._spawn(slot)
                    self._workers[slot].late_at = time.monotonic() + self._patience[slot]
                    del self._due[slot]
                except OSError as error:
                    LOGGER.error("cannot start a worker: %s", error.strerror)
                    self._due[slot] = time.monotonic() + _LONGEST_DELAY_SECONDS


def _tell(worker: Worker, line: bytes) -> None:
    """Writes to a worker. One that is gone is reported elsewhere."""
    assert worker.process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        worker.process.stdin.write(line)
        worker.process.stdin.flush()


@contextlib.contextmanager
def _blocked_signals() -> Iterator[None]:
    """What is started in the block is deaf to the signals that a terminal sends, until it listens."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGHUP))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
