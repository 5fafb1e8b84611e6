"""Path infos near, and far: what is asked for is looked for near first, and kept there once it has come
from far. Far may be a binary cache that is only read: then this is a pull-through cache."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from neve.castore.absences import Absences, absences_of
from neve.errors import Conflict, Corrupt, NeveError
from neve.nix.store_path import StorePath
from neve.registry import Address
from neve.store.path_info import PathDescription, PathInfo
from neve.store.pathinfos.base import PathInfoService, check_path_digest
from neve.store.pathinfos.context import PathInfoContext
from neve.store.pathinfos.urls import PATH_INFO_SERVICES
from neve.store.substitute.single_flight import SingleFlight
from neve.telemetry import LOGGER, count_found


class CachedPathInfoService(PathInfoService):
    """Owns ``near`` and ``far``.

    Far is what counts: what is put is stored when it is stored there, and its listing is the listing.
    If far is only read, near is what counts for all that but ``get``. Far is asked once for a path,
    however many want it at the same time.
    """

    def __init__(
        self, near: PathInfoService, far: PathInfoService, *, absences: Absences | None = None
    ) -> None:
        self._near = near
        self._far = far
        self._absences = Absences(None) if absences is None else absences
        self._gets: SingleFlight[bytes, PathInfo | None] = SingleFlight()
        self._descriptions: SingleFlight[bytes, PathInfo | PathDescription | None] = SingleFlight()
        self.may_fetch = near.may_fetch or far.may_fetch

    @property
    def tells_ages(self) -> bool:
        return self._listed.tells_ages

    def get(self, digest: bytes) -> PathInfo | None:
        check_path_digest(digest)
        found = self._from_near(digest)
        count_found("path_infos", found is not None, found is None)
        if found is not None or digest in self._absences:
            return found
        return self._gets.run(digest, lambda: self._from_far(digest))

    def _from_near(self, digest: bytes) -> PathInfo | None:
        try:
            return self._near.get(digest)
        except NeveError as error:
            LOGGER.warning("asking far, because near does not answer: %s", error)
            return None

    def _from_far(self, digest: bytes) -> PathInfo | None:
        # It may have come between the question to near and now.
        found = self._from_near(digest)
        if found is not None:
            return found
        found = self._far.get(digest)
        if found is None:
            self._absences.add([digest])
            return None
        return self._keep(found)

    def _keep(self, path_info: PathInfo, *, replace: bool = False) -> PathInfo:
        """What is near then, which may be signed; what was given if it cannot be kept."""
        try:
            try:
                return self._near.put(path_info, replace=replace)
            except Conflict:
                # Far has taken it, and far is what counts.
                return self._near.put(path_info, replace=True)
        except NeveError as error:
            LOGGER.warning("%s is not kept near: %s", path_info.store_path, error)
            return path_info

    def describe(self, digest: bytes) -> PathInfo | PathDescription | None:
        check_path_digest(digest)
        near = self._from_near(digest)
        count_found("path_infos", near is not None, near is None)
        if near is not None or digest in self._absences:
            return near
        return self._descriptions.run(digest, lambda: self._described_far(digest))

    def _described_far(self, digest: bytes) -> PathInfo | PathDescription | None:
        near = self._from_near(digest)
        if near is not None:
            return near
        found = self._far.describe(digest)
        if found is None:
            self._absences.add([digest])
        elif isinstance(found, PathInfo):
            return self._keep(found)
        return found

    def put(self, path_info: PathInfo, *, replace: bool = False) -> PathInfo:
        if self._far.only_read:
            stored = self._near.put(path_info, replace=replace)
        else:
            stored = self._far.put(path_info, replace=replace)
            self._keep(stored, replace=replace)
        self._absences.discard([path_info.digest])
        return stored

    @property
    def _listed(self) -> PathInfoService:
        return self._near if self._far.only_read else self._far

    def list(self, after: bytes = b"", limit: int = 1000) -> Sequence[PathInfo]:
        return self._listed.list(after, limit)

    def list_encoded(self, after: bytes = b"", limit: int = 1000) -> Sequence[tuple[bytes, bytes | Corrupt]]:
        return self._listed.list_encoded(after, limit)

    def lists_in_pages(self) -> bool:
        return self._listed.lists_in_pages()

    def names(self, after: bytes = b"", limit: int = 1000) -> Sequence[StorePath]:
        return self._listed.names(after, limit)

    def __iter__(self) -> Iterator[PathInfo]:
        return iter(self._listed)

    def list_with_ages(self, after: bytes = b"", limit: int = 1000) -> Sequence[tuple[bytes, float]]:
        return self._listed.list_with_ages(after, limit)

    def delete_many(self, digests: Sequence[bytes], *, unused_for: float | None = None) -> int:
        if self._far.only_read:
            return self._near.delete_many(digests, unused_for=unused_for)
        deleted = self._far.delete_many(digests, unused_for=unused_for)
        self._near.delete_many(digests)
        return deleted

    def referrers(self, digest: bytes) -> Sequence[bytes]:
        return self._listed.referrers(digest)

    def close(self) -> None:
        with contextlib.ExitStack() as closing:
            closing.callback(self._near.close)
            closing.callback(self._far.close)


def open_cached(address: Address, context: PathInfoContext | None) -> CachedPathInfoService:
    """``cache://?near=URL&far=URL``, with ``negative-ttl=SECONDS`` if wanted"""
    address.check_parameters("near", "far", "negative-ttl")
    if address.host or address.path:
        raise address.refuse("cache:// takes neither host nor path")
    absences = absences_of(address)
    near = PATH_INFO_SERVICES.open_nested(address, "near", context)
    try:
        if near.only_read:
            raise address.refuse("near is only read, and what comes from far is to be kept there")
        far = PATH_INFO_SERVICES.open_nested(address, "far", context)
    except BaseException:
        near.close()
        raise
    return CachedPathInfoService(near, far, absences=absences)
