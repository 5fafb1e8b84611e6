"""``copy``: closures from the local Nix store."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from neve.cli.failures import tell
from neve.cli.ingest import BYTES_PATH, opened_input
from neve.cli.options import StoreOptions, store_options
from neve.cli.progress import progress_bar, result_lines
from neve.errors import LimitExceeded
from neve.telemetry import LOGGER

if TYPE_CHECKING:
    from neve.nix.export_graph import ExportedPath
    from neve.store.copying import CopyReport

MAX_DESCRIPTION_BYTES = 256 * 1024 * 1024
"""A path takes about 1 KB: enough for a quarter of a million, and what is no description ends soon."""


@click.command("copy", short_help="Copy a closure from the local Nix store.")
@click.argument(
    "description",
    metavar="NIX_ATTRS_JSON_FILE",
    envvar="NIX_ATTRS_JSON_FILE",
    type=BYTES_PATH,
)
@click.option(
    "--store-dir-root",
    metavar="DIR",
    type=BYTES_PATH,
    default=b"/",
    help="The folder below which nix/store is (default: /).",
)
@store_options
def copy(store: StoreOptions, description: bytes, store_dir_root: bytes) -> None:
    """Copy the closure that a JSON file describes from the local Nix store; print the store paths.

    The file is the attributes of a derivation with exportReferencesGraph (its key 'closure'), or what
    'nix path-info --json' prints; - is stdin. In a build, NIX_ATTRS_JSON_FILE names it.

    A path is printed when it and all it refers to are in the store; what was there is not read again, so a
    copy that was interrupted goes on when it is started again. Each NAR must have the size and hash that the
    description states. What fails is told, and what depends on it is left out.

    \b
    Example:
      nix path-info --json --closure-size -r nixpkgs#hello | neve copy -
      neve copy --store-dir-root /mnt closure.json
    """
    from neve.store.copying import copy_closure

    entries = read_description(description)
    with store.open(write=True) as opened, result_lines() as write, progress_bar("copying") as progress:
        report = copy_closure(
            opened.services,
            entries,
            store_dir_root,
            registered=lambda path: write(path.absolute),
            progress=progress,
        )
    tell_report(report, len(entries))


def read_description(file: bytes) -> list[ExportedPath]:
    """The paths that a file, or stdin for ``-``, describes. Raises ``InvalidExportGraph``."""
    from neve.nix.export_graph import parse

    with opened_input(file, "the description of a closure") as stream:
        pieces = []
        size = 0
        while piece := stream.read(1024 * 1024):
            pieces.append(piece)
            size += len(piece)
            if size > MAX_DESCRIPTION_BYTES:
                raise LimitExceeded(
                    f"the description of a closure has more than {MAX_DESCRIPTION_BYTES} bytes, "
                    "which is the limit"
                )
    return parse(b"".join(pieces))


def tell_report(report: CopyReport, count: int) -> None:
    """Sums up. Raises what failed."""
    if not report.failures:
        LOGGER.info("copied %d store paths, %d were in the store", report.copied, report.present)
    tell(
        list(report.failures.values()),
        f"{len(report.failures)} of {count} store paths could not be copied",
        f"left out, because they depend on that: {len(report.left_out)}" if report.left_out else "",
    )
