"""What the event loop leaves to threads, and how bytes get from one to the other."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import TypeVar

from neve.errors import Unavailable
from neve.serving.pools import Pool, Pulse, Queued

T = TypeVar("T")

POOLS = ("work", "render", "upload", "commit", "ask", "fetch", "hash")

_WORKERS = 8
_ASKERS = 32
_COMMITTERS = 64
"""Uploads whose commits may share a sync; a thread each, for as long as the sync takes."""
_HASHERS = 2
"""Rendering a NAR for its hash takes a core: whoever else asks waits."""

_PIPE_BYTES = 2 * 1024 * 1024
"""What an upload may be ahead of the thread that takes it in."""
_GROUP_BYTES = 1024 * 1024
"""What that thread is woken up for: for each of the small pieces that come from the network it would cost
half the speed."""


class Threads:
    """The pools of one process. What may take long has a pool of its own, so that nothing waits behind it."""

    def __init__(self, uploads: int, fetches: int, queued: Callable[[str], Queued]) -> None:
        """``queued`` makes what is told how much waits for the threads of one of ``POOLS``."""
        sizes = (_WORKERS, _WORKERS, uploads, _COMMITTERS, _ASKERS, fetches, _HASHERS)
        self._pools = [Pool(name, size, queued(name)) for name, size in zip(POOLS, sizes, strict=True)]
        self._work, self._render, self._upload, self._commit, self._ask, self._fetch, self._hash = self._pools
        # The others may well be taken for minutes: by clients that are slow, other servers, large trees.
        self.pulse = Pulse([self._work, self._render])

    async def work(self, function: Callable[..., T], *arguments: object) -> T:
        """Runs what takes about a millisecond."""
        return await _run(self._work, function, *arguments)

    async def render(self, function: Callable[..., T], *arguments: object) -> T:
        """Makes the next piece of an answer."""
        return await _run(self._render, function, *arguments)

    async def commit(self, function: Callable[..., T], *arguments: object) -> T:
        """Runs what mostly waits for the disk."""
        return await _run(self._commit, function, *arguments)

    async def ask(self, function: Callable[..., T], *arguments: object) -> T:
        """Runs a question that may go to another server."""
        return await _run(self._ask, function, *arguments)

    async def fetch(self, function: Callable[..., T], *arguments: object) -> T:
        """Runs what may fetch a NAR from another server."""
        return await _run(self._fetch, function, *arguments)

    async def hash(self, function: Callable[..., T], *arguments: object) -> T:
        """Runs what reads a whole tree."""
        return await _run(self._hash, function, *arguments)

    def upload(self, function: Callable[..., T], *arguments: object) -> asyncio.Future[T]:
        """Begins to take an upload in. There is a thread for each that may be under way."""
        return self._upload.run(function, *arguments)

    def ahead(self, function: Callable[[], T]) -> asyncio.Future[T]:
        """Like ``render``, but does not wait for it."""
        return self._render.run(function)

    def close(self) -> None:
        """Waits for what is being done. Not to be called in the event loop's thread."""
        for pool in self._pools:
            pool.shutdown(cancel_futures=True)


async def _run(pool: Pool, function: Callable[..., T], *arguments: object) -> T:
    return await settled(pool.run(function, *arguments))


async def settled(future: asyncio.Future[T]) -> T:
    """The future's result. A cancellation waits for its end, so that nobody closes what it works on."""
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        while not future.done():
            with contextlib.suppress(BaseException):
                await asyncio.shield(future)
        if not future.cancelled():
            future.exception()  # Seen: nobody is told of it.
        raise


class Pipe:
    """Bytes from the event loop to one thread, which iterates over them; a bounded number is on the way."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._changed = threading.Condition()
        self._pieces: deque[bytes] = deque()
        self._held = 0
        self._ended = False
        self._failure: Exception | None = None
        self._closed = False
        self._room: asyncio.Future[None] | None = None

    # The event loop's side.

    async def put(self, piece: bytes) -> None:
        """Passes a piece on; returns when there is room for the next, or nobody wants one any more."""
        with self._changed:
            if self._closed:
                return
            self._pieces.append(piece)
            self._held += len(piece)
            if self._held >= _GROUP_BYTES:
                self._changed.notify()
            if self._held < _PIPE_BYTES:
                return
            room = self._room = self._loop.create_future()
        await room

    def finish(self, failure: Exception | None = None) -> None:
        """There are no more pieces: all have come, or, with ``failure``, something broke off."""
        with self._changed:
            self._ended = True
            self._failure = failure
            if failure is not None:
                self._pieces.clear()
            self._changed.notify()

    # The thread's side.

    def __iter__(self) -> Iterator[bytes]:
        """What came, in larger pieces. Raises what ``finish`` was told."""
        while (group := self._next()) is not None:
            yield group

    def _next(self) -> bytes | None:
        with self._changed:
            while self._held < _GROUP_BYTES and not self._ended:
                self._changed.wait()
            if self._failure is not None:
                raise self._failure
            group = b"".join(self._pieces)
            self._pieces.clear()
            self._held = 0
            self._make_room()
            return group or None

    def close(self) -> None:
        """Nobody wants more pieces."""
        with self._changed:
            self._closed = True
            self._pieces.clear()
            self._held = 0
            self._make_room()

    def _make_room(self) -> None:
        room, self._room = self._room, None
        if room is not None:
            with contextlib.suppress(RuntimeError):  # The loop is closed already.
                self._loop.call_soon_threadsafe(_settle, room)


def _settle(room: asyncio.Future[None]) -> None:
    if not room.done():
        room.set_result(None)


def broken_off() -> Unavailable:
    """What the thread that takes an upload in gets to see when the client is gone."""
    return Unavailable("the upload broke off")
