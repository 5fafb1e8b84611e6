"""Log lines on stderr, as text or as JSON; a failure is the last of them.

A line of JSON is an object with ``time`` (UTC), ``level``, ``logger``, ``message`` and ``pid``; where there
is one, also ``trace_id`` and ``span_id`` of what was being done, and ``exception``, the traceback of a bug.

Whoever logs something leaves secrets out. Beyond that, what looks like one does not get through here.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
import traceback
from typing import TextIO

from neve import telemetry
from neve.registry import shown_url
from neve.telemetry import LOGGER

LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


class _Stderr(logging.StreamHandler[TextIO]):
    """Writes to what ``sys.stderr`` is at the time: a progress bar replaces it while it is shown."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr

    def emit(self, record: logging.LogRecord) -> None:
        if sys.stderr is not None:
            super().emit(record)


class _Text(logging.Formatter):
    """``neve: message``, with the level in between unless it is an error or the usual one."""

    def format(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno in (logging.INFO, logging.ERROR) else f"{record.levelname.lower()}: "
        return f"neve: {level}{one_line(without_secrets(record.getMessage()))}"


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, str | int | None] = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": without_secrets(record.getMessage()),
            "pid": record.process,
        }
        if (ids := telemetry.ids()) is not None:
            line["trace_id"], line["span_id"] = ids
        if record.exc_info:
            line["exception"] = without_secrets(self.formatException(record.exc_info))
        return json.dumps(line)


_SECRETS = (
    # The key of a signer: its name and 64 bytes; a public one has 32.
    re.compile(r"(:)[A-Za-z0-9+/]{86}=="),
    re.compile(r"(authorization\W+(?:bearer|basic)\s+)[^\s'\"]+", re.IGNORECASE),
    re.compile(r"(\bbearer\s+)[A-Za-z0-9._~+/=-]{16,}", re.IGNORECASE),
)


_MARKS = ("@", "%40", "=", "%3D", "%3d")
"""Without one of these there is nothing to hide in an address."""


def without_secrets(text: str) -> str:
    """``text`` without passwords in addresses, secret keys, and what an Authorization header holds."""
    text = shown_url(text) if any(mark in text for mark in _MARKS) else text
    for secret in _SECRETS:
        text = secret.sub(r"\1***", text)
    return text


def one_line(text: str) -> str:
    """``text`` without anything that would end the line or steer a terminal."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def configure(level: int, *, as_json: bool) -> None:
    """Sends log lines from ``level`` on to stderr. The last call counts."""
    handler = _Stderr()
    handler.setFormatter(_Json() if as_json else _Text())
    LOGGER.handlers[:] = [handler]
    LOGGER.setLevel(level)
    LOGGER.propagate = False


def failure(message: str, error: BaseException) -> None:
    """Tells why the command fails; when debugging, also where."""
    debugging = LOGGER.isEnabledFor(logging.DEBUG)
    if debugging and any(isinstance(handler.formatter, _Json) for handler in LOGGER.handlers):
        LOGGER.error("%s", message, exc_info=error)
        return
    if debugging and sys.stderr is not None:
        lines = without_secrets("".join(traceback.format_exception(error))).splitlines()
        sys.stderr.write("".join(f"{one_line(line)}\n" for line in lines))
    LOGGER.error("%s", message)
