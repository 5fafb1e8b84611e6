"""Directories in the embedded store: records that share frames, like small blobs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from neve.castore.ages import refuse_ages
from neve.castore.closure import DEFAULT_LIMITS, ClosureLimits
from neve.castore.digest import Digest, b3_digest, check_digest, format_digest
from neve.castore.directories.base import DirectoryPutter, DirectoryService
from neve.castore.directories.spool import SpoolingPutter
from neve.castore.directory import Directory, child_digests
from neve.errors import Corrupt, InvalidRequest, NotFound
from neve.packstore.address import open_address
from neve.packstore.frames import FRAME_TARGET, Record
from neve.packstore.sessions import Session
from neve.packstore.store import PackStore, Table
from neve.registry import Address

DIRECTORIES = Table(2, "directories", lambda tag, key, data: b3_digest(data) == key, collected=True)

_TAG = 1
_PORTION_BYTES = 1024 * 1024
"""Directories longer than this together are not held at once (decoded they take some times as much)."""


class LocalDirectoryService(DirectoryService):
    """Directories of one embedded store. Owns one use of ``store``."""

    def __init__(self, store: PackStore) -> None:
        self._store = store
        self._closed = False

    @property
    def store(self) -> PackStore:
        """The embedded store, in which other tables may lie beside this one."""
        return self._store

    def get(self, digest: Digest) -> Directory | None:
        return self.get_many([digest]).get(digest)

    def get_many(self, digests: Sequence[Digest]) -> dict[Digest, Directory]:
        return {digest: _decoded(digest, data) for digest, data in self._get_encoded(digests).items()}

    def get_recursive_encoded(self, digest: Digest) -> Iterator[bytes]:
        return self._breadth_first(digest, self._get_encoded, child_digests)

    def _get_encoded(self, digests: Sequence[Digest]) -> dict[Digest, bytes]:
        """The verified encodings of those that are there."""
        for digest in digests:
            check_digest(digest)
        located = self._store.promise(DIRECTORIES, digests, reading=True)
        result: dict[Digest, bytes] = {}
        for digest, location in sorted(located.items(), key=lambda item: item[1].place):
            try:
                encoded = self._store.read_unproven(DIRECTORIES, digest, location)
            except NotFound:
                continue
            except Corrupt as error:
                raise _corrupt(digest, f"are damaged: {error}") from error
            if b3_digest(encoded) != digest:
                raise _corrupt(digest)
            result[digest] = encoded
        return result

    def _portions(self, digests: Sequence[Digest]) -> Iterator[Sequence[Digest]]:
        for many in super()._portions(digests):
            located = self._store.find(DIRECTORIES, many)
            portion: list[Digest] = []
            size = 0
            for digest in many:
                portion.append(digest)
                size += located[digest].length if digest in located else 0
                if size >= _PORTION_BYTES:
                    yield portion
                    portion, size = [], 0
            if portion:
                yield portion

    def put(self, directory: Directory) -> Digest:
        self.put_many([directory])
        return directory.digest

    def put_many(self, directories: Sequence[Directory]) -> None:
        by_digest = {directory.digest: directory for directory in directories}
        absent = self._store.missing(DIRECTORIES, list(by_digest))
        if absent:
            records = [Record(_TAG, digest, by_digest[digest].encode()) for digest in absent]
            with self._store.writer.session() as session:
                self._store.stage(DIRECTORIES, records, session)
                self._store.writer.commit(session)

    def put_multiple(self, limits: ClosureLimits = DEFAULT_LIMITS) -> DirectoryPutter:
        return _Putter(self._store, limits)

    def list(self, after: Digest = b"", limit: int = 1000) -> list[Digest]:
        return [digest for digest, _ in self._store.page(DIRECTORIES, after, limit)]

    def delete_many(self, digests: Sequence[Digest], *, unused_for: float | None = None) -> int:
        refuse_ages(self, unused_for)
        return self._store.delete_many(DIRECTORIES, [check_digest(d) for d in digests])

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._store.close()


class _Putter(SpoolingPutter):
    """Only stages a closure when it is known to be valid.

    Packs are all that is needed to rebuild the index, so nothing of a refused stream may get there.
    """

    def __init__(self, store: PackStore, limits: ClosureLimits) -> None:
        self._writer = store.writer  # First: a store that is read-only has none.
        super().__init__(limits, str(store.temporary_folder()))
        self._store = store

    def _commit(self) -> None:
        with self._writer.session() as session:
            group: list[Record] = []
            size = 0
            for digest, encoded in self._spooled():
                group.append(Record(_TAG, digest, encoded))
                size += len(encoded)
                if size >= FRAME_TARGET:
                    self._stage(group, session)
                    group, size = [], 0
            self._stage(group, session)
            self._writer.commit(session)

    def _stage(self, group: list[Record], session: Session) -> None:
        absent = set(self._store.missing(DIRECTORIES, [record.key for record in group]))
        self._store.stage(DIRECTORIES, [record for record in group if record.key in absent], session)


def _decoded(digest: Digest, encoded: bytes) -> Directory:
    try:
        return Directory.decode(encoded, digest=digest, validated=True)
    except InvalidRequest as error:
        raise Corrupt(f"stored Directory {format_digest(digest)} is invalid: {error}") from error


def _corrupt(digest: Digest, what: str = "do not match its digest") -> Corrupt:
    return Corrupt(f"the stored bytes of Directory {format_digest(digest)} {what}")


def open_local(address: Address) -> LocalDirectoryService:
    """``local:///folder``"""
    return LocalDirectoryService(open_address(address))
