"""Claim: a collection gives back at least 90 % of what is dead, in at most the time of one import.

A kernel tree is imported again and again, each time with some of its files changed; then all versions but the
last are dropped. Against the first import, in the same run. And: a collection that finds nothing to do, a dry
run, verification afterwards; the memory that marking takes, by the object.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

from common import (
    Run,
    add_tree_argument,
    arguments,
    disk_bytes,
    kernel_tree,
    median,
    neve,
    run,
    table,
    workspace,
)

MIB = 1024 * 1024

MARK = """
import os, sys
from neve.store.gc.digest_set import DigestSet
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096
before, digests = resident(), DigestSet()
for _ in range(int(sys.argv[1]) // 10_000):
    block = os.urandom(320_000)
    digests.add_new([block[i : i + 32] for i in range(0, len(block), 32)])
print((resident() - before) / len(digests))
"""


def change(files: list[Path], share: float, version: int) -> None:
    """Adds a line to some of the files."""
    for path in random.Random(version).sample(files, round(len(files) * share)):
        with path.open("ab") as file:
            file.write(b"/* version %d */\n" % version)


def regular_files(tree: Path) -> list[Path]:
    found = (Path(folder) / name for folder, _, names in os.walk(tree) for name in names)
    return sorted(path for path in found if not path.is_symlink())


def collect(store: Path, work: Path, *options: str) -> tuple[Run, dict[str, int]]:
    done = run(neve(store, "gc", "--json", *options), output=work / "report")
    report: dict[str, int] = json.loads((work / "report").read_text())
    return done, report


def main() -> None:
    parser = arguments(__doc__ or "")
    add_tree_argument(parser)
    parser.add_argument("--trees", type=int, default=10, help="versions of the tree (default 10)")
    parser.add_argument(
        "--changed", type=float, default=0.05, help="share of files changed in each (default 0.05)"
    )
    parser.add_argument("--objects", type=int, default=1_000_000, help="objects to mark (default 1,000,000)")
    args = parser.parse_args()
    with workspace(args.dir) as work:
        tree, full = work / "tree", work / "full"
        subprocess.run(["cp", "-r", "--reflink=auto", kernel_tree(args.tree, work), tree], check=True)
        files = regular_files(tree)
        imports: list[Run] = []
        names: list[str] = []
        for version in range(args.trees):
            if version:
                change(files, args.changed, version)
            imports.append(
                run(neve(full, "import", "--name", f"linux-{version}", tree), output=work / "name")
            )
            names.append((work / "name").read_text().strip())
        measure(work, full, names[-1], imports, args.runs)
        print_memory(args.objects)


def measure(work: Path, full: Path, kept: str, imports: list[Run], runs: int) -> None:
    store = work / "store"
    done: list[Run] = []
    for _ in range(runs):
        subprocess.run(["rm", "-rf", store], check=True)
        subprocess.run(["cp", "-r", full, store], check=True)
        os.sync()
        before = disk_bytes(store / "packs")
        dry, _ = collect(store, work, "--keep", kept, "--dry-run")
        one, report = collect(store, work, "--keep", kept)
        done.append(one)
    again, _ = collect(store, work, "--keep", kept)
    verify = run(neve(store, "verify"))
    best, first = median(done), imports[0]
    given = report["packBytes"] - disk_bytes(store / "packs")
    table(
        f"{len(imports)} versions of a kernel tree, all dropped but one; seconds",
        ["what", "wall", "cpu", "peak MiB", "/ import", "goal"],
        [
            ["first import", first.wall, first.cpu, first.peak_mib, 1.0, "-"],
            ["another version", imports[-1].wall, imports[-1].cpu, imports[-1].peak_mib, "-", "-"],
            ["gc --dry-run", dry.wall, dry.cpu, dry.peak_mib, dry.wall / first.wall, "-"],
            ["gc", best.wall, best.cpu, best.peak_mib, best.wall / first.wall, "1.00"],
            ["gc again", again.wall, again.cpu, again.peak_mib, again.wall / first.wall, "-"],
            ["verify", verify.wall, verify.cpu, verify.peak_mib, "-", "-"],
        ],
    )
    table(
        "space, MiB",
        ["what", "measured", "goal"],
        [
            ["packs before", before / MIB, "-"],
            ["not in use", report["deadBytes"] / MIB, "-"],
            ["given back", given / MIB, "-"],
            ["share of the dead bytes", given / report["deadBytes"], "0.90"],
        ],
    )


def print_memory(objects: int) -> None:
    command = [sys.executable, "-c", MARK, str(objects)]
    size = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    table(f"{objects} digests marked", ["what", "measured"], [["bytes each", size]])


if __name__ == "__main__":
    main()
