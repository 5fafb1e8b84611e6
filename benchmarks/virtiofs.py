"""What a guest reads through ``neve virtiofs``, under plain emulation: reported, not claimed.

In the guest: walking a tree, reading and hashing all its files, and reading a large file from beginning to
end; the first time through the device, the second time from the guest's own cache, and from a copy in the
guest's memory (a tmpfs), which tells what emulation costs by itself. Beside it, the same on the host's plain
tree.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

from common import NEVE, arguments, neve, run, table, workspace

from neve.testing.guests import TAG, booted, cloud_kernels

MEMORY = "3G"
WALK = "find . | wc -l"
READ = "find . -type f -exec cat {} + > /dev/null"
HASH = "find . -type f -exec sha256sum {} + | sort | sha256sum"
WORK = {"walk": WALK, "read all": READ, "hash all": HASH}

SCRIPT = """
mount -t virtiofs -o ro {tag} /mnt
# Seconds, from the clock of the guest, which is that of the host.
now() {{ read -r up rest < /proc/uptime; echo "$up"; }}
timed() {{
    name=$1 folder=$2 command=$3
    cd "$folder"
    before=$(now)
    result=$(sh -c "$command")
    echo "$name|$before|$(now)|$result"
}}
forget() {{ cd /; echo 3 > /proc/sys/vm/drop_caches; }}
{tree}
forget
timed 'large, first' /mnt 'dd if={large} of=/dev/null bs=1M 2>&1 | tail -1'
timed 'large, second' /mnt 'dd if={large} of=/dev/null bs=1M 2>&1 | tail -1'
forget
timed 'large, hashed' /mnt 'sha256sum < {large}'
echo DONE
sleep 1000
"""


def timed_lines(folder: str, when: str) -> str:
    """Lines of the script: all work in a folder."""
    return "".join(f"timed '{name}, {when}' {folder} '{command}'\n" for name, command in WORK.items())


def script(tree: str, large: str) -> str:
    work = ""
    for name, command in WORK.items():
        work += f"forget\ntimed '{name}, first' /mnt/{tree} '{command}'\n"
        work += f"timed '{name}, second' /mnt/{tree} '{command}'\n"
    work += f"mkdir /copy; mount -t tmpfs -o size=60% tmpfs /copy; cp -a /mnt/{tree} /copy/\n"
    work += timed_lines(f"/copy/{tree}", "tmpfs") + "rm -rf /copy/*\n"
    return SCRIPT.format(tag=TAG, tree=work, large=large)


def make_tree(root: Path, files: int) -> None:
    """Sizes as in source trees: most files are small."""
    rng = random.Random(1)
    for number in range(files):
        folder = root / f"{number % 20}" / f"{number % 400}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"file-{number}").write_bytes(rng.randbytes(int(rng.lognormvariate(8.6, 1.3))))


def imported(store: Path, path: Path, work: Path) -> str:
    """The base name of an imported path."""
    run(neve(store, "import", path), output=work / "name")
    return Path((work / "name").read_text().strip()).name


def results(lines: list[bytes]) -> dict[str, tuple[float, str]]:
    """Seconds and results of what was timed."""
    found = {}
    for line in lines:
        name, *rest = line.decode().split("|")
        if len(rest) == 3:
            found[name] = float(rest[1]) - float(rest[0]), rest[2]
    return found


def in_guest(store: Path, text: str, work: Path) -> dict[str, tuple[float, str]]:
    socket = work / "fs.sock"
    device = subprocess.Popen([*NEVE, "virtiofs", socket, "--store", f"local://{store}"])
    try:
        while not socket.exists():
            if device.poll() is not None:
                sys.exit("neve virtiofs does not start")
            time.sleep(0.05)
        with booted(work / "guest", socket, text, memory=MEMORY) as guest:
            guest.wait_for("DONE", seconds=3600)
            return results(guest.lines())
    finally:
        device.terminate()
        device.wait()


def on_host(tree: Path, command: str) -> tuple[float, str]:
    """The same, warm, without a guest; by the same busybox."""
    shell = ["busybox", "sh", "-c", command]
    subprocess.run(shell, cwd=tree, check=True, capture_output=True)
    started = time.perf_counter()
    result = subprocess.run(shell, cwd=tree, check=True, capture_output=True, text=True)
    return time.perf_counter() - started, result.stdout.strip()


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--files", type=int, default=4000, help="files in the tree (default 4000)")
    parser.add_argument("--mib", type=int, default=512, help="size of the large file in MiB (default 512)")
    parser.add_argument("--tree", type=Path, help="another tree than a made one")
    args = parser.parse_args()
    if not cloud_kernels():
        sys.exit("linux-image-cloud-amd64 is not installed; run `make test-system-deps` as root")
    with workspace(args.dir) as work:
        tree, large, store = args.tree or work / "tree", work / "large", work / "store"
        if args.tree is None:
            make_tree(tree, args.files)
        with large.open("wb") as file:
            for _ in range(args.mib):
                file.write(random.randbytes(1 << 20))
        names = imported(store, tree, work), imported(store, large, work)
        found = in_guest(store, script(*names), work)
        rows = []
        for name, command in WORK.items():
            host, said = on_host(tree, command)
            told = {found[f"{name}, {when}"][1] for when in ("first", "second", "tmpfs")}
            if told != {said}:
                sys.exit(f"{name}: the guest says {told}, the host {said}")
            seconds = [found[f"{name}, {when}"][0] for when in ("first", "second", "tmpfs")]
            rows.append([name, *seconds, host, seconds[0] / max(seconds[2], 0.01)])
        header = ["what", "first", "second", "tmpfs", "plain on the host", "first / tmpfs"]
        table(f"a tree of {args.files if args.tree is None else args.tree} files, seconds", header, rows)
        rates = [[name, args.mib / max(found[name][0], 0.01)] for name in found if name.startswith("large")]
        host, _ = on_host(work, "dd if=large of=/dev/null bs=1M")
        table("a large file", ["what", "MiB/s"], [*rates, ["plain on the host", args.mib / host]])


if __name__ == "__main__":
    main()
