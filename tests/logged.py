"""The log lines of neve, also when the command line has set the logger up before."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from neve.telemetry import LOGGER


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@contextlib.contextmanager
def logged(level: int = logging.INFO) -> Iterator[list[str]]:
    """The messages that are logged in the block; the list grows."""
    collector = _Collector()
    before = LOGGER.level
    LOGGER.addHandler(collector)
    LOGGER.setLevel(level)
    try:
        yield collector.messages
    finally:
        LOGGER.setLevel(before)
        LOGGER.removeHandler(collector)
