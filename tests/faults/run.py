"""``python -m tests.faults.run [OPERATION...]``: every fault at every call, and what comes of it."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.faults.cases import Sweep
from tests.faults.operations import OPERATIONS
from tests.faults.world import World


def main() -> int:
    """Returns the exit code: 1 if something did not hold."""
    failed = 0
    with tempfile.TemporaryDirectory(prefix="neve-faults-") as folder:
        world = World(Path(folder))
        for name in sys.argv[1:] or OPERATIONS:
            sweep = Sweep(world, OPERATIONS[name])
            faults = list(sweep.faults())
            print(f"{name}: {len(sweep.calls)} calls, {len(faults)} faults", flush=True)
            for fault in faults:
                try:
                    sweep.check(fault)
                except AssertionError as error:
                    failed += 1
                    print(f"{error}\n  {'; '.join(getattr(error, '__notes__', []))}", flush=True)
    print(f"{failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
