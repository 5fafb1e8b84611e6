"""A collection, from the first look to the last byte given back."""

from __future__ import annotations

import time
from collections.abc import Sequence

from neve.castore.blobs.local_write import BLOBS, CHUNK, LIST
from neve.castore.digest import Digest
from neve.castore.directories.local import DIRECTORIES
from neve.errors import Corrupt, NeveError
from neve.packstore.check import pack_bytes
from neve.packstore.compaction import compact, worth_rewriting
from neve.packstore.dates import forget_used, last_used, mend_dates, note_used
from neve.packstore.gate import collection_lock
from neve.packstore.location import Location
from neve.packstore.notes import NotesReader
from neve.packstore.pack import TABLES
from neve.packstore.reserve import reserve_at_hand
from neve.packstore.store import PackStore
from neve.packstore.survey import Survey, survey
from neve.store.gc.contents import PAGE, Contents
from neve.store.gc.fresh import Fresh
from neve.store.gc.mixed import collect_mixed
from neve.store.gc.near import keep_latest
from neve.store.gc.parts import uncertain
from neve.store.gc.paths import Paths, choose, named
from neve.store.gc.remote import ask_for_collection
from neve.store.gc.report import GcReport
from neve.store.gc.rules import Rules
from neve.store.gc.sweep import Condemned, drop_nar_nodes, sweep
from neve.store.pathinfos.local import PATH_INFOS
from neve.store.pins import Pins
from neve.store.services import Services
from neve.telemetry import NO_PROGRESS, Progress, span


def collect_garbage(services: Services, rules: Rules, progress: Progress = NO_PROGRESS) -> GcReport:
    """Drops from a store what the rules do not keep, and gives its space back.

    What lies in several places is collected by fewer rules: ``collect_mixed``. A server does it itself, for
    those who may administer it. Others may go on with the store meanwhile, but there is one collection at a
    time: else ``Unavailable``. Raises ``NotFound`` if a path to keep is not there, ``Corrupt`` if something
    that stays cannot be read, so that it is not known what it refers to; in both cases nothing is dropped.
    """
    if services.remote is not None:
        return ask_for_collection(services.remote, rules, progress)
    packs = services.packs
    if packs is None:
        return collect_mixed(services, rules, progress)
    with reserve_at_hand(packs.path), collection_lock(packs.path):
        with packs.uses.sweeping(begins=True):
            notes = NotesReader(packs.path, rules.local_grace)
        if not notes.is_certain:
            raise uncertain(packs)
        return _Run(packs, rules, notes, progress).run()


