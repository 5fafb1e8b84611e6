"""Checks on closures that travel as streams of Directories, in both orders. No I/O.

A closure is all Directories reachable from a root, each once. Uploads send it from the leaves to the
root: a Directory refers only to what came before it. Downloads send it from the root to the leaves:
after the root comes only what was referred to before.

Two rules of counting sizes are in use (``SizeRule``). A closure follows one of them throughout;
which one shows at the first reference to a Directory that is not empty.

The memory kept for each Directory is its digest, a number or two and a place in a set (150 to
250 bytes in all), never the Directory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from neve.castore.digest import Digest, b3_digest, format_digest
from neve.castore.directory import Directory, InvalidDirectory, SizeRule
from neve.castore.node import DirectoryNode
from neve.castore.path import show_name
from neve.errors import InvalidRequest, LimitExceeded

__all__ = ["ClosureLimits", "InvalidClosure", "LeavesToRoot", "RootToLeaves", "possible_sizes"]


class InvalidClosure(InvalidRequest):
    """A stream of Directories that is no closure in the order asked for."""


@dataclass(frozen=True)
class ClosureLimits:
    """Bounds on what one stream may make the receiver hold."""

    max_directory_bytes: int = 64 * 1024 * 1024
    """Longest encoding of one Directory: about half a million entries with names of 80 bytes."""
    max_directories: int = 10_000_000
    """Most distinct Directories in one closure."""

    def check_bytes(self, size: int) -> None:
        """Raises ``LimitExceeded`` when an encoding of ``size`` bytes is too long."""
        if size > self.max_directory_bytes:
            raise LimitExceeded(
                f"a Directory of {size} bytes is over the limit of {self.max_directory_bytes} bytes "
                "(max_directory_bytes)"
            )

    def check_count(self, count: int) -> None:
        """Raises ``LimitExceeded`` when a closure has ``count`` Directories already."""
        if count >= self.max_directories:
            raise LimitExceeded(
                f"the closure is over the limit of {self.max_directories} Directories (max_directories)"
            )


DEFAULT_LIMITS = ClosureLimits()


class LeavesToRoot:
    """Checks an upload: ``add`` every Directory as it comes, then ``close``.

    After an error the validator is of no more use, and nothing of the stream may become visible.
    """

    def __init__(self, limits: ClosureLimits = DEFAULT_LIMITS) -> None:
        self._limits = limits
        # By every rule that is still possible: the size of what has come.
        self._sizes: dict[SizeRule, dict[Digest, int]] = {rule: {} for rule in SizeRule}
        # What nothing has referred to yet. Digests admit no cycles, so when the stream ends, all of
        # it is reachable from the root exactly if nothing but the root is left here.
        self._tops: set[Digest] = set()
        self._last: Digest | None = None

    def add(self, directory: Directory) -> None:
        """Takes the next Directory; one that came before is fine.

        Raises ``InvalidClosure`` if a child has not come before or has another size than stated,
        ``LimitExceeded`` if it is too long or one too many.
        """
        self._limits.check_bytes(len(directory.encode()))
        digest = self._last = directory.digest
        known = next(iter(self._sizes.values()))
        if digest in known:
            return
        self._limits.check_count(len(known))
        for name, child in directory.directories():
            self._check_child(digest, name, child)
        for rule, sizes in self._sizes.items():
            sizes[digest] = _size(directory, rule)
        self._tops.add(digest)

    def _check_child(self, parent: Digest, name: bytes, child: DirectoryNode) -> None:
        known = {rule: sizes.get(child.digest) for rule, sizes in self._sizes.items()}
        if None in known.values():
            raise InvalidClosure(
                f"Directory {format_digest(parent)} refers to {show_name(name)}, "
                f"{format_digest(child.digest)}, which has not come before it"
            )
        fitting = [rule for rule, size in known.items() if size == child.size]
        if not fitting:
            raise InvalidClosure(
                f"Directory {format_digest(parent)} states size {child.size} for {show_name(name)}, "
                f"{format_digest(child.digest)}: {_described(known)}"
            )
        if len(fitting) < len(known):
            self._sizes = {rule: self._sizes[rule] for rule in fitting}
        self._tops.discard(child.digest)

    def close(self) -> Digest:
        """The digest of the root, which came last.

        Raises ``InvalidClosure`` if nothing came, or something that the root does not reach.
        """
        if self._last is None:
            raise InvalidClosure("the stream has no Directory")
        stray = self._tops - {self._last}
        if stray:
            raise InvalidClosure(
                f"Directory {format_digest(min(stray))} is not reachable from the root, which came last, "
                f"{format_digest(self._last)}; nothing refers to {len(stray)} in all"
            )
        return self._last


class RootToLeaves:
    """Checks a download: ``add`` everything as it comes, then ``close``.

    After an error the validator is of no more use; what came before the error was valid.
    """

    def __init__(self, root_digest: Digest, limits: ClosureLimits = DEFAULT_LIMITS) -> None:
        self._limits = limits
        self._root = root_digest
        self._rules = list(SizeRule)
        # What has come or is expected: its size as its first parent states it, None for the root.
        self._stated: dict[Digest, int | None] = {root_digest: None}
        self._expected = {root_digest}

    def add(self, received: bytes | Directory) -> Directory:
        """Takes the next Directory, encoded or not, and returns it.

        Raises ``InvalidDirectory`` if the bytes are none, ``InvalidClosure`` if it was not referred
        to before, came before, or has another size than stated, ``LimitExceeded`` if it is too long
        or refers to too many.
        """
        if isinstance(received, Directory):
            self._limits.check_bytes(len(received.encode()))
            digest = received.digest
            self._check_expected(digest)
            directory = received
        else:
            self._limits.check_bytes(len(received))
            digest = b3_digest(received)
            self._check_expected(digest)
            directory = Directory.decode(received, digest=digest)
        self._check_size(digest, directory)
        for name, child in directory.directories():
            self._expect(digest, name, child)
        self._expected.discard(digest)
        return directory

    def _check_expected(self, digest: Digest) -> None:
        if digest in self._expected:
            return
        if self._root in self._expected:
            reason = f"came first, requested was {format_digest(self._root)}"
        elif digest in self._stated:
            reason = "came twice"
        else:
            reason = "was referred to by nothing that came before"
        raise InvalidClosure(f"Directory {format_digest(digest)} {reason}")

    def _check_size(self, digest: Digest, directory: Directory) -> None:
        stated = self._stated[digest]
        if stated is None:
            return
        known = {rule: _size(directory, rule) for rule in self._rules}
        self._rules = [rule for rule, size in known.items() if size == stated]
        if not self._rules:
            raise InvalidClosure(
                f"a parent states size {stated} for Directory {format_digest(digest)}: {_described(known)}"
            )

    def _expect(self, parent: Digest, name: bytes, child: DirectoryNode) -> None:
        if child.digest not in self._stated:
            self._limits.check_count(len(self._stated))
            self._stated[child.digest] = child.size
            self._expected.add(child.digest)
        elif self._stated[child.digest] != child.size:
            raise InvalidClosure(
                f"Directory {format_digest(parent)} states size {child.size} for {show_name(name)}, "
                f"{format_digest(child.digest)}, another parent states {self._stated[child.digest]}"
            )

    def close(self) -> None:
        """Raises ``InvalidClosure`` if something is still expected, and says how many."""
        if self._expected:
            raise InvalidClosure(
                f"the stream ended early, {len(self._expected)} still expected, "
                f"for example Directory {format_digest(min(self._expected))}"
            )


def _size(directory: Directory, rule: SizeRule) -> int:
    try:
        return directory.size(rule)
    except InvalidDirectory:
        return -1  # Over 64 bits: no parent can state it.


def possible_sizes(directory: Directory) -> list[int]:
    """What a node of this Directory may state: its size by each of the rules."""
    return [_size(directory, rule) for rule in SizeRule]


def _described(sizes: Mapping[SizeRule, int | None]) -> str:
    """The sizes of one Directory by the rules that its closure may follow."""
    described = " or ".join(f"{size} by the rule {rule.value!r}" for rule, size in sizes.items())
    return f"it has {described}" + (", which this closure follows" if len(sizes) == 1 else "")
