"""Workers are started, watched, started again and stopped, whatever they do."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from neve.errors import Unavailable
from neve.server.limits import Limits
from neve.server.settings import Endpoint, Settings, from_json, to_json
from neve.serving import workers as module
from neve.serving.tls import Tls
from neve.serving.workers import Watch, Worker, Workers
from tests.logged import logged

# A worker that does as its configuration says, and writes down what it is told.
WORKER = """
import json, os, signal, sys, time
config = json.loads(sys.stdin.readline())
def report(**what):
    sys.stdout.write(json.dumps(what) + chr(10)); sys.stdout.flush()
do = config["do"]
if do == "fail":
    report(failed="the store is on fire")
    sys.exit(1)
if do == "crash":
    sys.exit(7)
if do == "die":
    os.kill(os.getpid(), signal.SIGKILL)
if do == "hang":
    time.sleep(1000)
print("no report", file=sys.stderr, end="")
report(ready=True)
told = sys.stdin.readline()
if do == "deaf":
    time.sleep(1000)
with open(config["log"], "a") as log:
    log.write(f"{config['name']} {told.strip() or 'orphan'}" + chr(10))
if told:
    report(stopping=True)
"""


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Run:
    """A number of workers, and what was told about them."""

    def __init__(self, folder: Path, count: int = 2) -> None:
        self.log = folder / "log"
        self.do: dict[str, str] = {}
        """What workers of a name do; all others serve."""
        self.ready: list[Worker] = []
        self.gone: list[Worker] = []
        self.workers = Workers(
            count,
            [sys.executable, "-c", WORKER],
            self._configuration,
            ready=self.ready.append,
            gone=self.gone.append,
        )
        self._supervising: threading.Thread | None = None

    def _configuration(self, name: str) -> Mapping[str, Any]:
        return {"name": name, "do": self.do.get(name, "serve"), "log": str(self.log)}

    def supervise(self) -> None:
        assert self.workers.start()
        self._supervising = threading.Thread(target=self.workers.supervise)
        self._supervising.start()

    def stop(self, grace: float = 30.0) -> None:
        self.workers.request_stop()
        if self._supervising is not None:
            self._supervising.join()
        self.workers.stop(grace)

    @property
    def said(self) -> list[str]:
        return sorted(self.log.read_text().splitlines()) if self.log.exists() else []


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    made = Run(tmp_path)
    yield made
    made.workers.kill()


@pytest.fixture
def messages() -> Iterator[list[str]]:
    """The log lines; the list grows."""
    with logged() as collected:
        yield collected


def test_start_and_stop(run: Run) -> None:
    run.supervise()
    assert sorted(worker.name for worker in run.ready) == ["0-1", "1-2"]
    assert len({worker.process.pid for worker in run.ready}) == 2
    run.stop()
    assert run.said == ["0-1 stop", "1-2 stop"]
    assert [worker.process.returncode for worker in run.ready] == [0, 0]
    assert {worker.name for worker in run.gone} == {"0-1", "1-2"}


def test_what_is_on_the_command_line(run: Run) -> None:
    run.supervise()
    for worker in run.ready:
        command = Path(f"/proc/{worker.process.pid}/cmdline").read_text()
        assert "log" in command
        assert str(run.log) not in command
    run.stop()


@pytest.mark.parametrize(
    ("do", "complaint"),
    [
        ("fail", r"^the store is on fire$"),
        ("crash", r"^worker 2 \(pid \d+\) ended with exit code 7 before it was ready$"),
        ("die", r"^worker 2 \(pid \d+\) was ended by SIGKILL$"),
    ],
)
def test_one_that_does_not_start(run: Run, do: str, complaint: str) -> None:
    run.do["1-2"] = do
    with pytest.raises(Unavailable, match=complaint):
        run.workers.start()
    run.workers.stop(30.0)
    assert run.said == ["0-1 stop"]


def test_stopped_while_starting(run: Run) -> None:
    run.do["1-2"] = "hang"
    threading.Timer(0.2, run.workers.request_stop).start()
    assert not run.workers.start()
    run.workers.kill()
    run.workers.stop(30.0)
    assert len(run.gone) == 2


def test_one_that_dies_is_replaced(run: Run, messages: list[str]) -> None:
    run.supervise()
    victim, other = sorted(run.ready, key=lambda worker: worker.name)
    victim.process.kill()
    until(lambda: len(run.ready) == 3)
    assert run.gone == [victim]
    assert run.ready[2].name == "0-3"
    assert run.ready[2].slot == victim.slot
    assert other.process.poll() is None
    until(lambda: len(messages) == 2)
    assert messages[0] == f"{victim} was ended by SIGKILL; starting another one in 0.1 s"
    assert messages[1] == f"{run.ready[2]} serves"
    run.stop()
    assert run.said == ["0-3 stop", "1-2 stop"]


def test_nobody_is_to_blame_for_a_pause(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that was paused, or a service that was frozen, goes on: nobody was heard of meanwhile."""
    alive: list[None] = []
    run.workers.watch = Watch(beat_seconds=1000, alive=lambda: alive.append(None))
    assert run.workers.start()
    later = time.monotonic() + 100_000
    with monkeypatch.context() as patch:
        patch.setattr("neve.serving.workers.time.monotonic", lambda: later)
        threading.Timer(0, run.workers.request_stop).start()
        run.workers.supervise()
    assert alive == [None]
    assert all(worker.process.poll() is None for worker in run.ready)
    run.workers.stop(30.0)


