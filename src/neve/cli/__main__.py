"""``neve`` and ``python -m neve.cli``: the way in. Exit codes:

====  =====================================================================
0     everything asked for was done
1     it failed; also: whoever read stdout has gone (then silently)
2     wrong usage; of servers also: files that their options name are of no use
130   interrupted: 128 and the number of the signal (143 for SIGTERM)
====  =====================================================================
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import os
import signal
import sys
from collections.abc import Sequence

from neve.cli import logs
from neve.cli.interrupts import interruptible
from neve.rpc import tuning

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_KEPT_BYTES = 32 * 1024 * 1024


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line (default: that of the process); returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    logs.configure(logging.INFO, as_json=False)
    tuning.tune(os.environ)
    if argv is None:
        _tune_memory()
    try:
        with interruptible(process=argv is None):
            # Only here: an interrupt while all this is loaded is one like any other.
            from neve.cli.program import run

            return run(arguments)
    except KeyboardInterrupt as interrupt:
        logs.failure("interrupted", interrupt)
        return 128 + getattr(interrupt, "signal", signal.SIGINT)


def _tune_memory() -> None:
    """Settings for a process that handles gigabytes in pieces of some hundred KiB, and then ends."""
    # Millions of small objects and hardly a cycle: look for those less often.
    gc.set_threshold(100_000, 50, 50)
    # glibc gives each freed piece back to the kernel and faults the next one in again, page by page.
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


if __name__ == "__main__":
    sys.exit(main())
