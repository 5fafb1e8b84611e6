"""Spans for an OpenTelemetry collector, by its SDK: what is behind the functions of ``telemetry``.

Imported only by those who send traces; the libraries are the extra ``otlp``. They read the standard
variables (OTEL_SERVICE_NAME, OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_TRACES_SAMPLER, ...) themselves.

Spans wait in a bounded queue for a thread that sends them. If that does not get rid of them, they are
dropped, a line in the log tells of it, and work goes on as if nothing had happened.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

from opentelemetry import context as contexts
from opentelemetry.context import Context
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.version import __version__ as sdk_version
from opentelemetry.trace import (
    INVALID_SPAN_CONTEXT,
    SpanKind,
    Status,
    StatusCode,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace import Span as SdkSpan
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from neve.errors import InvalidRequest
from neve.telemetry import CLIENT, LOGGER, SERVER, Attributes, Headers, Value

T = TypeVar("T")

FLUSH_SECONDS = 2.0
"""How long the end of a process may take to send the last spans, unless OTEL_BSP_EXPORT_TIMEOUT says
otherwise. A collector that is there takes milliseconds."""

_LONGEST_FLUSH_SECONDS = 3600.0

_SETTLE_SECONDS = 0.5
"""How long is waited for the spans of calls that were given up, or have just been answered: they end in a
thread of gRPC's."""

_PROTOCOLS = ("http/protobuf", "grpc")
"""The first is the default, as OpenTelemetry wants it."""

_KINDS = {SERVER: SpanKind.SERVER, CLIENT: SpanKind.CLIENT}
_PROPAGATOR = TraceContextTextMapPropagator()

_NOISY = ("opentelemetry", "urllib3")
"""Loggers of the libraries. They say everything again and again, and may repeat what is in variables."""


class OtelSpan:
    """A span of the SDK; see ``telemetry.Span``."""

    __slots__ = ("_ended", "_span", "_token")

    def __init__(self, span: SdkSpan, ended: Callable[[], None] | None = None) -> None:
        """``ended`` is called when it has."""
        self._span = span
        self._ended = ended
        self._token: Any = None

    def set(self, name: str, value: Value) -> None:
        self._span.set_attribute(name, value)

    def fail(self, kind: str, reason: str = "") -> None:
        self._span.set_attribute("error.type", kind)
        self._span.set_status(Status(StatusCode.ERROR, reason or None))

    def headers(self) -> Headers:
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier, set_span_in_context(self._span))
        return tuple(carrier.items())

    def run(self, function: Callable[..., T], *arguments: Any) -> T:
        token = contexts.attach(set_span_in_context(self._span))
        try:
            return function(*arguments)
        finally:
            contexts.detach(token)

    def end(self) -> None:
        # Ended once more it would complain.
        if self._span.is_recording():
            self._span.end()
        ended, self._ended = self._ended, None
        if ended is not None:
            ended()

    def __enter__(self) -> Self:
        self._token = contexts.attach(set_span_in_context(self._span))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        contexts.detach(self._token)
        if kind is not None and self._span.is_recording():
            # Not what it says: nobody has looked at that for secrets.
            self.fail(kind.__name__)
        self.end()


class OtelTracer:
    """Makes spans of the SDK; see ``telemetry.Tracer``."""

    def __init__(self, provider: TracerProvider, version: str) -> None:
        self._tracer = provider.get_tracer("neve", version)
        self._lock = threading.Condition()
        self._asked = 0
        """Requests to others whose spans have not ended."""

    def settle(self, seconds: float) -> None:
        """Waits until others have answered everything that they were asked."""
        with self._lock:
            self._lock.wait_for(lambda: not self._asked, seconds)

    def _change(self, amount: int) -> None:
        with self._lock:
            self._asked += amount
            self._lock.notify_all()

    def span(self, name: str, attributes: Attributes | None, kind: str, parent: Context | None) -> OtelSpan:
        kinds = _KINDS.get(kind, SpanKind.INTERNAL)
        started = self._tracer.start_span(name, context=parent, kind=kinds, attributes=attributes)
        if kind != CLIENT:
            return OtelSpan(started)
        self._change(1)
        return OtelSpan(started, partial(self._change, -1))

    def received(self, headers: Mapping[str, str]) -> Context | None:
        return _PROPAGATOR.extract(headers)

    def ids(self) -> tuple[str, str] | None:
        found = get_current_span().get_span_context()
        if found == INVALID_SPAN_CONTEXT:
            return None
        return f"{found.trace_id:032x}", f"{found.span_id:016x}"