def test_one_that_says_nothing_is_ended(run: Run, messages: list[str]) -> None:
    run.workers.watch = Watch(beat_seconds=0.01)
    run.supervise()  # They never tell that they are alive.
    until(lambda: len(run.ready) > 2)
    assert any("hangs: nothing was heard of it for 0.05 s" in message for message in messages)
    run.stop()


def test_one_that_ends_tidily_is_replaced(run: Run, messages: list[str]) -> None:
    """As somebody may do on purpose: it takes no more clients before it has ended."""
    run.supervise()
    victim = run.ready[0]
    assert victim.process.stdin is not None
    victim.process.stdin.write(b"bye\n")
    victim.process.stdin.flush()
    until(lambda: len(run.ready) == 3)
    assert run.gone == [victim, victim]
    assert "ended with exit code 0; starting" in messages[0]
    run.stop()


def test_delays_grow(run: Run, messages: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIRST_DELAY_SECONDS", 0.01)
    monkeypatch.setattr(module, "_LONGEST_DELAY_SECONDS", 0.05)
    run = Run(run.log.parent)
    for number in range(3, 7):
        run.do[f"0-{number}"] = "fail"
    run.supervise()
    next(worker for worker in run.ready if worker.slot == 0).process.kill()
    until(lambda: len(run.ready) == 3)
    assert run.ready[2].name == "0-7"
    delays = [message.rpartition(" in ")[2] for message in messages if "starting another" in message]
    assert delays == ["0.01 s", "0.02 s", "0.04 s", "0.05 s", "0.05 s"]
    assert "does not start: the store is on fire; starting" in messages[1]
    monkeypatch.setattr(module, "_HEALTHY_SECONDS", 0.0)
    run.ready[2].process.kill()
    until(lambda: len(run.ready) == 4)
    assert "in 0.01 s" in next(message for message in reversed(messages) if "starting another" in message)
    run.stop()


def test_one_that_never_gets_ready_is_ended(
    run: Run, messages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And gets more time each time: it may just be slow."""
    monkeypatch.setattr(module, "_FIRST_DELAY_SECONDS", 0.01)
    monkeypatch.setattr(module, "_START_SECONDS", 0.5)
    run = Run(run.log.parent)
    run.do |= {"0-3": "hang", "0-4": "hang"}
    run.supervise()
    victim = next(worker for worker in run.ready if worker.slot == 0)
    victim.process.kill()
    until(lambda: len(run.ready) == 3)
    late = [message for message in messages if "was not ready" in message]
    assert re.search(r"does not start: it was not ready after 0.5 s; starting another one in", late[0])
    assert "after 1 s" in late[1]
    assert int(run.ready[2].name.removeprefix("0-")) >= 5
    run.ready[2].process.kill()
    until(lambda: len(run.ready) == 4)  # Anew, with as much time as at first.
    assert run.workers._patience == [0.5, 0.5]
    run.stop()


def test_a_deaf_one_is_killed(run: Run, messages: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OVERTIME_SECONDS", 0.2)
    run.do["0-1"] = "deaf"
    run.supervise()
    run.stop(grace=0.2)
    assert run.said == ["1-2 stop"]
    assert {worker.name: worker.process.returncode for worker in run.ready} == {"0-1": -9, "1-2": 0}
    assert "workers did not end in time; killing them: worker 1" in messages[-1]


def test_a_stop_while_none_is_there(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIRST_DELAY_SECONDS", 60.0)
    run = Run(run.log.parent)
    run.supervise()
    for worker in run.ready:
        worker.process.kill()
    until(lambda: len(run.gone) == 2)
    run.stop()


def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    parent = f"""
import sys, time
from neve.serving.workers import Workers
configuration = lambda name: dict(name=name, do="serve", log={str(tmp_path / "log")!r})
workers = Workers(2, [sys.executable, "-c", {WORKER!r}], configuration, ready=print, gone=print)
workers.start()
print([w.process.pid for w in workers._workers.values()], flush=True)
time.sleep(1000)
"""
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        pids = json.loads(next(line for line in process.stdout if line.startswith(b"[")))
        process.kill()
    until(lambda: not any(alive(pid) for pid in pids))
    assert sorted((tmp_path / "log").read_text().splitlines()) == ["0-1 orphan", "1-2 orphan"]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False


def test_a_terminal_does_not_reach_them(run: Run) -> None:
    """They inherit the signals of a terminal blocked, so that these wait until they are ignored."""
    run.supervise()
    for worker in run.ready:
        status = Path(f"/proc/{worker.process.pid}/status").read_text()
        blocked = int(next(line for line in status.splitlines() if line.startswith("SigBlk")).split()[1], 16)
        for number in (signal.SIGINT, signal.SIGHUP):
            assert blocked & 1 << number - 1
        assert not blocked & 1 << signal.SIGTERM - 1
    run.stop()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()


def test_nothing_is_left_open(run: Run) -> None:
    before = len(os.listdir("/proc/self/fd"))
    run.supervise()
    run.ready[0].process.kill()
    until(lambda: len(run.ready) == 3)
    run.stop()
    until(lambda: len(os.listdir("/proc/self/fd")) == before)


def test_settings_travel() -> None:
    endpoints = [Endpoint("unix:/a", admin=True), Endpoint("[::1]:1", tls=True)]
    for settings in (
        Settings(),
        Settings(
            limits=Limits(max_blob_bytes=5, stream_idle_seconds=0.5),
            read_only=True,
            grace=1.5,
            tls=Tls(certificate="a", key="b", client_ca="c"),
        ),
    ):
        document = json.loads(json.dumps(to_json(settings, endpoints)))
        assert from_json(document) == (settings, endpoints)
