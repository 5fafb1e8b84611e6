"""``python -m tests.faults.run [--about N] [--part I/N] [OPERATION...]``: every fault at every call, and what
comes of it.

With ``--about``, some N of each operation, from its first to its last. With ``--part``, one of N parts of the
faults, the I-th from 1: all parts together are everything.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.faults.cases import Sweep
from tests.faults.operations import OPERATIONS
from tests.faults.world import World


def main() -> int:
    """Returns the exit code: 1 if something did not hold."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--about", type=int)
    parser.add_argument("--part", type=_part, default=(1, 1))
    parser.add_argument("operations", nargs="*", choices=[*OPERATIONS, []])
    arguments = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory(prefix="neve-faults-") as folder:
        world = World(Path(folder))
        for name in arguments.operations or OPERATIONS:
            sweep = Sweep(world, OPERATIONS[name])
            faults = list(sweep.faults())
            told = f"{name}: {len(sweep.calls)} calls, {len(faults)} faults"
            if arguments.about is not None:
                faults = faults[:: max(1, len(faults) // arguments.about)]
            first, parts = arguments.part
            faults = faults[first - 1 :: parts]
            print(f"{told}, of which {len(faults)} are tried", flush=True)
            for fault in faults:
                try:
                    sweep.check(fault)
                except AssertionError as error:
                    failed += 1
                    print(f"{error}\n  {'; '.join(getattr(error, '__notes__', []))}", flush=True)
    print(f"{failed} failed")
    return 1 if failed else 0


def _part(text: str) -> tuple[int, int]:
    which, _, parts = text.partition("/")
    if not 1 <= int(which) <= int(parts):
        raise ValueError(text)
    return int(which), int(parts)


if __name__ == "__main__":
    sys.exit(main())
