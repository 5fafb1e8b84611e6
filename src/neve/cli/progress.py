"""Progress bars on a terminal: nothing is imported, drawn or measured for anyone else."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from neve.cli import output
from neve.telemetry import NO_PROGRESS, Progress

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Display
    from rich.progress import ProgressColumn, TaskID

_DELAY_SECONDS = 0.4
"""What is over sooner shows no bar."""

_INTERVAL_SECONDS = 0.1

_TEXT_WIDTH = 40
_MARGIN = 4


def is_shown() -> bool:
    """Whether anyone looks: stderr is a terminal that can move its cursor."""
    return sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


@contextlib.contextmanager
def progress_bar(what: str) -> Iterator[Progress]:
    """A bar for what happens in the block, gone after it."""
    if not is_shown():
        yield NO_PROGRESS
        return
    bar = _Bar(what)
    try:
        yield bar
    finally:
        bar.close()


@contextlib.contextmanager
def result_lines() -> Iterator[Callable[[str], None]]:
    """A function that writes a line of results while a bar is shown, for whoever reads it to use at once.

    To be entered before the bar: where both are on one terminal, the lines wait until the bar is gone,
    because they would tear it apart.
    """
    if not (is_shown() and output.to_terminal()):
        yield _write_now
        return
    waiting: list[str] = []
    try:
        yield waiting.append
    finally:
        for text in waiting:
            output.line(text)


def _write_now(text: str) -> None:
    output.line(text)
    output.flush()


class _Bar:
    """Counts, and from time to time shows. ``start`` may be called again for the next stage."""

    def __init__(self, what: str) -> None:
        self._what = what if len(what) <= _TEXT_WIDTH else what[: _TEXT_WIDTH - 1] + "…"
        self._total: int | None = None
        self._done = 0
        self._current = ""
        self._display: Display | None = None
        self._task: TaskID | None = None
        self._due = time.monotonic() + _DELAY_SECONDS

    def start(self, total: int | None) -> None:
        self.close()
        self._total, self._done = total, 0

    def advance(self, amount: int, current: str = "") -> None:
        self._done += amount
        if current:
            self._current = current
        now = time.monotonic()
        if now >= self._due:
            self._due = now + _INTERVAL_SECONDS
            self._show()

    def _show(self) -> None:
        if self._display is None or self._task is None:
            self._display = _display(known=self._total is not None)
            self._task = self._display.add_task(self._what, total=self._total, current="")
            self._display.start()
        self._display.update(self._task, completed=self._done, current=_shortened(self._current))

    def close(self) -> None:
        if self._display is not None:
            self._display.stop()
            self._display = self._task = None


def _shortened(text: str) -> str:
    """The end of ``text``, where paths differ."""
    return text if len(text) <= _TEXT_WIDTH else "…" + text[1 - _TEXT_WIDTH :]


def _display(*, known: bool) -> Display:
    from rich.progress import Progress as Display

    return Display(
        *_columns(known=known),
        console=_console(),
        # Log lines go above the bar; results are none of its business.
        redirect_stdout=False,
        redirect_stderr=True,
        transient=True,
        expand=True,
    )


def _console() -> Console:
    from rich.console import Console, ConsoleDimensions

    class Narrower(Console):
        """Leaves room at the right, where the terminal echoes ``^C``; in the last column it would
        begin a new line, and the bar would stay behind."""

        @property  # type: ignore[misc]
        def size(self) -> ConsoleDimensions:
            width, height = super().size
            return ConsoleDimensions(max(1, width - _MARGIN), height)

    return Narrower(stderr=True)


def _columns(*, known: bool) -> list[ProgressColumn]:
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        FileSizeColumn,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.table import Column

    def cell(ratio: int | None = None) -> Column:
        return Column(ratio=ratio, no_wrap=True, overflow="ellipsis")

    return [
        TextColumn("{task.description}", markup=False, table_column=cell()),
        BarColumn(24, table_column=cell()) if known else SpinnerColumn(table_column=cell()),
        DownloadColumn(table_column=cell()) if known else FileSizeColumn(table_column=cell()),
        TransferSpeedColumn(table_column=cell()),
        TimeRemainingColumn(table_column=cell()) if known else TimeElapsedColumn(table_column=cell()),
        TextColumn("{task.fields[current]}", markup=False, table_column=cell(1)),
    ]
