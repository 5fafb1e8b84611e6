"""Directories near, and far: what is read is looked for near first, and kept there once it has come from
far."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from neve.castore.absences import Absences, absences_of
from neve.castore.closure import DEFAULT_LIMITS, ClosureLimits
from neve.castore.digest import Digest, check_digest
from neve.castore.directories.base import DirectoryPutter, DirectoryService
from neve.castore.directories.held import HeldClosure
from neve.castore.directories.urls import DIRECTORY_SERVICES
from neve.castore.directory import Directory
from neve.castore.near import NEAR_FAILURES, NearCopy, from_near, keep_near
from neve.errors import NeveError, NotFound
from neve.registry import Address
from neve.telemetry import LOGGER, count_found


class CachedDirectoryService(DirectoryService):
    """Owns ``near`` and ``far``. Far is what counts: what is put is stored when it is stored there, and its
    listing is the listing.

    Near may have parts of closures only: what is read one by one is kept one by one.
    """

    def __init__(
        self, near: DirectoryService, far: DirectoryService, *, absences: Absences | None = None
    ) -> None:
        self._near = near
        self._far = far
        self._absences = Absences(None) if absences is None else absences
        self.looks_up_children = far.looks_up_children

    @property
    def tells_ages(self) -> bool:
        return self._far.tells_ages

    def get(self, digest: Digest) -> Directory | None:
        return self.get_many([digest]).get(digest)

    def get_many(self, digests: Sequence[Digest]) -> dict[Digest, Directory]:
        nothing: dict[Digest, Directory] = {}
        found = from_near(lambda: self._near.get_many(digests), nothing)
        count_found("directories", len(found), len(digests) - len(found))
        wanted = [digest for digest in digests if digest not in found and digest not in self._absences]
        if wanted:
            from_far = self._far.get_many(wanted)
            self._absences.add(digest for digest in wanted if digest not in from_far)
            if from_far:
                keep_near(lambda: self._near.put_many(list(from_far.values())))
            found |= from_far
        return found

    def read_ahead(self, digest: Digest) -> None:
        if from_near(lambda: self._near.get(digest), None) is None:
            self._far.read_ahead(digest)

    def get_recursive(self, digest: Digest) -> Iterator[Directory]:
        check_digest(digest)
        given: set[Digest] = set()
        failure: NeveError | None = None
        try:
            for directory in self._near.get_recursive(digest):
                given.add(directory.digest)
                yield directory
            if given:
                return
        except NEAR_FAILURES as error:
            # A closure of which near has a part is nothing unusual.
            level = LOGGER.debug if isinstance(error, NotFound) else LOGGER.warning
            level("asking far, because near does not answer: %s", error)
            failure = error
        if given or digest not in self._absences:
            yield from self._from_far(digest, given, failure)

    def _from_far(self, digest: Digest, given: set[Digest], failure: NeveError | None) -> Iterator[Directory]:
        """The closure but for what was ``given`` already; once all of it has come, it is near too.

        Raises the ``failure`` of near if that had begun with it and far has nothing of it.
        """
        with _ClosureToKeep() as closure:
            for directory in self._far.get_recursive(digest):
                closure.add(directory)
                if directory.digest not in given:
                    yield directory
            if closure.has_come:
                if not closure.is_lost:
                    keep_near(lambda: closure.put(digest, self._near))
            elif given and failure is not None:
                raise failure
            else:
                self._absences.add([digest])

    # Far counts.

    def put(self, directory: Directory) -> Digest:
        digest = self._far.put(directory)
        self._absences.discard([digest])
        keep_near(lambda: self._near.put(directory))
        return digest

    def put_many(self, directories: Sequence[Directory]) -> None:
        self._far.put_many(directories)
        self._absences.discard(directory.digest for directory in directories)
        keep_near(lambda: self._near.put_many(directories))

    def put_multiple(self, limits: ClosureLimits = DEFAULT_LIMITS) -> DirectoryPutter:
        far = self._far.put_multiple(limits)
        near = NearCopy(lambda: self._near.put_multiple(limits), lambda one: one.abandon())
        return _BothPutter(far, near, self._absences)

    def list(self, after: Digest = b"", limit: int = 1000) -> list[Digest]:
        return self._far.list(after, limit)

    def delete_many(self, digests: Sequence[Digest], *, unused_for: float | None = None) -> int:
        deleted = self._far.delete_many(digests, unused_for=unused_for)
        self._near.delete_many(digests)
        return deleted

    def list_with_ages(self, after: Digest = b"", limit: int = 1000) -> Sequence[tuple[Digest, float]]:
        return self._far.list_with_ages(after, limit)

    def freshen(self, digests: Sequence[Digest]) -> Sequence[Digest]:
        return self._far.freshen(digests)

    def remove_leftovers(self, unused_for: float) -> int:
        return self._far.remove_leftovers(unused_for)

    def close(self) -> None:
        with contextlib.ExitStack() as closing:
            closing.callback(self._near.close)
            closing.callback(self._far.close)


class _ClosureToKeep(HeldClosure):
    """One that is not worth a failure: without room to hold it, it is not kept near."""

    def __init__(self) -> None:
        super().__init__()
        self.has_come = False
        self.is_lost = False

    def add(self, directory: Directory) -> None:
        self.has_come = True
        if not self.is_lost:
            try:
                super().add(directory)
            except NeveError as error:
                LOGGER.warning("not kept near: %s", error)
                self.is_lost = True


class _BothPutter(DirectoryPutter):
    """Puts a closure far, which counts, and near. Far decides about everything."""

    def __init__(self, far: DirectoryPutter, near: NearCopy[DirectoryPutter], absences: Absences) -> None:
        self._far = far
        self._near = near
        self._absences = absences

    def put(self, directory: Directory) -> None:
        self._far.put(directory)
        self._near.do(lambda putter: putter.put(directory))

    def put_built(self, encoded: bytes, digest: Digest) -> None:
        self._far.put_built(encoded, digest)
        self._near.do(lambda putter: putter.put_built(encoded, digest))

    def close(self) -> Digest:
        try:
            digest = self._far.close()
            self._absences.clear()  # Which of them came is not worth being remembered.
            self._near.do(lambda putter: putter.close())
        finally:
            self._near.end()
        return digest

    def abandon(self) -> None:
        self._near.end()
        self._far.abandon()


def open_cached(address: Address) -> CachedDirectoryService:
    """``cache://?near=URL&far=URL``, with ``negative-ttl=SECONDS`` if wanted"""
    address.check_parameters("near", "far", "negative-ttl")
    if address.host or address.path:
        raise address.refuse("cache:// takes neither host nor path")
    absences = absences_of(address)
    near = DIRECTORY_SERVICES.open_nested(address, "near")
    try:
        far = DIRECTORY_SERVICES.open_nested(address, "far")
    except BaseException:
        near.close()
        raise
    return CachedDirectoryService(near, far, absences=absences)
