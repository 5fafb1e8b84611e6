"""Looks into an embedded store that count as nobody's use: a collection keeps nothing by looking at it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence

from neve.castore.blobs.chunks import decode_chunk_list
from neve.castore.blobs.local_write import BLOBS, LIST
from neve.castore.digest import Digest, format_digest
from neve.castore.directories.local import DIRECTORIES
from neve.errors import Corrupt, InvalidRequest, NotFound
from neve.nix import base32
from neve.packstore.location import Location
from neve.packstore.store import PackStore, unseal
from neve.store.path_info import PathInfo
from neve.store.pathinfos.local import PATH_INFOS
from neve.store.wire import decode_path_info

PAGE = 10_000
_PATH_INFOS_AT_ONCE = 1000


class Contents:
    """The contents of one embedded store. What is damaged raises ``Corrupt`` naming it."""

    def __init__(self, packs: PackStore) -> None:
        self._packs = packs

    def directories(self, digests: Sequence[Digest]) -> dict[Digest, bytes]:
        """The encodings of those Directories that are there."""
        located = self._packs.find(DIRECTORIES, digests)
        found: dict[Digest, bytes] = {}
        # Those that share a frame one after the other.
        for digest, location in sorted(located.items(), key=lambda item: item[1].place):
            with contextlib.suppress(NotFound):
                found[digest] = self._packs.read(DIRECTORIES, digest, location)
        return found

    def chunks(self, blobs: Sequence[Digest]) -> Iterator[Digest]:
        """The chunks of those blobs that have a list of them."""
        located = self._packs.find(BLOBS, blobs)
        yield from self.chunks_of([(key, found) for key, found in located.items() if found.tag == LIST])

    def chunks_of(self, lists: Iterable[tuple[Digest, Location]]) -> Iterator[Digest]:
        """The chunks in these lists."""
        for digest, location in sorted(lists, key=lambda item: item[1].place):
            try:
                data = self._packs.read_unproven(BLOBS, digest, location)
                chunks = decode_chunk_list(unseal(BLOBS.id, digest, data))
            except NotFound:
                continue
            except (Corrupt, InvalidRequest) as error:
                raise Corrupt(
                    f"the chunk list of blob {format_digest(digest)} is damaged: {error}"
                ) from error
            yield from (chunk.digest for chunk in chunks)

    def path_infos(self, digests: Sequence[bytes]) -> list[PathInfo]:
        """Those that are there."""
        return self._path_infos(self._packs.find(PATH_INFOS, digests).items())

    def all_path_infos(self) -> Iterator[list[PathInfo]]:
        """All path infos, many at a time."""
        after = b""
        while page := self._packs.page(PATH_INFOS, after, _PATH_INFOS_AT_ONCE):
            after = page[-1][0]
            yield self._path_infos(page)

    def _path_infos(self, located: Iterable[tuple[bytes, Location]]) -> list[PathInfo]:
        found = []
        for digest, location in sorted(located, key=lambda item: item[1].place):
            try:
                found.append(decode_path_info(self._packs.read(PATH_INFOS, digest, location)))
            except NotFound:
                continue
            except InvalidRequest as error:
                name = base32.encode(digest)
                raise Corrupt(f"the stored path info of {name} is invalid: {error}") from error
        return found
