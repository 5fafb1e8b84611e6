"""Stands for the kernel: asks a session with bytes, and takes its replies apart. Written after
``linux/fuse.h``, not after the codec under test."""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from neve.fs.fuse.opcodes import InitFlag, Opcode
from neve.fs.fuse.session import Session

SECONDS = 60
IN_HEADER = struct.Struct("<IIQQIIIHH")
OUT_HEADER = struct.Struct("<IiQ")
ATTR = struct.Struct("<6Q10I")
ALL_FLAGS = 0xFFFFFFFF & ~InitFlag.INIT_EXT


class Attr(NamedTuple):
    ino: int
    size: int
    blocks: int
    atime: int
    mtime: int
    ctime: int
    atimensec: int
    mtimensec: int
    ctimensec: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    blksize: int
    flags: int


class Entry(NamedTuple):
    node: int
    valid: int
    attr: Attr


class Dirent(NamedTuple):
    node: int
    offset: int
    kind: int
    name: bytes
    entry: Entry | None


class Answer(NamedTuple):
    error: int
    body: bytes


class Pending:
    """A request that was made."""

    def __init__(self, unique: int) -> None:
        self.unique = unique
        self.replies: list[bytes] = []
        self._came = threading.Event()

    def reply(self, parts: Sequence[bytes | memoryview]) -> None:
        self.replies.append(b"".join(parts))
        self._came.set()

    @property
    def is_answered(self) -> bool:
        return self._came.is_set()

    def answer(self) -> Answer | None:
        """The answer, None if there is none and never will be."""
        assert self._came.wait(SECONDS)
        (reply,) = self.replies
        if not reply:
            return None
        length, error, unique = OUT_HEADER.unpack_from(reply)
        assert (length, unique) == (len(reply), self.unique)
        return Answer(-error, reply[OUT_HEADER.size :])


def request(opcode: int, unique: int, node: int, body: bytes = b"") -> bytes:
    return IN_HEADER.pack(IN_HEADER.size + len(body), opcode, unique, node, 0, 0, 0, 0, 0) + body


class Asker:
    """A kernel that has said INIT."""

    def __init__(self, session: Session, flags: int = ALL_FLAGS) -> None:
        self.session = session
        self._last = 0
        self.init(flags)

    def init(self, flags: int = ALL_FLAGS) -> bytes:
        return self.body(Opcode.INIT, 0, struct.pack("<IIII", 7, 38, 131072, flags))

    def send(self, opcode: int, node: int = 1, body: bytes = b"") -> Pending:
        self._last += 2
        pending = Pending(self._last)
        # The memory of the request is used again at once.
        memory = bytearray(request(opcode, pending.unique, node, body))
        self.session.handle(memoryview(memory), pending.reply)
        memory[:] = b"\xee" * len(memory)
        return pending

    def ask(self, opcode: int, node: int = 1, body: bytes = b"") -> Answer:
        answer = self.send(opcode, node, body).answer()
        assert answer is not None
        return answer

    def body(self, opcode: int, node: int = 1, body: bytes = b"") -> bytes:
        answer = self.ask(opcode, node, body)
        assert answer.error == 0
        return answer.body

    def error(self, opcode: int, node: int = 1, body: bytes = b"") -> int:
        answer = self.ask(opcode, node, body)
        assert answer.error
        assert answer.body == b""
        return answer.error

    # What is asked for most.

    def lookup(self, name: bytes, node: int = 1) -> Entry:
        return entry(self.body(Opcode.LOOKUP, node, name + b"\0"))

    def walk(self, *names: bytes) -> Entry:
        found = self.lookup(names[0])
        for name in names[1:]:
            found = self.lookup(name, found.node)
        return found

    def read(self, node: int, offset: int = 0, size: int = 1 << 20) -> bytes:
        return self.body(Opcode.READ, node, read_body(offset, size))

    def list(self, node: int, size: int = 4096, *, plus: bool = False) -> list[Dirent]:
        opcode = Opcode.READDIRPLUS if plus else Opcode.READDIR
        found: list[Dirent] = []
        while True:
            offset = found[-1].offset if found else 0
            body = self.body(opcode, node, read_body(offset, size))
            assert len(body) <= size
            part = list(dirents(body, plus=plus))
            if not part:
                return found
            found += part


def read_body(offset: int, size: int) -> bytes:
    return struct.pack("<QQIIQII", 0, offset, size, 0, 0, 0, 0)


def entry(data: bytes) -> Entry:
    node, generation, entry_valid, attr_valid, entry_nsec, attr_nsec = struct.unpack_from("<QQQQII", data)
    assert (generation, entry_nsec, attr_nsec) == (0, 0, 0)
    assert not node or attr_valid == entry_valid
    return Entry(node, entry_valid, Attr._make(ATTR.unpack_from(data, 40)))


def dirents(data: bytes, *, plus: bool) -> Iterator[Dirent]:
    """As the kernel reads them: what is shorter than an entry is the end."""
    place = 0
    head = 128 if plus else 0
    while len(data) - place >= head + 24:
        found = entry(data[place : place + 128]) if plus else None
        node, offset, length, kind = struct.unpack_from("<QQII", data, place + head)
        start = place + head + 24
        yield Dirent(node, offset, kind, data[start : start + length], found)
        place = start + (length + 7) // 8 * 8
