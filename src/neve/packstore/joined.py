"""Commits that a thread has postponed, to make them as one."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

from neve.packstore.sessions import Session

T = TypeVar("T")
A = TypeVar("A")


class JoinedCommits:
    """For each thread that is within such a block: the sessions that it wants committed."""

    def __init__(self) -> None:
        self._local = threading.local()

    @contextlib.contextmanager
    def block(self) -> Iterator[set[Session]]:
        """Postpones this thread's commits; gives the sessions, which are all there at the end.

        A block within another leaves its commits to that one.
        """
        if self._sessions() is not None:
            yield set()
            return
        sessions: set[Session] = set()
        self._local.sessions = sessions
        try:
            yield sessions
        finally:
            self._local.sessions = None

    def postpone(self, session: Session) -> bool:
        """Notes a commit, if this thread is within a block; else returns False."""
        sessions = self._sessions()
        if sessions is None:
            return False
        session.postponed = True
        sessions.add(session)
        return True

    def guarded(self, function: Callable[[A], T], check: Callable[[int], None]) -> Callable[[A], T]:
        """``function``, once ``check`` has let pass the epochs of all sessions that were noted: what it does
        may refer to what has been staged since, and must not happen if that was given up."""
        epochs = {session.epoch for session in self._sessions() or ()}
        if not epochs:
            return function

        def checked(argument: A) -> T:
            for epoch in epochs:
                check(epoch)
            return function(argument)

        return checked

    def _sessions(self) -> set[Session] | None:
        found: set[Session] | None = getattr(self._local, "sessions", None)
        return found
