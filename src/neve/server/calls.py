"""A call's way through the server: counted, paced, its work done in threads, errors to statuses.

Handlers are coroutines, so an open stream costs no thread. What they do with the store is synchronous
and runs in a pool, a full group at a time; commits, which mostly wait for the disk, have a pool of
their own, large enough for many uploads to share one sync.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import grpc
from google.protobuf.descriptor import ServiceDescriptor

from neve.errors import InvalidRequest, LimitExceeded, NeveError, Unavailable
from neve.rpc.methods import Deserializer, Method, methods_of
from neve.rpc.status import ERROR_TRAILER, Status, shortened, status_of
from neve.server.figures import POOLS, Figures
from neve.server.limits import Limits
from neve.server.messages import reader
from neve.server.observed import Observed, counted_in, counted_out
from neve.server.streams import Ahead, Pull, Room, settled
from neve.serving.pools import Pool, Pulse
from neve.telemetry import LOGGER

T = TypeVar("T")

Context = grpc.aio.ServicerContext[Any, Any]

_WORKERS = 8
_COMMITTERS = 128
"""Uploads whose commits may share a sync; a thread each, for as long as the sync takes."""

_FETCHERS = 64
"""Path infos whose contents come from elsewhere first; a thread each, for as long as that takes."""

_AHEAD = 64
"""Streams whose next answer is made while one is being sent: more do not get faster by it."""

MAX_ASIDE = 256
"""Calls at once of each method that is not about the store: its health, its description. They are counted
by themselves, so that nobody who only watches takes the place of those who work."""

_CHECKS_A_WINDOW = 10
_DRAIN_CHECK_SECONDS = 0.02


class Stream:
    """An open stream: what has moved on it, for the pacing."""

    def __init__(self, task: asyncio.Task[Any]) -> None:
        self.task = task
        self.moved = 0
        """Bytes moved since ``since``."""
        self.since = time.monotonic()
        self.busy = 0
        """Above 0 while the server works for it: then it is not the client's turn."""
        self.busy_since = 0.0
        self.expired = False
        self.pulls: list[Pull[Any]] = []
        """What makes the messages of its answer."""


