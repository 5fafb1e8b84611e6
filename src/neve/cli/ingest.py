"""Into the store: ``import``, ``nar import``, ``archive import``."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

import click

from neve.cli import output
from neve.cli.options import STORE_PATH, StoreOptions, size_rule_option, stat_cache_folder, store_options
from neve.cli.progress import progress_bar
from neve.cli.scanning import ScanOptions, scan_options
from neve.errors import Unavailable
from neve.telemetry import Progress

if TYPE_CHECKING:
    from neve.library import Store
    from neve.nix.store_path import StorePath
    from neve.store.importer import ImportOptions

BYTES_PATH = click.Path(readable=False, path_type=bytes)

_ARCHIVE_SUFFIXES = (".tar", ".tgz", ".tbz", ".tbz2", ".txz", ".tzst")
_COMPRESSION_SUFFIXES = (".gz", ".bz2", ".xz", ".zst")


@click.command("import", short_help="Import files, folders and symlinks.")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=BYTES_PATH)
@click.option("--name", help="Name of the store path (default: the last component of PATH).")
@click.option("--exclude", metavar="GLOB", multiple=True, help="Leave out what matches. Can be repeated.")
@click.option("--flat", is_flag=True, help="Address a single file by its contents instead of its NAR.")
@click.option("--text", is_flag=True, help="Import a single file as Nix does texts.")
@click.option(
    "--reference", "references", multiple=True, type=STORE_PATH, help="With --text: what it refers to."
)
@click.option("--stat-cache", is_flag=True, help="Do not read again what has not changed since an import.")
@scan_options
@size_rule_option
@store_options
def import_command(
    store: StoreOptions,
    paths: tuple[bytes, ...],
    name: str | None,
    exclude: tuple[str, ...],
    flat: bool,
    text: bool,
    references: tuple[StorePath, ...],
    stat_cache: bool,
    scan: ScanOptions,
    size_rule: str | None,
) -> None:
    """Import files, folders and symlinks; print the store path of each.

    A symlink is imported itself, not what it points to. With several PATHs, the first failure ends
    the command; what was printed is in the store. With --scan-references, the store path depends on
    what is found, and cannot be mentioned in the contents itself.

    \b
    Example:
      neve import ./src
      neve import --name source --exclude '*.o' --exclude .git .
    """
    if name is not None and len(paths) > 1:
        raise click.UsageError("--name goes with one PATH only")
    _check_options(flat, text, references, stat_cache, scan)
    from neve.castore.ingest.exclude import exclude_globs
    from neve.castore.ingest.statcache import StatCache
    from neve.nix.hashes import CAMethod
    from neve.store.importer import ImportOptions

    options = ImportOptions(
        name=name,
        exclude=exclude_globs(list(exclude)),
        method=CAMethod.FLAT if flat else CAMethod.TEXT if text else CAMethod.NAR,
        references=references,
        stat_cache=StatCache(Path(stat_cache_folder())) if stat_cache else None,
    )
    with _opened(store, size_rule) as opened:
        import_paths(opened, paths, options, scan)


def _check_options(
    flat: bool, text: bool, references: Sequence[StorePath], stat_cache: bool, scan: ScanOptions
) -> None:
    if (flat and text) or (references and not text):
        raise click.UsageError("--flat and --text exclude each other, --reference goes with --text only")
    if scan.wanted and (flat or stat_cache):
        other = "--flat, whose paths have no references" if flat else "--stat-cache, which reads nothing"
        raise click.UsageError(f"--scan-references does not go with {other}")


def import_paths(store: Store, paths: Sequence[bytes], options: ImportOptions, scan: ScanOptions) -> None:
    """Imports one after the other; prints each store path once it is registered."""
    from neve.castore.ingest.filesystem import show_path

    candidates = scan.candidates(store)
    options = replace(options, scan_for=candidates)
    for path in paths:
        with progress_bar(f"importing {show_path(os.path.basename(path) or path)}") as progress:
            path_info = store.import_path(path, options, progress=progress)
        if candidates is not None and scan.is_open:
            candidates.append(path_info.store_path)  # The next one may refer to it.
        output.line(path_info.store_path.absolute)
        output.flush()


@click.command("import", short_help="Import a NAR from a file or stdin.")
@click.argument("file", default="-", type=BYTES_PATH)
@click.option(
    "--store-path", type=STORE_PATH, help="Register it as this path, which its contents do not determine."
)
@click.option("--name", help="Compute the store path from the contents and this name.")
@click.option("--reference", "references", multiple=True, type=STORE_PATH, help="What it refers to.")
@click.option("--deriver", type=STORE_PATH, help="The derivation it was built from, a .drv path.")
@scan_options
@size_rule_option
@store_options
def nar_import(
    store: StoreOptions,
    file: bytes,
    store_path: StorePath | None,
    name: str | None,
    references: tuple[StorePath, ...],
    deriver: StorePath | None,
    scan: ScanOptions,
    size_rule: str | None,
) -> None:
    """Import a NAR from FILE or stdin; print its store path.

    With --scan-references, the store paths that its contents mention become references, and so does itself
    if it is given by --store-path.

    \b
    Example:
      nix-store --dump ./src | neve nar import --name src
      neve nar import --store-path /nix/store/...-hello-2.12 --scan-references hello.nar
    """
    if (store_path is None) == (name is None):
        raise click.UsageError("give either --store-path or --name (to compute the store path)")
    if deriver is not None and not deriver.name.endswith(".drv"):
        raise click.BadParameter(f"{deriver} does not end in .drv", param_hint="'--deriver'")
    from neve.store.importer import import_nar

    with opened_input(file, "a NAR") as stream, _opened(store, size_rule) as opened:
        label = store_path.name if store_path is not None else name
        with progress_bar(f"importing {label}") as progress:
            path_info = import_nar(
                opened.services,
                _pieces(stream, progress),
                name=name,
                store_path=store_path,
                references=references,
                deriver=None if deriver is None else deriver.without_drv(),
                scan_for=scan.candidates(opened),
            )
        output.line(path_info.store_path.absolute)


@click.command("import", short_help="Import a tar archive.")
@click.argument("file", type=BYTES_PATH)
@click.option("--name", help="Name of the store path (default: FILE's name without .tar and the like).")
@size_rule_option
@store_options
def archive_import(store: StoreOptions, file: bytes, name: str | None, size_rule: str | None) -> None:
    """Import a tar archive (plain, gz, bz2, xz, zst); print its store path.

    FILE may be - for stdin; --name is needed then.

    \b
    Example:
      neve archive import source-1.0.tar.gz
      curl -sL https://example.org/source.tar.xz | neve archive import --name source -
    """
    if name is None and file == b"-":
        raise click.UsageError("an archive from stdin needs a --name")
    from neve.store.importer import import_archive

    name = archive_name(file) if name is None else name
    with opened_input(file, "an archive") as stream, _opened(store, size_rule) as opened:
        with progress_bar(f"importing {name}") as progress:
            progress.start(_size(stream))
            reader = cast(BinaryIO, _Counting(stream, progress))
            path_info = import_archive(opened.services, reader, name, progress=_Stored(progress))
        output.line(path_info.store_path.absolute)


def archive_name(path: bytes) -> str:
    """The store path's name for an archive: that of the file without what says that it is one.

    Raises ``InvalidRequest`` like ``store_name``.
    """
    from neve.store.importer import store_name

    name = store_name(path)
    stem = name
    for suffix in _COMPRESSION_SUFFIXES:
        stem = stem.removesuffix(suffix)
    for suffix in _ARCHIVE_SUFFIXES:
        if stem.endswith(suffix) and stem != suffix:
            return stem.removesuffix(suffix)
    return name


@contextlib.contextmanager
def _opened(options: StoreOptions, size_rule: str | None) -> Iterator[Store]:
    """The store, made if it is missing, counting by ``size_rule`` if there is one."""
    from neve.castore.directory import SizeRule

    with options.open(write=True) as store:
        if size_rule is not None:
            store.services.size_rule = SizeRule(size_rule)
        yield store


@contextlib.contextmanager
def opened_input(path: bytes, what: str) -> Iterator[BinaryIO]:
    """The file at ``path``, or stdin for ``-``."""
    if path != b"-":
        with open(path, "rb", buffering=0) as file:
            yield cast(BinaryIO, file)
        return
    if sys.stdin is None:
        raise click.UsageError(f"stdin is closed; name a file, or pipe {what} in")
    if sys.stdin.isatty():
        raise click.UsageError(f"{what} is not typed in; name a file, or pipe it in")
    yield sys.stdin.buffer


def _size(stream: BinaryIO) -> int | None:
    """What is to be read, if that is known."""
    with contextlib.suppress(OSError):
        state = os.fstat(stream.fileno())
        if stat.S_ISREG(state.st_mode):
            return state.st_size
    return None


def _pieces(stream: BinaryIO, progress: Progress) -> Iterator[bytes]:
    from neve.store.nar.ingest import read_pieces

    progress.start(_size(stream))
    pieces = read_pieces(stream)
    while True:
        try:
            piece = next(pieces, b"")
        except OSError as error:
            raise Unavailable(f"cannot read the NAR: {error.strerror}") from error
        if not piece:
            return
        progress.advance(len(piece))
        yield piece


class _Counting:
    """A binary stream that tells how much of it has been read."""

    def __init__(self, stream: BinaryIO, progress: Progress) -> None:
        self._stream = stream
        self._progress = progress

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self._progress.advance(len(data), "reading the archive")
        return data


class _Stored:
    """Progress of what is stored, which begins when the whole archive has been read."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._begun = False

    def start(self, total: int | None) -> None:
        self._begun = True
        self._progress.start(total)

    def advance(self, amount: int, current: str = "") -> None:
        if not self._begun:
            self.start(None)
        self._progress.advance(amount, current or "storing")
