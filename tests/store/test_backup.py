"""Backups of a store that is being written to, and what can be restored from them. As docs/backup.md says."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from neve.packstore.layout import INDEX_DIR, PACKS_DIR, STORE_FILE
from neve.store.check import rebuild_index, verify_store
from neve.store.mirror import mirror
from neve.store.repair import repair
from neve.store.services import Services, open_services

from .mirror.stores import check_consistent

WRITER = """
import sys, random
from neve.store.services import open_services
from tests.store.mirror.stores import add, path_of
url, name = sys.argv[1:]
services = open_services(url)
earlier = []
for number in range(100_000):
    path = f"{name}-{number}"
    add(services, path, earlier[-2:], large=number % 8 == 7)
    earlier.append(path)
    print(path_of(path).absolute, flush=True)
"""

_PATIENCE_SECONDS = 120


class Writer:
    """A process that registers one path after the other."""

    def __init__(self, url: str, name: str, log: Path) -> None:
        self._log = log
        with log.open("wb") as out:
            command = [sys.executable, "-c", WRITER, url, name]
            self.process = subprocess.Popen(command, stdout=out)

    def acknowledged(self) -> list[str]:
        """What it has told to be registered so far."""
        return self._log.read_text().splitlines(keepends=True)

    def wait_for(self, count: int) -> None:
        """Waits until it has registered so many."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while len(self.acknowledged()) < count:
            assert self.process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"local://{tmp_path}/store"


@pytest.fixture
def writers(url: str, tmp_path: Path) -> Iterator[list[Writer]]:
    """Two of them: each has its own pack, and refers to what the other one has stored."""
    open_services(url).close()
    running = [Writer(url, name, tmp_path / name) for name in ("one", "two")]
    try:
        for writer in running:
            writer.wait_for(10)
        yield running
    finally:
        for writer in running:
            writer.process.send_signal(signal.SIGKILL)
            writer.process.wait()


def acknowledged(writers: list[Writer]) -> set[str]:
    return {line.strip() for writer in writers for line in writer.acknowledged() if line.endswith("\n")}


def paths_of(services: Services) -> set[str]:
    return {path_info.store_path.absolute for path_info in services.path_infos}


@contextlib.contextmanager
def opened(url: str) -> Iterator[Services]:
    services = open_services(url)
    yield services
    services.close()


def test_a_mirror_while_others_write(url: str, writers: list[Writer], tmp_path: Path) -> None:
    backup = f"local://{tmp_path}/backup"
    for _ in range(3):
        before = acknowledged(writers)
        with opened(f"{url}?mode=ro") as source, opened(backup) as target:
            report = mirror(source, target)
            assert not report.failures
            assert report.dangling == 0
            check_consistent(target)
            assert before <= paths_of(target)
        writers[0].wait_for(len(writers[0].acknowledged()) + 5)
    # Restored: it is a store like any other, or goes back where the old one was.
    shutil.rmtree(tmp_path / "lost", ignore_errors=True)
    with opened(f"{backup}?mode=ro") as source, opened(f"local://{tmp_path}/lost") as target:
        assert not mirror(source, target).failures
        check_consistent(target)
        assert paths_of(target) == paths_of(source)


@pytest.mark.parametrize("with_index", [False, True])
def test_a_copy_of_the_files_while_others_write(
    with_index: bool, url: str, writers: list[Writer], tmp_path: Path
) -> None:
    """The copy of the index is of no use; packs are enough to make it anew. What was acknowledged before the
    copy began is there. What came later may be there in part: one pack was copied before the other."""
    before = acknowledged(writers)
    copy = tmp_path / "copy"
    if with_index:
        shutil.copytree(tmp_path / "store", copy, ignore=shutil.ignore_patterns("tmp"))
    else:
        copy.mkdir()
        shutil.copy(tmp_path / "store" / STORE_FILE, copy)
        shutil.copytree(tmp_path / "store" / PACKS_DIR, copy / PACKS_DIR)
        assert not (copy / INDEX_DIR).exists()
    for writer in writers:
        writer.wait_for(len(writer.acknowledged()) + 5)
    rebuild_index(f"local://{copy}")
    with opened(f"local://{copy}") as restored:
        assert before <= paths_of(restored)
        report = verify_store(restored, nar_hashes=True)
        broken = {path for path in paths_of(restored) if any(path in line for line in report.problems)}
        assert not broken & before
        with opened(f"{url}?mode=ro") as source:
            assert repair(restored, source).problems == []
            assert not mirror(source, restored).failures
        check_consistent(restored)
