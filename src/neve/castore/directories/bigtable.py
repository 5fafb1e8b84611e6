"""Directories in a table of Bigtable: a row each, its key the digest in hex, its cell the encoding.

The layout is shared with tvix and snix; nothing that others have put there is believed.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence

from neve.bigtable.address import target_of
from neve.bigtable.messages import Wanted
from neve.bigtable.table import BigTable, age_of, check_length
from neve.castore.closure import DEFAULT_LIMITS, ClosureLimits
from neve.castore.digest import DIGEST_SIZE, Digest, b3_digest, check_digest, format_digest
from neve.castore.directories.base import (
    GET_MANY,
    DirectoryPutter,
    DirectoryService,
    directory_not_found,
)
from neve.castore.directories.spool import SpoolingPutter
from neve.castore.directory import Directory, child_digests
from neve.errors import Corrupt, InvalidRequest
from neve.registry import Address

_PATTERN = rb"[0-9a-f]{%d}" % (2 * DIGEST_SIZE)
_AFTER_ALL = b"g"
"""Greater than every key of ours, which tables may share with others."""

_PAGE_BYTES = 16 * 1024 * 1024
"""Encodings that are held at once."""


class BigtableDirectoryService(DirectoryService):
    """Directories of one table. Owns ``table``."""

    def __init__(self, table: BigTable) -> None:
        self._table = table

    def get(self, digest: Digest) -> Directory | None:
        return self.get_many([digest]).get(digest)

    def get_many(self, digests: Sequence[Digest]) -> dict[Digest, Directory]:
        found = self._get_encoded(digests, 0) or {}
        return {digest: _decoded(digest, encoded) for digest, encoded in found.items()}

    def get_recursive(self, digest: Digest) -> Iterator[Directory]:
        return (_decoded(b3_digest(encoded), encoded) for encoded in self.get_recursive_encoded(digest))

    def get_recursive_encoded(self, digest: Digest) -> Iterator[bytes]:
        known = {check_digest(digest)}
        wanted = [digest]
        while wanted:
            following: list[Digest] = []
            for one, encoded in self._in_order(wanted):
                if encoded is None:
                    if one == digest:
                        return
                    raise directory_not_found(one)
                for child in _children(encoded):
                    if child not in known:
                        known.add(child)
                        following.append(child)
                yield encoded
            wanted = following

    def _in_order(self, digests: Sequence[Digest]) -> Iterator[tuple[Digest, bytes | None]]:
        """Encodings in the order of ``digests``, of which some megabytes are held at a time; None for what is
        not there. How long they are, no answer tells before they come: fewer are asked for then."""
        start, size = 0, GET_MANY
        while start < len(digests):
            part = digests[start : start + size]
            found = self._get_encoded(part, _PAGE_BYTES)
            if found is None:
                size = len(part) // 2
                continue
            yield from ((digest, found.pop(digest, None)) for digest in part)
            start += len(part)
            size = min(2 * size, GET_MANY)

    def _get_encoded(self, digests: Sequence[Digest], limit: int) -> dict[Digest, bytes] | None:
        """The verified encodings of those that are there; None if there is more than one, and they are more
        than ``limit`` bytes, if that is not 0."""
        keys = {_key(check_digest(digest)): digest for digest in digests}
        found: dict[Digest, bytes] = {}
        cells = []
        size = 0
        for row in self._table.get(list(keys)):
            size += len(row.cell.value)
            if len(keys) > 1 and 0 < limit < size:
                return None
            digest, cell = keys.get(row.key), row.cell
            if digest is None:
                raise Corrupt(f"Bigtable has sent a row that nobody has asked for: {row.key!r}")
            if b3_digest(cell.value) != digest:
                raise Corrupt(
                    f"the stored bytes of Directory {format_digest(digest)} do not match its digest"
                )
            found[digest] = cell.value
            cells.append(cell)
        self._table.note_used(cells)
        return found

    # Putting.

    def put(self, directory: Directory) -> Digest:
        self._table.use_or_put(_key(directory.digest), directory.encode())
        return directory.digest

    def put_many(self, directories: Sequence[Directory]) -> None:
        rows = {_key(directory.digest): directory.encode() for directory in directories}
        self._table.use_or_put_many(list(rows.items()))

    def put_multiple(self, limits: ClosureLimits = DEFAULT_LIMITS) -> DirectoryPutter:
        self._table.check_writable()
        return _Putter(self._table, limits)

    # Care.

    def list(self, after: Digest = b"", limit: int = 1000) -> list[Digest]:
        return [digest for digest, _ in self.list_with_ages(after, limit)]

    def list_with_ages(self, after: Digest = b"", limit: int = 1000) -> Sequence[tuple[Digest, float]]:
        """What ``list`` gives, and how many seconds ago each was put, or told to be there; it may be an hour
        less."""
        if limit <= 0:
            return []
        wanted = Wanted(after=_key(after), before=_AFTER_ALL, pattern=_PATTERN, values=False, limit=limit)
        return [
            (bytes.fromhex(row.key.decode()), min(age_of(cell) for cell in row.cells))
            for row in self._table.scan(wanted)
        ]

    def delete_many(self, digests: Sequence[Digest], *, unused_for: float | None = None) -> int:
        """Deletes Directories; returns how many. With ``unused_for``, only those that were not put, nor told
        to be there, in the last so many seconds."""
        return self._table.delete([_key(check_digest(digest)) for digest in digests], unused_for)

    def close(self) -> None:
        self._table.close()


class _Putter(SpoolingPutter):
    """Sends the closure once it is known to be valid: those without children first, then those that refer to
    nothing else, and so on. Rows that are sent together may become visible in any order."""

    def __init__(self, table: BigTable, limits: ClosureLimits) -> None:
        super().__init__(limits)
        self._table = table
        self._heights: dict[Digest, int] = {}
        self._levels: list[array[int]] = []
        """The places of the Directories in the spool, by their heights."""
        self._end = 0

    def _keep(self, encoded: bytes, digest: Digest) -> None:
        if digest in self._heights:
            return
        check_length(_key(digest), encoded)
        super()._keep(encoded, digest)
        # A builder of this process may refer to what has been stored before.
        height = 1 + max((self._heights.get(child, -1) for child in child_digests(encoded)), default=-1)
        self._heights[digest] = height
        while len(self._levels) <= height:
            self._levels.append(array("Q"))
        self._levels[height].append(self._end)
        self._end = self._spool.tell()

    def _commit(self) -> None:
        for places in self._levels:
            group: list[tuple[bytes, bytes]] = []
            size = 0
            for place in places:
                digest, encoded = self._spooled_at(place)
                if group and (size + len(encoded) > _PAGE_BYTES):
                    self._table.use_or_put_many(group)
                    group, size = [], 0
                group.append((_key(digest), encoded))
                size += len(encoded)
            self._table.use_or_put_many(group)

    def _spooled_at(self, place: int) -> tuple[Digest, bytes]:
        with self._errors():
            self._spool.seek(place)
            head = self._spool.read(36)
            return head[:32], self._spool.read(int.from_bytes(head[32:], "little"))


def _key(digest: Digest) -> bytes:
    return digest.hex().encode()


def _children(encoded: bytes) -> Iterable[Digest]:
    try:
        return [check_digest(child) for child in child_digests(encoded)]
    except InvalidRequest as error:
        raise Corrupt(f"stored Directory {format_digest(b3_digest(encoded))} is invalid: {error}") from error


def _decoded(digest: Digest, encoded: bytes) -> Directory:
    try:
        return Directory.decode(encoded, digest=digest)
    except InvalidRequest as error:
        raise Corrupt(f"stored Directory {format_digest(digest)} is invalid: {error}") from error


def open_bigtable(address: Address) -> BigtableDirectoryService:
    """``bigtable://instance?project_id=...&table_name=...&family_name=...``"""
    return BigtableDirectoryService(BigTable(target_of(address)))
