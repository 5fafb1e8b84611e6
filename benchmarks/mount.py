"""Claim: a store that is mounted reads like a plain tree.

Against: the plain tree on the same disk, warm. Listing and reading all files of the kernel tree, in order and
in random order, the first time after the mount and again; a large file from beginning to end, by one reader
and by two at once; a walk that looks at each of a million files, with the memory that it takes.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from common import (
    NEVE,
    add_tree_argument,
    arguments,
    kernel_tree,
    median_of,
    need,
    neve,
    run,
    table,
    warm,
    workspace,
)

GIB, MIB = 1024**3, 1024**2
LARGE_BYTES = 2 * GIB

READ_ALL = """
import os, random, sys
files = (os.path.join(f, n) for f, _, names in os.walk(sys.argv[1]) for n in names)
if sys.argv[2] != "walking":
    files = list(files)
files = (path for path in files if not os.path.islink(path))
if sys.argv[2] == "random":
    files = list(files)
    random.Random(1).shuffle(files)
for path in files:
    descriptor = os.open(path, os.O_RDONLY)
    while os.read(descriptor, 131072):
        pass
    os.close(descriptor)
"""

WALK = """
import os, sys
def walk(folder):
    with os.scandir(folder) as entries:
        for entry in entries:
            entry.stat(follow_symlinks=False)
            if entry.is_dir(follow_symlinks=False):
                walk(entry.path)
