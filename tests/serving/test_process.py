"""A process of a server."""

from __future__ import annotations

import sys

import pytest

from neve.serving.process import loop_factory


def test_event_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    faster = loop_factory()
    assert faster is not None
    assert faster.__module__.startswith("uvloop")
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert loop_factory() is None
