"""Log lines on stderr, as text or as JSON; a failure is the last of them."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from typing import TextIO

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
        return f"neve: {level}{one_line(record.getMessage())}"


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": f"{self.formatTime(record, '%Y-%m-%dT%H:%M:%S')}.{int(record.msecs):03d}",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        return json.dumps(line)


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
    if LOGGER.isEnabledFor(logging.DEBUG):
        traceback.print_exception(error)
    LOGGER.error("%s", message)
