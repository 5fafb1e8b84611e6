"""Imports: whatever a user has (a path on disk, a tar archive, a NAR) to a registered store path.

Everything is read once: the tree's events go to the ingester and, in other threads, to the hashers
that the store path needs. Only when all contents are durable is the path info put.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from neve.castore.ingest.entries import Ingester
from neve.castore.ingest.exclude import Exclude
from neve.castore.ingest.filesystem import FilesystemWalk, show_path
from neve.castore.ingest.stampwalk import stamp_tree
from neve.castore.ingest.statcache import StatCache, TreeStamp
from neve.castore.node import Node
from neve.errors import InvalidRequest, NeveError, NotFound
from neve.nix.hashes import CAHash, CAMethod, HashAlgorithm, NixHash
from neve.nix.nar.writer import NarHasher
from neve.nix.store_path import StorePath, check_name, content_addressed_path
from neve.store.nar.ingest import ingest_nar
from neve.store.nar_nodes import Nar
from neve.store.path_info import NarDetails, PathInfo, sorted_references
from neve.store.pipeline import SinkThread, close_batches, feed_all
from neve.store.scanning import ReferenceScan
from neve.store.services import Services
from neve.store.wire import decode_node, encode_node
from neve.telemetry import NO_PROGRESS, Progress, span
from neve.tree import Batches, BeginFile, Data, EnterDirectory, Event, File, Sink, Symlink


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
    scan_for: Sequence[StorePath] | None = None
    """Store paths of which those that the contents mention become references. Not with ``FLAT``, whose
    store paths have none."""
    stat_cache: StatCache | None = None
    """Only used by ``NAR``, and not together with ``scan_for``: it knows nothing of references."""


def store_name(path: bytes) -> str:
    """The name of a store path for ``path``: its last component, after a lexical clean-up.

    Raises ``InvalidRequest`` if there is none (the path ends in ``..``, or is ``/``), if it is no
    UTF-8, or if no store path can have it.
    """
    if not path:
        raise InvalidRequest("the path to import is empty")
    components: list[bytes] = []
    for component in path.split(b"/"):
        if component == b".." and components and components[-1] != b"..":
            components.pop()
        elif component == b".." and path.startswith(b"/"):
            continue
        elif component not in (b"", b"."):
            components.append(component)
    if not components and not path.startswith(b"/"):
        components = [os.path.basename(_absolute(path))]
    if not components or _last(path) == b"..":
        raise InvalidRequest(f"{show_path(path)} has no name of its own; give one with --name")
    try:
        name = components[-1].decode()
        check_name(name, strict=True)
    except (UnicodeDecodeError, InvalidRequest) as error:
        reason = "is no UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        raise InvalidRequest(f"{show_path(path)}: {reason}; give a name with --name") from error
    return name


def _absolute(path: bytes) -> bytes:
    try:
        return os.path.abspath(path)
    except OSError as error:
        raise NotFound(f"the working directory does not exist: {error.strerror}") from error


def _last(path: bytes) -> bytes | None:
    """The last component of ``path`` that names something."""
    return next((part for part in reversed(path.split(b"/")) if part not in (b"", b".")), None)


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
    try:
        raw = os.fsencode(path)
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"path {path!r} stands for no bytes: {error}") from error
    if options.name is not None:
        check_name(options.name, strict=True)
    name = options.name if options.name is not None else store_name(raw)
    usable = options.method is CAMethod.NAR and options.scan_for is None
    cache = options.stat_cache if usable else None
    if cache is None:
        walk = FilesystemWalk(raw, exclude=options.exclude)
        return import_events(services, _reporting(walk, progress), name, options)
    known = _unchanged(services, raw, name, options, cache)
    if known is not None:
        return known
    stamp = TreeStamp()
    walk = FilesystemWalk(raw, exclude=options.exclude, stamp=stamp)
    path_info = import_events(services, _reporting(walk, progress), name, options)
    cache.put(_absolute(raw), stamp, _remember(path_info))
    return path_info


def _reporting(walk: FilesystemWalk, progress: Progress) -> Batches:
    reported = 0
    for batch in walk:
        progress.advance(walk.bytes_read - reported, show_path(walk.current))
        reported = walk.bytes_read
        yield batch


def _contents_bytes(batch: Sequence[Event]) -> int:
    size = sum(len(e.contents) for e in batch if type(e) is File)
    return size + sum(len(e.data) for e in batch if type(e) is Data)


def import_archive(
    services: Services, stream: BinaryIO, name: str, *, progress: Progress = NO_PROGRESS
) -> PathInfo:
    """Imports a tar archive (plain, gz, bz2, xz, zst), whose root becomes the store path."""
    from neve.castore.ingest.archive import archive_events

    check_name(name, strict=True)

    def reported() -> Batches:
        for batch in archive_events(stream):
            progress.advance(_contents_bytes(batch))
            yield batch

    return import_events(services, reported(), name, ImportOptions())


def import_events(services: Services, batches: Batches, name: str, options: ImportOptions) -> PathInfo:
    """Imports a tree that comes as events."""
    if options.references and options.method is not CAMethod.TEXT:
        raise InvalidRequest("references can only be given for a text")
    if options.scan_for is not None and options.method is CAMethod.FLAT:
        raise InvalidRequest("a flat import has no references to scan for")
    flat = None if options.method is CAMethod.NAR else FlatHasher()
    scan = None if options.scan_for is None else ReferenceScan(options.scan_for)
    source = batches if flat is None else _not_executable(batches, name)

    def described(nar: Nar) -> tuple[StorePath, CAHash, Sequence[StorePath]]:
        digest = nar.sha256 if flat is None else flat.result()
        ca = CAHash.of(options.method, NixHash(HashAlgorithm.SHA256, digest))
        references = [*options.references, *(() if scan is None else scan.found())]
        return content_addressed_path(name, ca, references), ca, references

    with services.one_commit():
        # The name is checked against its use before anything becomes visible.
        node, nar = ingest_events(
            services,
            source,
            *([] if flat is None else [flat]),
            check=described,
            watch=None if scan is None else scan.feed,
        )
        store_path, ca, references = described(nar)
        return _register(services, store_path, node, nar, ca=ca, references=references)


def ingest_events(
    services: Services,
    batches: Batches,
    *sinks: Sink,
    check: Callable[[Nar], object],
    watch: Callable[[bytes], object] | None = None,
) -> tuple[Node, Nar]:
    """Stores a tree that comes as events; returns its root node and its NAR's size and hash.

    ``sinks`` see the events, too, and ``watch`` the bytes of the NAR. When all have seen everything,
    ``check`` is called; what it raises ends the import before anything is visible.
    """
    hasher = NarHasher(watch)
    with (
        Ingester(services.blobs, services.directories, size_rule=services.size_rule) as ingester,
        contextlib.ExitStack() as threads,
    ):
        feeding: Sequence[Sink] = (ingester, hasher, *sinks)
        feed_all(batches, *[threads.enter_context(SinkThread(sink, _stage_name(sink))) for sink in feeding])
        nar = Nar(*hasher.result())
        check(nar)
        with span("import.finish"):
            return ingester.finish(), nar


def _stage_name(sink: Sink) -> str:
    return {Ingester: "store", NarHasher: "hash"}.get(type(sink), "hash-flat")


def import_nar(
    services: Services,
    pieces: Iterable[bytes],
    *,
    name: str | None = None,
    store_path: StorePath | None = None,
    references: Sequence[StorePath] = (),
    deriver: StorePath | None = None,
    scan_for: Iterable[StorePath] | None = None,
) -> PathInfo:
    """Imports a NAR. With ``store_path`` it is input-addressed and registered as that path; else
    ``name`` is needed and the path is computed from the contents (``fixed:r:sha256``).

    Those of ``scan_for`` that it mentions become references, beside ``references``; so does ``store_path``.
    """
    if (name is None) == (store_path is None):
        raise InvalidRequest("a NAR needs either a store path or a name")
    if name is not None:
        check_name(name, strict=True)
    if scan_for is not None:
        scan = ReferenceScan([*([] if store_path is None else [store_path]), *scan_for])
        pieces = scan.passed(pieces)
    with services.one_commit():
        node, nar = ingest_nar(pieces, services.blobs, services.directories, size_rule=services.size_rule)
        if scan_for is not None:
            references = [*references, *scan.found()]
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
    with span("import.register"):
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


def _not_executable(batches: Batches, name: str) -> Batches:
    """The events of a single file, without its executable bit. ``InvalidRequest`` for anything else."""
    try:
        for batch in batches:
            for event in batch:
                if isinstance(event, Symlink | EnterDirectory):
                    kind = "a symlink" if isinstance(event, Symlink) else "a directory"
                    raise InvalidRequest(
                        f"{name} is {kind}; only a single file can be imported flat or as text"
                    )
            yield [
                event._replace(executable=False) if isinstance(event, File | BeginFile) else event
                for event in batch
            ]
    finally:
        close_batches(batches)


def _remember(path_info: PathInfo) -> Any:
    assert path_info.nar is not None
    return {
        "node": encode_node(path_info.node).hex(),
        "size": path_info.nar.size,
        "sha256": path_info.nar.sha256.hex(),
    }


def _unchanged(
    services: Services, path: bytes, name: str, options: ImportOptions, cache: StatCache
) -> PathInfo | None:
    """The path info of an earlier import of the same tree, if the store still has it."""
    try:
        result = cache.get(_absolute(path), stamp_tree(path, exclude=options.exclude))
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
