"""Dropping what nobody wants any more: ``gc``, and ``pin`` for what is to stay."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from neve.cli import output
from neve.cli.configuration import Configured
from neve.cli.options import STORE_PATH, StoreOptions, store_options
from neve.cli.progress import progress_bar
from neve.cli.server_options import SizeType
from neve.cli.sizes import shown_bytes
from neve.errors import InvalidRequest
from neve.telemetry import LOGGER

if TYPE_CHECKING:
    from neve.nix.store_path import StorePath
    from neve.store.gc.report import GcReport
    from neve.store.gc.rules import Rules
    from neve.store.pins import Pin

    _FloatType = click.ParamType[float]
else:
    _FloatType = click.ParamType

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_AGE = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?) *([smhdw]?)", re.IGNORECASE)

_MAX_LIST_BYTES = 64 * 1024 * 1024
"""Longest file of paths to keep: half a million of them. It is read whole, before anything is dropped."""


class AgeType(_FloatType):
    """A time in seconds: a number with ``s``, ``m``, ``h``, ``d`` or ``w`` behind it."""

    name = "age"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> float:
        if isinstance(value, int | float):
            return float(value)
        match = _AGE.fullmatch(value.strip())
        if match is None or not (match[2] or not float(match[1])):
            self.fail(f"{value!r} is no time; write e.g. 12h, 30d or 4w", parameter, context)
        return float(match[1]) * _UNITS.get(match[2].lower(), 1)


AGE = AgeType()


@click.command(short_help="Drop what nobody wants any more, and give its space back.")
@click.option("--keep", "keep", multiple=True, metavar="PATH...", type=STORE_PATH, help="Keep these paths.")
@click.argument("more", nargs=-1, metavar="", type=STORE_PATH)
@click.option(
    "--keep-from",
    multiple=True,
    metavar="FILE",
    type=click.File("rb"),
    help="Keep the paths in this file, one on a line ('-': stdin).",
)
@click.option("--only-pinned", is_flag=True, help="Keep what is pinned, and drop other paths.")
@click.option(
    "--keep-newer", metavar="AGE", type=AGE, help="Keep paths that were stored or asked for since, e.g. 30d."
)
@click.option(
    "--max-size",
    metavar="SIZE",
    type=SizeType(),
    help="Drop the paths that were not asked for the longest, until the rest takes so much, e.g. 50GiB.",
)
@click.option("--ignore-missing", is_flag=True, help="Go on if a path to keep is not in the store.")
@click.option(
    "--grace",
    metavar="AGE",
    type=AGE,
    default=None,
    show_default="6h; 24h in a bucket or database",
    help="Keep what clients of a server have put or asked for since.",
)
@click.option("-n", "--dry-run", is_flag=True, help="Tell what would go, and drop nothing.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object; sizes are in bytes.")
@store_options
def gc(
    store: StoreOptions,
    keep: Sequence[StorePath],
    more: Sequence[StorePath],
    keep_from: Sequence[BinaryIO],
    as_json: bool,
    **rules: Any,
) -> None:
    """Drop what nobody wants any more, and give its space back. Others may go on with the store.

    Without options no store path is dropped, only what none reaches. With --keep or --keep-from all paths
    are dropped but those, what is pinned (see: neve pin), and all that they refer to. The other options
    keep more, or less, by their use; where services lie in several places there is only --keep.

    \b
    Example:
      neve gc --dry-run --keep-newer 30d
      neve gc --keep /nix/store/...-system /nix/store/...-tools
    """
    if more and not keep:
        raise click.UsageError("say --keep before store paths that are to be kept")
    named = [*keep, *more, *_listed(keep_from)]
    chosen = _rules(named if keep or keep_from else None, rules)
    report = _collect(store, chosen)
    if as_json:
        output.line(json.dumps(report_json(report)))
    else:
        rows = report_rows(report)
        width = max(len(key) for key, _ in rows) + 2
        for key, value in rows:
            output.line(f"{key + ':':{width}}{value}")
    for problem in report.problems:
        LOGGER.error("%s", problem)
    if report.problems:
        raise click.exceptions.Exit(1)


def _rules(keep: Sequence[StorePath] | None, options: dict[str, Any]) -> Rules:
    from neve.store.gc.rules import Rules

    try:
        return Rules(keep=keep, **options)
    except InvalidRequest as error:
        raise click.UsageError(str(error)) from error


def _collect(options: StoreOptions, rules: Rules) -> GcReport:
    from neve.store.gc.collect import collect_garbage

    with options.open(write=options.exists()) as store, progress_bar("collecting") as progress:
        return collect_garbage(store.services, rules, progress)


def _listed(files: Iterable[BinaryIO]) -> Iterator[StorePath]:
    """The store paths in files. Raises ``InvalidRequest`` naming the line."""
    from neve.nix.store_path import STORE_DIR, StorePath

    for file in files:
        name = getattr(file, "name", "stdin")
        data = file.read(_MAX_LIST_BYTES + 1)
        if len(data) > _MAX_LIST_BYTES:
            raise InvalidRequest(f"{name}: over the limit of {_MAX_LIST_BYTES} bytes for a list of paths")
        for number, line in enumerate(data.split(b"\n"), 1):
            text = line.strip()
            if text and not text.startswith(b"#"):
                try:
                    absolute = text if text.startswith(b"/") else STORE_DIR.encode() + b"/" + text
                    yield StorePath.parse(absolute)
                except InvalidRequest as error:
                    raise InvalidRequest(f"{name}, line {number}: {error}") from error


def report_json(report: GcReport) -> dict[str, Any]:
    """The report by the names that ``--json`` gives its parts."""
    return {
        "dryRun": report.dry_run,
        "pathsKept": report.paths_kept,
        "pathsDropped": report.paths_dropped,
        "directoriesDropped": report.directories_dropped,
        "blobsDropped": report.blobs_dropped,
        "chunksDropped": report.chunks_dropped,
        "contentBytes": report.content_bytes,
        "fresh": report.fresh,
        "missing": report.missing,
        "packBytes": report.pack_bytes,
        "deadBytes": report.dead_bytes,
        "givenBack": report.given_back,
        "busyBytes": report.busy_bytes,
        "problems": report.problems,
    }


def report_rows(report: GcReport) -> list[tuple[str, str]]:
    """The report with its names for people."""
    would = "would be " if report.dry_run else ""
    rows = [
        ("paths kept", str(report.paths_kept)),
        (f"paths {would}dropped", str(report.paths_dropped)),
        (f"directories {would}dropped", str(report.directories_dropped)),
        (f"blobs {would}dropped", str(report.blobs_dropped)),
        (f"chunks {would}dropped", str(report.chunks_dropped)),
        (f"contents {would}dropped", shown_bytes(report.content_bytes)),
        ("dead on disk", shown_bytes(report.dead_bytes)),
        (f"{would}given back", shown_bytes(report.given_back)),
    ]
    if report.fresh:
        rows.append(("objects kept for their use", str(report.fresh)))
    if report.busy_bytes:
        rows.append(("dead where others write", shown_bytes(report.busy_bytes)))
    if report.missing:
        rows.append(("directories missing", str(report.missing)))
    return rows


@click.group(cls=Configured, no_args_is_help=False)
def pin() -> None:
    """Give names to store paths that no collection takes.

    \b
    Example:
      neve pin add production /nix/store/...-system
    """


@pin.command("add")
@click.argument("name")
@click.argument("paths", nargs=-1, required=True, metavar="STORE_PATH...", type=STORE_PATH)
@store_options
def pin_add(store: StoreOptions, name: str, paths: Sequence[StorePath]) -> None:
    """Pin store paths, with all that they refer to, under a name. Paths pinned by it before stay pinned.

    \b
    Example:
      neve pin add production /nix/store/...-system
    """
    from neve.store.pins import pins_of

    with StoreOptions(store.whole()).open(write=store.exists()) as opened:
        pins_of(opened.services.packs).add(name, paths)


@pin.command("remove")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@store_options
def pin_remove(store: StoreOptions, names: Sequence[str]) -> None:
    """Remove pins: the next collection may take their paths.

    \b
    Example:
      neve pin remove production
    """
    from neve.store.pins import pins_of

    with StoreOptions(store.whole()).open(write=store.exists()) as opened:
        for name in names:
            pins_of(opened.services.packs).remove(name)


@pin.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@store_options
def pin_list(store: StoreOptions, as_json: bool) -> None:
    """Tell which paths are pinned: the name, a tab, the path.

    \b
    Example:
      neve pin list
    """
    from neve.store.pins import pins_of

    with StoreOptions(store.whole()).open() as opened:
        for one in pins_of(opened.services.packs).list():
            for line in _pin_lines(one, as_json=as_json):
                output.line(line)


def _pin_lines(one: Pin, *, as_json: bool) -> Iterator[str]:
    paths = [path.absolute for path in one.paths]
    if as_json:
        yield json.dumps({"name": one.name, "paths": paths})
    else:
        yield from (f"{one.name}\t{path}" for path in paths)
