"""Some faults of each operation; ``make faults`` goes through all of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.operations import OPERATIONS

ABOUT = 6
"""Faults of each operation, from its first call to its last."""


# In a process of its own: children of one that has used gRPC's threads are not safe.
@pytest.mark.seccomp
@pytest.mark.parametrize("operation", OPERATIONS)
def test_what_fails_leaves_everything_right(operation: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.faults.run", "--about", str(ABOUT), operation]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=root,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("\n0 failed\n")
