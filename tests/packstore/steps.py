"""Dying, or failing, at any call of the operating system that writes."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from neve.packstore import index


class Steps:
    """Calls of the operating system that write, and what happens at each."""

    NAMES = ("pwritev", "pwrite", "fdatasync", "fsync", "unlink", "ftruncate", "posix_fadvise")

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, act: Callable[[int], None], *, index_too: bool = False
    ) -> None:
        self.count = 0
        for name in self.NAMES:
            monkeypatch.setattr(os, name, self._counted(getattr(os, name), act))
        commit = index.Index.write

        def counted(self_: index.Index) -> Any:
            self._step(act)
            return commit(self_)

        if index_too:
            monkeypatch.setattr(index.Index, "write", counted)

    def _step(self, act: Callable[[int], None]) -> None:
        self.count += 1
        act(self.count)

    def _counted(self, real: Callable[..., Any], act: Callable[[int], None]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            if real.__name__ == "pwritev":
                # Torn: what is killed or fails here leaves some of it.
                half = b"".join(arguments[1])[: sum(map(len, arguments[1])) // 2]
                os.lseek(arguments[0], arguments[2], os.SEEK_SET)
                os.write(arguments[0], half)
            self._step(act)
            return real(*arguments, **more)

        return call


def in_a_child(work: Callable[[], None]) -> int:
    """Runs ``work`` in a forked process; its exit status, or the negative signal."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die_at(step: int) -> Callable[[int], None]:
    return lambda now: os.kill(os.getpid(), 9) if now == step else None


def fail_at(step: int, number: int) -> Callable[[int], None]:
    def act(now: int) -> None:
        if now == step:
            raise OSError(number, os.strerror(number))

    return act
