"""The corpus, and variations on it: as many in each run, and the same ones."""

from __future__ import annotations

import pytest

from neve.errors import NeveError
from tests.fuzz.target import CORPUS, Target
from tests.fuzz.targets import TARGETS
from tests.fuzz.variations import variations

MAX_CORPUS_BYTES = 300_000
"""Of all files that are kept: a file for each thing that was wrong once, and as short as it can be."""

GROWN_BYTES = 16 * 1024

MEASURED = 20
"""One in so many variations is measured, which takes three times as long."""

targets = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)


def test_the_table_and_the_corpus_fit_together() -> None:
    """There is a folder for each target, and nothing in it is of no use."""
    assert sorted(TARGETS) == sorted(folder.name for folder in CORPUS.iterdir())
    for target in TARGETS.values():
        corpus = target.corpus()
        assert any(name.startswith("valid-") for name in corpus), target.name
        assert len(set(corpus.values())) == len(corpus), target.name
        assert all(issubclass(refusal, NeveError) for refusal in target.refusals)
    assert sum(file.stat().st_size for file in CORPUS.glob("*/*")) < MAX_CORPUS_BYTES


@targets
def test_what_is_kept(target: Target) -> None:
    """What is called valid is taken, the rest is refused or taken; none of it costs too much."""
    for name, data in target.corpus().items():
        taken = target.feed(data)
        assert taken or not name.startswith("valid-"), name
        assert not taken or not name.startswith("refused-"), name
    for data in target.corpus().values():
        target.check_cost(data)


@targets
def test_variations(target: Target) -> None:
    seeds = list(target.corpus().values())
    for number, data in enumerate(
        variations(seeds, target.rounds, target.name, target.longest, target.words)
    ):
        try:
            if number % MEASURED:
                target.feed(data)
            else:
                target.check_cost(data)
        except BaseException as error:
            error.add_note(f"{target.name}, variation {number}: {data!r}")
            raise


@targets
def test_cost_grows_as_the_input_does(target: Target) -> None:
    """What is there many times over costs many times as much, and no more than that."""
    for data in target.corpus().values():
        grown = data * (GROWN_BYTES // max(1, len(data)))
        target.check_cost(grown)
