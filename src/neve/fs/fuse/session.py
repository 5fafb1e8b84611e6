"""Answers FUSE requests, wherever they come from."""

from __future__ import annotations

import errno
import functools
import os
import threading
import time
from collections.abc import Callable, Mapping

from neve.castore.path import show_name
from neve.errors import NeveError, PermissionDenied, Unsupported
from neve.fs.caches import Cache
from neve.fs.fuse.answers import MAX_READ_BYTES, Answers, Failed, SessionOptions
from neve.fs.fuse.listings import Listings
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
from neve.fs.fuse.request import Kernel, Overtaken, Parts, Reply, Request
from neve.fs.inodes import TooManyInodes
from neve.fs.loads import Closed, Loads, NotAtHand, Waiter
from neve.fs.tree import Tree
from neve.telemetry import LOGGER

__all__ = ["MAX_READ_BYTES", "Reply", "Session", "SessionOptions"]

MAX_BACKGROUND = 1024
"""Requests that the kernel need not wait for which it may have under way. So it reads ahead, and nearly all
else too: while so many are stuck in a store that hangs, nobody reads what is at hand. Those of readers who
have been killed count as well, until they are answered."""

MAX_READ_AHEAD_BYTES = 1 << 30
"""How far the kernel may read ahead: no less than it wants to, or was told to by who administers it."""

MAX_WRITE_BYTES = 4096
"""Most that is written at once: the least that can be said. Nothing is ever written."""

_PAGE_BYTES = 4096

_TOLD_SECONDS, _REMEMBERED = 10.0, 256
"""The same error is logged once in so many seconds, as far as so many are remembered."""

_WANTED = (
    InitFlag.ASYNC_READ
    | InitFlag.DO_READDIRPLUS
    | InitFlag.NO_OPEN_SUPPORT
    | InitFlag.PARALLEL_DIROPS
    | InitFlag.MAX_PAGES
    | InitFlag.CACHE_SYMLINKS
    | InitFlag.NO_OPENDIR_SUPPORT
    | InitFlag.INIT_EXT
)


