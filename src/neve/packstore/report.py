"""What verifying and rebuilding tell: problems, counts, progress."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

Progress = Callable[[int], None]
"""Called with the number of bytes that were checked since the last call."""


class Problem(NamedTuple):
    """Something found damaged: the record (``table``, ``key``), or a place (``table`` is empty)."""

    table: str
    key: bytes
    what: str


@dataclass
class Report:
    """What a verification found."""

    problems: list[Problem] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    """Damage where nothing lies that is in use: what a repair leaves behind. No reader comes there, but who
    looks after the disk had better know."""
    records: dict[str, int] = field(default_factory=dict)
    frames: int = 0
    stored_bytes: int = 0
    dead_bytes: int = 0

    def add(self, what: str) -> None:
        """Notes a problem that is about a place."""
        self.problems.append(Problem("", b"", what))


def ignore_progress(_: int) -> None:
    pass
