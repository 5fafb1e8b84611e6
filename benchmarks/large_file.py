"""Claim: a large file takes time in proportion to its size, and memory that does not depend on it.

Against: ``nix-hash`` and ``cp`` with ``sync -f`` of the same file; random and repetitive bytes.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

from common import Run, arguments, disk_bytes, fresh, median, need, neve, run, table, workspace

BLOCK = 1024 * 1024


def write(path: Path, size: int, *, repetitive: bool) -> None:
    """A file of ``size`` bytes: random, or a 3 MiB pattern over and over with a counter in it."""
    pattern = random.Random(7).randbytes(3 * BLOCK)
    with path.open("wb") as file:
        for number in range(size // BLOCK):
            if repetitive:
                start = number % 3 * BLOCK
                file.write(pattern[start : start + BLOCK])
            else:
                file.write(os.urandom(BLOCK))


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--gib", type=float, default=4, help="size of the largest file in GiB (default 4)")
    args = parser.parse_args()
    need("nix-hash")
    rows, ratios = [], []
    with workspace(args.dir) as work:
        for kind in ("random", "repetitive"):
            walls: dict[float, Run] = {}
            for part in (0.25, 0.5, 1.0):
                size = int(args.gib * part * 1024) * BLOCK
                file, store = work / "file", work / "store"
                write(file, size, repetitive=kind == "repetitive")
                runs = [run(neve(fresh(store), "import", file)) for _ in range(args.runs)]
                walls[part] = best = median(runs)
                rows.append([f"neve import, {kind}", size >> 20, *best, disk_bytes(store) >> 20])
            hashed = median([run(["nix-hash", "--type", "sha256", file]) for _ in range(args.runs)])
            copied = median([run(["sh", "-c", f"cp {file} {work}/copy && sync -f {work}/copy"])])
            exported = median(
                [run(neve(store, "nar", "export", path_of(store, work))) for _ in range(args.runs)]
            )
            rows.append([f"nix-hash, {kind}", size >> 20, *hashed, ""])
            rows.append([f"cp && sync -f, {kind}", size >> 20, *copied, ""])
            rows.append([f"neve nar export, {kind}", size >> 20, *exported, ""])
            ratios.append(
                [f"{kind}: whole / quarter size (4.0 is linear)", walls[1.0].wall / walls[0.25].wall]
            )
            ratios.append([f"{kind}: import / nix-hash", walls[1.0].wall / hashed.wall])
            ratios.append([f"{kind}: import / (cp && sync -f)", walls[1.0].wall / copied.wall])
    table("a large file, seconds", ["what", "MiB", "wall", "cpu", "peak MiB", "disk MiB"], rows)
    table("ratios", ["what", "ratio"], ratios)


def path_of(store: Path, work: Path) -> str:
    """The only store path in ``store``."""
    listing = work / "listing"
    run(neve(store, "path-info"), output=listing)
    return listing.read_text().split()[0]


if __name__ == "__main__":
    main()
