"""Commits that a thread has postponed, to make them as one."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")
A = TypeVar("A")


class JoinedCommits:
    """For each thread that is within such a block: the epochs in which it began what it wants committed."""

    def __init__(self) -> None:
        self._local = threading.local()

    @contextlib.contextmanager
    def block(self) -> Iterator[set[int]]:
        """Postpones this thread's commits; gives their epochs, which are all there at the end.

        A block within another leaves its commits to that one.
        """
        if self._epochs() is not None:
            yield set()
            return
        epochs: set[int] = set()
        self._local.epochs = epochs
        try:
            yield epochs
        finally:
            self._local.epochs = None

    def postpone(self, epoch: int) -> bool:
        """Notes a commit, if this thread is within a block; else returns False."""
        epochs = self._epochs()
        if epochs is not None:
            epochs.add(epoch)
        return epochs is not None

    def guarded(self, function: Callable[[A], T], check: Callable[[int], None]) -> Callable[[A], T]:
        """``function``, once ``check`` has let pass all epochs that were noted: what it does may refer to
        what has been staged since, and must not happen if that was given up."""
        epochs = tuple(self._epochs() or ())
        if not epochs:
            return function

        def checked(argument: A) -> T:
            for epoch in epochs:
                check(epoch)
            return function(argument)

        return checked

    def _epochs(self) -> set[int] | None:
        found: set[int] | None = getattr(self._local, "epochs", None)
        return found
