"""Copying the closure that Nix describes from a local Nix store.

Contents are taken in by several threads, in any order that keeps them busy. Registering a path is another
step: it waits until all that the path refers to is registered. So whoever sees a path finds what it needs,
also when the copy is killed in the middle, and the next one goes on where it was.
"""

from __future__ import annotations

import contextlib
import graphlib
import os
import queue
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from neve.castore.at_once import CallsAtOnce
from neve.castore.ingest.filesystem import FilesystemWalk
from neve.errors import (
    Conflict,
    InvalidRequest,
    NeveError,
    PermissionDenied,
    Unavailable,
    Unsupported,
)
from neve.nix.export_graph import ExportedPath
from neve.nix.store_path import STORE_DIR, StorePath
from neve.store.closures import (
    Graph,
    check_content_address,
    dependencies,
    inverted,
    path_info_of,
    sorted_paths,
)
from neve.store.importer import ingest_events
from neve.store.nar.ingest import expect_nar
from neve.store.nar_nodes import Nar
from neve.store.path_info import PathDescription, PathInfo
from neve.store.pipeline import close_batches
from neve.store.services import Services
from neve.telemetry import NO_PROGRESS, Progress, carried, span
from neve.tree import Batches

_READERS = 4
"""Paths whose contents are taken in at once: each waits for the disk now and then. More of them gain nothing
(1, 2, 4 and 8 copied 300 paths in 3.2, 3.0, 2.0 and 2.0 s) and cost about 30 MiB each, 50 into a daemon."""

_REGISTRARS = 8
"""Registering is waiting for the disk or the server, and those who wait together share a sync."""

_TICK_SECONDS = 0.1
"""How often progress is told while nothing else happens."""

_CONCERNS_ALL = (Unavailable, PermissionDenied, Unsupported)
"""What the store raises if it will not take the next path either."""

_Known = PathInfo | PathDescription


class UncopiedPath(InvalidRequest):
    """A path on disk cannot be read, or is not what was described. The message names it."""


class _NotNeededError(NeveError):
    """Ends taking in what nobody waits for any more."""


@dataclass
class CopyReport:
    """What became of the paths of a closure."""

    copied: int = 0
    present: int = 0
    """Paths that were stored before."""
    failures: dict[StorePath, NeveError] = field(default_factory=dict)
    left_out: list[StorePath] = field(default_factory=list)
    """Paths that were not copied because they depend on one that failed."""


def copy_closure(
    services: Services,
    entries: Sequence[ExportedPath],
    root: bytes = b"/",
    *,
    registered: Callable[[StorePath], None] = lambda _: None,
    progress: Progress = NO_PROGRESS,
) -> CopyReport:
    """Copies ``entries`` from the Nix store whose ``/nix/store`` is below the folder ``root``.

    ``registered`` is told each path that is stored (also if it was before) after all that it refers to, in
    this thread. A path that fails (unreadable, another NAR than described, another one stored) keeps those
    from being copied that depend on it, no others. Raises ``InvalidRequest``, before anything is copied, if
    references form a cycle or lead to what is neither listed nor stored, and what the store raises if
    that concerns all paths.
    """
    graph = dependencies(entries)
    order = sorted_paths(graph)
    _check_references(services, entries)
    stored = _look_up(services, order)
    return _Copy(services, entries, root, registered, progress).run(graph, order, stored)


def _look_up(services: Services, paths: Iterable[StorePath]) -> dict[StorePath, _Known]:
    """What the store knows under the digest of each path. Several calls at once: each may have to travel."""
    paths = tuple(paths)
    calls = CallsAtOnce()
    try:
        found = calls.map(services.path_infos.describe, (path.digest for path in paths))
        return {path: known for path, known in zip(paths, found, strict=True) if known is not None}
    finally:
        calls.close()


