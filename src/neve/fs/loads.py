"""Fetching what is not at hand, in a bounded number of threads.

Who answers a request looks at what is at hand. If something is missing he raises ``NotAtHand``, has it
fetched with ``Loads.want``, and is called again when it has come. So no thread ever waits for another,
and however many requests want the same thing, one thread fetches it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeAlias

from neve.errors import NeveError, Unavailable
from neve.telemetry import LOGGER

_MOST_AHEAD = 256
"""Tasks at most that nobody waits for yet. If a store is so slow that there are more, what comes of them
comes too late."""

What: TypeAlias = Any
"""What a source can fetch: something hashable, of a type that the source says."""


class Source(Hashable, Protocol):
    """Where something comes from that may take long."""

    def fetch(self, wanted: Sequence[What]) -> Iterator[tuple[What, Any]]:
        """Each of ``wanted`` with what it was wanted for, in any order. Raises errors of ``neve.errors``;
        what has not come by then is fetched one by one, if somebody still waits for it."""


class Far:
    """Base of sources of which one call may take minutes, since it fetches all that a name stands for: they
    are not given all threads."""


Key: TypeAlias = tuple[Source, What]

Held: TypeAlias = dict[Key, Any]
"""What was fetched for one request, or the errors that came instead."""


Unasked: TypeAlias = Callable[[What, Any], None]


class NotAtHand(Exception):  # noqa: N818 - not an error
    """Says what of one source is missing, and what else of it is wanted soon; ``unasked`` gets what has
    come without anybody waiting for it."""

    def __init__(
        self,
        source: Source,
        wanted: Sequence[What],
        along: Sequence[What] = (),
        unasked: Unasked | None = None,
    ) -> None:
        super().__init__()
        self.source = source
        self.wanted = wanted
        self.along = along
        self.unasked = unasked


class Closed(Unavailable):
    """Nothing is fetched any more."""


def from_held(source: Source, what: What, held: Held) -> Any:
    """What was fetched. Raises ``NotAtHand`` if it was not, or the error that came instead."""
    value = held.get((source, what), held)
    if value is held:
        raise NotAtHand(source, [what])
    if isinstance(value, NeveError):
        raise value
    return value


class Waiter:
    """Somebody who is called back when everything that he waits for has come."""

    __slots__ = ("given_up", "held", "missing", "then")

    def __init__(self, held: Held, then: Callable[[], None]) -> None:
        self.held = held
        self.then = then
        self.missing = 0
        self.given_up = False
        """Set by who does not want it any more: what nobody else wants either is then not fetched."""


class _Task:
    """Things to be fetched together by one thread."""

    __slots__ = ("ahead", "source", "started", "unasked", "waiting")

    def __init__(
        self, source: Source, wanted: Iterable[What], unasked: Unasked | None = None, *, ahead: bool
    ) -> None:
        self.source = source
        self.unasked = unasked
        self.waiting: dict[What, list[Waiter]] = {what: [] for what in wanted}
        self.ahead = ahead
        self.started = False


class Loads:
    """The threads. Thread-safe. They start when they are needed, and do not keep the process alive: a
    call that never returns must not either."""

    def __init__(self, threads: int, most_ahead: int | None = None) -> None:
        """``most_ahead`` threads fetch what nobody waits for yet, and no more than half of them."""
        self._threads = threads
        self._max_ahead = threads // 2 if most_ahead is None else min(threads // 2, most_ahead)
        self._max_far = max(threads * 3 // 4, 1)  # The others are for what is near.
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._wanted: deque[_Task] = deque()
        self._far: deque[_Task] = deque()
        self._ahead: deque[_Task] = deque()
        self._on_the_way: dict[Key, _Task] = {}
        self._started = self._idle = self._running = self._running_ahead = self._running_far = 0
        self._done = threading.Condition(self._lock)
        self._closed = False

    def want(self, lacking: NotAtHand, waiter: Waiter) -> None:
        """Has ``waiter`` called, from some thread, when all that is wanted is in what he holds."""
        source, wanted = lacking.source, lacking.wanted
        with self._lock:
            waiter.missing = len(wanted)
            if not self._closed:
                new = [what for what in wanted if not self._join((source, what), waiter)]
                if new:
                    along = [what for what in lacking.along if (source, what) not in self._on_the_way]
                    task = _Task(source, [*new, *along], lacking.unasked, ahead=False)
                    for what in new:
                        task.waiting[what].append(waiter)
                    self._submit(task)
                return
            waiter.held.update(((source, what), _closed()) for what in wanted)
        waiter.then()

    def _join(self, key: Key, waiter: Waiter) -> bool:
        """Waits for something that is on the way already."""
        task = self._on_the_way.get(key)
        if task is None:
            return False
        task.waiting[key[1]].append(waiter)
        if task.ahead and not task.started:
            task.ahead = False  # It will be met in the other queue too, as started.
            self._enqueue(self._wanted, task)
        return True

    def fetch_ahead(self, source: Source, wanted: Sequence[What], unasked: Unasked | None = None) -> None:
        """Fetches what may be wanted soon, if there are threads to spare; whatever goes wrong is left to
        him who will want it. ``unasked`` gets what comes before anybody does."""
        with self._lock:
            new = [what for what in wanted if (source, what) not in self._on_the_way]
            if new and not self._closed and self._max_ahead and len(self._ahead) < _MOST_AHEAD:
                self._submit(_Task(source, new, unasked, ahead=True))

    def _submit(self, task: _Task) -> None:
        for what in task.waiting:
            self._on_the_way[task.source, what] = task
        asked_for = self._far if isinstance(task.source, Far) else self._wanted
        self._enqueue(self._ahead if task.ahead else asked_for, task)

    def _enqueue(self, queue: deque[_Task], task: _Task) -> None:
        queue.append(task)
        if self._idle:
            self._idle -= 1  # Here, not where it wakes up: until then, another task may come.
            self._work.notify()
        elif self._started < self._threads:
            self._started += 1
            name = f"neve-fs-{self._started}"
            threading.Thread(target=self._serve, name=name, daemon=True).start()

    # In the threads.

    def _serve(self) -> None:
        while (task := self._next()) is not None:
            ahead, far = task.ahead, isinstance(task.source, Far)
            try:
                self._run(task)
            except Exception:
                LOGGER.exception("internal error, please report it")
            finally:
                with self._lock:
                    self._running -= 1
                    self._running_ahead -= ahead
                    self._running_far -= far
                    self._done.notify_all()

    def _next(self) -> _Task | None:
        with self._lock:
            while not self._closed:
                task = self._take()
                if task is not None:
                    task.started = True
                    self._running += 1
                    self._running_ahead += task.ahead
                    self._running_far += isinstance(task.source, Far)
                    return task
                self._idle += 1
                self._work.wait()
            return None

    def _take(self) -> _Task | None:
        while self._far and self._running_far < self._max_far:
            task = self._far.popleft()
            if self._still_wanted(task):
                return task
        while self._wanted:
            task = self._wanted.popleft()
            if not task.started and self._still_wanted(task):
                return task
        while self._ahead and self._running_ahead < self._max_ahead:
            task = self._ahead.popleft()
            if not task.started and task.ahead:
                return task
        return None

    def _still_wanted(self, task: _Task) -> bool:
        """Whether anybody still waits for it; else it is dropped."""
        for waiters in task.waiting.values():
            if any(not waiter.given_up for waiter in waiters):
                return True
        for what in task.waiting:
            del self._on_the_way[task.source, what]
        return False

    def _run(self, task: _Task) -> None:
        failure: NeveError | None = None
        try:
            for what, value in task.source.fetch(list(task.waiting)):
                self._deliver(task, what, value)
        except NeveError as error:
            failure = error
        except Exception as error:
            LOGGER.exception("internal error, please report it")
            failure = Unavailable(f"internal error: {error}")
        self._fail(task, failure or Unavailable("internal error: something was not fetched"))

    def _deliver(self, task: _Task, what: What, value: Any) -> None:
        with self._lock:
            waiters = task.waiting.pop(what, None)
            if waiters is None:
                return
            self._on_the_way.pop((task.source, what), None)
            complete = _hand_over((task.source, what), value, waiters)
        _call(complete)
        if task.unasked is not None and not waiters:
            task.unasked(what, value)

    def _fail(self, task: _Task, error: NeveError) -> None:
        """What has not come is fetched one by one: its neighbours must not suffer for what is damaged."""
        with self._lock:
            alone = len(task.waiting) == 1
            left, task.waiting = task.waiting, {}
            for what, waiters in left.items():
                self._on_the_way.pop((task.source, what), None)
                if waiters and not alone and not self._closed:
                    again = _Task(task.source, [what], ahead=False)
                    again.waiting[what] = waiters
                    self._submit(again)
            complete: list[Waiter] = []
            if alone or self._closed:
                for what, waiters in left.items():
                    complete += _hand_over((task.source, what), error, waiters)
        _call(complete)

    def wait_until_idle(self, seconds: float) -> bool:
        """Waits until nothing is being fetched; False if it takes longer than that."""
        with self._lock:
            return self._done.wait_for(lambda: not self._running, seconds)

    def close(self) -> None:
        """Ends the threads that are not busy; who waits for something gets an error. What is being fetched
        is not waited for."""
        complete: list[Waiter] = []
        with self._lock:
            self._closed = True
            for (source, what), task in self._on_the_way.items():
                complete += _hand_over((source, what), _closed(), task.waiting[what])
                task.waiting[what] = []
            self._on_the_way.clear()
            self._wanted.clear()
            self._far.clear()
            self._ahead.clear()
            self._work.notify_all()
        _call(complete)


def _hand_over(key: Key, value: Any, waiters: Sequence[Waiter]) -> list[Waiter]:
    """Gives a thing to all who wait for it; those who wait for nothing more."""
    complete = []
    for waiter in waiters:
        waiter.held[key] = value
        waiter.missing -= 1
        if not waiter.missing:
            complete.append(waiter)
    return complete


def _closed() -> Closed:
    return Closed("the file system is being closed")


def _call(complete: Sequence[Waiter]) -> None:
    for waiter in complete:
        try:
            waiter.then()
        except Exception:  # Others must not suffer.
            LOGGER.exception("internal error, please report it")
