"""Claim: the command line answers at once (``neve --help`` under 0.3 s).

Against: the bare interpreter, and Nix's own ``nix --help``.
"""

from __future__ import annotations

import sys

from common import NEVE, arguments, median, need, run, table


def main() -> None:
    args = arguments(__doc__ or "").parse_args()
    need("nix-store")
    runs = max(args.runs, 5)
    rows = [
        ["python -c pass", *median([run([sys.executable, "-c", "pass"]) for _ in range(runs)])],
        ["nix-store --version", *median([run(["nix-store", "--version"]) for _ in range(runs)])],
        ["neve --help", *median([run([*NEVE, "--help"]) for _ in range(runs)])],
        ["neve import --help", *median([run([*NEVE, "import", "--help"]) for _ in range(runs)])],
    ]
    table("start-up, seconds (median)", ["what", "wall", "cpu", "peak MiB"], rows)


if __name__ == "__main__":
    main()
