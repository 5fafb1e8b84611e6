"""``mirror``: one store gets what another one has."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from neve.cli import output
from neve.cli.failures import SomeFailedError
from neve.cli.options import STORE_PATH, StoreOptions, check_address, netrc_file
from neve.cli.progress import progress_bar, result_lines
from neve.cli.sizes import shown_bytes
from neve.errors import NotFound, Unsupported
from neve.registry import shown_address
from neve.telemetry import LOGGER

if TYPE_CHECKING:
    from neve.nix.store_path import StorePath
    from neve.store.mirror import MirrorReport
    from neve.store.services import Services


@click.command("mirror", short_help="Copy to one store what it misses of another.")
@click.argument("source", metavar="SRC", callback=check_address)
@click.argument("target", metavar="DST", callback=check_address)
@click.option(
    "--path",
    "paths",
    metavar="STORE_PATH",
    multiple=True,
    type=STORE_PATH,
    help="Only this path and all that it refers to. Can be repeated.",
)
@click.option("--check", is_flag=True, help="Also look into paths that DST has, for contents it misses.")
@click.option("--nars", is_flag=True, help="Also compute the NAR hash of each path that is copied.")
@click.option(
    "--everything",
    is_flag=True,
    help="Also what no store path reaches, logs and realisations.",
)
@click.option("--dry-run", is_flag=True, help="Copy nothing; print the store paths that would be copied.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object that sums up; sizes are in bytes.")
def mirror(source: str, target: str, paths: tuple[StorePath, ...], as_json: bool, **flags: bool) -> None:
    """Copy to the store DST what it misses of the store SRC; both are addresses.

    DST is consistent at any moment: a path is there when all that it refers to is. A mirror that was
    interrupted goes on when it is started again, and one of a store that has not changed looks at nothing but
    its list of paths. Everything is verified. What is damaged in SRC is told, and what refers to it is left
    out; so is what DST has with other contents. Writers of both stores may go on.

    SRC may be a binary cache if the paths are given.

    \b
    Example:
      neve mirror local:///srv/neve local:///backup/neve
      neve mirror grpc+unix:///run/neve.sock local:///backup/neve --dry-run
      neve mirror nix+https://cache.example.org local:///srv/neve --path /nix/store/...-hello
    """
    if flags["everything"] and paths:
        raise click.UsageError("--everything is about the whole store: leave out --path")
    from neve.store.mirror import MirrorOptions
    from neve.store.mirror import mirror as run

    if not paths:
        _check_listed(source)
    options = MirrorOptions(paths=paths or None, **flags)
    with (
        _opened(source, target, write=not options.dry_run) as (services, to_services),
        result_lines() as write,
        progress_bar("mirroring") as progress,
    ):
        report = run(
            services,
            to_services,
            options,
            copied=lambda path: write(path.absolute) if options.dry_run and not as_json else None,
            progress=progress,
        )
    if as_json:
        output.line(json.dumps(report_json(report)))
    _tell(report, dry_run=options.dry_run)


def _check_listed(source: str) -> None:
    """Raises ``Unsupported`` for a source that can only be asked for paths that are named."""
    from neve.store.places import is_source

    if is_source(source):
        raise Unsupported(
            f"{shown_address(source)} is a binary cache, which cannot be listed; name the paths with --path"
        )


@contextlib.contextmanager
def _opened(source: str, target: str, *, write: bool) -> Iterator[tuple[Services, Services]]:
    """The services of both stores; what comes from a binary cache goes straight to the target."""
    from neve.store.places import is_source
    from neve.store.services import services_of_cache

    if not is_source(source):
        with StoreOptions.at(source, if_missing="").open():
            pass  # Before a store is made that nothing will be copied to.
    with contextlib.ExitStack() as stack:
        # First: a process cannot write to an embedded store that it has open for reading only.
        to = stack.enter_context(_target(target, write=write))
        if is_source(source):
            services = services_of_cache(source, to, netrc_file=netrc_file())
            stack.callback(services.path_infos.close)
        else:
            services = stack.enter_context(StoreOptions.at(source, if_missing="").open()).services
        yield services, to


@contextlib.contextmanager
def _target(target: str, *, write: bool) -> Iterator[Services]:
    with contextlib.ExitStack() as stack:
        try:
            store = stack.enter_context(StoreOptions.at(target).open(write=write))
        except NotFound:
            if write:
                raise
            # One that is to be made is as good as empty.
            store = stack.enter_context(StoreOptions("memory://").open())
        yield store.services


def report_json(report: MirrorReport) -> dict[str, Any]:
    """What was done, by the names that ``--json`` gives it."""
    return {
        "copied": report.copied,
        "signatures": report.united,
        "present": report.present,
        "vanished": report.vanished,
        "danglingReferences": report.dangling,
        "blobs": report.blobs,
        "blobBytes": report.blob_bytes,
        "directories": report.directories,
        "failures": {what: str(error) for what, error in report.failures.items()},
        "leftOut": report.left_out,
    }


def _tell(report: MirrorReport, *, dry_run: bool) -> None:
    """Sums up. Raises what failed."""
    _tell_summary(report, shown_bytes(report.blob_bytes), dry_run=dry_run)
    if not report.failures:
        return
    lines = [
        str(error) if str(error).startswith(what) else f"{what}: {error}"
        for what, error in report.failures.items()
    ]
    after = f"; left out, because they refer to that: {len(report.left_out)}" if report.left_out else ""
    if len(lines) == 1:
        raise SomeFailedError(f"{lines[0]}{after}")
    for line in lines:
        LOGGER.error("%s", line)
    raise SomeFailedError(f"{len(lines)} objects could not be mirrored{after}")


def _tell_summary(report: MirrorReport, size: str, *, dry_run: bool) -> None:
    parts = [f"{'to be copied' if dry_run else 'copied'} {report.copied} store paths"]
    if not dry_run:
        parts.append(f"{report.blobs} blobs of {size}")
    if report.directories:
        parts.append(f"{report.directories} Directories that no path reaches")
    if report.united:
        parts.append(f"signatures for {report.united}")
    parts.append(f"{report.present} were there")
    if report.vanished:
        parts.append(f"{report.vanished} were deleted meanwhile")
    if report.left_out and not report.failures:
        parts.append(f"{len(report.left_out)} refer to those and were left out")
    if report.dangling:
        parts.append(f"{report.dangling} references lead to what neither store has")
    LOGGER.info("%s", ", ".join(parts))
