"""Imports: whatever a user has (a path on disk, a tar archive, a NAR) to a registered store path.

Everything is read once: the tree's events go to the ingester and, in other threads, to the hashers
that the store path needs. Only when all contents are durable is the path info put.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from neve.castore.ingest.archive import archive_events
from neve.castore.ingest.entries import Ingester
from neve.castore.ingest.filesystem import Exclude, FilesystemWalk, show_path, stamp_tree
from neve.castore.ingest.statcache import StatCache, TreeStamp
from neve.castore.node import Node
from neve.errors import InvalidRequest, NeveError
from neve.nix.hashes import CAHash, CAMethod, HashAlgorithm, NixHash
from neve.nix.nar.writer import NarHasher
from neve.nix.store_path import StorePath, check_name, content_addressed_path
from neve.store.nar.ingest import ingest_nar
from neve.store.nar_nodes import Nar
from neve.store.path_info import NarDetails, PathInfo, sorted_references
from neve.store.pipeline import SinkThread, feed_all
from neve.store.services import Services
from neve.store.wire import decode_node, encode_node
from neve.telemetry import NO_PROGRESS, Progress
from neve.tree import Batches, BeginFile, Data, Event, File


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """How a path is imported. The default is what ``nix store add-path`` does."""

    name: str | None = None
    """The store path's name; default: the last component of the path."""
    exclude: Exclude | None = None
    method: CAMethod = CAMethod.NAR
    """``FLAT`` and ``TEXT`` take a single file, whose executable bit they drop."""
    references: Sequence[StorePath] = ()
    """Only with ``TEXT``."""
    stat_cache: StatCache | None = None


def store_name(path: bytes) -> str:
    """The name of a store path for ``path``: its last component, after a lexical clean-up.

    Raises ``InvalidRequest`` if there is none, if it is no UTF-8, or if no store path can have it.
    """
    components: list[bytes] = []
    for component in path.split(b"/"):
        if component == b".." and components and components[-1] != b"..":
            components.pop()
        elif component == b".." and path.startswith(b"/"):
            continue
        elif component not in (b"", b"."):
            components.append(component)
    if not components and not path.startswith(b"/"):
        components = [os.fsencode(Path.cwd().name)]
    if not components or components[-1] in (b"", b".."):
        raise InvalidRequest(f"{show_path(path)} has no name of its own; give one with --name")
    try:
        name = components[-1].decode()
        check_name(name, strict=True)
    except (UnicodeDecodeError, InvalidRequest) as error:
        reason = "is no UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        raise InvalidRequest(f"{show_path(path)}: {reason}; give a name with --name") from error
    return name


def import_path(
    services: Services,
    path: str | bytes | os.PathLike[str],
    options: ImportOptions | None = None,
    *,
    progress: Progress = NO_PROGRESS,
) -> PathInfo:
    """Imports a file, folder or symlink (itself) from disk; returns what is registered.

    Raises ``InvalidRequest`` (something that is none of the three, a name that makes no store path,
    a tree that changes while it is read), ``NotFound``, ``PermissionDenied`` and what the services
    raise; then nothing is registered.
    """
    options = options or ImportOptions()
    raw = os.fsencode(path)
    if options.name is not None:
        check_name(options.name, strict=True)
    name = options.name if options.name is not None else store_name(raw)
    if options.stat_cache is not None:
        known = _unchanged(services, raw, name, options)
        if known is not None:
            return known
    stamp = TreeStamp() if options.stat_cache is not None else None
    walk = FilesystemWalk(raw, exclude=options.exclude, stamp=stamp)
    path_info = import_events(services, _reporting(walk, progress), name, options)
    if options.stat_cache is not None and stamp is not None:
        options.stat_cache.put(_cache_key(raw, options), stamp, _remember(path_info))
    return path_info


def _reporting(walk: FilesystemWalk, progress: Progress) -> Batches:
    for batch in walk:
        size = sum(len(e.contents) for e in batch if type(e) is File)
        size += sum(len(e.data) for e in batch if type(e) is Data)
        progress.advance(size, show_path(walk.current))
        yield batch


def import_archive(
    services: Services, stream: BinaryIO, name: str, *, progress: Progress = NO_PROGRESS
) -> PathInfo:
    """Imports a tar archive (plain, gz, bz2, xz, zst), whose root becomes the store path."""
    check_name(name, strict=True)

    def reported() -> Batches:
        for batch in archive_events(stream):
            progress.advance(sum(len(e.contents) for e in batch if type(e) is File))
            yield batch

    return import_events(services, reported(), name, ImportOptions())


