"""A collector of traces, as far as a test needs one: takes what exporters send, over HTTP or gRPC."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span

SECONDS = 90
"""More than anything takes on the slowest machine."""

_EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"


@dataclass
class Seen:
    """A span, and the process that sent it."""

    span: Span
    resource: dict[str, str]

    @property
    def name(self) -> str:
        return self.span.name

    @property
    def trace(self) -> str:
        return self.span.trace_id.hex()

    @property
    def id(self) -> str:
        return self.span.span_id.hex()

    @property
    def parent(self) -> str:
        return self.span.parent_span_id.hex()

    @property
    def attributes(self) -> dict[str, Any]:
        return {each.key: _value(each.value) for each in self.span.attributes}

    @property
    def has_failed(self) -> bool:
        return self.span.status.code == self.span.status.STATUS_CODE_ERROR


def _value(value: Any) -> Any:
    return getattr(value, value.WhichOneof("value"))


@dataclass
class Collector:
    """What has come."""

    endpoint: str
    protocol: str = "http/protobuf"
    headers: list[dict[str, str]] = field(default_factory=list)
    _seen: list[Seen] = field(default_factory=list)

    def take(self, data: bytes) -> None:
        request = ExportTraceServiceRequest.FromString(data)
        for group in request.resource_spans:
            resource = {each.key: str(_value(each.value)) for each in group.resource.attributes}
            for scope in group.scope_spans:
                self._seen += [Seen(span, resource) for span in scope.spans]

    def spans(self, name: str = "") -> list[Seen]:
        """Those that have come by this name."""
        return [seen for seen in list(self._seen) if not name or seen.name == name]

    def wait(self, there: Callable[[list[Seen]], object]) -> list[Seen]:
        """All spans, when ``there`` is satisfied with them."""
        deadline = time.monotonic() + SECONDS
        while not there(self.spans()):
            assert time.monotonic() < deadline, sorted({seen.name for seen in self.spans()})
            time.sleep(0.02)
        return self.spans()

    def environment(self) -> dict[str, str]:
        """For a process that is to send its spans here, all of them, however busy the machine is."""
        return {
            **without_telemetry(),
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.endpoint,
            "OTEL_EXPORTER_OTLP_PROTOCOL": self.protocol,
            "OTEL_BSP_EXPORT_TIMEOUT": "60000",
            "OTEL_BSP_SCHEDULE_DELAY": "100",
        }


def without_telemetry() -> dict[str, str]:
    """The environment, without what others want to know of us."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("OTEL_", "TRACE")) and name not in ("HTTP_PROXY", "http_proxy")
    }


def ancestors(seen: Seen, spans: list[Seen]) -> list[str]:
    """The names of the spans around one, from the inside to the outside."""
    by_id = {each.id: each for each in spans}
    names = []
    while seen.parent in by_id:
        seen = by_id[seen.parent]
        names.append(seen.name)
    return names


@contextlib.contextmanager
def http_collector() -> Iterator[Collector]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            collector.headers.append({name.lower(): value for name, value in self.headers.items()})
            collector.take(self.rfile.read(int(self.headers["content-length"])))
            body = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    collector = Collector(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def grpc_collector() -> Iterator[Collector]:
    def export(request: bytes, context: grpc.ServicerContext) -> bytes:
        collector.headers.append(
            {key: str(value) for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        )
        collector.take(request)
        return ExportTraceServiceResponse().SerializeToString()

    service, _, method = _EXPORT[1:].partition("/")
    handler: Any = grpc.unary_unary_rpc_method_handler(export)
    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    collector = Collector(f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}", "grpc")
    server.start()
    try:
        yield collector
    finally:
        server.stop(0).wait()


@contextlib.contextmanager
def silent_collector() -> Iterator[str]:
    """The address of one that accepts connections, and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def nobody() -> str:
    """An address where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"