class _Run:
    """One collection."""

    def __init__(self, packs: PackStore, rules: Rules, notes: NotesReader, progress: Progress) -> None:
        self._packs = packs
        self._rules = rules
        self._progress = progress
        self._contents = Contents(packs)
        self._fresh = Fresh(self._contents, notes)
        self._report = GcReport(dry_run=rules.dry_run)
        self._survey = Survey()
        """Of what stays."""

    def run(self) -> GcReport:
        report = self._report
        report.pack_bytes = pack_bytes(self._packs.path)
        try:
            with span("gc.mark"):
                paths = self._mark()
        except Corrupt as error:
            raise Corrupt(f"{error}; nothing was dropped, for it may be needed: run neve verify") from error
        with Condemned(self._packs) as condemned:
            with span("gc.condemn"):
                self._condemn(paths, condemned)
            if not self._rules.dry_run:
                with span("gc.sweep"):
                    self._progress.start(len(condemned))
                    sweep(self._packs, paths, self._fresh, condemned, self._progress)
                    drop_nar_nodes(self._packs, self._progress)
        report.missing = self._fresh.marker.missing
        with span("gc.compact"):
            self._give_back()
        return report

    def _mark(self) -> Paths:
        """Chooses the paths that stay, and marks what they and all that is fresh reach."""
        self._progress.start(None)
        fresh, marker = self._fresh, self._fresh.marker
        news = fresh.read()
        paths = Paths(self._contents.all_path_infos())
        used, now = last_used(self._packs.index), int(time.time())
        if not self._rules.dry_run:
            mend_dates(self._packs.index, used, now)
        used.update(dict.fromkeys(fresh.paths, now))
        pinned = [path for pin in Pins(self._packs).list() for path in pin.paths]
        roots = [*named(self._contents, self._rules, pinned), *fresh.paths]
        kept = choose(self._packs, paths, self._rules, roots, used, now, self._progress)
        if not self._rules.dry_run:
            gone = used.keys() - paths.references.keys() - fresh.paths
            if gone:
                self._packs.index.run(lambda txn: forget_used(txn, gone))
            # A process that has a path for weeks has asked for it once.
            in_use = [digest for digest in kept if digest in fresh.paths or digest not in used]
            note_used(self._packs.index, in_use, now)
        for page in self._contents.all_path_infos():
            marker.mark([info.node for info in page if info.digest in kept], self._progress)
        if self._rules.max_size is not None and not paths.references:
            keep_latest(self._packs, marker, self._rules.max_size, self._progress)
        self._report.paths_kept = len(kept)
        fresh.chosen(paths, kept)
        reached = marker.count
        fresh.mark(news)
        self._report.fresh = marker.count - reached
        return paths

    def _condemn(self, paths: Paths, condemned: Condemned) -> None:
        """Finds what is not marked."""
        self._mark_chunks()
        # What is marked from here on is spared, though it may be condemned.
        self._fresh.condemned()
        kept, report = self._fresh.kept, self._report
        condemned.paths = [digest for digest in paths.references if digest not in kept]
        report.paths_dropped = len(condemned.paths)
        for table in TABLES:
            after = b""
            while page := self._packs.index.page(table, after, PAGE):
                after = page[-1][0]
                self._progress.advance(0)
                dead = self._dead_of(table, page)
                self._survey.add(page if not dead else [one for one in page if one[0] not in dead])
                if dead and table == DIRECTORIES.id:
                    report.directories_dropped += len(dead)
                    condemned.directories.add(sorted(dead))
                elif dead and table == BLOBS.id:
                    self._condemn_contents([one for one in page if one[0] in dead], condemned)

    def _mark_chunks(self) -> None:
        """Marks the chunks of all blobs that are marked and stored in chunks."""
        marker = self._fresh.marker
        after = b""
        while page := self._packs.page(BLOBS, after, PAGE):
            after = page[-1][0]
            lists = [(key, location) for key, location in page if location.tag == LIST]
            absent = set(marker.contents.absent([key for key, _ in lists]))
            marker.mark_contents(self._contents.chunks_of([one for one in lists if one[0] not in absent]))

    def _dead_of(self, table: int, page: Sequence[tuple[bytes, Location]]) -> set[bytes]:
        marker = self._fresh.marker
        if table == DIRECTORIES.id:
            return set(marker.directories.absent([key for key, _ in page]))
        if table == BLOBS.id:
            return set(marker.contents.absent([key for key, _ in page]))
        if table == PATH_INFOS.id:
            return {key for key, _ in page if key not in self._fresh.kept}
        return set()

    def _condemn_contents(self, dead: Sequence[tuple[Digest, Location]], condemned: Condemned) -> None:
        lists = [key for key, location in dead if location.tag == LIST]
        chunks = sum(location.tag == CHUNK for _, location in dead)
        condemned.lists.add(lists)
        condemned.contents.add([key for key, location in dead if location.tag != LIST])
        self._report.chunks_dropped += chunks
        self._report.blobs_dropped += len(dead) - chunks
        self._report.content_bytes += sum(location.length for _, location in dead if location.tag != LIST)

    def _give_back(self) -> None:
        report, packs = self._report, self._packs
        used = self._survey if self._rules.dry_run else survey(packs.index)
        lengths = packs.index.pack_lengths()
        dead = used.dead(lengths)
        report.dead_bytes = sum(dead.values())
        chosen = worth_rewriting(dead, lengths)
        if self._rules.dry_run:
            report.given_back = sum(dead[pack_id] for pack_id in chosen)
            return
        self._progress.start(sum(lengths[pack_id] for pack_id in chosen))
        try:
            compacted = compact(packs, used, self._progress.advance)
        except NeveError as error:
            report.problems.append(f"not all could be given back: {error}")
        else:
            report.problems += compacted.problems
            report.busy_bytes = compacted.busy
        report.given_back = max(0, report.pack_bytes - pack_bytes(packs.path))