def import_events(services: Services, batches: Batches, name: str, options: ImportOptions) -> PathInfo:
    """Imports a tree that comes as events."""
    if options.references and options.method is not CAMethod.TEXT:
        raise InvalidRequest("references can only be given for a text")
    flat = None if options.method is CAMethod.NAR else FlatHasher()
    source = batches if flat is None else _not_executable(batches)
    hasher = NarHasher()
    with (
        Ingester(services.blobs, services.directories, size_rule=services.size_rule) as ingester,
        SinkThread(hasher, "neve-nar-hash") as nar_thread,
    ):
        others = [nar_thread]
        if flat is None:
            feed_all(source, ingester, *others)
        else:
            with SinkThread(flat, "neve-flat-hash") as flat_thread:
                feed_all(source, ingester, *others, flat_thread)
        nar = Nar(*hasher.result())
        digest = nar.sha256 if flat is None else flat.result()
        ca = CAHash.of(options.method, NixHash(HashAlgorithm.SHA256, digest))
        # The name is checked against its use before anything becomes visible.
        store_path = content_addressed_path(name, ca, options.references)
        node = ingester.finish()
    return _register(services, store_path, node, nar, ca=ca, references=options.references)


def import_nar(
    services: Services,
    pieces: Iterable[bytes],
    *,
    name: str | None = None,
    store_path: StorePath | None = None,
    references: Sequence[StorePath] = (),
    deriver: StorePath | None = None,
) -> PathInfo:
    """Imports a NAR. With ``store_path`` it is input-addressed and registered as that path; else
    ``name`` is needed and the path is computed from the contents (``fixed:r:sha256``)."""
    if (name is None) == (store_path is None):
        raise InvalidRequest("a NAR needs either a store path or a name")
    if name is not None:
        check_name(name, strict=True)
    node, nar = ingest_nar(pieces, services.blobs, services.directories, size_rule=services.size_rule)
    ca = None
    if store_path is None:
        assert name is not None
        ca = CAHash.of(CAMethod.NAR, NixHash(HashAlgorithm.SHA256, nar.sha256))
        store_path = content_addressed_path(name, ca, references)
    return _register(services, store_path, node, nar, ca=ca, references=references, deriver=deriver)


def _register(
    services: Services,
    store_path: StorePath,
    node: Node,
    nar: Nar,
    *,
    ca: CAHash | None,
    references: Sequence[StorePath],
    deriver: StorePath | None = None,
) -> PathInfo:
    paths = sorted_references(references)
    details = NarDetails(size=nar.size, sha256=nar.sha256, reference_names=paths, deriver=deriver, ca=ca)
    services.nar_nodes.put(node, nar)
    path_info = PathInfo(store_path, node, tuple(path.digest for path in paths), details)
    return services.path_infos.put(path_info)


class FlatHasher:
    """A sink that computes the sha256 of a single file's contents, and takes nothing but a file."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def feed(self, events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event, File):
                self._hash.update(event.contents)
            elif isinstance(event, Data):
                self._hash.update(event.data)

    def result(self) -> bytes:
        return self._hash.digest()


def _not_executable(batches: Batches) -> Batches:
    """The events of a single file, without its executable bit."""
    for batch in batches:
        if batch and not isinstance(batch[0], File | BeginFile | Data) and len(batch) > 1:
            raise InvalidRequest("only a single file can be imported flat or as text")
        yield [
            event._replace(executable=False) if isinstance(event, File | BeginFile) else event
            for event in batch
        ]


def _cache_key(path: bytes, options: ImportOptions) -> bytes:
    return os.path.abspath(path) + b"\0" + options.method.name.encode()


def _remember(path_info: PathInfo) -> Any:
    assert path_info.nar is not None
    return {
        "node": encode_node(path_info.node).hex(),
        "size": path_info.nar.size,
        "sha256": path_info.nar.sha256.hex(),
    }


def _unchanged(services: Services, path: bytes, name: str, options: ImportOptions) -> PathInfo | None:
    """The path info of an earlier import of the same tree, if the store still has it."""
    assert options.stat_cache is not None
    if options.method is not CAMethod.NAR:
        return None
    try:
        result = options.stat_cache.get(_cache_key(path, options), stamp_tree(path, exclude=options.exclude))
        if result is None:
            return None
        node = decode_node(bytes.fromhex(result["node"]))[1]
        sha256 = bytes.fromhex(result["sha256"])
        ca = CAHash.of(CAMethod.NAR, NixHash(HashAlgorithm.SHA256, sha256))
        stored = services.path_infos.get(content_addressed_path(name, ca).digest)
    except (NeveError, KeyError, ValueError, TypeError):
        return None  # the import itself will say what is wrong, if something is
    if stored is None or stored.node != node or stored.nar is None or stored.nar.sha256 != sha256:
        return None
    return stored
