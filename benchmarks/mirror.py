"""Claims: a mirror of a store that has not changed takes at most a second for 100,000 objects, and a first
mirror is as fast as copying files can be expected to be.

The unchanged store has path infos that each have a blob of their own, the worst case: of a real one only the
path infos count. The first mirror of a kernel tree is compared with `cp -a` of the store's folder, which
verifies nothing, and with the import. Everything is in the page cache; what is copied is synced.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from common import (
    NEVE,
    Run,
    add_tree_argument,
    arguments,
    fresh,
    kernel_tree,
    median,
    neve,
    run,
    table,
    warm,
    workspace,
)
from daemon import daemon

import neve as library
from neve.castore.node import FileNode
from neve.nix.store_path import StorePath
from neve.store.path_info import NarDetails, PathInfo

PUT_AT_ONCE = 1000


def make_store(folder: Path, paths: int) -> int:
    """A store of path infos with a small file each; how many objects it has."""
    with library.open(f"local://{folder}") as store:
        for start in range(0, paths, PUT_AT_ONCE):
            blobs = [b"contents of %d\n" % number for number in range(start, start + PUT_AT_ONCE)]
            infos = []
            for blob, digest in zip(blobs, store.blobs.put_many(blobs), strict=True):
                nar = NarDetails(size=len(blob) + 112, sha256=hashlib.sha256(blob).digest())
                path = StorePath(hashlib.sha1(blob).digest(), "package-1.0")
                infos.append(PathInfo(path, FileNode(digest, len(blob), False), (), nar))
            store.path_infos.put_many(infos)
    return 2 * paths


def measure_unchanged(work: Path, runs: int, paths: int) -> None:
    source, target = work / "source", work / "target"
    objects = make_store(source, paths)
    command = [*NEVE, "mirror", f"local://{source}"]
    first = run([*command, f"local://{target}"])
    again = median([run([*command, f"local://{target}"]) for _ in range(runs)])
    empty = work / "empty"
    with library.open(f"local://{empty}"):
        pass
    nothing = median([run([*NEVE, "mirror", f"local://{empty}", f"local://{empty}2"]) for _ in range(runs)])
    per = 100_000 / objects
    table(f"{paths} store paths with a file each, seconds", ["what", "wall", "cpu", "peak MiB"], [
        ["first mirror", *first],
        ["unchanged", *again],
        ["of an empty store", *nothing],
    ])  # fmt: skip
    table("unchanged, seconds for 100,000 objects", ["what", "seconds", "goal"], [
        ["all of it", again.wall * per, "1.00"],
        ["without starting the program", (again.wall - nothing.wall) * per, "1.00"],
    ])  # fmt: skip


def measure_first(tree: Path, work: Path, runs: int) -> None:
    results: dict[str, list[Run]] = {}
    store = work / "kernel"
    run(neve(fresh(store), "import", tree))
    for _ in range(runs):
        results.setdefault("import", []).append(run(neve(fresh(work / "imported"), "import", tree)))
        copy = ["sh", "-c", f"cp -a {store} {fresh(work / 'copy')} && sync -f {work}/copy"]
        results.setdefault("cp -a && sync", []).append(run(copy))
        mirror = [*NEVE, "mirror", f"local://{store}"]
        target = f"local://{fresh(work / 'mirrored')}"
        results.setdefault("mirror", []).append(run([*mirror, target]))
        results.setdefault("mirror, unchanged", []).append(run([*mirror, target]))
        results.setdefault("mirror --check", []).append(run([*mirror, target, "--check"]))
        with daemon(fresh(work / "served"), work) as (url, _):
            results.setdefault("mirror to a daemon", []).append(run([*mirror, url]))
            back = [*NEVE, "mirror", url, f"local://{fresh(work / 'back')}"]
            results.setdefault("mirror from a daemon", []).append(run(back))
    best = {name: median(several) for name, several in results.items()}
    table(f"{tree.name}, seconds (median; of the client)", ["what", "wall", "cpu", "peak MiB"], [
        [name, *one] for name, one in best.items()
    ])  # fmt: skip
    table("ratios", ["what", "ratio", "goal"], [
        ["mirror / cp -a", best["mirror"].wall / best["cp -a && sync"].wall, "reported"],
        ["mirror / import", best["mirror"].wall / best["import"].wall, "reported"],
    ])  # fmt: skip


def main() -> None:
    parser = arguments(__doc__ or "")
    add_tree_argument(parser)
    parser.add_argument("--paths", type=int, default=100_000, help="paths of the unchanged store")
    options = parser.parse_args()
    with workspace(options.dir) as work:
        measure_unchanged(work, options.runs, options.paths)
        tree = kernel_tree(options.tree, work)
        warm(tree)
        measure_first(tree, work, options.runs)


if __name__ == "__main__":
    main()
