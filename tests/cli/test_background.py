"""Going to the background: what the process says that stays in front."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import os, signal, sys
import click
from neve.cli.background import in_background
from neve.errors import Unavailable

def work(ready):
    {work}

front = os.getpid()
try:
    in_background(work)
except Unavailable as error:
    sys.exit(str(error))
except click.exceptions.Exit as error:
    sys.exit(error.exit_code)
if os.getpid() == front:
    print("ready")
"""

KILLED = "os.kill(os.getpid(), signal.SIGKILL)"


@pytest.mark.parametrize(
    ("work", "code", "out", "err"),
    [
        ("ready()", 0, "ready\n", ""),
        ("sys.exit(0)", 1, "", ""),
        ("sys.exit('It is broken.')", 1, "", "It is broken.\n"),
        ("os._exit(7)", 7, "", ""),
        (KILLED, 1, "", "the process in the background was killed: Killed\n"),
    ],
)
def test_it_ends_as_the_one_in_the_background_does(work: str, code: int, out: str, err: str) -> None:
    command = [sys.executable, "-c", CODE.format(work=work)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (code, out, err)
