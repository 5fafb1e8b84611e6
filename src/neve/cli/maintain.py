"""Care of a store: ``verify``."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from neve.cli import output
from neve.cli.options import StoreOptions, check_address, store_options
from neve.cli.progress import progress_bar
from neve.errors import Unsupported
from neve.registry import shown_address
from neve.telemetry import LOGGER

if TYPE_CHECKING:
    from neve.store.check import VerifyReport
    from neve.store.repair import RepairReport

_SWITCH_SECONDS = 0.0005
"""Who decompresses and who looks after it hand the interpreter over, some ten thousand times a second."""


@click.command()
@click.option(
    "--rebuild-index",
    is_flag=True,
    help="First make a new index from the packs; nobody else may have the store open.",
)
@click.option(
    "--repair-from",
    metavar="URL",
    callback=check_address,
    help="Fetch what is damaged or missing from this store; only for an embedded store.",
)
@click.option(
    "--nars", is_flag=True, help="Also render the NAR of each store path and compare it with what is stated."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object with all that is damaged.")
@store_options
def verify(
    store: StoreOptions, rebuild_index: bool, repair_from: str | None, nars: bool, as_json: bool
) -> None:
    """Re-hash everything in the store.

    Writes a line for each damaged object, with the store paths that it breaks; exit code 1 if there
    is any. With --repair-from, for each that is still damaged or missing after the repair. Others may use the
    store meanwhile, but not while its index is made anew.

    \b
    Example:
      neve verify
      neve verify --store local:///srv/neve --rebuild-index
      neve verify --store local:///srv/neve --repair-from local:///backup/neve
    """
    whole = store.whole() if rebuild_index or repair_from else ""
    if rebuild_index:
        rebuild(whole)
    report = repaired(store, repair_from, nars=nars) if repair_from else verified(store, nars=nars)
    LOGGER.info("%s", report.summary)
    if report.problems:
        LOGGER.error("damaged objects: %d", len(report.problems))
    if as_json:
        output.line(json.dumps(report_json(report)))
    else:
        for problem in report.problems:
            output.line(problem)
    if report.problems:
        raise click.exceptions.Exit(1)


def verified(options: StoreOptions, *, nars: bool) -> VerifyReport:
    """What is damaged in the store."""
    from neve.store.check import verify_store

    sys.setswitchinterval(_SWITCH_SECONDS)
    with options.open() as store, progress_bar("verifying") as progress:
        return verify_store(store.services, progress, nar_hashes=nars)


def repaired(options: StoreOptions, source: str, *, nars: bool) -> RepairReport:
    """What is still damaged after a repair. Tells in the log what was done."""
    from neve.store.places import is_source
    from neve.store.repair import repair

    if is_source(source):
        raise Unsupported(f"{shown_address(source)} is a binary cache, which does not give single objects")
    # In this order: a process cannot write to an embedded store that it has open for reading only.
    with (
        options.open(write=True) as store,
        StoreOptions.at(source, if_missing="").open() as other,
        progress_bar("verifying") as progress,
    ):
        report = repair(store.services, other.services, progress, nar_hashes=nars)
    for reason in report.reasons:
        LOGGER.error("%s", reason)
    if report.repaired:
        LOGGER.info("repaired objects: %d", report.repaired)
    return report


def report_json(report: VerifyReport) -> dict[str, Any]:
    """What was found, by the names that ``--json`` gives it; after a repair, what was done."""
    from neve.store.repair import RepairReport

    found: dict[str, Any] = {"problems": report.problems}
    if isinstance(report, RepairReport):
        found |= {"repaired": report.repaired, "notRepaired": report.reasons}
    return found


def rebuild(url: str) -> None:
    """Makes a new index. What is damaged in the packs is for the verification to tell, with the paths
    that it breaks."""
    from neve.store.check import rebuild_index

    with progress_bar("rebuilding the index") as progress:
        rebuilt = rebuild_index(url, progress)
    found = ", ".join(f"{count} {table}" for table, count in rebuilt.records.items() if count)
    LOGGER.info("rebuilt the index: %s", found or "nothing found")
