"""Commands that go on after a failure: what they tell in the end."""

from __future__ import annotations

from collections.abc import Sequence

from neve.errors import NeveError
from neve.telemetry import LOGGER


class SomeFailedError(NeveError):
    """Part of what a command was asked for could not be done; why has been told."""


def tell(errors: Sequence[NeveError], summary: str) -> None:
    """Raises the one error that there was; if there are more, tells each and raises ``summary``."""
    if len(errors) == 1:
        raise errors[0]
    for error in errors:
        LOGGER.error("%s", error)
    if errors:
        raise SomeFailedError(summary)
