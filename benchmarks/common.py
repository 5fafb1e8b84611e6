"""What the benchmarks share: running commands, medians, tables.

Every benchmark compares neve with what a user would otherwise use, in one run on one machine, and
prints ratios: machines differ and are shared, ratios travel better than seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from neve.rpc.tuning import tune

tune(os.environ)  # As the command line does, for the clients that are part of a benchmark.

NEVE = [sys.executable, "-m", "neve.cli"]
NIX = ["nix", "--extra-experimental-features", "nix-command"]
KERNEL_ARCHIVE = Path("/usr/src/linux-source-6.1.tar.xz")


class Run(NamedTuple):
    """One run of a command: seconds of wall time and of CPU time, peak memory in MiB."""

    wall: float
    cpu: float
    peak_mib: float


def run(command: Sequence[str | Path], *, output: Path | None = None, cwd: Path | None = None) -> Run:
    """Runs a command; its output goes to ``output`` (default: nowhere). Fails if it does."""
    target = open(output or os.devnull, "wb")  # noqa: SIM115 - closed right below
    started = time.perf_counter()
    process = subprocess.Popen([str(c) for c in command], stdout=target, stderr=subprocess.PIPE, cwd=cwd)
    assert process.stderr is not None
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    target.close()
    process.stderr.close()
    if process.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{errors.decode(errors='replace')}")
    return Run(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def median(runs: Sequence[Run]) -> Run:
    """The run with the median wall time."""
    return sorted(runs)[len(runs) // 2]


def median_of(values: Sequence[float]) -> float:
    return statistics.median(values)


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Prints an aligned table."""
    cells = [list(header), *[[_cell(value) for value in row] for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    print(f"\n{title}")
    for number, row in enumerate(cells):
        print(
            "  "
            + "  ".join(
                c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
            )
        )
        if number == 0:
            print("  " + "  ".join("-" * width for width in widths))
    sys.stdout.flush()


def _cell(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def need(*tools: str) -> None:
    """Ends the benchmark with a clear message if a peer is not installed."""
    for tool in tools:
        if shutil.which(tool) is None:
            sys.exit(f"{tool} is not installed (Debian: nix-bin); run `make test-system-deps` as root")


@contextlib.contextmanager
def workspace(parent: str | None) -> Iterator[Path]:
    """A folder that is removed afterwards, also when what lies in it is read-only."""
    path = Path(tempfile.mkdtemp(prefix="neve-bench-", dir=parent))
    try:
        yield path
    finally:
        subprocess.run(["chmod", "-R", "u+w", path], check=False)
        subprocess.run(["rm", "-rf", path], check=False)


def arguments(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--runs", type=int, default=3, help="runs of each measurement (default 3)")
    parser.add_argument("--dir", help="folder for scratch data (default: the system's temporary folder)")
    return parser


def add_tree_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tree", type=Path, help="an unpacked kernel source (default: unpacks Debian's)")


def kernel_tree(given: Path | None, work: Path) -> Path:
    """The kernel tree: ``given``, or Debian's package linux-source-6.1 unpacked into ``work``."""
    if given is not None:
        return given
    if not KERNEL_ARCHIVE.exists():
        sys.exit(f"{KERNEL_ARCHIVE} is missing: apt-get install linux-source-6.1, or give --tree")
    print(f"unpacking {KERNEL_ARCHIVE} ...", flush=True)
    subprocess.run(["tar", "-xf", KERNEL_ARCHIVE, "-C", work], check=True)
    return work / "linux-source-6.1"


def warm(tree: Path) -> None:
    """Reads a tree once, so that every contestant finds it in the page cache."""
    run(["nix-hash", "--type", "sha256", tree])


def fresh(path: Path) -> Path:
    """``path``, with nothing there."""
    if path.exists():
        subprocess.run(["chmod", "-R", "u+w", path], check=False)
        subprocess.run(["rm", "-rf", path], check=True)
    return path


def disk_bytes(path: Path) -> int:
    """Bytes on disk of everything below ``path``, as du counts them."""
    output = subprocess.run(["du", "-s", "--block-size=1", path], check=True, capture_output=True, text=True)
    return int(output.stdout.split()[0])


def apparent_bytes(path: Path) -> int:
    """Summed lengths of everything below ``path``."""
    output = subprocess.run(
        ["du", "-s", "--apparent-size", "--block-size=1", path], check=True, capture_output=True, text=True
    )
    return int(output.stdout.split()[0])


def neve(store: Path, *command: str | Path) -> list[str | Path]:
    """A neve command line over the embedded store in ``store``."""
    return [*NEVE, *command, "--store", f"local://{store}"]
