"""``python -m tests.soak.run SECONDS [SEED]``: works on one store for that long, and tells what happened."""

from __future__ import annotations

import collections
import hashlib
import http.client
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from .model import Item, Model
from .processes import SECONDS, Processes, Running
from .trees import make_tree, nar_hash

TREES = 12
ACTORS = 3
KILL_EVERY = 1.5
"""Seconds between two kills, on average."""

_NO_NEWS = "cannot be reached", "Connection", "connection", "closed", "Socket", "reset"
"""What a client says whose server was killed. No other reason counts."""


class Server:
    """A server that is started again when it was killed."""

    def __init__(self, processes: Processes, arguments: Sequence[str | Path], place: Path) -> None:
        self._processes = processes
        self._arguments = arguments
        self.socket = place
        self.kills = 0
        self._running: Running | None = None
        self._lock = threading.Lock()

    def keep_up(self) -> None:
        """Starts it, unless it runs."""
        with self._lock:
            running = self._running
            if running is not None and not running.killed and running.process.poll() is None:
                return
            if self._running is not None:
                assert self._running.killed, self._running.failure()
                self._running.process.communicate()
                self.kills += 1
            self._running = self._processes.start(self._arguments)
            deadline = time.monotonic() + SECONDS
            while not self._answers():
                if self._running.killed:
                    return
                assert self._running.process.poll() is None, self._running.failure()
                assert time.monotonic() < deadline, "a server does not start"
                time.sleep(0.02)

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            return client.connect_ex(str(self.socket)) == 0

    def is_mine(self, running: Running) -> bool:
        """Whether this is the server's process."""
        return running is self._running


