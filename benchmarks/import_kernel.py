"""Claim: importing a kernel source tree is fast, small on disk and bounded in memory.

Against: ``nix-hash`` (only reads and hashes), ``nix store add-path`` (Nix's own import) and ``cp -r``
with ``sync -f`` (durable like an import). All with the tree in the page cache.
"""

from __future__ import annotations

import os
from pathlib import Path

from common import (
    NIX,
    Run,
    add_tree_argument,
    apparent_bytes,
    arguments,
    disk_bytes,
    fresh,
    kernel_tree,
    median,
    need,
    neve,
    run,
    table,
    warm,
    workspace,
)


def main() -> None:
    parser = arguments(__doc__ or "")
    add_tree_argument(parser)
    args = parser.parse_args()
    need("nix-hash", "nix")
    with workspace(args.dir) as work:
        tree = kernel_tree(args.tree, work)
        store, copy = work / "store", work / "copy"
        os.environ["XDG_CACHE_HOME"] = str(work / "cache")
        warm(tree)
        results: dict[str, list[Run]] = {}
        for _ in range(args.runs):
            record = lambda name, result: results.setdefault(name, []).append(result)  # noqa: E731
            record("nix-hash", run(["nix-hash", "--type", "sha256", tree]))
            record("import", run(neve(fresh(store), "import", tree)))
            record("again", run(neve(store, "import", tree)))
            run(neve(store, "import", "--stat-cache", tree))
            record("stat", run(neve(store, "import", "--stat-cache", tree)))
            record("cp", run(["sh", "-c", f"cp -r {tree} {fresh(copy)} && sync -f {copy}"]))
        root = fresh(work / "nix")
        results["add-path"] = [run([*NIX, "--store", f"local?root={root}", "store", "add-path", tree])]
        report({name: median(runs) for name, runs in results.items()}, tree, store)


def report(best: dict[str, Run], tree: Path, store: Path) -> None:
    first = best["import"]
    table(
        f"import of {tree.name}, seconds (median)",
        ["what", "wall", "cpu", "peak MiB"],
        [
            ["nix-hash --type sha256", *best["nix-hash"]],
            ["nix store add-path (one run)", *best["add-path"]],
            ["cp -r && sync -f", *best["cp"]],
            ["neve import, fresh store", *first],
            ["neve import again", *best["again"]],
            ["neve import --stat-cache again", *best["stat"]],
        ],
    )
    disk, plain, lengths = disk_bytes(store), disk_bytes(tree), apparent_bytes(tree)
    table(
        "ratios",
        ["what", "ratio", "goal"],
        [
            ["import / nix-hash", first.wall / best["nix-hash"].wall, "3.00"],
            ["import / nix store add-path", first.wall / best["add-path"].wall, "0.35"],
            ["import / (cp -r && sync -f)", first.wall / best["cp"].wall, "reported"],
            ["again / first", best["again"].wall / first.wall, "0.70"],
            ["again with --stat-cache / first", best["stat"].wall / first.wall, "0.20"],
            ["disk / plain tree (du)", disk / plain, "0.18"],
            ["disk / sum of file lengths", disk / lengths, "0.18"],
            ["peak memory, MiB", first.peak_mib, "300"],
        ],
    )


if __name__ == "__main__":
    main()
