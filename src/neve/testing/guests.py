"""A real guest: Debian's cloud kernel in QEMU, under plain emulation, with a shell script as all of its
system.

The guest has busybox, the modules for virtio-fs, and two serial ports: the kernel writes to one of them, the
script to the other, and both end in files.
"""

from __future__ import annotations

import contextlib
import gzip
import lzma
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import zstandard

TAG = "neve-store"
MEMORY = "768M"
PATIENCE = 180.0
OUTPUT, CONSOLE, ERRORS = "output", "console", "errors"
_MODULES = ("virtio_pci", "virtiofs")
_INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in {modules}; do insmod /modules/$module; done
exec >/dev/ttyS1 2>&1
. /script
reboot -f
"""


def cloud_kernels() -> list[str]:
    """Versions of Debian's kernels for virtual machines that are here with their modules, oldest first."""
    found = [path.name.removeprefix("vmlinuz-") for path in Path("/boot").glob("vmlinuz-*-cloud-amd64")]
    there = [version for version in found if Path("/lib/modules", version, "modules.dep").exists()]
    return sorted(there, key=lambda version: [int(part) for part in re.findall(r"[0-9]+", version)])


def _with_dependencies(version: str, wanted: tuple[str, ...]) -> list[Path]:
    """Files of modules, each behind those that it needs."""
    folder = Path("/lib/modules") / version
    needs: dict[str, list[str]] = {}
    for line in (folder / "modules.dep").read_text().splitlines():
        path, _, others = line.partition(":")
        needs[path] = others.split()
    names = {Path(path).name.split(".")[0]: path for path in needs}
    order: dict[str, None] = {}

    def add(path: str) -> None:
        for other in reversed(needs[path]):  # depmod lists the deepest last.
            add(other)
        order.setdefault(path)

    for name in wanted:
        add(names[name])
    return [folder / path for path in order]


def _unpacked(module: Path) -> bytes:
    raw = module.read_bytes()
    if module.suffix == ".xz":
        return lzma.decompress(raw)
    if module.suffix == ".zst":
        return zstandard.ZstdDecompressor().decompressobj().decompress(raw)
    return gzip.decompress(raw) if module.suffix == ".gz" else raw


def make_initrd(folder: Path, version: str, script: str) -> Path:
    """An initramfs that runs ``script`` in ``folder``, which need not be there."""
    root = folder / "root"
    for name in ("bin", "dev", "mnt", "modules", "proc", "sys"):
        (root / name).mkdir(parents=True, exist_ok=True)
    busybox = shutil.which("busybox")
    assert busybox is not None
    shutil.copy(busybox, root / "bin" / "busybox")
    modules = []
    for number, module in enumerate(_with_dependencies(version, _MODULES)):
        name = f"{number:02}-{module.name.split('.')[0]}.ko"
        (root / "modules" / name).write_bytes(_unpacked(module))
        modules.append(name)
    (root / "init").write_text(_INIT.format(modules=" ".join(modules)))
    (root / "init").chmod(0o755)
    (root / "script").write_text(script)
    names = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
    packed = subprocess.run(
        ["cpio", "--create", "--format=newc", "--quiet", "--owner=0:0"],
        input=names.encode(),
        cwd=root,
        capture_output=True,
        check=True,
    )
    initrd = folder / "initrd"
    initrd.write_bytes(packed.stdout)
    return initrd


class Guest:
    """One run of QEMU."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path) -> None:
        self.process = process
        self._output, self._console, self._errors = folder / OUTPUT, folder / CONSOLE, folder / ERRORS

    def errors(self) -> str:
        """What QEMU itself has to say."""
        return self._errors.read_text()

    def lines(self) -> list[bytes]:
        """What the script has written so far, without a line that is not complete yet."""
        raw = self._output.read_bytes() if self._output.exists() else b""
        return raw.replace(b"\r\n", b"\n").split(b"\n")[:-1]

    def wait_for(self, line: str, seconds: float = PATIENCE) -> None:
        """Waits until the script has written a line."""
        deadline = time.monotonic() + seconds
        while line.encode() not in self.lines():
            assert self.process.poll() is None, f"QEMU has ended; console:\n{self._tail()}"
            assert time.monotonic() < deadline, f"waited in vain for {line}; console:\n{self._tail()}"
            time.sleep(0.05)

    def _tail(self) -> str:
        text = self._console.read_text(errors="replace") if self._console.exists() else ""
        return text[-2000:] + "\n" + b"\n".join(self.lines()[-20:]).decode(errors="replace")

    def kill(self) -> None:
        """As a power cut, for the guest and its devices."""
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def booted(
    folder: Path, socket: Path, script: str, *, memory: str = MEMORY, device: str = "queue-size=1024"
) -> Iterator[Guest]:
    """A guest that runs a script, again and again: it reboots at its end. ``device`` are properties of the
    device for QEMU."""
    version = cloud_kernels()[-1]
    folder.mkdir()
    initrd = make_initrd(folder, version, script)
    command = ["qemu-system-x86_64", "-accel", "tcg", "-M", "q35", "-m", memory]
    command += ["-nodefaults", "-no-user-config", "-display", "none"]
    command += ["-kernel", f"/boot/vmlinuz-{version}", "-initrd", str(initrd)]
    # On a busy machine an emulated timer may look broken to a kernel that checks it.
    command += ["-append", "console=ttyS0 quiet panic=-1 no_timer_check"]
    command += ["-serial", f"file:{folder / CONSOLE}", "-serial", f"file:{folder / OUTPUT}"]
    command += ["-object", f"memory-backend-memfd,id=memory,size={memory},share=on"]
    command += ["-numa", "node,memdev=memory", "-chardev", f"socket,id=fs,path={socket}"]
    command += ["-device", f"vhost-user-fs-pci,chardev=fs,tag={TAG},{device}"]
    with open(folder / ERRORS, "wb") as errors:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors)
    try:
        yield Guest(process, folder)
    finally:
        process.kill()
        process.wait()
