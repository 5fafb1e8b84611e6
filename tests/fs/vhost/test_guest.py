"""A Linux guest in QEMU mounts store paths, reboots, is killed and comes back, and agrees with the host."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import neve
from neve.library import Store
from neve.testing.guests import TAG, Guest, booted

from .frontend import wait_until

pytestmark = pytest.mark.qemu

LARGE_BYTES = 256 << 20
PATIENCE = 120.0

SCRIPT = f"""
say() {{ echo "== $1"; }}
say boot
mount -t virtiofs {TAG} /mnt && echo mounted
say root
ls /mnt; cat /mnt/nothing; cat /mnt/{"0" * 32}-nothing
cd /mnt/TREE || echo missing
say files
find . -type f -print0 | xargs -0 sha256sum
say links
find . -type l -print0 | xargs -0 -n 1 sh -c 'echo "$0 -> $(readlink "$0")"'
say folders
find . -type d
say modes
stat -c '%n %A %u:%g %s %Y' . busybox empty link folder
say written
sh -c '> new'; sh -c '> busybox'; sh -c 'echo more >> busybox'; mkdir folder/new
rm -f busybox; mv busybox new; ln -s a new; chmod 700 busybox
say run
./busybox echo from the mount
./busybox sha256sum busybox
if [ -f /mnt/SECOND ]; then
    echo "== second boot"
    while true; do sha256sum /mnt/LARGE; done
