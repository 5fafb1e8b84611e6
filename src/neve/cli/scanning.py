"""The options about scanning for references, which everything has that takes contents in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, wraps
from typing import TYPE_CHECKING, Any

import click

from neve.cli.options import STORE_PATH
from neve.errors import InvalidRequest, Unsupported

if TYPE_CHECKING:
    from neve.library import Store
    from neve.nix.store_path import StorePath


_LINE_BYTES = 4096
"""No store path is as long; what is no list of them is not read to its end."""


@dataclass(frozen=True)
class ScanOptions:
    """Whether to scan for references, and for which."""

    wanted: bool
    given: tuple[StorePath, ...] = ()
    file: bytes | None = None

    @property
    def is_open(self) -> bool:
        """Whether nobody has said what to scan for."""
        return not self.given and self.file is None

    def candidates(self, store: Store) -> list[StorePath] | None:
        """What to scan for: what is given, else all that the store has. None: do not scan."""
        if not self.wanted:
            return None
        if not self.is_open:
            return [*self.given, *([] if self.file is None else read_candidates(self.file))]
        try:
            return [path_info.store_path for path_info in store.path_infos]
        except Unsupported as error:
            raise Unsupported(f"{error}; name --reference-candidates to scan for") from error


def read_candidates(file: bytes) -> list[StorePath]:
    """The store paths in a file, one per line as ``nix-store --query`` prints them; empty lines do not count.

    Raises ``InvalidRequest`` that names the line.
    """
    from neve.castore.ingest.filesystem import show_path
    from neve.nix.store_path import StorePath

    paths = []
    with open(file, "rb") as lines:
        for number, line in enumerate(iter(partial(lines.readline, _LINE_BYTES), b""), 1):
            text = line.strip()
            try:
                if text.startswith(b"/"):
                    paths.append(StorePath.parse(text))
                elif text:
                    paths.append(StorePath.parse_base_name(text))
            except InvalidRequest as error:
                raise InvalidRequest(f"{show_path(file)}, line {number}: {error}") from error
    return paths


def scan_options(function: Callable[..., None]) -> Callable[..., None]:
    """Adds the options; the command gets them as ``scan: ScanOptions``."""

    @wraps(function)
    def command(
        scan_references: bool, candidates: tuple[StorePath, ...], candidates_file: bytes | None, **others: Any
    ) -> None:
        if not scan_references and (candidates or candidates_file is not None):
            raise click.UsageError("candidates for references go with --scan-references")
        function(scan=ScanOptions(scan_references, candidates, candidates_file), **others)

    options = [
        click.option(
            "--scan-references", is_flag=True, help="Look into the contents for store paths they refer to."
        ),
        click.option(
            "--reference-candidate",
            "candidates",
            multiple=True,
            type=STORE_PATH,
            help="A path to look for, instead of all in the store. Can be repeated.",
        ),
        click.option(
            "--reference-candidates",
            "candidates_file",
            metavar="FILE",
            type=click.Path(readable=False, path_type=bytes),
            help="The same: a file with one path per line.",
        ),
    ]
    wrapped: Callable[..., None] = command
    for option in reversed(options):
        wrapped = option(wrapped)
    return wrapped
