"""What the program tells about itself: log lines, and the hook that progress bars hang on."""

from __future__ import annotations

import logging
from typing import Protocol

LOGGER = logging.getLogger("neve")


class Progress(Protocol):
    """Is told how far a long operation has come. Called from one thread."""

    def start(self, total: int | None) -> None:
        """The amount of work ahead, if it is known: bytes, or objects."""

    def advance(self, amount: int, current: str = "") -> None:
        """``amount`` more is done; ``current`` names what is being worked on."""


class NoProgress:
    """Tells nobody."""

    def start(self, total: int | None) -> None:
        return

    def advance(self, amount: int, current: str = "") -> None:
        return


NO_PROGRESS: Progress = NoProgress()
