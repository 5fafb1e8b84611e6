"""Near and far: what a service that keeps near what comes from far does when near does not do its part.

Near only saves ways. Whatever fails there is logged and done without, be it reading or keeping.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from neve.errors import Corrupt, NeveError, NotFound, PermissionDenied, Unavailable
from neve.telemetry import LOGGER

T = TypeVar("T")
R = TypeVar("R")

NEAR_FAILURES = (Corrupt, NotFound, PermissionDenied, Unavailable)
"""Reading near may raise these, and far is asked instead. Others are about what was asked for."""


def from_near(ask: Callable[[], T], otherwise: T) -> T:
    """What near answers, or ``otherwise``."""
    try:
        return ask()
    except NEAR_FAILURES as error:
        LOGGER.warning("asking far, because near does not answer: %s", error)
        return otherwise


def keep_near(keep: Callable[[], object]) -> None:
    """Keeps something near, if that can be."""
    try:
        keep()
    except NeveError as error:
        LOGGER.warning("not kept near: %s", error)


class NearCopy(Generic[T]):
    """A writer (or batch, or putter) near, beside the one far that counts: it is given up when it fails."""

    def __init__(self, make: Callable[[], T | None], give_up: Callable[[T], object]) -> None:
        self._give_up = give_up
        self._copy: T | None = None
        try:
            self._copy = make()
        except NeveError as error:
            LOGGER.warning("not kept near: %s", error)

    def do(self, step: Callable[[T], object]) -> None:
        """Takes the next step, unless an earlier one failed."""
        copy = self._copy
        if copy is not None:
            try:
                step(copy)
            except NeveError as error:
                LOGGER.warning("not kept near: %s", error)
                self.end()

    def part(self, make: Callable[[T], R], give_up: Callable[[R], object]) -> NearCopy[R]:
        """Something that is made with it, and fails for itself."""
        copy = self._copy
        return NearCopy(lambda: None if copy is None else make(copy), give_up)

    def end(self) -> None:
        """Gives it up; after its last step that does nothing. Can be called again."""
        copy, self._copy = self._copy, None
        if copy is not None:
            keep_near(lambda: self._give_up(copy))
