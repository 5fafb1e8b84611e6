"""A request while it is being answered."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from neve.castore.digest import Digest
from neve.fs.ahead import Looks, Neighbours, ReadWalks, Walks
from neve.fs.fuse import protocol
from neve.fs.fuse.opcodes import InitFlag
from neve.fs.fuse.protocol import Header
from neve.fs.inodes import MAX_INODES, InodeTable
from neve.fs.loads import Held

Reply: TypeAlias = Callable[[Sequence[bytes | memoryview]], None]
"""Takes the parts of a whole reply, its header first; no parts if there is nothing to be answered."""

Parts: TypeAlias = Sequence[bytes | memoryview]


class Kernel:
    """What one INIT began: what the kernel on the other side can do, and what it knows."""

    def __init__(self, flags: int, send: Reply | None) -> None:
        self.send = send
        """Where messages go that the kernel has not asked for; None if the transport has no such way."""
        self.being_sent: dict[bytes, bytes] = {}
        """Contents on their way there, by digest."""
        # A kernel that has such a way is that of this machine, and spends more on each inode than we do.
        self.inodes = InodeTable(MAX_INODES if send is None else sys.maxsize)
        self.neighbours = Neighbours()
        self.walks = Walks()
        self.looks = Looks()
        self.read_walks = ReadWalks()
        self.opens_files = not flags & InitFlag.NO_OPEN_SUPPORT
        self.opens_directories = not flags & InitFlag.NO_OPENDIR_SUPPORT

    def store(self, number: int, digest: Digest, data: bytes) -> None:
        """Sends the contents of a file, if there is a way."""
        if self.send is None:
            return
        # The kernel may ask for it in this very moment, and wait for the answer before it takes this.
        self.being_sent[digest] = data
        try:
            self.send(protocol.notify_store(number, data))
        finally:
            self.being_sent.pop(digest, None)


class Overtaken(Exception):  # noqa: N818 - not an error
    """The request has been answered already: it was interrupted."""


class Request:
    """A request and where its reply goes. It is answered once, by the first who settles it."""

    __slots__ = ("_once", "_settled", "body", "header", "held", "is_given_up", "kernel", "reply")

    def __init__(self, header: Header, body: Any, reply: Reply, kernel: Kernel) -> None:
        self.header = header
        self.body = body
        self.reply = reply
        self.kernel = kernel
        self.held: Held = {}
        self.is_given_up = False
        self._once = threading.Lock()
        self._settled = False

    def settle(self) -> None:
        """Says that the answer that is being made is the one that will be sent. What cannot be taken back
        (a lookup that counts) comes after this. Raises ``Overtaken``."""
        if not self._settled:
            if not self._once.acquire(blocking=False):
                raise Overtaken
            self._settled = True

    def give_up(self) -> bool:
        """Takes the request from who is still working on it; False if he is done."""
        taken = self._once.acquire(blocking=False)
        if taken:
            self.is_given_up = True
        return taken