class Sending:
    """Spans on their way to a collector."""

    def __init__(self, version: str) -> None:
        """Raises ``InvalidRequest`` if the variables make no sense."""
        self._trouble = _Trouble()
        for name in _NOISY:
            logger = logging.getLogger(name)
            logger.propagate = False
            logger.handlers[:] = [self._trouble]
        self._exporter = _Quiet(_exporter())
        self._provider = _provider(self._exporter, version)
        self.tracer = OtelTracer(self._provider, version)

    def stop(self, seconds: float | None = None) -> None:
        """Sends what waits, for so many seconds at most."""
        if seconds is None:
            seconds = _flush_seconds()
        over = self._trouble.over = threading.Event()
        done = threading.Event()

        def end() -> None:
            try:
                self.tracer.settle(min(seconds / 2, _SETTLE_SECONDS))
                self._provider.shutdown()
                done.set()
            except Exception as error:
                LOGGER.debug("the last spans cannot be sent: %s", type(error).__name__)
            over.set()

        # It would wait for as long as a collector takes that takes nothing, and repeat what failed.
        threading.Thread(target=end, name="neve-otlp-end", daemon=True).start()
        over.wait(seconds)
        if not done.is_set():
            self._exporter.tell()


class _Trouble(logging.Handler):
    """What the libraries complain of: nobody is to read that, but it is no use to wait for them then."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.over = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.startswith("opentelemetry.exporter"):
            self.over.set()


class _Quiet(SpanExporter):
    """Tells of failures once, until it works again."""

    def __init__(self, inner: SpanExporter) -> None:
        self._inner = inner
        self._told = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        try:
            result = self._inner.export(spans)
        except Exception as error:
            # Not what it says: that may repeat a header, which may be a token.
            LOGGER.debug("spans cannot be sent: %s", type(error).__name__)
            result = SpanExportResult.FAILURE
        if result is SpanExportResult.SUCCESS:
            self._told = False
        else:
            self.tell()
        return result

    def tell(self) -> None:
        if not self._told:
            self._told = True
            LOGGER.warning("traces do not get through to the collector, and are dropped")

    def shutdown(self) -> None:
        self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return self._inner.force_flush(timeout_millis)


def _exporter() -> SpanExporter:
    protocol = (
        os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
        or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
        or _PROTOCOLS[0]
    )
    if protocol not in _PROTOCOLS:
        known = ", ".join(_PROTOCOLS)
        raise InvalidRequest(f"OTEL_EXPORTER_OTLP_PROTOCOL is {protocol!r}, must be one of: {known}")
    try:
        if protocol == "grpc":
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as OverGrpc

            return OverGrpc()
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as OverHttp

        return OverHttp()
    except ImportError:
        raise
    except Exception as error:
        # Not what it says, nor chained: a variable may hold a token.
        kind = type(error).__name__
        raise InvalidRequest(f"the variables OTEL_EXPORTER_OTLP_* cannot be used ({kind})") from None


def _provider(exporter: SpanExporter, version: str) -> TracerProvider:
    ours: dict[str, str | int] = {
        "service.name": "neve",
        "service.version": version,
        "process.pid": os.getpid(),
        "telemetry.sdk.language": "python",
        "telemetry.sdk.name": "opentelemetry",
        "telemetry.sdk.version": sdk_version,
    }
    try:
        resource = Resource({**ours}).merge(OTELResourceDetector().detect())
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(exporter))
    except ValueError as error:
        raise InvalidRequest(f"the variables OTEL_* cannot be used: {error}") from error
    except Exception as error:
        # A number beyond all bounds, or a sampler of somebody's.
        kind = type(error).__name__
        raise InvalidRequest(f"the variables OTEL_* cannot be used ({kind})") from None
    return provider


def _flush_seconds() -> float:
    try:
        return min(max(0.0, int(os.environ["OTEL_BSP_EXPORT_TIMEOUT"]) / 1000), _LONGEST_FLUSH_SECONDS)
    except (KeyError, ValueError, OverflowError):
        return FLUSH_SECONDS
