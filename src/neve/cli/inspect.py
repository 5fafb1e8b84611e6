"""Out of the store: ``nar export``, ``ls``, ``cat``, ``export``, ``path-info``, ``stats``."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import click

from neve.cli import output
from neve.cli.interrupts import grace
from neve.cli.options import STORE_PATH, StoreOptions, store_options
from neve.cli.progress import is_shown, progress_bar
from neve.cli.sizes import shown_bytes
from neve.errors import Unsupported

if TYPE_CHECKING:
    from neve.castore.node import Node
    from neve.library import Store
    from neve.nix.store_path import StorePath
    from neve.store.path_info import PathInfo
    from neve.store.stats import Stats
    from neve.telemetry import Progress

_PIECE_BYTES = 1024 * 1024

_REMOVAL_SECONDS = 300.0
"""How long an interrupted export may take to remove what it has written."""

IN_STORE = click.Path(readable=False, path_type=bytes)
"""A path in the store: a store path, absolute or as base name, and perhaps more below it."""


@click.command("export", short_help="Write the NAR of a store path to stdout.")
@click.argument("store_path", metavar="STORE_PATH", type=STORE_PATH)
@click.option("-f", "--force", is_flag=True, help="Write to a terminal, too.")
@store_options
def nar_export(store: StoreOptions, store_path: StorePath, force: bool) -> None:
    """Write the NAR of a store path to stdout.

    \b
    Example:
      neve nar export /nix/store/...-hello > hello.nar
      neve nar export /nix/store/...-hello | nix-store --restore ./hello
    """
    if output.to_terminal() and not force:
        raise click.UsageError("a NAR is no text for a terminal; redirect stdout, or insist with --force")
    with store.open() as opened, progress_bar(f"exporting {store_path.name}") as progress:
        write_nar(opened, store_path, progress)


def write_nar(store: Store, store_path: StorePath, progress: Progress) -> None:
    """Writes the NAR of ``store_path`` to stdout."""
    path_info = store.path_info(store_path)
    progress.start(None if path_info.nar is None else path_info.nar.size)

    def groups() -> Iterator[list[bytes]]:
        for group in store.services.renderer.groups(path_info.node):
            progress.advance(sum(map(len, group)))
            yield group

    output.write_groups(groups())


@click.command(short_help="List a directory in the store.")
@click.argument("path", metavar="STORE_PATH[/SUB]", type=IN_STORE)
@click.option("-l", "--long", is_flag=True, help="Mode, size in bytes, name, target of a symlink.")
@click.option("-R", "--recursive", is_flag=True, help="What is below, too, by its path from here.")
@click.option("-0", "--null", is_flag=True, help="End names by NUL instead of a newline, and escape nothing.")
@store_options
def ls(store: StoreOptions, path: bytes, long: bool, recursive: bool, null: bool) -> None:
    """List a directory in the store, in the order of the names' bytes.

    Names are written as they are; on a terminal, what is not printable is escaped.

    \b
    Example:
      neve ls -l /nix/store/...-hello/bin
      neve ls -R /nix/store/...-hello
    """
    with store.open() as opened:
        for name, node in list_tree(opened, path, recursive=recursive):
            text = _listed(name, node) if long else name
            if output.to_terminal() and not null:
                text = _escaped(text)
            output.write(text + (b"\0" if null else b"\n"))


def list_tree(store: Store, path: bytes, *, recursive: bool) -> Iterator[tuple[bytes, Node]]:
    """What is in the directory at ``path``, by name, or with ``recursive`` below it, by path from
    there. What is no directory lists itself."""
    from neve.castore.node import DirectoryNode
    from neve.castore.traverse import get_directory

    root = store.existing_node(path)
    if not isinstance(root, DirectoryNode):
        yield path.rstrip(b"/").rpartition(b"/")[2], root
    elif recursive:
        yield from walk_below(store, root)
    else:
        yield from get_directory(store.directories, root.digest)


def walk_below(store: Store, root: Node) -> Iterator[tuple[bytes, Node]]:
    """All nodes below ``root``, depth first, with their paths from there."""
    from neve.castore.node import DirectoryNode
    from neve.castore.traverse import get_directory

    def entries(node: Node) -> Iterator[tuple[bytes, Node]]:
        if isinstance(node, DirectoryNode):
            yield from get_directory(store.directories, node.digest)

    levels = [(b"", entries(root))]
    while levels:
        prefix, level = levels[-1]
        for name, node in level:
            yield prefix + name, node
            if isinstance(node, DirectoryNode):
                levels.append((prefix + name + b"/", entries(node)))
                break
        else:
            levels.pop()


def _listed(name: bytes, node: Node) -> bytes:
    from neve.castore.node import DirectoryNode, SymlinkNode

    if isinstance(node, DirectoryNode):
        return b"dr-xr-xr-x %12s %b" % (b"-", name)
    if isinstance(node, SymlinkNode):
        return b"lrwxrwxrwx %12d %b -> %b" % (len(node.target), name, node.target)
    mode = b"-r-xr-xr-x" if node.executable else b"-r--r--r--"
    return b"%b %12d %b" % (mode, node.size, name)


def _escaped(name: bytes) -> bytes:
    from neve.castore.ingest.filesystem import show_path

    return show_path(name).encode()


@click.command()
@click.argument("paths", metavar="STORE_PATH/FILE...", nargs=-1, required=True, type=IN_STORE)
@store_options
def cat(store: StoreOptions, paths: tuple[bytes, ...]) -> None:
    """Write files of the store to stdout. Symlinks are not followed.

    \b
    Example:
      neve cat /nix/store/...-hello/share/doc/README
    """
    with store.open() as opened:
        for path in paths:
            output.write_groups([piece] for piece in file_contents(opened, path))


def file_contents(store: Store, path: bytes) -> Iterator[bytes]:
    """The contents of a file in pieces. Raises ``Unsupported`` for anything else."""
    from neve.castore.ingest.filesystem import show_path
    from neve.castore.node import SymlinkNode

    node = store.existing_node(path)
    if isinstance(node, SymlinkNode):
        target = show_path(node.target)
        raise Unsupported(f"{show_path(path)} is a symlink, which is not followed; it points to {target}")
    with store.open(path) as reader:
        while piece := reader.read(_PIECE_BYTES):
            yield piece


@click.command(short_help="Write a path of the store to disk.")
@click.argument("path", metavar="STORE_PATH[/SUB]", type=IN_STORE)
@click.argument("destination", metavar="[DEST]", required=False, type=IN_STORE)
@store_options
def export(store: StoreOptions, path: bytes, destination: bytes | None) -> None:
    """Write what is at a path of the store to disk, as DEST.

    DEST must not exist; it appears whole or not at all. Default: the last component of the path,
    in the current folder. Modes are those of the Nix store, every mtime is 1.

    \b
    Example:
      neve export /nix/store/...-hello ./hello
      neve export /nix/store/...-hello/share/man
    """
    from neve.castore.ingest.filesystem import show_path
    from neve.store.export import export_tree

    if destination is None:
        destination = path.rstrip(b"/").rpartition(b"/")[2]
    with store.open() as opened:
        node = opened.existing_node(path)
        with progress_bar(f"exporting {show_path(os.path.basename(destination))}") as progress:
            if is_shown():
                progress.start(contents_size(opened, node))
            with grace(_REMOVAL_SECONDS):
                export_tree(opened.services, node, destination, progress=progress)


def contents_size(store: Store, root: Node) -> int:
    """The bytes of all files of a tree together."""
    from neve.castore.node import FileNode

    nodes = [root] if isinstance(root, FileNode) else (node for _, node in walk_below(store, root))
    return sum(node.size for node in nodes if isinstance(node, FileNode))


@click.command("path-info", short_help="Tell what is stored.")
@click.argument("paths", metavar="[STORE_PATH]...", nargs=-1, type=STORE_PATH)
@click.option("--json", "as_json", is_flag=True, help="A JSON object with everything, one per line.")
@store_options
def path_info(store: StoreOptions, paths: tuple[StorePath, ...], as_json: bool) -> None:
    """Tell about store paths: those given, else all that the store has.

    Writes store path, size of the NAR in bytes and its hash, separated by tabs ('-': not known).

    \b
    Example:
      neve path-info | cut -f 1
      neve path-info --json /nix/store/...-hello
    """
    with store.open() as opened:
        for info in selected_path_infos(opened, paths):
            output.line(json.dumps(path_info_json(info)) if as_json else path_info_line(info))


def selected_path_infos(store: Store, paths: Iterable[StorePath]) -> Iterator[PathInfo]:
    """The path infos of ``paths``, or all if there are none. Raises ``NotFound``."""
    selected = [store.path_info(path) for path in paths]
    yield from selected or store.path_infos


def path_info_line(info: PathInfo) -> str:
    """Store path, NAR size and NAR hash."""
    size, nar_hash = ("-", "-") if info.nar is None else (info.nar.size, _sha256(info.nar.sha256))
    return f"{info.store_path}\t{size}\t{nar_hash}"


def path_info_json(info: PathInfo) -> dict[str, Any]:
    """Everything about a store path; null is what the store does not know."""
    from neve.nix import base32

    nar = info.nar
    if nar is None:
        # Without narinfo, references have no names.
        references = [base32.encode(digest) for digest in info.references]
    else:
        references = [path.absolute for path in nar.reference_names]
    return {
        "path": info.store_path.absolute,
        "narHash": None if nar is None else _sha256(nar.sha256),
        "narSize": None if nar is None else nar.size,
        "references": references,
        "deriver": None if nar is None or nar.deriver is None else nar.deriver.with_drv().absolute,
        "signatures": [] if nar is None else [signature.render() for signature in nar.signatures],
        "ca": None if nar is None or nar.ca is None else nar.ca.render(),
        "node": _node_json(info.node),
    }


def _node_json(node: Node) -> dict[str, Any]:
    from neve.castore.digest import format_digest
    from neve.castore.node import DirectoryNode, SymlinkNode

    if isinstance(node, SymlinkNode):
        # Like everywhere in Python, bytes that are no UTF-8 become lone surrogates.
        return {"type": "symlink", "target": os.fsdecode(node.target)}
    digest = format_digest(node.digest)
    if isinstance(node, DirectoryNode):
        return {"type": "directory", "digest": digest, "size": node.size}
    return {"type": "regular", "digest": digest, "size": node.size, "executable": node.executable}


def _sha256(digest: bytes) -> str:
    from neve.nix.hashes import HashAlgorithm, NixHash

    return NixHash(HashAlgorithm.SHA256, digest).render()


@click.command(short_help="Tell how much is stored, and how much that saves.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object; sizes are in bytes.")
@store_options
def stats(store: StoreOptions, as_json: bool) -> None:
    """Tell how much the store holds, and how much sharing and compression save.

    \b
    Example:
      neve stats
    """
    from neve.store.stats import collect_stats

    with store.open() as opened:
        found = collect_stats(opened.services)
    if as_json:
        output.line(json.dumps(stats_json(found)))
    else:
        rows = stats_rows(found)
        width = max(len(key) for key, _ in rows) + 2
        for key, value in rows:
            output.line(f"{key + ':':{width}}{value}")


def stats_json(found: Stats) -> dict[str, int | float]:
    """The numbers by the names that ``--json`` gives them."""
    return {
        "storePaths": found.store_paths,
        "narBytes": found.nar_bytes,
        "blobs": found.blobs,
        "chunks": found.chunks,
        "directories": found.directories,
        "contentBytes": found.content_bytes,
        "storedBytes": found.stored_bytes,
        "diskBytes": found.disk_bytes,
        "dedupRatio": round(found.dedup_ratio, 4),
        "compressionRatio": round(found.compression_ratio, 4),
    }


def stats_rows(found: Stats) -> list[tuple[str, str]]:
    """The numbers with their names for people."""
    return [
        ("store paths", str(found.store_paths)),
        ("their NARs", shown_bytes(found.nar_bytes)),
        ("blobs", str(found.blobs)),
        ("chunks", str(found.chunks)),
        ("directories", str(found.directories)),
        ("contents", shown_bytes(found.content_bytes)),
        ("compressed", shown_bytes(found.stored_bytes)),
        ("on disk", shown_bytes(found.disk_bytes)),
        ("dedup ratio", f"{found.dedup_ratio:.2f}"),
        ("compression ratio", f"{found.compression_ratio:.2f}"),
    ]