def _check_references(services: Services, entries: Sequence[ExportedPath]) -> None:
    """Raises ``InvalidRequest`` for a reference that is neither listed nor stored."""
    listed = {entry.path for entry in entries}
    referrers = {path: entry.path for entry in entries for path in entry.references if path not in listed}
    known = _look_up(services, referrers)
    for path, referrer in referrers.items():
        if path not in known or known[path].store_path != path:
            raise InvalidRequest(f"{referrer} refers to {path}, which is neither listed nor in the store")


def _difference(entry: ExportedPath, found: _Known) -> Conflict | None:
    """The error if the store has something else than what is to be copied."""
    if found.store_path != entry.path:
        return Conflict(f"{entry.path}: the store has {found.store_path} with the same digest")
    if isinstance(found, PathDescription) or found.nar is None:
        return None
    if (found.nar.size, found.nar.sha256) != (entry.nar_size, entry.nar_sha256):
        return Conflict(f"{entry.path} is already in the store, with another NAR hash or size")
    return None


def _with_new_signatures(entry: ExportedPath, found: PathInfo) -> PathInfo | None:
    """What is stored together with the signatures of ``entry``, if it has others."""
    signed = found.with_signatures(entry.signatures)
    return None if signed is found else signed


class _Copy:
    """One copy.

    All state belongs to the thread that runs it. The other threads take in and register; what follows
    from that, they put into ``_events``, one for each task.
    """

    def __init__(
        self,
        services: Services,
        entries: Iterable[ExportedPath],
        root: bytes,
        registered: Callable[[StorePath], None],
        progress: Progress,
    ) -> None:
        self._services = services
        self._entries = {entry.path: entry for entry in entries}
        self._folder = root.rstrip(b"/") + os.fsencode(STORE_DIR)
        self._registered = registered
        self._progress = _SharedProgress(progress)
        self._report = CopyReport()
        self._events: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._running = 0
        self._stop = threading.Event()
        self._waiting: dict[StorePath, PathInfo | None] = {}
        """Taken in, but something that it refers to is not registered yet. None: stored before."""
        self._present: set[StorePath] = set()
        self._ready: set[StorePath] = set()
        """What it refers to is registered, but it is not taken in yet."""
        self._doomed: set[StorePath] = set()
        """Depends on what failed. Other threads look at it, too."""

    def run(self, graph: Graph, order: Sequence[StorePath], stored: Mapping[StorePath, _Known]) -> CopyReport:
        self._referrers = inverted(graph)
        self._sorter = graphlib.TopologicalSorter(graph)
        self._sorter.prepare()
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="neve-copy")
        self._registrars = ThreadPoolExecutor(_REGISTRARS, thread_name_prefix="neve-register")
        try:
            self._begin(order, stored)
            self._register_ready()
            while self._running:
                self._progress.show()
                with contextlib.suppress(queue.Empty):
                    event = self._events.get(timeout=_TICK_SECONDS)
                    self._running -= 1
                    event()
            self._progress.show()
        finally:
            self._stop.set()
            self._readers.shutdown(cancel_futures=True)
            self._registrars.shutdown(cancel_futures=True)
        settled = self._present | self._report.failures.keys()
        self._report.left_out = [path for path in order if path in self._doomed and path not in settled]
        return self._report

    def _begin(self, order: Sequence[StorePath], stored: Mapping[StorePath, _Known]) -> None:
        """Starts taking in what is not stored; whether what is stored is the same, shows at once."""
        missing = []
        for path in order:
            entry, found = self._entries[path], stored.get(path)
            error = None if found is None else _difference(entry, found)
            if error is not None:
                self._failed(path, error)
            elif isinstance(found, PathInfo) and found.nar is not None:
                self._present.add(path)
                self._waiting[path] = _with_new_signatures(entry, found)
            else:
                # What is only described, another cache could give: it is not stored.
                missing.append(entry)
        self._progress.start(sum(entry.nar_size for entry in missing))
        for entry in missing:
            self._start(self._readers, entry.path, partial(self._take_in, entry), self._came_in)

    def _start(
        self,
        pool: ThreadPoolExecutor,
        path: StorePath,
        work: Callable[[], PathInfo],
        then: Callable[[PathInfo], None],
    ) -> None:
        """Has ``work`` done by a thread and what follows by this one."""

        def run() -> None:
            event: Callable[[], None]
            try:
                event = partial(then, work())
            except BaseException as error:
                event = partial(self._failed, path, error)
            self._events.put(event)

        self._running += 1
        pool.submit(carried(run))

    def _came_in(self, path_info: PathInfo) -> None:
        path = path_info.store_path
        if path in self._ready:
            self._ready.remove(path)
            self._register(path, path_info)
        else:
            self._waiting[path] = path_info

    def _register_ready(self) -> None:
        """Registers what refers to nothing any more that is not registered."""
        while ready := self._sorter.get_ready():
            for path in ready:
                if path in self._waiting:
                    self._register(path, self._waiting.pop(path))
                else:
                    self._ready.add(path)

    def _register(self, path: StorePath, path_info: PathInfo | None) -> None:
        if path_info is None:
            self._done(path)
        else:
            put = partial(self._services.path_infos.put, path_info)
            self._start(self._registrars, path, put, partial(self._put, path))

    def _put(self, path: StorePath, _: PathInfo) -> None:
        self._done(path)
        self._register_ready()

    def _done(self, path: StorePath) -> None:
        if path in self._present:
            self._report.present += 1
        else:
            self._report.copied += 1
        self._registered(path)
        self._sorter.done(path)

    def _failed(self, path: StorePath, error: BaseException) -> None:
        if isinstance(error, _NotNeededError):
            return
        if not isinstance(error, NeveError) or isinstance(error, _CONCERNS_ALL):
            raise error
        self._report.failures[path] = error
        pending = [path]
        while pending:
            for referrer in self._referrers.get(pending.pop(), ()):
                if referrer not in self._doomed:
                    self._doomed.add(referrer)
                    pending.append(referrer)

    # In threads of its own.

    def _take_in(self, entry: ExportedPath) -> PathInfo:
        """Stores the contents of a path; what is to be registered then."""
        with span("copy.path", {"neve.path": entry.path.base_name, "neve.nar_size": entry.nar_size}):
            return self._taken_in(entry)

    def _taken_in(self, entry: ExportedPath) -> PathInfo:
        expected = Nar(entry.nar_size, entry.nar_sha256)
        try:
            check_content_address(entry)
            with self._services.one_commit():
                node, nar = ingest_events(
                    self._services, self._batches(entry), check=lambda nar: expect_nar(nar, expected)
                )
                self._services.nar_nodes.put(node, nar)
        except (UncopiedPath, _NotNeededError, *_CONCERNS_ALL):
            raise
        except NeveError as error:
            raise UncopiedPath(f"{entry.path}: {error}") from error
        return path_info_of(entry, node)

    def _batches(self, entry: ExportedPath) -> Batches:
        walk = FilesystemWalk(self._folder + b"/" + os.fsencode(entry.path.base_name))
        batches = iter(walk)
        reported = 0
        try:
            while True:
                if self._stop.is_set() or entry.path in self._doomed:
                    raise _NotNeededError(f"{entry.path} is not needed any more")
                try:
                    batch = next(batches, None)
                except NeveError as error:
                    raise UncopiedPath(str(error)) from error
                if batch is None:
                    break
                self._progress.add(walk.bytes_read - reported, entry.path.name)
                reported = walk.bytes_read
                yield batch
        finally:
            close_batches(batches)
        # What a NAR has beside contents, so that the sum comes out right.
        self._progress.add(entry.nar_size - reported, entry.path.name)


class _SharedProgress:
    """Progress that several threads make and one tells."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._lock = threading.Lock()
        self._added, self._current = 0, ""

    def start(self, total: int) -> None:
        self._progress.start(total)

    def add(self, amount: int, current: str) -> None:
        with self._lock:
            self._added += amount
            self._current = current

    def show(self) -> None:
        with self._lock:
            added, self._added = self._added, 0
        self._progress.advance(added, self._current)
