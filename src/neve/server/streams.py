"""What streams are made of: room for what they bring, work behind them, answers made in threads."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from neve.errors import LimitExceeded
from neve.serving.pools import Pool

if TYPE_CHECKING:
    from neve.server.calls import Calls

T = TypeVar("T")

_END: Any = object()
_WAITING_TIMES = 4


class Room:
    """The bytes that all uploads together may hold while they wait for a thread, or for the disk.

    Only what is sure to be worked on may be held here: then room is always made, whatever clients do.
    """

    def __init__(self, size: int, changed: Callable[[int, int], None] = lambda held, waiting: None) -> None:
        """``changed`` is told how many bytes are held, and how many uploads wait."""
        self._size = size
        self._changed = changed
        self._held = 0
        self._wanted = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, size: int) -> None:
        """Returns when there is room for ``size`` bytes, and everybody before had his turn; if that is
        more than all, when all is free. Raises ``LimitExceeded`` if far too many wait."""
        if not self._waiting and self._fits(size):
            self._held += size
            self._tell()
            return
        if self._wanted + size > _WAITING_TIMES * self._size and self._waiting:
            raise LimitExceeded(
                f"too much is being uploaded at once: over {_WAITING_TIMES} times {self._size} bytes wait "
                "(max_held_bytes)"
            )
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (size, turn)
        self._waiting.append(entry)
        self._wanted += size
        self._tell()
        try:
            await turn
        except asyncio.CancelledError:
            if entry in self._waiting:
                self._waiting.remove(entry)
                self._wanted -= size
                self._let_in()
            elif turn.done() and not turn.cancelled():
                self.give(size)  # It was let in at the same time.
            raise

    def _fits(self, size: int) -> bool:
        return not self._held or self._held + size <= self._size

    def give(self, size: int) -> None:
        """Frees ``size`` bytes that were taken."""
        self._held -= size
        self._let_in()

    def _tell(self) -> None:
        self._changed(self._held, len(self._waiting))

    def _let_in(self) -> None:
        while self._waiting and self._fits(self._waiting[0][0]):
            size, turn = self._waiting.popleft()
            self._wanted -= size
            if not turn.done():
                self._held += size
                turn.set_result(None)
        self._tell()


class Behind:
    """Work on a stream that is done while the next message is received: one piece at a time."""

    def __init__(self, calls: Calls, stop: Callable[[], None] | None = None) -> None:
        """``stop`` is called when the call is cancelled: a long piece then may end early."""
        self._calls = calls
        self._stop = stop
        self._running: asyncio.Task[Any] | None = None

    async def put(self, size: int, function: Callable[..., object], *arguments: Any) -> None:
        """Begins the next piece, of ``size`` bytes, when the last one is done and there is room. Raises
        what the last one raised."""
        await self.settle()
        with self._calls.busy():
            await self._calls.room.take(size)
        self._running = asyncio.create_task(self._one(size, function, *arguments))

    async def _one(self, size: int, function: Callable[..., object], *arguments: Any) -> None:
        try:
            await self._calls.ingest(function, *arguments)
        finally:
            self._calls.room.give(size)

    async def settle(self) -> None:
        """Returns when nothing is being done. Raises what the last piece raised."""
        running, self._running = self._running, None
        if running is not None:
            with self._calls.busy():
                await settled(running, self._stop)

    async def give_up(self) -> None:
        """Waits for the last piece; what it raised does not matter any more."""
        with contextlib.suppress(Exception):
            await self.settle()


class Ahead:
    """How many answers may have an item ready that nobody takes yet. Of one that is not read it costs a
    megabyte or two, so beyond that the next one is made when it is wanted."""

    def __init__(self, most: int) -> None:
        self._left = most

    def take(self) -> bool:
        """Whether one more may. Then it is to be given back."""
        if not self._left:
            return False
        self._left -= 1
        return True

    def give(self) -> None:
        self._left += 1


class Pull(AsyncIterator[T]):
    """See ``Calls.pull``."""

    def __init__(self, calls: Calls, pool: Pool, items: Iterator[T]) -> None:
        self._calls = calls
        self._pool = pool
        self._items = items
        self._next: asyncio.Future[T] | None = None
        self._is_ahead = False

    async def __anext__(self) -> T:
        self._wanted()
        if self._next is None:
            self._next = self._pool.run(next, self._items, _END)
        with self._calls.busy():
            item = await settled(self._next)
        if item is _END:
            raise StopAsyncIteration
        self._next = None
        if self._calls.ahead.take():
            self._is_ahead = True
            self._next = self._pool.run(next, self._items, _END)
        return item

    def _wanted(self) -> None:
        """The next item is not ahead any more."""
        if self._is_ahead:
            self._is_ahead = False
            self._calls.ahead.give()

    async def close(self) -> None:
        """Ends the iterator, when nobody is at work on it."""
        self._wanted()
        if self._next is not None:
            with contextlib.suppress(BaseException):
                await settled(self._next)
        if (close := getattr(self._items, "close", None)) is not None:
            await settled(self._pool.run(close))


async def cleared(clearing: Coroutine[Any, Any, None]) -> None:
    """Clears up at the end of a call, whole, however often the call is cancelled in the meantime."""
    await settled(asyncio.ensure_future(clearing))


async def settled(future: asyncio.Future[T], stop: Callable[[], None] | None = None) -> T:
    """The future's result. A cancellation waits for its end, so that nobody closes what it works on."""
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        if stop is not None:
            stop()
        while not future.done():
            with contextlib.suppress(BaseException):
                await asyncio.shield(future)
        if not future.cancelled():
            future.exception()  # Seen: nobody is told of it.
        raise
