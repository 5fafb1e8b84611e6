"""A queue at work: requests are handed on, answers put back, and stopping leaves nothing half done.

One thread (the server's) sets a ring up, lets it work and stops it. Answers come from any thread. A lock
orders the two: what is not in flight any more, because the ring has been stopped, is not written to the
guest's memory, however late its answer comes.
"""

from __future__ import annotations

import errno
import struct
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from neve.errors import InvalidRequest
from neve.fs.vhost.events import Event
from neve.fs.vhost.memory import GuestMemory
from neve.fs.vhost.virtqueue import BadQueue, Chain, QueueAddresses, SplitQueue
from neve.telemetry import LOGGER

MAX_REQUEST_BYTES = 128 * 1024
"""The longest request that is taken. The longest that Linux makes carries the value of an extended attribute,
64 KiB, and its name; what is written comes in 4 KiB, as the answer to INIT says."""
MAX_UNANSWERED = 16 * 1024
"""Requests of all rings that the handler may have. More than rings can hold, each of which has 1024 at most:
it is for those that were forgotten when a ring was stopped, while a store hangs. A guest that begins anew
all the time could pile them up."""
_BATCH = 32
"""Requests that are handed on before somebody else has a turn."""
_TURN_SECONDS = 0.02
"""The same in time: a request may take as long as a long listing takes to be encoded."""

_IN_HEADER = struct.Struct("<IIQ")
"""Length, opcode and number of a request: what ``fuse_in_header`` begins with."""
_IN_HEADER_BYTES = 40
_OUT_HEADER = struct.Struct("<IiQ")
"""``fuse_out_header``: length, error, number of the request."""

Reply = Callable[[Sequence[bytes | memoryview]], None]


class Handler(Protocol):
    """Who answers requests of FUSE."""

    def handle(self, request: bytes | memoryview, reply: Reply, /) -> None:
        """Answers ``request`` by one call of ``reply``, now or later and from any thread, with the parts of
        the whole answer; with none if it gets no answer."""

    def close(self) -> None:
        """There will be no more requests."""


