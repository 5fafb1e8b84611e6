"""What the program tells about itself: log lines, the hook that progress bars hang on, spans, figures.

Spans and figures are told nobody unless somebody has asked for them (``trace_with``, ``count_with``):
until then each of these functions does nothing, in a tenth of a microsecond, and no library is loaded for it.

A span that is entered (``with span(...)``) is the current one in its block: spans that begin there are its
children. That holds for a thread or task. What goes to another thread goes ``carried``; what goes to
another process goes with the ``headers`` of a span and is ``received`` there. A generator must not yield
in such a block, which its caller would find himself in; it holds a span that it does not enter.
"""

from __future__ import annotations

import contextvars
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

LOGGER = logging.getLogger("neve")

T = TypeVar("T")

# Progress.


class Progress(Protocol):
    """Is told how far a long operation has come. Called from one thread."""

    def start(self, total: int | None) -> None:
        """The amount of work ahead, if it is known: bytes, or objects."""

    def advance(self, amount: int, current: str = "") -> None:
        """``amount`` more is done; ``current`` names what is being worked on."""


class NoProgress:
    """Tells nobody."""

    def start(self, total: int | None) -> None:
        return

    def advance(self, amount: int, current: str = "") -> None:
        return


NO_PROGRESS: Progress = NoProgress()

# Spans.

Value = str | bool | int | float
Attributes = Mapping[str, Value]
Headers = tuple[tuple[str, str], ...]
Parent = Any
"""Where a span belongs that was begun elsewhere: as the tracer knows it."""

INTERNAL, SERVER, CLIENT = "internal", "server", "client"
"""What kind of work a span is, beside what it asks others for and what others ask it for."""


class Timed(Protocol):
    """Something that takes time, in one ``with`` block or, a ``Stage``, in many."""

    def set(self, name: str, value: Value) -> None:
        """Tells something about it."""

    def end(self) -> None:
        """More often does not hurt."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


class Span(Timed, Protocol):
    """To be ended, or used as a context manager, which ends it; an exception makes it fail."""

    def fail(self, kind: str, reason: str = "") -> None:
        """It did not come to a good end: ``kind`` is a class of errors, or a status."""

    def headers(self) -> Headers:
        """What to send along with a request, for who answers it to know where it came from."""

    def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """``function`` with this as the current span, which it does not end."""


class Tracer(Protocol):
    """Makes spans, and brings them to somebody. Thread-safe."""

    def span(self, name: str, attributes: Attributes | None, kind: str, parent: Parent | None) -> Span: ...

    def received(self, headers: Mapping[str, str]) -> Parent | None:
        """What ``parent`` is to be for spans of a request that came with these."""

    def ids(self) -> tuple[str, str] | None:
        """The trace and the span that are current, in hexadecimal."""


class _NoSpan:
    def set(self, name: str, value: Value) -> None:
        return

    def fail(self, kind: str, reason: str = "") -> None:
        return

    def headers(self) -> Headers:
        return ()

    def run(self, function: Callable[..., T], *arguments: Any) -> T:
        return function(*arguments)

    def end(self) -> None:
        return

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return


NO_SPAN: Span = _NoSpan()

_CARRIED = ("traceparent", "tracestate")
"""The headers of https://www.w3.org/TR/trace-context/."""

_tracer: Tracer | None = None


def trace_with(tracer: Tracer | None) -> None:
    """From now on ``tracer`` is told, or nobody."""
    global _tracer
    _tracer = tracer


def is_tracing() -> bool:
    """Whether anybody is told of spans: for who would have to prepare something."""
    return _tracer is not None


def span(
    name: str, attributes: Attributes | None = None, kind: str = INTERNAL, parent: Parent | None = None
) -> Span:
    """A span that begins now, below ``parent`` or the current one. Names are few: what differs from one
    to the next belongs to the attributes, and nothing secret to either."""
    tracer = _tracer  # Which may be gone at any time, at the end.
    return NO_SPAN if tracer is None else tracer.span(name, attributes, kind, parent)


def received(headers: Iterable[tuple[str | bytes, str | bytes]]) -> Parent | None:
    """Where the request with these headers (or metadata) came from, if that was sent along."""
    if (tracer := _tracer) is None:
        return None
    found = {_text(name).lower(): value for name, value in headers}
    wanted = {name: _text(found[name]) for name in _CARRIED if name in found}
    return tracer.received(wanted) if wanted else None


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("latin-1")


def carried(function: Callable[..., T]) -> Callable[..., T]:
    """``function``, for another thread: there the current span will be what it is here."""
    return function if _tracer is None else partial(contextvars.copy_context().run, function)


def ids() -> tuple[str, str] | None:
    """The trace and the span that are current, in hexadecimal, if there is one."""
    tracer = _tracer
    return None if tracer is None else tracer.ids()


class Stage:
    """A span for work that is done in many short pieces, by any threads: they are added up, for to tell each
    of them would cost as much as some of them do. Each piece is a ``with`` block."""

    def __init__(self, name: str, attributes: Attributes | None) -> None:
        self._span = span(name, attributes)
        self._lock = threading.Lock()
        self._begun: dict[int, list[float]] = {}
        self._pieces = 0
        self._busy = 0.0
        self._ended = False

    def __enter__(self) -> Self:
        self._begun.setdefault(threading.get_ident(), []).append(time.perf_counter())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        begun = self._begun[threading.get_ident()]
        seconds = time.perf_counter() - begun.pop()
        if begun:
            return  # A piece of a piece.
        with self._lock:
            self._pieces += 1
            self._busy += seconds

    def set(self, name: str, value: Value) -> None:
        """Tells something about it."""
        self._span.set(name, value)

    def end(self) -> None:
        """Of the whole. More often does not hurt."""
        if self._ended:
            return
        self._ended = True
        self._span.set("neve.pieces", self._pieces)
        self._span.set("neve.busy_seconds", self._busy)
        self._span.end()


def stage(name: str, attributes: Attributes | None = None) -> Timed:
    """A stage that begins now, below the current span."""
    return NO_SPAN if _tracer is None else Stage(name, attributes)


# Figures.

FIGURES = (
    *("blobs_new", "blobs_known", "blob_bytes_new", "blob_bytes_known"),
    *("blobs_hit", "blobs_missed"),
    *("directories_hit", "directories_missed"),
    *("path_infos_hit", "path_infos_missed"),
    *("narinfos_hit", "narinfos_missed"),
)
"""What is counted wherever it happens: blobs that were put, whether they were stored already and so take no
room; and for each kind of object whether it was found near, or had to be made, or asked for far away."""

_counter: Callable[[str, float], None] | None = None


def count_with(counter: Callable[[str, float], None] | None) -> None:
    """From now on ``counter`` is told of each of ``FIGURES`` that grows, and by how much, by any thread."""
    global _counter
    _counter = counter


def is_counting() -> bool:
    """Whether anybody is told of figures: for who would have to find them out."""
    return _counter is not None


def count(figure: str, amount: float = 1) -> None:
    """One of ``FIGURES`` has grown."""
    counter = _counter
    if counter is not None:
        counter(figure, amount)


def count_found(what: str, hit: int, missed: int) -> None:
    """So many of ``what`` (``blobs``, ``directories``, ``path_infos``) were near, and so many were not."""
    counter = _counter
    if counter is not None:
        counter(f"{what}_hit", hit)
        counter(f"{what}_missed", missed)
