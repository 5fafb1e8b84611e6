"""Imports that are killed at any moment, alone and two at once: the store opens, and nothing that was
acknowledged is missing or damaged."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import neve
from neve.store.check import rebuild_index, verify_store

ROUNDS = 12
TREES = 4


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Trees that share some files, of about 12 MB each: many small files and one in chunks."""
    numbers = random.Random(5)
    shared = [numbers.randbytes(numbers.randrange(1, 40_000)) for _ in range(120)]
    result = []
    for number in range(TREES):
        root = tmp_path_factory.mktemp("trees") / f"tree-{number}"
        for i in range(400):
            folder = root / f"d{i % 20}" / f"e{i % 7}"
            folder.mkdir(parents=True, exist_ok=True)
            contents = shared[i % 120] if i % 3 else numbers.randbytes(numbers.randrange(1, 30_000))
            (folder / f"file-{i}").write_bytes(contents)
        (root / "large").write_bytes(numbers.randbytes(5_000_000))
        result.append(root)
    return result


def start_import(store: Path, paths: list[Path]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "neve.cli", "import", "--store", f"local://{store}", *map(str, paths)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def acknowledged(process: subprocess.Popen[str]) -> set[str]:
    """The store paths that a finished or killed import has printed."""
    assert process.stdout is not None
    return {line for line in process.stdout.read().splitlines(keepends=True) if line.endswith("\n")}


def check(store: Path, printed: set[str]) -> None:
    with neve.open(f"local://{store}") as opened:
        report = verify_store(opened.services, nar_hashes=True)
        assert report.problems == []
        for line in printed:
            assert opened.path_info(line.strip()).nar is not None


@pytest.mark.parametrize("at_once", [1, 2])
def test_killed_imports_leave_a_good_store(trees: list[Path], tmp_path: Path, at_once: int) -> None:
    store = tmp_path / "store"
    numbers = random.Random(at_once)
    printed: set[str] = set()
    killed = 0
    for _ in range(ROUNDS // at_once):
        processes = []
        for _ in range(at_once):
            paths = numbers.sample(trees, len(trees))
            processes.append(start_import(store, paths))
        for process in processes:
            time.sleep(numbers.uniform(0.1, 1.2) / at_once)
            process.send_signal(signal.SIGKILL)
        for process in processes:
            printed |= acknowledged(process)
            killed += process.wait() == -signal.SIGKILL
            assert process.stdout is not None
            process.stdout.close()
        if (store / "store.json").exists():
            check(store, printed)
    assert killed, "no import was still running when it was killed"
    final = start_import(store, trees)
    everything = acknowledged(final)
    assert final.wait() == 0
    assert final.stdout is not None
    final.stdout.close()
    assert len(everything) == TREES
    assert printed <= everything
    check(store, everything)
    rebuild_index(f"local://{store}")
    check(store, everything)
