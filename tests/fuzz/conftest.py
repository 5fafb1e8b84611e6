from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fuzz.closing import opened


@pytest.fixture(scope="session", autouse=True)
def closed() -> Iterator[None]:
    """Closes what targets have opened."""
    yield
    opened.close()
