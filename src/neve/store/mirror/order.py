"""Which paths are to be copied, each after those that it refers to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from neve.castore.directories.held import HeldClosure
from neve.errors import Conflict, InvalidRequest, NeveError, NotFound
from neve.nix import base32
from neve.nix.store_path import STORE_DIR
from neve.store.mirror.pending import CHECKS, DONE, FAILED, UNDER_WAY, UNITES, WAITS, Pending
from neve.store.mirror.report import CONCERNS_ALL, MirrorOptions, MirrorReport
from neve.store.path_info import PathDescription, PathInfo, united
from neve.store.pathinfos.base import PathInfoService
from neve.store.wire import decode_path_info
from neve.telemetry import LOGGER

_MAX_SETTLED = 200_000
"""References that were found at the target, and need not be looked up again: 20 MB."""


@dataclass
class Item:
    """One path to be copied."""

    known: PathInfo | PathDescription
    with_contents: bool = True
    """Whether contents may be missing; else the path info is all that is to be put."""
    is_there: bool = False
    """Whether the target has the path, and only its contents are to be looked at."""
    closure: HeldClosure | None = None
    """The Directories, once they were read."""
    file_bytes: int = 0
    error: NeveError | None = None
    """Why it cannot be registered."""

    @property
    def digest(self) -> bytes:
        """Of the store path."""
        return self.known.store_path.digest

    @property
    def references(self) -> Sequence[bytes]:
        """Digests of other paths that it refers to."""
        if isinstance(self.known, PathInfo):
            found: Sequence[bytes] = self.known.references
        else:
            found = [path.digest for path in self.known.nar.reference_names]
        return [digest for digest in dict.fromkeys(found) if digest != self.digest]


def to_be_put(source: PathInfo | PathDescription, target: PathInfo) -> PathInfo | None:
    """What the target lacks of a path that it has; None if nothing. Raises ``Conflict``."""
    if isinstance(source, PathInfo):
        result = united(target, source)
    else:
        nar = target.nar
        if target.store_path != source.store_path or (
            nar is not None and (nar.size, nar.sha256) != (source.nar.size, source.nar.sha256)
        ):
            raise Conflict(f"{source.store_path} is already in the store, with other contents")
        result = target if nar is None else target.with_signatures(source.nar.signatures)
    return None if result == target else result


class States:
    """What became of the paths: of those that are pending, and of others that were met on the way."""

    def __init__(self, pending: Pending) -> None:
        self._pending = pending
        self._others: dict[bytes, int] = {}

    def get(self, digest: bytes) -> int | None:
        number = self._pending.find(digest)
        return self._others.get(digest) if number is None else self._pending.states[number]

    def set(self, digest: bytes, state: int) -> None:
        number = self._pending.find(digest)
        if number is None:
            self._others[digest] = state
        else:
            self._pending.states[number] = state


class Order:
    """Finds what is to be copied. What fails on the way is noted in ``report`` and ``states``."""

    def __init__(
        self,
        source: PathInfoService,
        target: PathInfoService,
        pending: Pending,
        options: MirrorOptions,
        report: MirrorReport,
    ) -> None:
        self._source = source
        self._target = target
        self._pending = pending
        self._options = options
        self._report = report
        self._settled: set[bytes] = set()
        self.states = States(pending)

    def __iter__(self) -> Iterator[Item]:
        if self._options.paths is None:
            for digest in self._pending.digests():
                yield from self._closure(digest)
            return
        for path in self._options.paths:
            yield from self._closure(path.digest)

    def _closure(self, root: bytes) -> Iterator[Item]:
        """What is to be copied of a path and all that it refers to; without recursion."""
        stack: list[tuple[Item, Iterator[bytes]]] = []
        self._enter(stack, root)
        while stack:
            item, references = stack[-1]
            reference = next(references, None)
            if reference is not None:
                self._enter(stack, reference)
                continue
            stack.pop()
            if self.states.get(item.digest) == UNDER_WAY:
                self.states.set(item.digest, DONE)
                yield item

    def _enter(self, stack: list[tuple[Item, Iterator[bytes]]], digest: bytes) -> None:
        state = self.states.get(digest)
        if state in (DONE, FAILED) or digest in self._settled:
            return
        referrer = stack[-1][0] if stack else None
        if state == UNDER_WAY and referrer is not None:
            self.fail(referrer, InvalidRequest("store paths refer to each other in a circle"))
            return
        try:
            item = self._look_up(digest, state, referrer)
        except CONCERNS_ALL:
            raise
        except NeveError as error:
            # What the target has in its place stands for it, with whatever contents.
            self.states.set(digest, DONE if isinstance(error, Conflict) else FAILED)
            self._report.fail(f"{STORE_DIR}/{base32.encode(digest)}-...", error)
            return
        if item is not None:
            self.states.set(digest, UNDER_WAY)
            stack.append((item, iter(item.references)))

    def fail(self, item: Item, error: NeveError) -> None:
        """Notes that a path cannot be copied, and why: the source may have deleted it meanwhile."""
        if self.states.get(item.digest) == FAILED:
            return  # The first reason counts.
        self.states.set(item.digest, FAILED)
        if isinstance(error, NotFound) and self._options.paths is None and self._is_gone(item.digest):
            self._report.vanished += 1
        else:
            self._report.fail(item.known.store_path.absolute, error)

    def _is_gone(self, digest: bytes) -> bool:
        """Whether the source has the path no more."""
        try:
            return self._source.describe(digest) is None
        except CONCERNS_ALL:
            raise
        except NeveError:
            return False

    def _settle(self, digest: bytes) -> None:
        """Nothing is to be done about it."""
        if len(self._settled) >= _MAX_SETTLED:
            self._settled.clear()
        self._settled.add(digest)

    def _look_up(self, digest: bytes, state: int | None, referrer: Item | None) -> Item | None:
        """The path with this digest, if it is to be copied."""
        if state in (WAITS, UNITES, CHECKS):
            number = self._pending.find(digest)
            assert number is not None
            found = decode_path_info(self._pending.encoded(number))
            return Item(found, with_contents=state != UNITES, is_there=state == CHECKS)
        if self._options.paths is None:
            # It was there already, came after its place in the listing had been read, or is nowhere.
            if self._target.version(digest) is not None:
                self._settle(digest)
                return None
            late = self._source.describe(digest)
            if late is None:
                self._note_missing(digest, referrer)
            return None if late is None else Item(late)
        return self._look_up_both(digest, referrer)

    def _note_missing(self, digest: bytes, referrer: Item | None) -> None:
        """Neither store has it. If the source has deleted it together with what refers to it, that must not
        be registered either: at the source it did not lack anything."""
        missing = NotFound(f"it refers to {base32.encode(digest)}, which neither store has")
        if referrer is not None and self._is_gone(referrer.digest):
            self.fail(referrer, missing)
        else:
            self._report.dangling += 1
            LOGGER.debug("%s: %s", _named(referrer), missing)

    def _look_up_both(self, digest: bytes, referrer: Item | None) -> Item | None:
        found = self._source.describe(digest)
        stored = self._target.get(digest)
        if found is None:
            if stored is not None:
                self._settle(digest)
                return None
            raise NotFound(
                "the source does not have it" + (f", {_named(referrer)} refers to it" if referrer else "")
            )
        if stored is None:
            return Item(found)
        changed = to_be_put(found, stored)
        if self._options.check and isinstance(found, PathInfo):
            return Item(found, is_there=changed is None)
        if changed is None:
            self._report.present += 1
            self._settle(digest)
            return None
        return Item(changed, with_contents=False)


def _named(item: Item | None) -> str:
    return "" if item is None else item.known.store_path.absolute
