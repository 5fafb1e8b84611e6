"""Requests of a kernel."""

from __future__ import annotations

import functools
import struct

from neve.fs.fuse import protocol
from neve.fs.fuse.opcodes import UNANSWERED, Opcode
from neve.fs.fuse.protocol import MalformedRequest
from neve.fs.fuse.session import Session, SessionOptions
from neve.fs.tree import Tree
from neve.store.root_nodes import PathInfoRoots
from tests.fs.fuse.asking import IN_HEADER, OUT_HEADER, Asker, Pending
from tests.fs.fuse.conftest import EVENTS, NAME, PATH, put_path
from tests.fuzz.closing import opened
from tests.fuzz.target import Bound, Target
from tests.store.helpers import memory_services, stored

_SECONDS = 60


def _request(data: bytes) -> None:
    header = protocol.decode_header(data)
    protocol.decode(header, data)
    assert header.length == len(data)


@functools.cache
def _asker() -> Asker:
    services = memory_services()
    opened.callback(services.close)
    put_path(services, PATH, stored(services, EVENTS))
    tree = Tree(services.blobs, services.directories, PathInfoRoots(services.path_infos))
    session = Session(tree, SessionOptions(list_root=True))
    opened.callback(session.close)
    return Asker(session)


def _session(data: bytes) -> None:
    """Requests, each with its length before it in two bytes; of the right length in itself. Each gets one
    answer, which is about it."""
    asker = _asker()
    asker.init()
    at = 0
    while at + 2 <= len(data):
        size = int.from_bytes(data[at : at + 2], "little")
        body = data[at + 2 : at + 2 + size]
        whole = struct.pack("<I", 4 + len(body)) + body
        at += 2 + size
        pending = Pending(0)
        asker.session.handle(whole, pending.reply)
        assert pending._came.wait(_SECONDS)
        (reply,) = pending.replies
        if reply:
            length, error, unique = OUT_HEADER.unpack_from(reply)
            assert length == len(reply)
            assert -4096 < error <= 0
            assert unique == struct.unpack_from("<Q", whole, 8)[0]
        elif len(whole) >= IN_HEADER.size:
            assert struct.unpack_from("<I", whole, 4)[0] in {*UNANSWERED, Opcode.INTERRUPT}


_WORDS = tuple(opcode.to_bytes(4, "little") for opcode in Opcode)

TARGETS = (
    Target("fuse-request", _request, (MalformedRequest,), words=_WORDS, rounds=300),
    # A listing or a file is answered, as long as the kernel has room for.
    Target(
        "fuse-session",
        _session,
        (),
        memory=Bound(8 * 1024 * 1024, 4096),
        steps=Bound(20_000, 200),
        longest=1024,
        rounds=100,
        words=(*_WORDS, NAME + b"\0", b"bin\0", b"..\0", b"user.tvix.castore.blob.digest\0"),
    ),
)
