"""Records what the kernel of this machine and a session say to each other: ``python -m tests.fs.fuse.record``

Needs root and /dev/fuse. Writes ``tests/vectors/fuse.json``, which ``test_replay`` plays back without either.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from neve.fs.fuse.device import Device
from neve.fs.fuse.mounting import MountOptions, mount, unmount
from neve.fs.fuse.opcodes import InitFlag, Opcode
from neve.fs.fuse.protocol import decode_header
from neve.fs.fuse.session import Reply, Session, SessionOptions
from neve.fs.tree import Tree
from neve.store.root_nodes import PathInfoRoots
from tests.store.helpers import memory_services, stored

from .conftest import EVENTS, NAME, PATH, put_path

VECTORS = Path(__file__).parents[2] / "vectors" / "fuse.json"

_FLAGS_PLACE = 40 + 12
"""Where the flags are in an INIT."""

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
        self.hides_plus = False
        """Whether it does not get to know that the kernel can READDIRPLUS."""

    def may_notify(self, send: Reply) -> None:
        """Not here: when such messages come depends on how fast whoever reads is."""

    def handle(self, request: bytes | memoryview, reply: Reply) -> None:
        asked = self._seen(bytes(request)).hex()

        def noted(parts: Sequence[bytes | memoryview]) -> None:
            self.exchanges.append({"request": asked, "reply": b"".join(parts).hex()})
            reply(parts)

        super().handle(bytes.fromhex(asked), noted)

    def _seen(self, request: bytes) -> bytes:
        """A request as this session is to see it."""
        if not self.hides_plus or decode_header(request).opcode != Opcode.INIT:
            return request
        (flags,) = struct.unpack_from("<I", request, _FLAGS_PLACE)
        flags &= ~InitFlag.DO_READDIRPLUS
        return request[:_FLAGS_PLACE] + struct.pack("<I", flags) + request[_FLAGS_PLACE + 4 :]


def main() -> None:
    services = memory_services()
    put_path(services, PATH, stored(services, EVENTS))
    tree = Tree(services.blobs, services.directories, PathInfoRoots(services.path_infos))
    session = Recording(tree, SessionOptions(threads=1, list_root=True))
    record(session)
    session.hides_plus = True
    record(session)
    session.close()
    lines = ",\n".join(map(json.dumps, session.exchanges))
    VECTORS.write_text(f"[\n{lines}\n]\n")


def record(session: Recording) -> None:
    """One mount, and what a process sees of it."""
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


if __name__ == "__main__":
    main()
