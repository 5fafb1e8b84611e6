"""Care of a store: ``verify``."""

from __future__ import annotations

import click

from neve.cli import output
from neve.cli.options import StoreOptions, store_options
from neve.cli.progress import progress_bar
from neve.telemetry import LOGGER


@click.command()
@click.option(
    "--rebuild-index",
    is_flag=True,
    help="First make a new index from the packs; nobody else may have the store open.",
)
@click.option(
    "--nars", is_flag=True, help="Also render the NAR of each store path and compare it with what is stated."
)
@store_options
def verify(store: StoreOptions, rebuild_index: bool, nars: bool) -> None:
    """Re-hash everything in the store.

    Writes a line for each damaged object, with the store paths that it breaks; exit code 1 if there
    is any.

    \b
    Example:
      neve verify
      neve verify --store local:///srv/neve --rebuild-index
    """
    if rebuild_index:
        rebuild(store.whole())
    problems = find_problems(store, nars=nars)
    for problem in problems:
        output.line(problem)
    if problems:
        raise click.exceptions.Exit(1)


def find_problems(options: StoreOptions, *, nars: bool) -> list[str]:
    """What is damaged in the store, a line for each. Tells a summary in the log."""
    from neve.store.check import verify_store

    with options.open() as store, progress_bar("verifying") as progress:
        report = verify_store(store.services, progress, nar_hashes=nars)
    LOGGER.info("%s", report.summary)
    if report.problems:
        LOGGER.error("damaged objects: %d", len(report.problems))
    return report.problems


def rebuild(url: str) -> None:
    """Makes a new index. What is damaged in the packs is for the verification to tell, with the paths
    that it breaks."""
    from neve.store.check import rebuild_index

    with progress_bar("rebuilding the index") as progress:
        rebuilt = rebuild_index(url, progress)
    found = ", ".join(f"{count} {table}" for table, count in rebuilt.records.items() if count)
    LOGGER.info("rebuilt the index: %s", found or "nothing found")
