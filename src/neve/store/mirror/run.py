"""The order of things of a mirror."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from neve.castore.at_once import CallsAtOnce
from neve.errors import Conflict, Corrupt, InvalidRequest, LimitExceeded, NeveError, NotFound
from neve.nix import base32
from neve.nix.store_path import STORE_DIR, StorePath
from neve.store.mirror.compare import Pair, pairs
from neve.store.mirror.contents import Contents
from neve.store.mirror.order import Item, Order, to_be_put
from neve.store.mirror.pending import CHECKS, DONE, FAILED, UNITES, WAITS, Pending
from neve.store.mirror.report import CONCERNS_ALL, MirrorOptions, MirrorReport
from neve.store.mirror.rest import copy_rest
from neve.store.nar_nodes import Nar
from neve.store.path_info import PathDescription, PathInfo
from neve.store.pathinfos.base import check_length
from neve.store.services import Services
from neve.store.wire import decode_nar_size, decode_path_info, decode_path_name, encode_path_info
from neve.telemetry import NO_PROGRESS, Progress

__all__ = ["MirrorOptions", "MirrorReport", "mirror"]

_TOLD_EVERY = 1000

_FETCHERS = 4
"""NARs of a binary cache that are fetched at once: each takes some 30 MiB of memory."""


def mirror(
    source: Services,
    target: Services,
    options: MirrorOptions | None = None,
    *,
    copied: Callable[[StorePath], None] = lambda _: None,
    progress: Progress = NO_PROGRESS,
) -> MirrorReport:
    """Copies to ``target`` what it misses of ``source``.

    A path is registered once its contents, and all that it refers to, are durable at the target; so the
    target is consistent at any moment, and a mirror that was interrupted goes on where it was. Everything is
    verified by its digest. What is damaged at the source, and what refers to it, is left out and told in the
    report; so is a path that the target has with other contents. ``copied`` is told each path, after what it
    refers to. Raises what concerns all: ``Unavailable`` (one of the stores is gone, its disk full),
    ``PermissionDenied``, ``Unsupported`` (the source cannot list, and no paths are given).
    """
    if source.packs is not None and source.packs is target.packs:
        raise InvalidRequest("the source and the target of a mirror are the same store")
    return _Mirror(source, target, options or MirrorOptions(), copied, progress).run()


class _Mirror:
    """One mirror. All state belongs to the thread that runs it."""

    def __init__(
        self,
        source: Services,
        target: Services,
        options: MirrorOptions,
        copied: Callable[[StorePath], None],
        progress: Progress,
    ) -> None:
        self._source = source
        self._target = target
        self._options = options
        self._copied = copied
        self._progress = progress
        self._report = MirrorReport()
        self._calls = CallsAtOnce()

    def run(self) -> MirrorReport:
        with Pending() as pending:
            try:
                self._order = Order(
                    self._source.path_infos, self._target.path_infos, pending, self._options, self._report
                )
                if self._options.paths is None:
                    self._compare(pending)
                pending.seal()
                items = iter(self._order)
                if self._options.dry_run:
                    for item in items:
                        self._tell_done(item)
                else:
                    while group := self._copy_group(items):
                        self._register(group)
                if self._options.everything and not self._options.dry_run:
                    copy_rest(self._source, self._target, self._report, self._progress)
            finally:
                self._calls.close()
        return self._report

    # Comparing.

    def _compare(self, pending: Pending) -> None:
        """Notes which paths are to be copied."""
        total = 0
        for number, pair in enumerate(pairs(self._source.path_infos, self._target.path_infos)):
            if number % _TOLD_EVERY == 0:
                self._progress.advance(0, "comparing")
            if pair.source == pair.target and not self._options.check:
                self._report.present += 1
                continue
            try:
                total += self._note(pending, pair)
            except (Conflict, Corrupt, InvalidRequest) as error:
                # A conflict is about this path only: another one that refers to it finds it at the target.
                state = DONE if isinstance(error, Conflict) else FAILED
                pending.add(pair.digest, b"", state)
                self._report.fail(_shown(pair), error)
        self._progress.start(total)

    def _note(self, pending: Pending, pair: Pair) -> int:
        """Notes a path that may have to be copied. Returns how many bytes that means."""
        source, target = pair.source, pair.target
        if isinstance(source, Corrupt):
            raise source
        if isinstance(target, Corrupt):
            raise Corrupt(f"at the target: {target}")
        if target is not None:
            changed = to_be_put(decode_path_info(source), decode_path_info(target))
            if self._options.check and changed is None:
                pending.add(pair.digest, source, CHECKS)
                return decode_nar_size(source)
            if changed is None:
                self._report.present += 1
                return 0
            if not self._options.check:
                pending.add(pair.digest, encode_path_info(changed), UNITES)
                return 0
        pending.add(pair.digest, source, WAITS)
        return decode_nar_size(source)

    # Copying.

    def _copy_group(self, items: Iterator[Item]) -> Sequence[Item]:
        """Copies the contents of the next paths."""
        with Contents(
            self._source, self._target, self._calls, self._progress, nars=self._options.nars
        ) as contents:
            for item in items:
                contents.add(item)
                if contents.is_full:
                    break
            contents.finish()
            self._fetch([item for item in contents.items if isinstance(item.known, PathDescription)])
            self._report.blobs += contents.copies.copied
            self._report.blob_bytes += contents.copies.copied_bytes
            return contents.items

    def _fetch(self, items: Sequence[Item]) -> None:
        """Has the contents of paths come to the target that are only described."""
        fetchers = ThreadPoolExecutor(_FETCHERS, thread_name_prefix="neve-fetch")
        try:
            for item, result in zip(items, fetchers.map(self._fetched, items), strict=True):
                if isinstance(result, NeveError):
                    item.error = result
                else:
                    item.known = result
                self._progress.advance(0, item.known.store_path.base_name)
        finally:
            fetchers.shutdown(cancel_futures=True)

    def _fetched(self, item: Item) -> PathInfo | NeveError:
        """In a thread of its own; returns what concerns this path only."""
        try:
            found = self._source.path_infos.get(item.digest)
        except CONCERNS_ALL:
            raise
        except NeveError as error:
            return error
        return NotFound("the source does not have it any more") if found is None else found

    def _register(self, group: Sequence[Item]) -> None:
        """Registers the paths of a group whose contents are there, references first."""
        if self._target.packs is not None:
            self._settle(ready := self._ready(group), self._put_together(ready))
            return
        for level in _levels(group):
            self._settle(ready := self._ready(level), self._calls.map(self._put, ready))

    def _settle(self, items: Sequence[Item], errors: Iterable[NeveError | None]) -> None:
        """Notes what became of paths that were put."""
        for item, error in zip(items, errors, strict=True):
            if error is None:
                self._tell_done(item)
            else:
                self._fail(item, error)

    def _ready(self, items: Sequence[Item]) -> list[Item]:
        return [item for item in items if self._may_be_registered(item)]

    def _may_be_registered(self, item: Item) -> bool:
        try:
            if isinstance(item.known, PathInfo):
                check_length(item.known)  # Now: what refers to it must not be registered without it.
        except LimitExceeded as error:
            item.error = error
        if item.error is not None:
            self._fail(item, item.error)
            return False
        if any(self._order.states.get(reference) == FAILED for reference in item.references):
            self._order.states.set(item.digest, FAILED)
            self._report.left_out.append(item.known.store_path.absolute)
            return False
        return True

    def _fail(self, item: Item, error: NeveError) -> None:
        if isinstance(error, Conflict):
            # What refers to it finds it at the target.
            self._report.fail(item.known.store_path.absolute, error)
        else:
            self._order.fail(item, error)

    def _put_together(self, items: Sequence[Item]) -> list[NeveError | None]:
        """Registers paths, all by one commit; returns what concerns one of them only."""
        path_infos = [item.known for item in items if isinstance(item.known, PathInfo)]
        with self._target.one_commit():
            nars = [(path_info.node, self._nar(path_info)) for path_info in path_infos]
            self._target.nar_nodes.put_many([(node, nar) for node, nar in nars if nar is not None])
            results = self._target.path_infos.put_many(path_infos)
        return [result if isinstance(result, NeveError) else None for result in results]

    def _put(self, item: Item) -> NeveError | None:
        """Registers a path. In a thread of its own; returns what concerns this path only."""
        assert isinstance(item.known, PathInfo)
        try:
            if (nar := self._nar(item.known)) is not None:
                self._target.nar_nodes.put(item.known.node, nar)
            self._target.path_infos.put(item.known)
        except CONCERNS_ALL:
            raise
        except NeveError as error:
            return error
        return None

    def _nar(self, path_info: PathInfo) -> Nar | None:
        """What is known of the NAR, if it was computed on our side, for it may be signed."""
        if self._options.nars and path_info.nar is not None:
            return Nar(path_info.nar.size, path_info.nar.sha256)
        if not self._source.nar_nodes.is_ours:
            return None
        try:
            return self._source.nar_nodes.nar(path_info.node)
        except Corrupt:
            return None  # It only saves work.

    def _tell_done(self, item: Item) -> None:
        nar = item.known.nar
        self._progress.advance(0 if nar is None else max(0, nar.size - item.file_bytes))
        if item.is_there:
            self._report.present += 1
            return
        if item.with_contents:
            self._report.copied += 1
        else:
            self._report.united += 1
        self._copied(item.known.store_path)


def _shown(pair: Pair) -> str:
    """The path, as far as it can be told."""
    with contextlib.suppress(InvalidRequest):
        if isinstance(pair.source, bytes):
            return decode_path_name(pair.source).absolute
    return f"{STORE_DIR}/{base32.encode(pair.digest)}-..."


def _levels(group: Sequence[Item]) -> Iterator[list[Item]]:
    """The paths of a group, each after those that it refers to, as many as possible at once."""
    levels: dict[bytes, int] = {}
    for item in group:
        levels[item.digest] = max((levels[r] + 1 for r in item.references if r in levels), default=0)
    by_level = sorted(group, key=lambda item: levels[item.digest])
    for _, level in itertools.groupby(by_level, key=lambda item: levels[item.digest]):
        yield list(level)
