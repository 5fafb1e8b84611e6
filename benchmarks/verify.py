"""Claim: verification reads at least 800 MiB of contents a second on two cores.

Of a kernel tree, whose files are small and compressed together, and of large files that do not compress.
Against ``sha256sum`` of the same files: what anybody does who looks after them without a store. Everything is
in the page cache.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from common import (
    Run,
    add_tree_argument,
    arguments,
    kernel_tree,
    median,
    neve,
    run,
    table,
    workspace,
)

import neve as library

MIB = 1024 * 1024
LARGE_FILES = 8
GOAL_MIB = 800


def contents_mib(store: Path) -> float:
    """What the blobs of the store have in all, each once."""
    output = subprocess.run(neve(store, "stats", "--json"), check=True, capture_output=True).stdout
    return float(json.loads(output)["contentBytes"]) / MIB


def measure(what: str, folder: Path, work: Path, runs: int) -> None:
    store, empty = work / f"{what.replace(' ', '-')}-store", work / "empty"
    run(neve(store, "import", folder))
    with library.open(f"local://{empty}"):
        pass
    commands = {
        "verify": neve(store, "verify"),
        "verify --nars": neve(store, "verify", "--nars"),
        "of an empty store": neve(empty, "verify"),
        "sha256sum": ["sh", "-c", f"find {folder} -type f -print0 | xargs -0 sha256sum"],
    }
    found: dict[str, list[Run]] = {}
    for _ in range(runs):
        for name, command in commands.items():
            found.setdefault(name, []).append(run(command))
    best = {name: median(several) for name, several in found.items()}
    table(
        f"{what}, seconds", ["what", "wall", "cpu", "peak MiB"], [[name, *one] for name, one in best.items()]
    )
    size = contents_mib(store)
    wall, start = best["verify"].wall, best["of an empty store"].wall
    table(f"{what}, {size:.0f} MiB", ["what", "measured", "goal"], [
        ["MiB/s, all of it", size / wall, str(GOAL_MIB)],
        ["MiB/s, without starting the program", size / (wall - start), str(GOAL_MIB)],
        ["verify / sha256sum", wall / best["sha256sum"].wall, "reported"],
    ])  # fmt: skip


def make_large(folder: Path) -> Path:
    folder.mkdir()
    for number in range(LARGE_FILES):
        with (folder / f"large-{number}").open("wb") as file:
            for _ in range(128):
                file.write(os.urandom(MIB))
    return folder


def main() -> None:
    parser = arguments(__doc__ or "")
    add_tree_argument(parser)
    options = parser.parse_args()
    with workspace(options.dir) as work:
        measure("kernel tree", kernel_tree(options.tree, work), work, options.runs)
        measure("large files", make_large(work / "large"), work, options.runs)


if __name__ == "__main__":
    main()
