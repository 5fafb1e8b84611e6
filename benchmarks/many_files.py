"""Claim: a folder of a million files takes time in proportion, and memory bounded by its Directory.

Against: ``nix-hash`` of the same folder.
"""

from __future__ import annotations

from common import Run, arguments, fresh, need, neve, run, table, workspace


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument(
        "--files", type=int, default=1_000_000, help="files in the folder (default 1,000,000)"
    )
    args = parser.parse_args()
    need("nix-hash")
    rows = []
    walls: dict[float, Run] = {}
    with workspace(args.dir) as work:
        folder, store = work / "many", work / "store"
        folder.mkdir()
        made = 0
        for part in (0.25, 0.5, 1.0):
            count = int(args.files * part)
            for number in range(made, count):
                (folder / f"file-{number:07d}").write_bytes(b"contents of file %d\n" % number)
            made = count
            hashed = run(["nix-hash", "--type", "sha256", folder])
            walls[part] = run(neve(fresh(store), "import", folder))
            rows.append(["nix-hash", count, *hashed])
            rows.append(["neve import", count, *walls[part]])
        again = run(neve(store, "import", folder))
        rows.append(["neve import again", count, *again])
    table("many small files in one folder, seconds", ["what", "files", "wall", "cpu", "peak MiB"], rows)
    table(
        "ratios",
        ["what", "ratio"],
        [
            ["whole / quarter (4.0 is linear)", walls[1.0].wall / walls[0.25].wall],
            ["import / nix-hash", walls[1.0].wall / hashed.wall],
            ["again / first", again.wall / walls[1.0].wall],
        ],
    )


if __name__ == "__main__":
    main()