class Session:
    """One kernel's view of a tree: its inodes, and its requests under way.

    ``handle`` may be called from several threads. It never waits for a backend: what is not at hand goes
    to a bounded number of threads. It does no I/O either; ``reply`` is called with what is to be sent.
    """

    def __init__(self, tree: Tree, options: SessionOptions) -> None:
        self._tree = tree
        self._loads = Loads(options.threads, _cores() + 1 if tree.is_near else None)
        self._kernel: Kernel | None = None
        self._send: Reply | None = None
        self._under_way: dict[int, tuple[Request, Waiter]] = {}
        self._lock = threading.Lock()
        self._told: Cache[str, float] = Cache(_REMEMBERED)
        answers = Answers(tree, self._loads, options)
        self._handlers = _handlers(answers, Listings(tree, self._loads, answers))

    def may_notify(self, send: Reply) -> None:
        """Says before the first request that messages can be sent that answer none: then contents that are
        read ahead go into the kernel's cache. What was forgotten meanwhile the kernel refuses; that, and
        whatever else goes wrong, is not for ``send`` to raise."""
        self._send = send

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
        kernel = self._kernel
        if header.opcode in (Opcode.INIT, Opcode.DESTROY) or kernel is None:
            reply(self._begin_or_end(header, body))
        elif header.opcode == Opcode.INTERRUPT:
            reply(self._interrupt(header, body))
        else:
            self._answer(Request(header, body, reply, kernel))

    def close(self) -> None:
        """Ends the threads; what is under way is answered with an error. Can be called again."""
        self._loads.close()
        self._tree.close()
        self._kernel = None  # Its inodes are not needed for what is still under way to be given up.

    def wait_until_idle(self, seconds: float) -> bool:
        """Waits for the calls of backends that are under way; False if there still is one."""
        return self._loads.wait_until_idle(seconds)

    def _begin_or_end(self, header: Header, body: object) -> Parts:
        """Answers INIT, DESTROY, and whatever comes before INIT."""
        if isinstance(body, Init):
            return self._init(header.unique, body)
        if header.opcode == Opcode.DESTROY:
            self._kernel = None
            return [reply_header(header.unique, 0)]
        return () if header.opcode in UNANSWERED else [error_reply(header.unique, errno.EIO)]

    def _init(self, unique: int, offered: Init) -> Parts:
        """Begins anew: a guest that has been started again knows nothing of before."""
        if offered.major < MAJOR or (offered.major == MAJOR and offered.minor < MIN_MINOR):
            return [error_reply(unique, errno.EPROTO)]
        flags = _WANTED & offered.flags
        if offered.major == MAJOR:  # To a later one, it is only told which one is spoken here.
            self._kernel = Kernel(flags, self._send)
        answer = encode_init(
            MINOR,
            MAX_READ_AHEAD_BYTES,
            flags,
            max_background=MAX_BACKGROUND,
            max_write=MAX_WRITE_BYTES,
            max_pages=MAX_READ_BYTES // _PAGE_BYTES,
        )
        return [reply_header(unique, len(answer)), answer]

    def _interrupt(self, header: Header, unique: int) -> Parts:
        """Answers another request, that nobody waits for any more, if it is still waited for here.

        One that is not known may be on its way to us in another thread: the kernel is to say it again. If
        it has been answered, nobody minds.
        """
        found = self._under_way.get(unique)
        if found is None:
            return [error_reply(header.unique, errno.EAGAIN)]
        request, waiter = found
        if request.give_up():
            waiter.given_up = True
            self._forget(request)
            request.reply([error_reply(unique, errno.EINTR)])
        return ()

    def _answer(self, request: Request) -> None:
        """Answers from what is at hand, or has fetched what is missing and comes back then."""
        try:
            parts = self._parts(request)
            request.settle()
        except NotAtHand as lacking:
            self._fetch(request, lacking)
            return
        except Overtaken:
            return
        if request.held:
            self._forget(request)
        request.reply(parts)

    def _fetch(self, request: Request, lacking: NotAtHand) -> None:
        waiter = Waiter(request.held, functools.partial(self._answer, request))
        with self._lock:
            if request.is_given_up:
                return
            self._under_way[request.header.unique] = request, waiter
        self._loads.want(lacking, waiter)

    def _forget(self, request: Request) -> None:
        """Takes a request off the list, unless another has got its number: guests do as they like."""
        unique = request.header.unique
        with self._lock:
            if unique in self._under_way and self._under_way[unique][0] is request:
                del self._under_way[unique]

    def _parts(self, request: Request) -> Parts:
        """The whole reply. Raises ``NotAtHand`` and ``Overtaken``."""
        header = request.header
        handler = self._handlers.get(header.opcode)
        if handler is None:
            return [error_reply(header.unique, errno.EROFS if header.opcode in WRITING else errno.ENOSYS)]
        try:
            body = handler(request)
        except (NotAtHand, Overtaken):
            raise
        except Failed as failure:
            return [error_reply(header.unique, failure.number)]
        except NeveError as error:
            self._tell(request, error)
            return [error_reply(header.unique, _errno(error))]
        except Exception:
            LOGGER.exception("internal error, please report it")
            return [error_reply(header.unique, errno.EIO)]
        if header.opcode in UNANSWERED:
            return ()
        return [reply_header(header.unique, sum(map(len, body))), *body]

    def _tell(self, request: Request, error: NeveError) -> None:
        """Logs an error, but not for everybody who runs into it: a guest must not fill the log."""
        message, now = str(error), time.monotonic()
        told = self._told.get(message)
        if isinstance(error, Closed) or (told is not None and now - told < _TOLD_SECONDS):
            return
        self._told.put(message, now, 1)
        header = request.header
        of = f" of {show_name(request.body)}" if isinstance(request.body, bytes) else ""
        LOGGER.error("%s%s, inode %d: %s", Opcode(header.opcode).name, of, header.node, message)


def _cores() -> int:
    """How many threads can compute at once. More that fetch from near take each other's turns."""
    return len(os.sched_getaffinity(0))


def _errno(error: NeveError) -> int:
    """What the kernel is told of an error."""
    for kind, number in _ERRORS.items():
        if isinstance(error, kind):
            return number
    return errno.EIO


_ERRORS: Mapping[type[NeveError], int] = {
    TooManyInodes: errno.ENFILE,
    PermissionDenied: errno.EACCES,
    Unsupported: errno.EOPNOTSUPP,
}


def _handlers(answers: Answers, listings: Listings) -> Mapping[int, Callable[[Request], Parts]]:
    return {
        Opcode.LOOKUP: answers.lookup,
        Opcode.FORGET: answers.forget,
        Opcode.GETATTR: answers.getattr,
        Opcode.READLINK: answers.readlink,
        Opcode.OPEN: answers.open,
        Opcode.READ: answers.read,
        Opcode.STATFS: answers.statfs,
        Opcode.RELEASE: answers.done,
        Opcode.GETXATTR: answers.getxattr,
        Opcode.LISTXATTR: answers.listxattr,
        Opcode.FLUSH: answers.flush,
        Opcode.OPENDIR: answers.opendir,
        Opcode.READDIR: listings.readdir,
        Opcode.RELEASEDIR: answers.done,
        Opcode.ACCESS: answers.access,
        Opcode.BATCH_FORGET: answers.batch_forget,
        Opcode.READDIRPLUS: listings.readdirplus,
        Opcode.LSEEK: answers.lseek,
    }
