"""Where a trace comes from, and what gets into the log."""

from __future__ import annotations

import functools
import json
import logging

from opentelemetry.sdk.trace import TracerProvider

from neve import telemetry
from neve.cli.logs import _Json, _Text, one_line, without_secrets
from neve.telemetry import CLIENT
from neve.telemetry.otlp import OtelTracer
from tests.fuzz.closing import opened
from tests.fuzz.target import Bound, Target
from tests.fuzz.targets.nix import text_of


@functools.cache
def _tracer() -> OtelTracer:
    # It complains of strangers, at length.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    provider = TracerProvider(shutdown_on_exit=False)
    opened.callback(provider.shutdown)
    return OtelTracer(provider, "1")


def _trace(data: bytes) -> None:
    """A header in each line. What is sent on can be a header again."""
    lines = [line.partition(b":")[::2] for line in data.split(b"\n")]
    telemetry.trace_with(_tracer())
    try:
        with telemetry.span("name", None, CLIENT, telemetry.received(lines)) as span:
            for name, value in span.headers():
                assert name in ("traceparent", "tracestate")
                assert value.isascii()
                assert value.isprintable()
                assert len(value) < 10_000
    finally:
        telemetry.trace_with(None)


def _line(data: bytes) -> None:
    """A line in the log stays one, and steers no terminal."""
    text = text_of(data)
    record = logging.LogRecord("neve", logging.WARNING, "", 0, "%s", (text,), None)
    written = _Text().format(record)
    assert written.isprintable()
    assert json.loads(_Json().format(record))["message"] == without_secrets(text)
    assert one_line(text).isprintable()


def _secret(data: bytes) -> None:
    """Whatever stands around an address, its password is not shown."""
    before, _, after = text_of(data).partition("\n")
    shown = without_secrets(f"{before} http://user:s3cret@host {after}")
    assert "s3cret" not in shown


_PARENT = b"traceparent:00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

TARGETS = (
    Target(
        "trace",
        _trace,
        (),
        memory=Bound(256 * 1024, 200),
        steps=Bound(2000, 100),
        words=(_PARENT, b"\ntracestate:", b"a=1", b",", b"-00", b"ff-"),
    ),
    Target(
        "log-line", _line, (), words=(b"\x1b[2J", b"http://a:b@", b"%40", b"authorization: bearer ", b":")
    ),
    Target("secret", _secret, (), words=(b"@", b"%40", b"://", b"user:", b"%2540", b"/", b"?", b"#", b"\n")),
)
