"""Traces of a command: whether somebody is told, and the span of the command itself."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import click

from neve import __version__, telemetry
from neve.errors import NeveError, Unsupported
from neve.telemetry import LOGGER

if TYPE_CHECKING:
    from neve.telemetry.otlp import Sending

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")

_WITHOUT_SPAN = ("daemon", "daemon-worker", "mount", "serve", "serve-worker", "virtiofs")
"""Commands that have no end: what they do for others has spans, they have none."""

BY_THEMSELVES = ("mount",)
"""Commands that call ``traced`` themselves: after they have forked, which no thread survives."""

_INTERRUPTED_SECONDS = 0.5
"""For the last spans of a command that was told to end."""


def is_wanted(environment: Mapping[str, str]) -> bool:
    """Whether the environment names a collector, and does not forbid to use it."""
    return (
        any(environment.get(name) for name in _ENDPOINTS)
        and environment.get("OTEL_SDK_DISABLED", "").lower() != "true"
        and "otlp" in environment.get("OTEL_TRACES_EXPORTER", "otlp").split(",")
    )


def _sending() -> Sending:
    try:
        from neve.telemetry.otlp import Sending
    except ImportError as error:
        raise Unsupported(f"--otlp needs {error.name}, not installed here: install neve[otlp]") from error
    return Sending(__version__)


def options_for_worker(chosen: bool | None) -> list[str]:
    """How to start a worker that does as this process does, where that was ``chosen``; it need not find out
    again, nor tell again, that it cannot be done."""
    if telemetry.is_tracing():
        return ["--otlp"]
    return ["--no-otlp"] if chosen is False or is_wanted(os.environ) else []


@contextlib.contextmanager
def traced(chosen: bool | None, command: str) -> Iterator[None]:
    """Traces what is done in the block, if that is ``chosen``, or (None) the environment names a collector.

    If it cannot be done, only those who chose it are stopped by that: ``Unsupported``, ``InvalidRequest``.
    """
    if not (is_wanted(os.environ) if chosen is None else chosen):
        yield
        return
    try:
        sending = _sending()
    except NeveError as error:
        if chosen:
            raise
        LOGGER.warning("%s; going on without traces", error)
        yield
        return
    telemetry.trace_with(sending.tracer)
    seconds = None
    try:
        if command in _WITHOUT_SPAN:
            yield
            return
        with _span(command):
            yield
    except KeyboardInterrupt:
        seconds = _INTERRUPTED_SECONDS
        raise
    finally:
        sending.stop(seconds)
        telemetry.trace_with(None)


@contextlib.contextmanager
def _span(command: str) -> Iterator[None]:
    """The span of a command, below the one that whoever started it has told us of."""
    told = [(name, os.environ[name]) for name in ("TRACEPARENT", "TRACESTATE") if name in os.environ]
    with telemetry.span(f"neve {command}", parent=telemetry.received(told)) as span:
        try:
            yield
        except click.exceptions.Exit as request:
            # No failure that somebody would look for.
            span.set("process.exit.code", request.exit_code)
            span.end()
            raise
