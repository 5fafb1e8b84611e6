"""What a kernel (Linux 6.18) asked and was answered, once more without it, byte for byte.

``record`` has recorded it, in the order of the answers, and so it is asked here.
"""

from __future__ import annotations

import json
from pathlib import Path

from neve.fs.fuse.opcodes import Opcode
from neve.fs.fuse.protocol import decode_header

from .asking import Pending
from .conftest import NewSession

VECTORS = Path(__file__).parents[2] / "vectors" / "fuse.json"


def test_a_recorded_session(new_session: NewSession) -> None:
    session = new_session(threads=1, list_root=True)
    asked = set()
    for number, exchange in enumerate(json.loads(VECTORS.read_text())):
        request = bytes.fromhex(exchange["request"])
        pending = Pending(0)
        session.handle(request, pending.reply)
        assert pending._came.wait(60)
        assert pending.replies == [bytes.fromhex(exchange["reply"])], f"number {number}"
        asked.add(Opcode(decode_header(request).opcode))
    session.close()
    assert asked >= {
        Opcode.INIT,
        Opcode.LOOKUP,
        Opcode.GETATTR,
        Opcode.READLINK,
        Opcode.OPEN,
        Opcode.READ,
        Opcode.FLUSH,
        Opcode.OPENDIR,
        Opcode.READDIR,
        Opcode.READDIRPLUS,
        Opcode.GETXATTR,
        Opcode.LISTXATTR,
        Opcode.STATFS,
        Opcode.LSEEK,
    }