class Soak:
    """The store, its servers, and what is done to them."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.url = f"local://{folder / 'store'}"
        self.processes = Processes(folder)
        self.counts: collections.Counter[str] = collections.Counter()
        self.failures: list[str] = []
        self._seed = seed
        self._end = 0.0
        self._collecting = threading.Lock()
        """There is one collection at a time."""
        grpc, web = folder / "grpc", folder / "http"
        common = ["--store", self.url]
        self.daemon = Server(self.processes, ["daemon", "-l", f"unix:{grpc}", *common], grpc)
        self.cache = Server(self.processes, ["serve", "-l", f"unix:{web}", *common], web)
        self.model = Model(list(self._items()))

    def _items(self) -> list[Item]:
        items = []
        for number in range(TREES):
            tree = self.folder / f"tree-{number}"
            make_tree(tree, number)
            running, output = self.processes.run(["import", "--store", "memory://", tree])
            assert running.process.returncode == 0, running.failure()
            items.append(Item(tree, output.decode().strip(), nar_hash(tree)))
        return items

    # What is done. Each raises AssertionError if something is wrong.

    def import_some(self, numbers: random.Random) -> None:
        with self.model.used(numbers, 3, present=False) as items:
            by_daemon = numbers.random() < 0.4
            url = f"grpc+unix://{self.daemon.socket}" if by_daemon else self.url
            running, output = self._run(["import", "--store", url, *(item.tree for item in items)], by_daemon)
            lines = output.decode().splitlines(keepends=True)
            printed = {line.strip() for line in lines if line.endswith("\n")}
            by_path = {item.store_path: item for item in items}
            assert printed <= by_path.keys(), printed
            assert running.process.returncode or len(printed) == len(items)
            self.model.acknowledge([by_path[path] for path in printed])

    def render(self, numbers: random.Random) -> None:
        with self.model.used(numbers, 1, present=True) as items:
            for item in items:
                by_daemon = numbers.random() < 0.5
                url = f"grpc+unix://{self.daemon.socket}" if by_daemon else self.url
                command = ["nar", "export", "--store", url, item.store_path]
                running, output = self._run(command, by_daemon)
                if running.process.returncode == 0:
                    assert hashlib.sha256(output).hexdigest() == item.nar_hash, item

    def export(self, numbers: random.Random) -> None:
        with self.model.used(numbers, 1, present=True) as items, tempfile.TemporaryDirectory() as place:
            for item in items:
                out = Path(place) / "out"
                running, _ = self._run(["export", "--store", self.url, item.store_path, out], False)
                if running.process.returncode == 0:
                    assert nar_hash(out) == item.nar_hash, item

    def pull(self, numbers: random.Random) -> None:
        with self.model.used(numbers, 1, present=True) as items:
            for item in items:
                kills = self.cache.kills
                try:
                    self._pull(item)
                except (OSError, http.client.HTTPException):
                    self.cache.keep_up()
                    if self.cache.kills == kills:
                        raise

    def _pull(self, item: Item) -> None:
        self.cache.keep_up()
        key = Path(item.store_path).name[:32]
        status, narinfo = self._get(f"/{key}.narinfo")
        assert status == 200, (status, item)
        fields = dict(line.split(": ", 1) for line in narinfo.decode().splitlines())
        assert fields["StorePath"] == item.store_path
        status, nar = self._get(f"/{fields['URL']}")
        assert status == 200, (status, item)
        assert hashlib.sha256(nar).hexdigest() == item.nar_hash, item

    def _get(self, target: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("localhost", timeout=SECONDS)
        connection.sock = socket.socket(socket.AF_UNIX)
        try:
            connection.sock.settimeout(SECONDS)
            connection.sock.connect(str(self.cache.socket))
            connection.request("GET", target)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def collect(self, numbers: random.Random) -> None:
        with self._collecting, self.model.dropping(numbers, 2) as dropped:
            kept = [item.store_path for item in self.model.items if item not in dropped]
            command = ["gc", "--store", self.url, "--ignore-missing", "--grace", "2s", "--keep", *kept]
            self._run(command, False)

    def verify(self, _: random.Random) -> None:
        self._run(["verify", "--store", self.url, "--nars"], False)

    def _run(self, command: Sequence[str | Path], by_daemon: bool) -> tuple[Running, bytes]:
        """Only who was killed may fail, or whose server was."""
        if by_daemon:
            self.daemon.keep_up()
        kills = self.daemon.kills
        running, output = self.processes.run(command)
        if running.process.returncode and not running.killed:
            assert by_daemon, f"{running.failure()}\n{output.decode()}"
            self.daemon.keep_up()
            assert self.daemon.kills > kills, running.failure()
            assert any(word in running.errors.read_text() for word in _NO_NEWS), running.failure()
        return running, output

    # How.

    def work(self, seconds: float) -> None:
        """Does it all for a while, then looks at everything."""
        self.import_some(random.Random(self._seed))  # Now there is a store.
        self._end = time.monotonic() + seconds
        threads = [threading.Thread(target=self._act, args=(number,)) for number in range(ACTORS)]
        threads.append(threading.Thread(target=self._kill))
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            self.processes.stop_all()
        assert not self.failures, "\n".join(self.failures)
        self._look_at_everything()

    def _act(self, number: int) -> None:
        numbers = random.Random(self._seed * 1000 + number)
        actions: list[Callable[[random.Random], None]] = [
            *(self.import_some, self.import_some, self.render),
            *(self.export, self.pull, self.collect, self.verify),
        ]
        while time.monotonic() < self._end and not self.failures:
            action = numbers.choice(actions)
            try:
                action(numbers)
                self.counts[action.__name__] += 1
            except Exception as error:  # Told at the end, by the thread that waits for this one.
                self.failures.append(f"{action.__name__}: {type(error).__name__}: {error}")

    def _kill(self) -> None:
        numbers = random.Random(self._seed * 1000 + 999)
        while time.monotonic() < self._end and not self.failures:
            time.sleep(numbers.uniform(0, 2 * KILL_EVERY))
            # Servers less often: who works with them should come to an end now and then.
            spare_servers = numbers.random() < 0.7
            self.processes.kill_one(
                numbers,
                lambda one, spare=spare_servers: (
                    spare  # type: ignore[misc]
                    and (self.daemon.is_mine(one) or self.cache.is_mine(one))
                ),
            )

    def _look_at_everything(self) -> None:
        """Alone with the store: what must be there is, and can be got back from the packs alone."""
        self._check()
        self._run(["verify", "--store", self.url, "--rebuild-index"], False)
        self._check()

    def _check(self) -> None:
        self._run(["verify", "--store", self.url, "--nars"], False)
        for item in self.model.present():
            running, output = self._run(["nar", "export", "--store", self.url, item.store_path], False)
            assert running.process.returncode == 0, running.failure()
            assert hashlib.sha256(output).hexdigest() == item.nar_hash, item


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 300
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else int(time.time())
    print(f"for {seconds:g} s, seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="neve-soak-") as folder:
        soak = Soak(Path(folder), seed)
        soak.work(seconds)
        subprocess.run(["du", "-sh", f"{folder}/store"], check=True)
    print(f"{dict(soak.counts)}, {soak.processes.kills} killed; nothing lost, nothing wrong")


if __name__ == "__main__":
    main()
