"""A collection of a store whose services lie in several places.

Marked is what the path infos reach, and what is fresh; what is not, and is old, goes as its listing comes by,
a page at a time: Directories first, then blobs, then chunks. What is a blob may be a chunk of another one,
too: none of that goes before the chunks of all blobs that stay are marked. What becomes fresh meanwhile is
spared, each by itself (``parts``). Unlike in one embedded store, a Directory that nothing reaches may for a
while, or after a crash, refer to what is gone already: nobody counts on it without asking for all that it
needs.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path

from neve.castore.at_once import CallsAtOnce
from neve.castore.digest import Digest, format_digest
from neve.castore.node import DirectoryNode
from neve.errors import Corrupt, NeveError, NotFound, Unsupported
from neve.packstore.check import pack_bytes
from neve.packstore.compaction import compact
from neve.packstore.survey import survey
from neve.store.gc.digest_set import DigestSet
from neve.store.gc.mark import Marker
from neve.store.gc.parts import PAGE, Item, Part, Parts
from neve.store.gc.paths import Paths, check_there
from neve.store.gc.report import GcReport
from neve.store.gc.rules import Rules
from neve.store.path_info import PathInfo
from neve.store.services import Services
from neve.telemetry import NO_PROGRESS, Progress, span

_AHEAD = 4
"""Closures that are asked for at once, where each comes as a whole."""


def collect_mixed(services: Services, rules: Rules, progress: Progress = NO_PROGRESS) -> GcReport:
    """Like ``collect_garbage``. Raises ``Unsupported`` for services or rules with which it cannot be done."""
    if rules.only_pinned or rules.keeps_others:
        raise Unsupported(
            "pins, times of use and sizes are known of an embedded store in one folder only; say which paths "
            "are to stay with --keep or --keep-from"
        )
    with contextlib.ExitStack() as held:
        parts = Parts(services.blobs, services.directories, services.path_infos, rules, held)
        run = _Run(services, parts, rules, progress, _spool_folder(parts))
        with contextlib.closing(run):
            return run.run()


def _spool_folder(parts: Parts) -> Path:
    """Where what is marked is kept: beside the first embedded store, or where the system has such files."""
    packs = [use.packs for use in parts.uses.values()]
    return packs[0].temporary_folder() if packs else Path(tempfile.gettempdir())


class _Run:
    """One collection."""

    def __init__(
        self, services: Services, parts: Parts, rules: Rules, progress: Progress, folder: Path
    ) -> None:
        self._services = services
        self._parts = parts
        self._rules = rules
        self._progress = progress
        self.marker = Marker(self._directories, folder=folder)
        self._calls = CallsAtOnce()
        self._report = GcReport(dry_run=rules.dry_run)

    def close(self) -> None:
        self._calls.close()
        self.marker.close()

    def run(self) -> GcReport:
        report, packs = self._report, [use.packs for use in self._parts.uses.values()]
        report.pack_bytes = sum(pack_bytes(one.path) for one in packs)
        try:
            with span("gc.mark"):
                dropped = self._mark()
        except Corrupt as error:
            raise Corrupt(f"{error}; nothing was dropped, for it may be needed: run neve verify") from error
        with span("gc.sweep"):
            self._progress.start(None)
            if dropped and not self._rules.dry_run:
                dropped = self._drop_paths(dropped)
            if not self._rules.dry_run:
                # Whoever has put one meanwhile need not have asked for all that it needs.
                for page in self._path_infos():
                    self._mark_nodes(page)
            report.paths_dropped = len(dropped)
            marked = self.marker
            report.directories_dropped = self._sweep(self._parts.directories, marked.directories)
            report.blobs_dropped = self._sweep(self._parts.blobs, marked.contents, of_blobs=True)
            for chunks in self._chunks_of(self._parts.blobs.late()):
                marked.mark_contents(chunks)
            if self._parts.whole_blobs is not None:
                report.blobs_dropped += self._sweep(self._parts.whole_blobs, marked.contents)
            report.chunks_dropped = self._sweep(self._parts.chunks, marked.contents)
        report.missing = self.marker.missing
        with span("gc.compact"):
            self._give_back()
        return report

    # Marking.

    def _mark(self) -> list[bytes]:
        """Marks all that stays; returns the paths that are to be dropped."""
        self._progress.start(None)
        paths = Paths(self._path_infos())
        kept = set(paths.references)
        if self._rules.drops_paths:
            kept = self._chosen(paths)
        if not paths.references:
            raise NotFound("there is no store path, so nothing would stay: are these services of one store?")
        for page in self._path_infos():
            self._mark_nodes([info for info in page if info.digest in kept])
        self._report.paths_kept = len(kept)
        if missing := self.marker.missing:
            raise NotFound(
                f"{missing} of the Directories that store paths refer to are not there, so it is not known "
                "what is needed, and nothing was dropped: do these services belong together? Run neve verify"
            )
        reached = self.marker.count
        # Else all would become fresh again, by being looked at; then each has to be fresh by itself.
        if not (self._parts.directories.reads_freshen and self._services.directories.looks_up_children):
            for directories in self._parts.directories.fresh():
                for some in _portions(directories):
                    self._mark_directories(some)
        self._report.fresh = self.marker.count - reached
        # Some of it is about to be stored, and nothing is missing where it is not there yet.
        self.marker.missing = 0
        return [digest for digest in paths.references if digest not in kept]

    def _chosen(self, paths: Paths) -> set[bytes]:
        """What the rules keep, and what was put not long ago, with all that those refer to."""
        named = {path.digest: path for path in self._rules.keep or ()}
        there = {info.store_path for page in self._path_infos() for info in page if info.digest in named}
        absent = [path for path in named.values() if path not in there]
        check_there(absent, self._rules)
        kept: set[bytes] = set()
        assert self._parts.paths is not None
        fresh = chain.from_iterable(self._parts.paths.fresh())
        paths.closure([*(path.digest for path in there), *fresh], kept)
        return kept

    def _path_infos(self) -> Iterable[Sequence[PathInfo]]:
        after = b""
        while page := self._services.path_infos.list(after, PAGE):
            yield page
            after = page[-1].digest

    def _mark_nodes(self, infos: Sequence[PathInfo]) -> None:
        nodes = [info.node for info in infos]
        self.marker.mark([node for node in nodes if not isinstance(node, DirectoryNode)])
        self._mark_directories([node.digest for node in nodes if isinstance(node, DirectoryNode)])

    def _mark_directories(self, digests: Sequence[Digest]) -> None:
        if self._services.directories.looks_up_children:
            self.marker.mark_directories(digests, self._progress)
            return
        digests = [digest for digest in digests if digest not in self.marker.directories]
        for number, digest in enumerate(digests):
            if number % _AHEAD == 0:
                ahead = digests[number : number + _AHEAD]
                for _ in self._calls.map(self._services.directories.read_ahead, ahead):
                    pass  # Each is waited for, but all are on their way.
            self._progress.advance(0)
            encoded = self._services.directories.get_recursive_encoded(digest)
            self.marker.mark_closure(digest, encoded)

    def _directories(self, digests: Sequence[Digest]) -> Mapping[Digest, bytes]:
        found = self._services.directories.get_many(digests)
        return {digest: directory.encode() for digest, directory in found.items()}

    # Dropping.

    def _drop_paths(self, condemned: Sequence[bytes]) -> list[bytes]:
        """Those that are gone. What was put since all were looked at stays, with all that it refers to."""
        part, service = self._parts.paths, self._services.path_infos
        assert part is not None
        paths = Paths(self._path_infos())
        with part.undisturbed():
            fresh = set(chain.from_iterable(part.fresh()))
            paths.add([info for d in fresh - paths.references.keys() if (info := service.get(d)) is not None])
            kept: set[bytes] = set()
            paths.closure({*paths.references}.difference(condemned) | fresh, kept)
            gone = [digest for digest in condemned if digest not in kept]
            for some in _portions(gone):
                # Of an embedded store all is told to be fresh by now.
                part.delete(some) if part.reads_freshen else service.delete_many(some)
                self._progress.advance(0)
        return gone

    def _sweep(self, part: Part, marked: DigestSet, *, of_blobs: bool = False) -> int:
        """Deletes what is neither marked nor fresh, gives how much; marks what the others are made of."""
        count = 0
        for page in part.pages():
            unmarked = [one for one in page if one.digest not in marked]
            going = {one.digest for one in unmarked if one.is_old}
            self._report.fresh += len(unmarked) - len(going)
            if of_blobs:
                staying = [one for one in page if one.digest not in going]
                # Of one that is one chunk, that is of the same digest, and may be older.
                self.marker.mark_contents([one.digest for one in staying])
                self._mark_chunks([one for one in staying if one.in_chunks is not False])
            count += len(going) if self._rules.dry_run else part.delete(sorted(going))
            self._progress.advance(len(page))
        return count

    def _mark_chunks(self, blobs: Sequence[Item]) -> None:
        """Marks the chunks of blobs that stay."""
        for blob, chunks in zip(blobs, self._chunks_of([one.digest for one in blobs]), strict=True):
            if blob.in_chunks and not chunks:
                raise Corrupt(
                    f"the chunks of blob {format_digest(blob.digest)} cannot be told; they may be needed"
                )
            self.marker.mark_contents(chunks)

    def _chunks_of(self, blobs: Iterable[Digest]) -> Iterator[Sequence[Digest]]:
        """Of each blob; of one that is in one piece, or not there, none."""
        blobs_service = self._services.blobs
        for chunks in self._calls.map(blobs_service.stored_chunks, blobs):
            yield [chunk.digest for chunk in chunks]

    def _give_back(self) -> None:
        """Rewrites the packs of the embedded stores among the parts; removes what dead writers left."""
        report = self._report
        if not self._rules.dry_run:
            for service in (self._services.blobs, self._services.directories):
                try:
                    service.remove_leftovers(self._rules.aged_grace)
                except NeveError as error:
                    report.problems.append(f"what was not finished could not be removed: {error}")
        for use in self._parts.uses.values():
            packs = use.packs
            used = survey(packs.index)
            report.dead_bytes += sum(used.dead(packs.index.pack_lengths()).values())
            if self._rules.dry_run:
                continue
            try:
                compacted = compact(packs, used, self._progress.advance)
            except NeveError as error:
                report.problems.append(f"not all could be given back: {error}")
            else:
                report.problems += compacted.problems
                report.busy_bytes += compacted.busy
        left = sum(pack_bytes(use.packs.path) for use in self._parts.uses.values())
        report.given_back = max(0, report.pack_bytes - left)


def _portions(digests: Iterable[bytes]) -> Iterator[Sequence[bytes]]:
    source = iter(digests)
    while part := list(islice(source, PAGE)):
        yield part