class Ring:
    """One queue of the device. What the front-end sets is set on it directly, by one thread."""

    def __init__(self, index: int, handler: Handler, unanswered: set[_InFlight]) -> None:
        """``unanswered`` is what the handler has to answer, of all rings that have the same one."""
        self.index = index
        self.size = 0
        self.addresses: QueueAddresses | None = None
        self.base = 0
        self.enabled = False
        self.kick: Event | None = None
        self.restless = False
        """Whether it should have a turn without being kicked."""
        self._handler = handler
        self._unanswered = unanswered
        self._error: Event | None = None
        self._call: Event | None = None
        self._queue: SplitQueue | None = None
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._in_flight: dict[int, _InFlight] = {}
        self._turn_of: int | None = None
        self._owes_call = False

    @property
    def running(self) -> bool:
        """Whether it has been started and not been stopped since."""
        return self._queue is not None

    def start(self, memory: GuestMemory) -> None:
        """Starts it, or lets it go on in other ``memory``. Raises ``InvalidRequest`` if it cannot work
        there."""
        if not self.size or self.addresses is None:
            raise BadQueue(f"queue {self.index} is started without a size or an address")
        with self._lock:
            base = self._queue.next_available if self._queue is not None else self.base
            self._queue = SplitQueue(memory, self.size, self.addresses, base, MAX_REQUEST_BYTES)
        self.restless = True

    def stop(self, seconds: float) -> int:
        """Stops it; the index of the next request. What is still in flight after so many seconds gets an
        error: the guest may go on from here later (a paused one does), and would wait for its answer for
        ever."""
        with self._lock:
            if self._queue is not None:
                self.base = self._queue.next_available
                if not self._idle.wait_for(lambda: not self._in_flight, seconds):
                    for late in list(self._in_flight.values()):
                        self._put(late, late.failure(errno.EIO))
                    self._signal()
            self._forget()
        return self.base

    def reset(self) -> None:
        """Stops it at once: nobody waits for what is in flight. It is as it was at first, but for its
        events, of which the front-end may not say again what they are."""
        with self._lock:
            self._forget()
        self.size = self.base = 0
        self.addresses = None
        self.enabled = False

    def drop(self) -> None:
        """Stops it at once, and touches the guest's memory no more. Closes all descriptors."""
        with self._lock:
            self._forget()
            for event in (self._call, self._error):
                if event is not None:
                    event.close()
            self._call = self._error = None

    def _forget(self) -> None:
        self._leave_queue()
        self.restless = False
        if self.kick is not None:
            self.kick.close()
            self.kick = None

    def _leave_queue(self) -> None:
        self._queue = None
        for request in self._in_flight.values():
            request.forget_spans()
        self._in_flight.clear()
        self._idle.notify_all()

    def set_kick(self, event: Event) -> None:
        """What says that there are requests. Replaces another one."""
        if self.kick is not None:
            self.kick.close()
        self.kick = event

    def set_call(self, event: Event | None) -> None:
        """What tells the guest of answers; none if it looks for them. Replaces another one."""
        with self._lock:
            if self._call is not None:
                self._call.close()
            self._call = event
            self._signal()

    def set_error(self, event: Event | None) -> None:
        """What tells the front-end that the ring is broken. Replaces another one."""
        with self._lock:
            if self._error is not None:
                self._error.close()
            self._error = event

    def turn(self) -> None:
        """Hands on the requests that are available; or some of them, and is ``restless`` then."""
        self.restless = False
        if not self.enabled:
            return
        self._turn_of = threading.get_ident()
        end = time.monotonic() + _TURN_SECONDS
        try:
            for _ in range(_BATCH):
                taken = self._take()
                if taken is None:
                    return
                self._hand_on(*taken)
                if time.monotonic() > end:
                    break
            self.restless = True
        finally:
            with self._lock:
                self._turn_of = None
                if self._owes_call:
                    self._signal()

    def _take(self) -> tuple[bytes, _InFlight] | None:
        """The next request: what it says, and what is to be kept of it until it is answered."""
        with self._lock:
            if self._queue is None:
                return None
            try:
                chain = self._queue.pop()
                if chain is None:
                    return None
                if chain.head in self._in_flight:
                    raise BadQueue(f"request {chain.head} is made again before it was answered")
                in_flight = _InFlight(chain)
            except InvalidRequest as error:
                self._break(error)
                return None
            self._in_flight[chain.head] = in_flight
            return chain.request, in_flight

    def _hand_on(self, request: bytes, in_flight: _InFlight) -> None:
        if len(self._unanswered) >= MAX_UNANSWERED:
            self._finish(in_flight, in_flight.failure(errno.EIO))
            return
        self._unanswered.add(in_flight)
        try:
            self._handler.handle(request, lambda parts: self._finish(in_flight, parts))
        except Exception:
            # Whatever a guest may have found there: it costs this one request.
            LOGGER.exception("internal error, please report it")
            self._finish(in_flight, in_flight.failure(errno.EIO))

    def _finish(self, request: _InFlight, parts: Sequence[bytes | memoryview]) -> None:
        self._unanswered.discard(request)
        with self._lock:
            if self._in_flight.get(request.chain.head) is not request:
                return  # The ring was stopped, or this is a second answer.
            self._put(request, parts)
            if not self._in_flight:
                self._idle.notify_all()
            if self._turn_of == threading.get_ident():
                self._owes_call = True  # Once, when the turn is over.
            else:
                self._signal()

    def _put(self, request: _InFlight, parts: Sequence[bytes | memoryview]) -> None:
        self._in_flight.pop(request.chain.head, None)
        if self._queue is None:
            return
        try:
            self._queue.answer(request.chain, request.fitted(parts))
        except InvalidRequest as error:
            self._break(error)  # It was inside of the memory, before that was replaced.

    def _signal(self) -> None:
        self._owes_call = False
        if self._call is not None:
            self._call.signal()

    def _break(self, error: InvalidRequest) -> None:
        """The guest's driver cannot be believed: nothing is taken from it until the ring is set up anew."""
        # As text: whoever keeps the record would keep the error, its frames, and in those the memory.
        LOGGER.warning("virtio-fs: queue %d of the guest is stopped: %s", self.index, str(error))
        if self._queue is not None:
            self.base = self._queue.next_available
        self._leave_queue()
        if self._error is not None:
            self._error.signal()


class _InFlight:
    """A request that has not been answered."""

    __slots__ = ("_number", "chain")

    def __init__(self, chain: Chain) -> None:
        """Raises ``BadQueue`` if it is too short to be one."""
        if len(chain.request) < _IN_HEADER_BYTES:
            raise BadQueue(f"a request of {len(chain.request)} bytes, shorter than its head")
        _, _, self._number = _IN_HEADER.unpack_from(chain.request)
        # Thousands may be in flight: each is only as long as it takes to answer it.
        self.chain = chain._replace(request=b"")

    def forget_spans(self) -> None:
        """Will not be answered; the handler may keep it for long. It is small from now on."""
        del self.chain.spans[:]

    def failure(self, number: int) -> list[bytes]:
        """The answer that it failed."""
        return [_OUT_HEADER.pack(_OUT_HEADER.size, -number, self._number)]

    def fitted(self, parts: Iterable[bytes | memoryview]) -> list[memoryview]:
        """The answer, if there is room for it; else an error, else nothing."""
        room = self.chain.room
        views = [memoryview(part).cast("B") for part in parts if len(part)]
        if sum(map(len, views)) <= room:
            return views
        return [memoryview(part) for part in self.failure(errno.EIO)] if room >= _OUT_HEADER.size else []
