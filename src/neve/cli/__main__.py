"""``neve`` and ``python -m neve.cli``: the way in. Exit codes:

====  ===============================================================
0     everything asked for was done
1     it failed; also: whoever read stdout has gone (then silently)
2     wrong usage
130   interrupted: 128 and the number of the signal (143 for SIGTERM)
====  ===============================================================
"""

from __future__ import annotations

import gc
import logging
import signal
import sys
from collections.abc import Sequence

from neve.cli import logs
from neve.cli.interrupts import interruptible


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line (default: that of the process); returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    logs.configure(logging.INFO, as_json=False)
    if argv is None:
        # A command makes millions of small objects and hardly a cycle: look for those less often.
        gc.set_threshold(100_000, 50, 50)
    try:
        with interruptible(process=argv is None):
            # Only here: an interrupt while all this is loaded is one like any other.
            from neve.cli.program import run

            return run(arguments)
    except KeyboardInterrupt as interrupt:
        logs.failure("interrupted", interrupt)
        return 128 + getattr(interrupt, "signal", signal.SIGINT)


if __name__ == "__main__":
    sys.exit(main())
