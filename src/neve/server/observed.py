"""What is told of calls: a span and some figures for each."""

from __future__ import annotations

import asyncio
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import grpc

from neve import telemetry
from neve.rpc.methods import Deserializer, Method, Serializer
from neve.rpc.tracing import STATUS_ATTRIBUTE
from neve.server.figures import Figures
from neve.serving.metrics import BUG
from neve.telemetry import NO_SPAN, SERVER

if TYPE_CHECKING:
    from neve.server.calls import Context

_OUR_FAULT = (
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.DATA_LOSS,
)
"""Answers that OpenTelemetry wants to be failures of the server; others are the client's business."""


class Observed:
    """A call while it is open."""

    def __init__(self, method: Method | None, figures: Figures, context: Context) -> None:
        """``method`` is None for calls of which nothing is told."""
        self._method = method
        self._figures = figures
        self._context = context
        self._span = NO_SPAN
        self._began = 0.0
        self._code = grpc.StatusCode.OK

    def failed(self, code: grpc.StatusCode, kind: str) -> None:
        """Is answered with ``code``, because of an error of the class ``kind``."""
        if self._method is None:
            return
        self._code = code
        self._figures.failed(kind or BUG)
        if code in _OUR_FAULT:
            self._span.fail(kind or code.name)

    def __enter__(self) -> Self:
        if self._method is None:
            return self
        if self._figures.are_kept:
            self._began = time.perf_counter()
            self._figures.began()
        if telemetry.is_tracing():
            parent = telemetry.received(self._context.invocation_metadata() or ())
            self._span = telemetry.span(self._method.path[1:], self._method.attributes, SERVER, parent)
            self._span.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._method is None:
            return
        if kind is not None and issubclass(kind, asyncio.CancelledError):
            self._code = grpc.StatusCode.CANCELLED
        if self._figures.are_kept:
            self._figures.ended(self._method, self._code, time.perf_counter() - self._began)
        self._span.set(STATUS_ATTRIBUTE, self._code.value[0])
        # What is raised is the library's business: a status has been told.
        self._span.__exit__(None, None, None)


def counted_in(read: Deserializer | None, figures: Figures) -> Deserializer | None:
    """``read``, or the bytes as they are, counted."""
    if not figures.are_kept:
        return read

    def counted(data: bytes) -> Any:
        figures.received(len(data))
        return data if read is None else read(data)

    return counted


def counted_out(write: Serializer | None, figures: Figures) -> Serializer | None:
    """The same for what is sent."""
    if not figures.are_kept:
        return write

    def counted(message: Any) -> bytes:
        data: bytes = message if write is None else write(message)
        figures.sent(len(data))
        return data

    return counted
