"""Records what the kernel of this machine and a session say to each other: ``python -m tests.fs.fuse.record``

Needs root and /dev/fuse. Writes ``tests/vectors/fuse.json``, which ``test_replay`` plays back without either.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from neve.fs.fuse.device import Device
from neve.fs.fuse.mounting import MountOptions, mount, unmount
from neve.fs.fuse.session import Reply, Session, SessionOptions
from neve.fs.tree import Tree
from neve.store.root_nodes import PathInfoRoots
from tests.store.helpers import memory_services, stored

from .conftest import EVENTS, NAME, PATH, put_path

VECTORS = Path(__file__).parents[2] / "vectors" / "fuse.json"

LOOK = """
import os, sys
os.chdir(sys.argv[1])
print(os.listdir("."), os.lstat("bin/run"), os.readlink("bin/alias"), os.lstat("missing")
      if os.path.lexists("missing") else "")
for name in ("text", "file-007", "sub/sub/text", b"na\\xffme"):
    with open(name, "rb") as file:
        print(file.read())
fd = os.open("text", os.O_RDONLY)
print(os.lseek(fd, 0, os.SEEK_DATA), os.listxattr(fd), os.getxattr(fd, os.listxattr(fd)[0]))
os.close(fd)
print(os.statvfs("."), os.listdir("/proc/self/cwd/.."))
for folder, folders, files in os.walk("."):
    folders.sort()
    print([os.lstat(os.path.join(folder, name)).st_size for name in sorted(files)])
"""


class Recording(Session):
    """A session that notes what it is asked and what it answers."""

    def __init__(self, tree: Tree, options: SessionOptions) -> None:
        super().__init__(tree, options)
        self.exchanges: list[dict[str, str]] = []

    def may_notify(self, send: Reply) -> None:
        """Not here: when such messages come depends on how fast whoever reads is."""

    def handle(self, request: bytes | memoryview, reply: Reply) -> None:
        asked = bytes(request).hex()

        def noted(parts: Sequence[bytes | memoryview]) -> None:
            self.exchanges.append({"request": asked, "reply": b"".join(parts).hex()})
            reply(parts)

        super().handle(request, noted)


def main() -> None:
    services = memory_services()
    put_path(services, PATH, stored(services, EVENTS))
    tree = Tree(services.blobs, services.directories, PathInfoRoots(services.path_infos))
    session = Recording(tree, SessionOptions(threads=1, list_root=True))
    with tempfile.TemporaryDirectory() as folder:
        mounted = mount(Path(folder), MountOptions())
        device = Device(mounted.fd, session, 1)
        try:
            device.start()
            place = os.path.join(folder, NAME.decode())
            subprocess.run([sys.executable, "-c", LOOK, place], check=True, stdout=subprocess.DEVNULL)
            # So that the kernel forgets what it knows.
            Path("/proc/sys/vm/drop_caches").write_text("2")
        finally:
            unmount(mounted)
        device.wait()
    session.close()
    lines = ",\n".join(map(json.dumps, session.exchanges))
    VECTORS.write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