fi
say large
sha256sum /mnt/LARGE
tail -c +$(({LARGE_BYTES} - 999)) /mnt/LARGE | sha256sum
echo "== appears"
while ! cat /mnt/SECOND 2>/dev/null; do sleep 0.1; done
echo "== rebooting"
"""


class Paths(NamedTuple):
    """What is in the store: as base names; and where the first two came from."""

    store: str
    tree: str
    large: str
    second: str
    source: Path
    large_source: Path

    def script(self) -> str:
        names = {"TREE": self.tree, "LARGE": self.large, "SECOND": self.second}
        text = SCRIPT
        for placeholder, name in names.items():
            text = text.replace(placeholder, name)
        return text


def make_tree(root: Path) -> None:
    rng = random.Random(5)
    (root / "folder" / "deep" / "deeper").mkdir(parents=True)
    (root / "empty").touch()
    (root / "link").symlink_to("folder/../busybox")
    (root / "dangling").symlink_to("/nowhere at all")
    busybox = subprocess.run(["which", "busybox"], check=True, capture_output=True, text=True).stdout.strip()
    (root / "busybox").write_bytes(Path(busybox).read_bytes())
    (root / "busybox").chmod(0o755)
    for number in range(300):
        size = (
            rng.choice([1, 100, 4095, 4096, 4097, 70_000, 700_000])
            if number % 10 == 0
            else rng.randrange(9000)
        )
        folder = root / "folder" / ("deep" if number % 2 else "deep/deeper")
        (folder / f"file {number}").write_bytes(rng.randbytes(size))
    with open(os.path.join(os.fsencode(root), b"no \xff utf-8"), "wb") as file:
        file.write(b"odd\n")


def make_large(path: Path) -> None:
    block = bytearray(random.Random(6).randbytes(1 << 20))
    with path.open("wb") as file:
        for number in range(LARGE_BYTES >> 20):
            block[:4] = number.to_bytes(4, "little")
            file.write(block)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    folder = tmp_path_factory.mktemp("guest")
    source, large = folder / "tree", folder / "large"
    make_tree(source)
    make_large(large)
    url = f"local://{folder}/store"
    with neve.open(url) as store:
        names = [store.import_path(path).store_path.base_name for path in (source, large)]
    # The name of what will be imported while the guest looks for it.
    (folder / "second").write_bytes(b"there it is\n")
    with neve.open("memory://") as elsewhere:
        second = elsewhere.import_path(folder / "second").store_path.base_name
    return Paths(url, names[0], names[1], second, source, large)


class Served(NamedTuple):
    process: subprocess.Popen[bytes]
    socket: Path
    log: Path

    def lines(self) -> list[str]:
        return self.log.read_text().splitlines()


@contextlib.contextmanager
def served(paths: Paths, folder: Path) -> Iterator[Served]:
    """``neve virtiofs`` in a process of its own."""
    socket, log = folder / "fs.sock", folder / "log"
    command = [sys.executable, "-m", "neve.cli", "virtiofs", str(socket), "--store", paths.store]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stderr=output)
    try:
        wait_until(lambda: "listening on" in log.read_text() or process.poll() is not None, "it listens")
        yield Served(process, socket, log)
    finally:
        process.kill()
        process.wait()


def sections(lines: list[bytes]) -> list[dict[str, list[bytes]]]:
    """For each boot, what the script has written, by section."""
    boots: list[dict[str, list[bytes]]] = []
    current: list[bytes] = []
    for line in lines:
        if line == b"== boot":
            boots.append({})
        if line.startswith(b"== "):
            current = boots[-1].setdefault(line[3:].decode(), [])
        else:
            current.append(line)
    return boots


def sha256(raw: bytes) -> bytes:
    return hashlib.sha256(raw).hexdigest().encode()


def check_tree(found: dict[str, list[bytes]], source: Path) -> None:
    """That the guest has seen the tree as it is on the host."""
    root = os.fsencode(source)
    files, links, folders = set(), set(), set()
    for folder, directories, names in os.walk(root):
        shown = b"." + folder[len(root) :]
        folders.add(shown)
        for name in directories + names:
            path = os.path.join(folder, name)
            if os.path.islink(path):
                links.add(shown + b"/" + name + b" -> " + os.readlink(path))
            elif name in names:
                with open(path, "rb") as file:
                    files.add(sha256(file.read()) + b"  " + shown + b"/" + name)
    assert set(found["files"]) == files
    assert set(found["links"]) == links
    assert set(found["folders"]) == folders
    assert len(found["files"]) == len(files) > 300


def check_boot(found: dict[str, list[bytes]], paths: Paths) -> None:
    assert found["boot"] == [b"mounted"]
    check_tree(found, paths.source)
    busybox = (paths.source / "busybox").read_bytes()
    size = len(busybox)
    assert found["modes"] == [
        b". dr-xr-xr-x 0:0 6 1",
        b"busybox -r-xr-xr-x 0:0 %d 1" % size,
        b"empty -r--r--r-- 0:0 0 1",
        b"link lrwxrwxrwx 0:0 17 1",
        b"folder dr-xr-xr-x 0:0 1 1",
    ]
    assert len(found["written"]) == 8
    for line in found["written"]:
        assert line.endswith(b"Read-only file system"), found["written"]
    assert found["run"] == [b"from the mount", sha256(busybox) + b"  busybox"]
    assert found["root"] == [
        b"ls: can't open '/mnt': Operation not permitted",
        b"cat: can't open '/mnt/nothing': No such file or directory",
        b"cat: can't open '/mnt/" + b"0" * 32 + b"-nothing': No such file or directory",
    ]


def large_sums(paths: Paths) -> tuple[bytes, bytes]:
    with paths.large_source.open("rb") as file:
        whole = hashlib.file_digest(file, "sha256").hexdigest().encode()
        file.seek(-1000, os.SEEK_END)
        return whole, sha256(file.read())


def check_first_boot(guest: Guest, paths: Paths) -> None:
    guest.wait_for("== appears")
    found = sections(guest.lines())[0]
    check_boot(found, paths)
    whole, end = large_sums(paths)
    assert found["large"] == [whole + f"  /mnt/{paths.large}".encode(), end + b"  -"]


def test_guests(paths: Paths, tmp_path: Path) -> None:
    with served(paths, tmp_path) as device:
        with booted(tmp_path / "first", device.socket, paths.script()) as guest:
            check_first_boot(guest, paths)
            # It waits for a name that was not in the store when it looked first.
            with neve.open(paths.store) as store:
                import_second(store, paths)
            guest.wait_for("== rebooting")
            guest.wait_for("== second boot")
            first, second = sections(guest.lines())
            assert first["appears"] == [b"there it is"]
            check_boot(second, paths)
            assert guest.errors() == ""
            # It is in the middle of reading, over and over.
            guest.kill()
        wait_until(lambda: any("has gone" in line for line in device.lines()), "the end is noticed")
        small = "queue-size=64,indirect_desc=off"
        with booted(tmp_path / "second", device.socket, paths.script(), device=small) as guest:
            guest.wait_for("== second boot")
            check_boot(sections(guest.lines())[0], paths)
            device.process.send_signal(signal.SIGTERM)
            assert device.process.wait(PATIENCE) == 0
            assert not device.socket.exists()
        said = [line.split()[-1] for line in device.lines()]
        assert said == [f"unix:{device.socket}", "connected", "gone", "connected"]


def import_second(store: Store, paths: Paths) -> None:
    source = paths.source.parent / "second"
    assert store.import_path(source).store_path.base_name == paths.second
