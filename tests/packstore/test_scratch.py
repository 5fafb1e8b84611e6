"""Folders for a while."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from neve.packstore.scratch import scratch_folder


def test_it_is_gone_afterwards(tmp_path: Path) -> None:
    with scratch_folder(tmp_path) as folder:
        (folder / "file").write_text("x")
        assert list(tmp_path.iterdir()) == [folder]
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ZeroDivisionError), scratch_folder(tmp_path):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_what_a_dead_process_has_left_is_removed_and_what_a_live_one_uses_is_not(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, sys, neve.packstore.scratch as scratch\n"
        f"with scratch.scratch_folder(pathlib.Path({str(tmp_path)!r})) as folder:\n"
        "    (folder / 'file').write_text('x')\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    [left] = tmp_path.iterdir()
    assert (left / "file").exists()
    with scratch_folder(tmp_path) as first, scratch_folder(tmp_path) as second:
        assert set(tmp_path.iterdir()) == {first, second}


def test_a_folder_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), scratch_folder(tmp_path / "missing"):
        pass
