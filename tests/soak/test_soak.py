"""A short one; ``make soak`` takes longer."""

from __future__ import annotations

from pathlib import Path

import pytest

from .run import Soak


@pytest.mark.slow
def test_nothing_is_lost_and_nothing_is_wrong(tmp_path: Path) -> None:
    soak = Soak(tmp_path, seed=1)
    soak.work(25)
    assert soak.processes.kills, "nobody was killed"
    assert sum(soak.counts.values()) > 5, soak.counts
