"""Which store paths stay: those that are named or pinned, by use and by size, and all that they refer to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from neve.castore.blobs.local_write import BLOBS, LIST
from neve.castore.digest import Digest
from neve.castore.directories.local import DIRECTORIES
from neve.errors import NotFound
from neve.nix.store_path import DIGEST_SIZE, StorePath
from neve.packstore.store import PackStore
from neve.packstore.survey import record_bytes
from neve.store.gc.contents import Contents
from neve.store.gc.mark import Marker
from neve.store.gc.rules import Rules
from neve.store.path_info import PathInfo
from neve.telemetry import LOGGER, NO_PROGRESS, Progress

_AT_ONCE = 1000


class Paths:
    """The store paths of a store, by the 20-byte digests of their names. Some 300 bytes of memory each."""

    def __init__(self, pages: Iterable[Sequence[PathInfo]]) -> None:
        """``pages``: all path infos."""
        self.references: dict[bytes, bytes] = {}
        """All paths, and what each refers to: digests one behind the other."""
        for page in pages:
            self.add(page)

    def add(self, path_infos: Sequence[PathInfo]) -> None:
        self.references.update((info.digest, b"".join(info.references)) for info in path_infos)

    def closure(self, roots: Iterable[bytes], kept: set[bytes]) -> list[bytes]:
        """Adds to ``kept`` those of ``roots`` that are there, with all that they refer to; returns those that
        are new in it."""
        new: list[bytes] = []
        waiting = list(roots)
        while waiting:
            digest = waiting.pop()
            if digest in kept or digest not in self.references:
                continue
            kept.add(digest)
            new.append(digest)
            waiting += self.referred(digest)
        return new

    def referred(self, digest: bytes) -> list[bytes]:
        """What a path refers to."""
        references = self.references[digest]
        return [references[i : i + DIGEST_SIZE] for i in range(0, len(references), DIGEST_SIZE)]


def named(contents: Contents, rules: Rules, pinned: Iterable[StorePath]) -> list[bytes]:
    """The paths that a user has named and the pinned ones. Raises ``NotFound`` for one that is not there,
    unless it is only pinned or that may be."""
    keep = list(rules.keep or ())
    there = {
        info.store_path
        for start in range(0, len(keep), _AT_ONCE)
        for info in contents.path_infos([path.digest for path in keep[start : start + _AT_ONCE]])
    }
    check_there([path for path in keep if path not in there], rules)
    return [path.digest for path in (*there, *pinned)]


def check_there(absent: Sequence[StorePath], rules: Rules) -> None:
    """Raises ``NotFound`` for paths that are to be kept and are not there, unless that may be."""
    if absent and not rules.ignore_missing:
        more = f" (and {len(absent) - 1} more)" if len(absent) > 1 else ""
        raise NotFound(f"{absent[0]}{more} is to be kept and is not in the store; nothing was dropped")
    for path in absent:
        LOGGER.warning("%s is to be kept and is not in the store", path)


def choose(
    packs: PackStore,
    paths: Paths,
    rules: Rules,
    roots: Sequence[bytes],
    used: dict[bytes, int],
    now: int,
    progress: Progress = NO_PROGRESS,
) -> set[bytes]:
    """The paths that stay: ``roots`` in any case, others by the rules. ``used``: when each was used last."""
    kept: set[bytes] = set()
    if not rules.drops_paths:
        kept.update(paths.references)
        return kept
    paths.closure(roots, kept)
    if rules.keeps_others:
        oldest = -1 if rules.keep_newer is None else now - rules.keep_newer
        others = [d for d in paths.references if d not in kept and used.get(d, now) > oldest]
        others.sort(key=lambda digest: (-used.get(digest, now), digest))
        if rules.max_size is None:
            paths.closure(others, kept)
        else:
            _choose_by_size(packs, paths, kept, others, rules.max_size, progress)
    return kept


def _choose_by_size(
    packs: PackStore,
    paths: Paths,
    kept: set[bytes],
    others: Sequence[bytes],
    limit: int,
    progress: Progress,
) -> None:
    """Adds to ``kept`` as many of ``others`` as there is room for, in their order."""
    contents = Contents(packs)
    sizes = _Sizes(packs, contents)
    sizes.mark(sorted(kept), progress)
    for digest in others:
        if sizes.bytes > limit:
            return
        new = paths.closure([digest], kept)
        sizes.mark(new, progress)
        if sizes.bytes > limit:
            kept.difference_update(new)
            return


class _Sizes:
    """Marks trees, and counts what they take in the packs: what several have, once."""

    def __init__(self, packs: PackStore, contents: Contents) -> None:
        self.bytes = 0.0
        self._packs = packs
        self._contents = contents
        self._marker = Marker(contents.directories, self._see_new)
        self._lists: list[Digest] = []

    def _see_new(self, directories: bool, digests: Sequence[Digest]) -> None:
        located = self._packs.find(DIRECTORIES if directories else BLOBS, digests)
        self.bytes += sum(record_bytes(key, location) for key, location in located.items())
        if not directories:
            self._lists += [key for key, location in located.items() if location.tag == LIST]

    def mark(self, paths: Sequence[bytes], progress: Progress) -> None:
        for start in range(0, len(paths), _AT_ONCE):
            found = self._contents.path_infos(paths[start : start + _AT_ONCE])
            self._marker.mark((info.node for info in found), progress)
        lists, self._lists = self._lists, []
        self._marker.mark_contents(self._contents.chunks(lists))
