"""What is damaged, in which order it is repaired, and whether all is well in the end."""

from __future__ import annotations

from dataclasses import dataclass, field

from neve.castore.blobs.local_write import BLOBS
from neve.castore.digest import Digest, format_digest
from neve.castore.directories.local import DIRECTORIES
from neve.errors import InvalidRequest, NeveError, Unsupported
from neve.packstore.report import Problem
from neve.packstore.store import PackStore
from neve.store.check import VerifyReport, readable_path_infos, verify_store
from neve.store.mirror.report import CONCERNS_ALL
from neve.store.nar_nodes import NAR_NODES
from neve.store.path_check import PathCheck
from neve.store.pathinfos.local import PATH_INFOS, REFERRERS
from neve.store.repair.objects import ObjectRepair
from neve.store.repair.records import (
    forget_nar,
    repair_path_info,
    repair_referrer,
    repair_small_file,
)
from neve.store.services import Services
from neve.store.small_files import SMALL_FILES
from neve.telemetry import NO_PROGRESS, Progress

__all__ = ["RepairReport", "repair"]

_KINDS = {BLOBS.name: "blob", DIRECTORIES.name: "Directory"}
_LATER = (PATH_INFOS.name, REFERRERS.name, NAR_NODES.name, SMALL_FILES.name)
"""In this order: a path info needs contents, and tells who refers to what."""


@dataclass
class RepairReport(VerifyReport):
    """What is still wrong, and what was done about what was."""

    repaired: int = 0
    """Objects that were damaged or missing, and are not any more."""
    reasons: list[str] = field(default_factory=list)
    """Why some could not be repaired."""


def repair(
    services: Services,
    source: Services,
    progress: Progress = NO_PROGRESS,
    *,
    nar_hashes: bool = False,
) -> RepairReport:
    """Verifies an embedded store, fetches from ``source`` what is damaged or missing, and verifies it again
    if there was any.

    What comes is verified before it is stored; a path info is believed. Writers and readers may go on. Raises
    ``Unsupported`` for a store of another kind, ``PermissionDenied`` for one that is open read-only, and
    ``Unavailable`` if one of both stores fails as a whole.
    """
    packs = services.packs
    if packs is None:
        raise Unsupported("only an embedded store (local:///folder) can be repaired")
    if packs is source.packs:
        raise InvalidRequest("a store cannot be repaired from itself")
    _ = packs.writer  # One that is open read-only has none.
    found = verify_store(services, progress, nar_hashes=nar_hashes)
    if not found.problems:
        return RepairReport(found.problems, found.summary)
    run = _Repair(services, packs, source, progress)
    run.run(found)
    left = verify_store(services, progress, nar_hashes=nar_hashes)
    reasons = [f"{what}: not repaired: {error}" for what, error in run.failures.items()]
    repaired = len(run.tried) - len(run.failures)
    return RepairReport(left.problems, left.summary, repaired=repaired, reasons=reasons)


class _Repair:
    """One repair. Each object is tried once."""

    def __init__(self, services: Services, packs: PackStore, source: Services, progress: Progress) -> None:
        self._services = services
        self._packs = packs
        self._source = source
        self._progress = progress
        self.tried: set[tuple[str, bytes]] = set()
        self.failures: dict[str, NeveError] = {}

    def run(self, found: VerifyReport) -> None:
        self._progress.start(None)
        wanted = {problem.key: kind for problem in found.damaged if (kind := _KINDS.get(problem.table))}
        self._repair_objects(wanted)
        # A Directory that was missing leads to others that may be.
        while wanted := self._missing():
            self._repair_objects(wanted)
        for table in _LATER:
            for problem in found.damaged:
                if problem.table == table:
                    self._repair_record(problem)

    def _repair_objects(self, wanted: dict[Digest, str]) -> None:
        objects = ObjectRepair(
            self._packs,
            self._services.blobs,
            self._source.blobs,
            self._source.directories,
            self._failed,
            self._progress,
        )
        try:
            self.tried.update((kind, key) for key, kind in wanted.items())
            objects.directories([digest for digest, kind in wanted.items() if kind == "Directory"])
            objects.blobs([digest for digest, kind in wanted.items() if kind == "blob"])
        finally:
            objects.close()

    def _failed(self, digest: Digest, error: NeveError) -> None:
        self.failures[format_digest(digest)] = error

    def _missing(self) -> dict[Digest, str]:
        """What path infos lead to, is not there and was not tried yet."""
        paths = PathCheck(self._services, {}, self._progress)
        for path_info in readable_path_infos(self._services.path_infos):
            paths.check(path_info)
        # A chunk is found again by the blob that it is part of.
        found = {key: kind for key, kind in paths.kinds.items() if kind != "chunk"}
        return {key: kind for key, kind in found.items() if (kind, key) not in self.tried}

    def _repair_record(self, problem: Problem) -> None:
        self.tried.add((problem.table, problem.key))
        try:
            if problem.table == PATH_INFOS.name:
                repair_path_info(self._services, self._source, problem.key, self._progress)
            elif problem.table == REFERRERS.name:
                repair_referrer(self._services, self._packs, problem.key)
            elif problem.table == NAR_NODES.name:
                forget_nar(self._packs, problem.key)
            else:
                repair_small_file(self._packs, self._source, problem.key)
        except CONCERNS_ALL:
            raise
        except NeveError as error:
            self.failures[f"{problem.table} entry {problem.key.hex()}"] = error
