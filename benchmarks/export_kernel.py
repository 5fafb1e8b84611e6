"""Claim: a NAR of a stored kernel tree comes nearly as fast as one of plain files; a small file at once.

Against: ``nix-store --dump`` of the plain tree, which copies from the page cache.
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

from common import (
    Run,
    add_tree_argument,
    arguments,
    kernel_tree,
    median,
    median_of,
    need,
    neve,
    run,
    table,
    warm,
    workspace,
)

SMALL_FILE = 64 * 1024


def main() -> None:
    parser = arguments(__doc__ or "")
    add_tree_argument(parser)
    parser.add_argument("--reads", type=int, default=2000, help="random small files to read")
    args = parser.parse_args()
    need("nix-store", "nix-hash")
    with workspace(args.dir) as work:
        tree = kernel_tree(args.tree, work)
        store, printed = work / "store", work / "printed"
        warm(tree)
        run(neve(store, "import", tree), output=printed)
        store_path = printed.read_text().strip()
        dumps: list[Run] = []
        exports: list[Run] = []
        for _ in range(args.runs):
            dumps.append(run(["nix-store", "--dump", tree]))
            exports.append(run(neve(store, "nar", "export", store_path)))
        dump, export = median(dumps), median(exports)
        table(
            f"NAR of {tree.name} to /dev/null, seconds (median)",
            ["what", "wall", "cpu", "peak MiB"],
            [["nix-store --dump (plain tree)", *dump], ["neve nar export", *export]],
        )
        stored, plain = small_files(store, store_path, tree, args.reads)
        table(
            "ratios",
            ["what", "value", "goal"],
            [
                ["nar export / nix-store --dump", export.wall / dump.wall, "2.00"],
                ["random small file, ms (median)", stored * 1000, "0.40"],
                ["the same from plain files, ms", plain * 1000, "reported"],
            ],
        )


def small_files(store: Path, store_path: str, tree: Path, count: int) -> tuple[float, float]:
    """Median seconds to read a random small blob from the store, and to read the same plain file."""
    import neve
    from neve.castore.node import DirectoryNode, FileNode

    with neve.open(f"local://{store}") as opened:
        files: list[tuple[bytes, bytes]] = []
        stack = [(b"", opened.path_info(store_path).node)]
        while stack:
            path, node = stack.pop()
            if isinstance(node, DirectoryNode):
                directory = opened.directories.get(node.digest)
                assert directory is not None
                stack.extend((os.path.join(path, name), child) for name, child in directory)
            elif isinstance(node, FileNode) and 0 < node.size <= SMALL_FILE:
                files.append((path, node.digest))
        chosen = random.Random(1).choices(sorted(files), k=count)
        stored, plain = [], []
        for path, digest in chosen:
            started = time.perf_counter()
            contents = opened.blobs.read(digest)
            stored.append(time.perf_counter() - started)
            started = time.perf_counter()
            expected = Path(os.fsdecode(os.path.join(os.fsencode(tree), path))).read_bytes()
            plain.append(time.perf_counter() - started)
            assert contents == expected
    return median_of(stored), median_of(plain)


if __name__ == "__main__":
    main()
