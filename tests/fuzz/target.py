"""What a target is, and how what it does with an input is judged."""

from __future__ import annotations

import contextlib
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from neve.errors import NeveError

CORPUS = Path(__file__).parent / "corpus"


class Bound(NamedTuple):
    """Most of something that an input may cost: so much, and so much more for each byte of it."""

    once: int
    each: int

    def of(self, size: int) -> int:
        return self.once + self.each * size


_MEMORY, _STEPS = Bound(64 * 1024, 64), Bound(500, 40)
"""Enough for most: messages, and a few objects for each part of an input."""


class Cost(NamedTuple):
    memory: int
    """Bytes that Python has allocated at most, beyond what was there before."""
    steps: int
    """Calls, of Python and of C: a measure of time that every machine agrees on."""


@dataclass(frozen=True)
class Target:
    """A parser, and what holds for it whatever it is fed with."""

    name: str
    """That of its folder of the corpus, too."""
    run: Callable[[bytes], object]
    """Gives it an input, and asserts what holds for what it makes of that."""
    refusals: tuple[type[NeveError], ...]
    """All that it may raise."""
    memory: Bound = _MEMORY
    steps: Bound = _STEPS
    longest: int = 4096
    """Bytes of an input that is made up: longer ones would find nothing new, but take longer."""
    rounds: int = 150
    """Variations in each run of the tests."""
    words: tuple[bytes, ...] = field(default=(), repr=False)
    """What its inputs are made of: variations consist of that, too."""

    def feed(self, data: bytes) -> bool:
        """Whether it has taken ``data``. Whatever it raises but one of its refusals comes out here."""
        try:
            self.run(data)
        except self.refusals:
            return False
        return True

    def corpus(self) -> dict[str, bytes]:
        """Inputs that are kept, by the names of their files."""
        files = sorted((CORPUS / self.name).iterdir())
        return {file.name: file.read_bytes() for file in files}

    def measured(self, data: bytes) -> Cost:
        """What ``data`` costs, when what is loaded once it is needed is there."""
        self.feed(data)
        with _counted_steps() as steps, _counted_memory() as memory:
            self.feed(data)
        return Cost(memory[0], steps[0])

    def check_cost(self, data: bytes) -> None:
        """Asserts that ``data`` costs no more than it may."""
        cost = self.measured(data)
        assert cost.memory <= self.memory.of(len(data)), (cost, len(data))
        assert cost.steps <= self.steps.of(len(data)), (cost, len(data))


@contextlib.contextmanager
def _counted_steps() -> Iterator[list[int]]:
    counted = [0]

    def count(frame: FrameType, event: str, argument: Any) -> None:
        if event in ("call", "c_call"):
            counted[0] += 1

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        yield counted
    finally:
        sys.setprofile(before)


@contextlib.contextmanager
def _counted_memory() -> Iterator[list[int]]:
    counted = [0]
    tracemalloc.start()
    try:
        yield counted
        counted[0] = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
