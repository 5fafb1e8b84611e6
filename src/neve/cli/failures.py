"""Commands that go on after a failure: what they tell in the end."""

from __future__ import annotations

from collections.abc import Sequence

from neve.errors import NeveError
from neve.telemetry import LOGGER


class SomeFailedError(NeveError):
    """Part of what a command was asked for could not be done; why has been told."""


def tell(errors: Sequence[NeveError], summary: str, consequence: str = "") -> None:
    """Raises the one error that there was, with what follows from it; of several, tells each and raises
    ``summary``, with what follows from them."""
    after = f"; {consequence}" if consequence else ""
    if len(errors) == 1:
        raise SomeFailedError(f"{errors[0]}{after}") from errors[0]
    for error in errors:
        LOGGER.error("%s", error)
    if errors:
        raise SomeFailedError(f"{summary}{after}")