class Calls:
    """All calls of one process. Belongs to the event loop that it is used in."""

    def __init__(self, limits: Limits, figures: Figures | None = None) -> None:
        self.limits = limits
        self.draining = False
        self._figures = figures = figures or Figures()
        self.room = Room(limits.max_held_bytes, figures.room)
        self.ahead = Ahead(_AHEAD)
        self.active = 0
        self._streams: dict[asyncio.Task[Any], Stream] = {}
        self._workers, self._ingesters, self._committers, self._fetchers = [
            Pool(name, threads, figures.queued(name))
            for name, threads in zip(POOLS, (_WORKERS, _WORKERS, _COMMITTERS, _FETCHERS), strict=True)
        ]
        self.pulse = Pulse([self._workers, self._ingesters])

    # What handlers use.

    async def work(self, function: Callable[..., T], *arguments: Any) -> T:
        """Runs ``function`` in a thread. If the call is cancelled, waits for the thread all the same."""
        return await self._run(self._workers, function, *arguments)

    async def ingest(self, function: Callable[..., T], *arguments: Any) -> T:
        """Like ``work``, for what compresses and writes: whoever only asks does not wait behind it."""
        return await self._run(self._ingesters, function, *arguments)

    async def commit(self, function: Callable[..., T], *arguments: Any) -> T:
        """Like ``work``, for what waits for the disk."""
        return await self._run(self._committers, function, *arguments)

    async def fetch(self, function: Callable[..., T], *arguments: Any) -> T:
        """Runs ``function``, which waits for other servers, in a thread. If the call is cancelled it goes on
        for whoever asks next, and only ends when the services are closed."""
        return await self._fetchers.run(function, *arguments)

    async def _run(self, pool: Pool, function: Callable[..., T], *arguments: Any) -> T:
        future = pool.run(function, *arguments)
        if self._stream() is None:
            return await settled(future)
        with self.busy():
            return await settled(future)

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """While the server works for a stream, it is not the client's turn to be quick."""
        stream = self._stream()
        if stream is None:
            yield
            return
        if not stream.busy:
            stream.busy_since = time.monotonic()
        stream.busy += 1
        try:
            yield
        finally:
            stream.busy -= 1
            if not stream.busy:
                # The window is as much longer. It does not begin anew: messages of a byte would do for that.
                stream.since += time.monotonic() - stream.busy_since

    def _stream(self) -> Stream | None:
        task = asyncio.current_task()
        return None if task is None else self._streams.get(task)

    def moved(self, size: int) -> None:
        """Notes that ``size`` bytes came or went on the stream of this call."""
        if (stream := self._stream()) is not None:
            stream.moved += size

    async def received(self, context: Context) -> None:
        """To be awaited when the messages of an upload have ended, before anything is made of them.

        The library lets a broken stream end like a complete one. Sending fails on a broken one, so this
        sends what could wait for the answer. Raises ``CancelledError``.
        """
        try:
            await context.send_initial_metadata(())
        except Exception as error:
            raise asyncio.CancelledError("the stream is broken") from error

    def pull(self, items: Iterator[T]) -> AsyncIterator[T]:
        """The items of a synchronous iterator, made in threads, the next one while one is being sent unless
        that is done for many others (see ``Ahead``).

        Ends when the call does, at the latest.
        """
        stream = self._stream()
        assert stream is not None, "only streams are pulled"
        pull = Pull(self, self._workers, items)
        stream.pulls.append(pull)
        return pull

    # The way of a call.

    def handler(
        self,
        service: ServiceDescriptor,
        implementation: object,
        names: Sequence[str] = (),
        *,
        aside: bool = False,
    ) -> Sequence[grpc.GenericRpcHandler]:
        """Handlers of a service under each of ``names`` (default: its own).

        The implementation has a coroutine by the name of each method, which takes a message (or an
        asynchronous iterator of them) and the context, and answers with a message, or writes those of a
        stream to the context. Its ``raw_requests`` and ``raw_responses`` name the methods that take or
        give bytes instead of messages. Calls ``aside`` are not counted among the others, and do not keep
        the server from stopping.
        """
        return [
            grpc.method_handlers_generic_handler(
                name,
                {
                    method.name: self._method(method, implementation, aside)
                    for method in methods_of(service, name).values()
                },
            )
            for name in (names or (service.full_name,))
        ]

    def _method(self, method: Method, implementation: object, aside: bool) -> grpc.RpcMethodHandler[Any, Any]:
        behaviour = getattr(implementation, method.name)
        raw_requests = method.name in getattr(implementation, "raw_requests", ())
        raw_responses = method.name in getattr(implementation, "raw_responses", ())
        # A single request is received like the first of a stream, which is the same on the wire: the library
        # would wait for it for ever, and nobody would count the call.
        make: Any = (
            grpc.stream_stream_rpc_method_handler
            if method.server_streaming
            else grpc.stream_unary_rpc_method_handler
        )
        run = self._paced(behaviour) if method.client_streaming or method.server_streaming else behaviour
        # What is no message is refused like any other request: a single one is read under the guard, those
        # of a stream are read where the behaviour, which is under it, asks for them.
        read: Deserializer | None = None if raw_requests else reader(method, self._longest(method))
        if not method.client_streaming:
            assert read is not None
            run, read = self._reading(run, read), None
        if aside:
            # Nobody wants to see how often it was asked how it is.
            figures, observe, counted = (
                Figures(),
                partial(Observed, None, Figures()),
                _Aside(method.path).counted,
            )
        else:
            figures, observe, counted = self._figures, partial(Observed, method, self._figures), self._counted
        write = None if raw_responses else method.response.SerializeToString
        result: grpc.RpcMethodHandler[Any, Any] = make(
            self._guarded(run, method.path, counted, observe),
            request_deserializer=counted_in(read, figures),
            response_serializer=counted_out(write, figures),
        )
        return result

    def _longest(self, method: Method) -> int:
        """Bytes of a request. Reading one of many small parts takes a multiple of its size and, in the
        event loop, everybody's time: only those that may be large are."""
        longest = self.limits.max_message_bytes
        return longest if method.client_streaming else min(longest, self.limits.max_request_bytes)

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        """Counts a call while it is open. Raises what it is refused with."""
        self.active += 1
        try:
            if self.draining or self.active > self.limits.max_concurrent_calls:
                raise self._refusal()
            yield
        finally:
            self.active -= 1

    def _guarded(
        self,
        run: Callable[[Any, Context], Awaitable[T]],
        path: str,
        counted: Callable[[], contextlib.AbstractContextManager[None]],
        observe: Callable[[Context], Observed],
    ) -> Callable[[Any, Context], Awaitable[T]]:
        """The handler: counts the call, makes statuses of what it raises."""

        async def call(request: Any, context: Context) -> T:
            with observe(context) as observed:
                try:
                    with counted():
                        return await run(request, context)
                except NeveError as error:
                    failure = status_of(error)
                except (asyncio.CancelledError, grpc.aio.AbortError):
                    raise
                except Exception as error:
                    LOGGER.exception("%s failed", path)
                    details = shortened(f"internal error: {type(error).__name__}: {error}")
                    failure = Status(grpc.StatusCode.INTERNAL, details, "")
                observed.failed(failure.code, failure.kind)
                await _abort(context, failure)
                raise AssertionError("an aborted call goes on")

        return call

    def _reading(
        self, behaviour: Callable[[Any, Context], Awaitable[T]], read: Deserializer
    ) -> Callable[[Any, Context], Awaitable[T]]:
        """Receives the one request before the behaviour, which gets it as a message."""

        async def call(_: Any, context: Context) -> T:
            try:
                async with asyncio.timeout(self.limits.stream_idle_seconds):
                    data = await context.read()
            except TimeoutError:
                raise LimitExceeded(
                    f"no request came in {self.limits.stream_idle_seconds:g} s (stream_idle_seconds)"
                ) from None
            if data is grpc.aio.EOF:
                raise InvalidRequest("the call ended without a request")
            return await behaviour(read(data), context)

        return call

    def _paced(
        self, behaviour: Callable[[Any, Context], Awaitable[T]]
    ) -> Callable[[Any, Context], Awaitable[T]]:
        async def call(request: Any, context: Context) -> T:
            task = asyncio.current_task()
            assert task is not None
            stream = self._streams[task] = Stream(task)
            try:
                return await behaviour(request, context)
            except asyncio.CancelledError:
                if stream.expired:
                    raise self._too_slow() from None
                raise
            finally:
                del self._streams[task]
                for pull in stream.pulls:
                    await pull.close()

        return call

    def _refusal(self) -> NeveError:
        """Why no more calls are taken."""
        if self.draining:
            return Unavailable("the server is shutting down")
        return LimitExceeded(
            f"{self.limits.max_concurrent_calls} calls are open, no more are taken (max_concurrent_calls)"
        )

    # Pacing.

    async def pace(self) -> None:
        """Ends streams that do not move; runs until it is cancelled."""
        while True:
            await asyncio.sleep(self.limits.stream_idle_seconds / _CHECKS_A_WINDOW)
            now = time.monotonic()
            for stream in list(self._streams.values()):
                if stream.busy or now - stream.since < self.limits.stream_idle_seconds:
                    continue
                if stream.moved < self.limits.min_stream_bytes:
                    stream.expired = True
                    stream.task.cancel()
                stream.moved, stream.since = 0, now

    def _too_slow(self) -> LimitExceeded:
        return LimitExceeded(
            f"less than {self.limits.min_stream_bytes} bytes moved on this stream in "
            f"{self.limits.stream_idle_seconds:g} s (stream_idle_seconds, min_stream_bytes)"
        )

    async def drained(self) -> None:
        """Returns when no call is open."""
        while self.active:
            await asyncio.sleep(_DRAIN_CHECK_SECONDS)

    def close(self) -> None:
        """Ends the threads, once no call is left: waits for those that have been cancelled and still
        have something to clear up. Not to be called in the event loop's thread."""
        while self.active:
            time.sleep(_DRAIN_CHECK_SECONDS)
        self._workers.shutdown()
        self._ingesters.shutdown()
        self._committers.shutdown()
        self._fetchers.shutdown(wait=False, cancel_futures=True)


class _Aside:
    """Counts the calls of one method that is not about the store."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._open = 0

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        self._open += 1
        try:
            if self._open > MAX_ASIDE:
                raise LimitExceeded(f"{MAX_ASIDE} calls of {self._path} are open, no more are taken")
            yield
        finally:
            self._open -= 1


async def _abort(context: Context, status: Status) -> None:
    trailers = ((ERROR_TRAILER, status.kind),) if status.kind else ()
    await context.abort(status.code, status.details, trailers)
