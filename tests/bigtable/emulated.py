"""The emulator of a session of tests, and tables in it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest

from neve.testing.bigtable import Emulator

FAMILY, NARS = "objects", "nars"

NewTable = Callable[[], str]
"""Makes a table, and gives its address."""


@pytest.fixture(scope="session")
def bigtable_emulator() -> Iterator[Emulator]:
    emulator = Emulator()
    yield emulator
    emulator.kill()


_numbers = itertools.count()


@pytest.fixture
def new_table(bigtable_emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> NewTable:
    monkeypatch.setenv("BIGTABLE_EMULATOR_HOST", bigtable_emulator.host)

    def make() -> str:
        return bigtable_emulator.create_table(f"table-{next(_numbers)}", FAMILY, NARS)

    return make
