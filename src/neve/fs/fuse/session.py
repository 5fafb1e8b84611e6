"""Answers FUSE requests, wherever they come from."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from neve.fs.fuse.opcodes import UNANSWERED, WRITING, InitFlag, Opcode
from neve.fs.fuse.protocol import (
    MAJOR,
    MIN_MINOR,
    MINOR,
    Header,
    Init,
    MalformedRequest,
    decode,
    decode_header,
    encode_init,
    error_reply,
    reply_header,
)
from neve.fs.tree import Tree

Reply: TypeAlias = Callable[[Sequence[bytes | memoryview]], None]
"""Takes the parts of a whole reply, its header first; no parts if there is nothing to be answered."""

MAX_READ_BYTES = 1024 * 1024
"""Most that is read at once, and longest reply but for its header."""

MAX_BACKGROUND = 64
"""Requests that nobody waits for (to read ahead, say) which the kernel may have under way."""

MAX_WRITE_BYTES = 4096
"""Most that is written at once: the least that can be said. Nothing is ever written."""

_WANTED = (
    InitFlag.ASYNC_READ
    | InitFlag.DO_READDIRPLUS
    | InitFlag.READDIRPLUS_AUTO
    | InitFlag.NO_OPEN_SUPPORT
    | InitFlag.PARALLEL_DIROPS
    | InitFlag.MAX_PAGES
    | InitFlag.CACHE_SYMLINKS
    | InitFlag.NO_OPENDIR_SUPPORT
    | InitFlag.INIT_EXT
)
_PAGE_BYTES = 4096


@dataclass(frozen=True)
class SessionOptions:
    """What a file system shows, and what it takes."""

    threads: int = 16
    """Most calls of backends at once."""
    list_root: bool = False
    """Whether the root can be listed."""
    show_xattr: bool = True
    """Whether extended attributes tell digests."""


class Session:
    """One kernel's view of a tree: its inodes, and its requests under way.

    ``handle`` may be called from several threads. It never waits for a backend: what is not at hand goes
    to a bounded number of threads. It does no I/O either; ``reply`` is called with what is to be sent.
    """

    def __init__(self, tree: Tree, options: SessionOptions) -> None:
        self._tree = tree
        self._options = options

    def handle(self, request: bytes | memoryview, reply: Reply) -> None:
        """Answers one request.

        ``reply`` is called exactly once, from any thread, now or later, with the parts of the whole reply;
        without any if none is due (FORGET, BATCH_FORGET, most INTERRUPTs, bytes that are no request).
        The memory of ``request`` is not used after the call. Raises nothing but what ``reply`` raises.
        """
        try:
            header = decode_header(request)
        except MalformedRequest:
            reply(())
            return
        try:
            body = decode(header, request)
        except MalformedRequest:
            reply(() if header.opcode in UNANSWERED else [error_reply(header.unique, errno.EINVAL)])
            return
        self._answer(header, body, reply)

    def close(self) -> None:
        """Ends the threads; what is under way is answered with an error. Can be called again."""

    def _answer(self, header: Header, body: object, reply: Reply) -> None:
        if isinstance(body, Init):
            parts = self._init(header.unique, body)
        elif header.opcode in UNANSWERED:
            parts = []
        elif header.opcode == Opcode.DESTROY:
            parts = [reply_header(header.unique, 0)]
        else:
            error = errno.EROFS if header.opcode in WRITING else errno.ENOSYS
            parts = [error_reply(header.unique, error)]
        reply(parts)

    def _init(self, unique: int, offered: Init) -> list[bytes]:
        if offered.major < MAJOR or (offered.major == MAJOR and offered.minor < MIN_MINOR):
            return [error_reply(unique, errno.EPROTO)]
        answer = encode_init(
            MINOR,
            offered.max_readahead,
            _WANTED & offered.flags,
            max_background=MAX_BACKGROUND,
            max_write=MAX_WRITE_BYTES,
            max_pages=MAX_READ_BYTES // _PAGE_BYTES,
        )
        return [reply_header(unique, len(answer)), answer]