walk(sys.argv[1])
"""


@contextlib.contextmanager
def mounted(store: Path, folder: Path) -> Iterator[int]:
    """Mounts a store for the block; the process that answers."""
    folder.mkdir(exist_ok=True)
    command = [*NEVE, "mount", "--store", f"local://{store}", str(folder)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        while not os.path.ismount(folder):
            if process.poll() is not None:
                sys.exit("neve mount failed; it needs root or fusermount3")
            time.sleep(0.02)
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def drop_names() -> None:
    """Has the kernel forget names and attributes, but not contents; only root can."""
    with contextlib.suppress(PermissionError):
        Path("/proc/sys/vm/drop_caches").write_text("2")


def seconds(*command: str | Path) -> float:
    return run(list(command)).wall


def find(tree: Path) -> float:
    return seconds("find", tree)


def read_all(tree: Path) -> float:
    """Directory by directory, as tar and grep do."""
    return seconds(sys.executable, "-c", READ_ALL, tree, "walking")


def list_and_read(tree: Path) -> float:
    """All names first: the listings do not know yet that the files will be wanted."""
    return seconds(sys.executable, "-c", READ_ALL, tree, "listed")


def read_random(tree: Path) -> float:
    return seconds(sys.executable, "-c", READ_ALL, tree, "random")


def status(tree: Path) -> float:
    return seconds(sys.executable, "-c", WALK, tree)


WORK: dict[str, tuple[Callable[[Path], float], str, str]] = {
    "find": (find, "8.00", "1.50"),
    "read all files": (read_all, "8.00", "1.50"),
    "list all, then read all": (list_and_read, "8.00", "1.50"),
    "read all, random order": (read_random, "-", "-"),
    "stat all files": (status, "-", "-"),
}
"""What is measured, with the goals of the first time and of the second, as ratios to the plain tree."""


def measure_tree(tree: Path, store: Path, name: str, work: Path, runs: int) -> None:
    rows: list[list[object]] = []
    for what, (measure, first_goal, second_goal) in WORK.items():
        plain, first, second = [], [], []
        for _ in range(runs):
            measure(tree)
            plain.append(measure(tree))
            with mounted(store, work / "mnt"):
                place = work / "mnt" / name
                place.lstat()
                first.append(measure(place))
                second.append(measure(place))
        ratios = [median_of(first) / median_of(plain), median_of(second) / median_of(plain)]
        seconds_of = [median_of(plain), median_of(first), median_of(second)]
        rows.append([what, *seconds_of, ratios[0], first_goal, ratios[1], second_goal])
    header = ["what", "plain s", "first s", "second s", "first / plain", "goal", "second / plain", "goal"]
    table("the kernel tree", header, rows)


def together(path: Path, readers: int) -> float:
    """Seconds until ``readers`` have read a part of a file each, of the same size."""
    part = LARGE_BYTES // 2 // MIB
    commands = [
        ["dd", f"if={path}", "of=/dev/null", "bs=1M", f"skip={part * number}", f"count={part}"]
        for number in range(readers)
    ]
    started = time.perf_counter()
    processes = [subprocess.Popen(command, stderr=subprocess.DEVNULL) for command in commands]
    for process in processes:
        process.wait()
    return time.perf_counter() - started


def large_file(path: Path) -> None:
    """Text and noise in turns: half of it compresses."""
    rng = random.Random(1)
    with path.open("wb") as file:
        for number in range(LARGE_BYTES // MIB):
            text = b"".join(b"line %d of %d\n" % (line, number * rng.randrange(9)) for line in range(60_000))
            file.write(text[:MIB] if number % 2 else rng.randbytes(MIB))


def measure_large(store: Path, name: str, plain: Path, work: Path, runs: int) -> None:
    rates: dict[str, list[float]] = {}
    for _ in range(runs):
        run(["dd", f"if={plain}", "of=/dev/null", "bs=1M"])
        rates.setdefault("plain", []).append(
            LARGE_BYTES / GIB / seconds("dd", f"if={plain}", "of=/dev/null", "bs=1M")
        )
        with mounted(store, work / "mnt"):
            path = work / "mnt" / name
            rates.setdefault("mounted", []).append(
                LARGE_BYTES / GIB / seconds("dd", f"if={path}", "of=/dev/null", "bs=1M")
            )
        for readers in (1, 2):
            with mounted(store, work / "mnt"):
                amount = readers * LARGE_BYTES / 2 / GIB
                rates.setdefault(f"{readers} at once", []).append(
                    amount / together(work / "mnt" / name, readers)
                )
    medians = {what: median_of(values) for what, values in rates.items()}
    table(
        "a file of 2 GiB, half of it compressible, GiB/s",
        ["what", "measured", "goal"],
        [
            ["plain", medians["plain"], "-"],
            ["mounted, first time", medians["mounted"], "1.00"],
            ["two readers / one", medians["2 at once"] / medians["1 at once"], "1.40"],
        ],
    )


def measure_million(work: Path, files: int) -> None:
    folder, store = work / "many", work / "many-store"
    for number in range(files):
        if number % 10_000 == 0:
            part = folder / f"part-{number // 10_000:03d}"
            part.mkdir(parents=True)
        (part / f"file-{number:07d}").write_bytes(b"%d" % number)
    name = imported(store, folder, work)
    plain = status(folder)
    with mounted(store, work / "mnt") as pid:
        walk = status(work / "mnt" / name)
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        peak = next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
        drop_names()
    table(
        f"stat of {files} files",
        ["what", "measured"],
        [["plain, seconds", plain], ["mounted, first time, seconds", walk], ["peak MiB", peak]],
    )


def imported(store: Path, path: Path, work: Path) -> str:
    """The base name of an imported path."""
    run(neve(store, "import", path), output=work / "name")
    return Path((work / "name").read_text().strip()).name


def main() -> None:
    parser = arguments(__doc__ or "")
    add_tree_argument(parser)
    parser.add_argument("--files", type=int, default=1_000_000, help="files of the walk (default 1,000,000)")
    parser.add_argument("--only", choices=["tree", "large", "walk"], help="one part only")
    args = parser.parse_args()
    need("find", "dd")
    with workspace(args.dir) as work:
        store = work / "store"
        if args.only in (None, "tree"):
            tree = kernel_tree(args.tree, work)
            warm(tree)
            measure_tree(tree, store, imported(store, tree, work), work, args.runs)
        if args.only in (None, "large"):
            large_file(work / "large")
            measure_large(store, imported(store, work / "large", work), work / "large", work, args.runs)
        if args.only in (None, "walk"):
            measure_million(work, args.files)


if __name__ == "__main__":
    main()
