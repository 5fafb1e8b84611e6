"""The interface of directory services.

Synchronous and thread-safe; a putter belongs to one thread.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Self, TypeVar

from neve.castore.closure import DEFAULT_LIMITS, ClosureLimits, LeavesToRoot
from neve.castore.digest import Digest, check_digest, format_digest
from neve.castore.directory import Directory
from neve.errors import InvalidRequest, NotFound, Unsupported

T = TypeVar("T")

GET_MANY = 256
"""How many Directories ``get_recursive`` asks for at once."""


class DirectoryPutter(ABC):
    """Receives a closure, leaves to root. Leaving its ``with`` block without ``close`` abandons it."""

    @abstractmethod
    def put(self, directory: Directory) -> None:
        """Takes the next Directory. Raises ``InvalidRequest`` if the order or a size is wrong; then
        nothing of this closure becomes visible."""

    def put_built(self, encoded: bytes, digest: Digest) -> None:
        """Takes one that a ``DirectoryBuilder`` of this process made, children first.

        What the builder guarantees is not checked again.
        """
        self.put(Directory.decode(encoded, digest=digest))

    @abstractmethod
    def close(self) -> Digest:
        """Makes all durable and visible; returns the root's digest. A second call is an error."""

    @abstractmethod
    def abandon(self) -> None:
        """Forgets what was put; nothing becomes visible. Does nothing after ``close``."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.abandon()


class DirectoryService(ABC):
    """Stores Directories and gives them back, verified against their digests.

    Failures are errors of ``neve.errors``; None means "not there".
    """

    looks_up_children = True
    """Whether each Directory of a closure is found by its own digest. Else it is found only by who has asked
    for the root before (``get``, ``read_ahead``): a missing child is no gap before that."""

    @property
    def tells_ages(self) -> bool:
        """Whether it tells the ages of its objects, as ``neve.castore.ages`` says: then it can be collected
        while others write to it."""
        return type(self).list_with_ages is not DirectoryService.list_with_ages

    @abstractmethod
    def get(self, digest: Digest) -> Directory | None:
        """The Directory, or None."""

    @abstractmethod
    def put(self, directory: Directory) -> Digest:
        """Stores one Directory, durable on return."""

    def put_many(self, directories: Sequence[Directory]) -> None:
        """Stores Directories, each on its own, durable on return."""
        for directory in directories:
            self.put(directory)

    @abstractmethod
    def put_multiple(self, limits: ClosureLimits = DEFAULT_LIMITS) -> DirectoryPutter:
        """A putter for a whole closure. What is over ``limits`` is refused with ``LimitExceeded``."""

    def read_ahead(self, digest: Digest) -> None:
        """Says that the closure of ``digest`` is about to be walked. A backend to which each question is
        far may fetch it now, as much as it is ready to hold; others do nothing."""
        return

    def get_many(self, digests: Sequence[Digest]) -> dict[Digest, Directory]:
        """Those of ``digests`` that are there."""
        found = ((digest, self.get(digest)) for digest in digests)
        return {digest: directory for digest, directory in found if directory is not None}

    def get_recursive(self, digest: Digest) -> Iterator[Directory]:
        """The closure of ``digest``, breadth first, each Directory once; nothing if it is not there.

        Raises ``NotFound`` when a Directory that one of them refers to is missing: the store is
        inconsistent then.
        """
        return self._breadth_first(digest, self.get_many, _children)

    def get_recursive_encoded(self, digest: Digest) -> Iterator[bytes]:
        """Like ``get_recursive``, but gives the encodings, for who passes them on."""
        return (directory.encode() for directory in self.get_recursive(digest))

    def _breadth_first(
        self,
        digest: Digest,
        get_many: Callable[[Sequence[Digest]], dict[Digest, T]],
        children: Callable[[T], Iterable[Digest]],
    ) -> Iterator[T]:
        """The closure in whatever form ``get_many`` gives, whose child digests ``children`` tells."""
        known = {check_digest(digest)}
        wanted = [digest]
        first = True
        while wanted:
            following: list[Digest] = []
            for part in self._portions(wanted):
                found = get_many(part)
                if first and digest not in found:
                    return
                first = False
                for one in part:
                    directory = found.pop(one, None)
                    if directory is None:
                        raise directory_not_found(one)
                    for child in children(directory):
                        if child not in known:
                            known.add(child)
                            following.append(child)
                    yield directory
            wanted = following

    def _portions(self, digests: Sequence[Digest]) -> Iterator[Sequence[Digest]]:
        """Splits ``digests`` into portions of which the Directories can be held at once."""
        for start in range(0, len(digests), GET_MANY):
            yield digests[start : start + GET_MANY]

    def list(self, after: Digest = b"", limit: int = 1000) -> list[Digest]:
        """Up to ``limit`` digests greater than ``after``, ascending. May be ``Unsupported``."""
        raise Unsupported(f"{type(self).__name__} cannot list Directories")

    def delete_many(self, digests: Sequence[Digest], *, unused_for: float | None = None) -> int:
        """Deletes Directories; returns how many were there. May be ``Unsupported``.

        With ``unused_for`` only those go that were not used in the last so many seconds.
        """
        raise Unsupported(f"{type(self).__name__} cannot delete Directories")

    def list_with_ages(self, after: Digest = b"", limit: int = 1000) -> Sequence[tuple[Digest, float]]:
        """What ``list`` gives, and how many seconds ago each was used; it may be up to ``ages.SLACK`` less.
        May be ``Unsupported``."""
        raise Unsupported(f"{type(self).__name__} cannot tell the ages of Directories")

    def freshen(self, digests: Sequence[Digest]) -> Sequence[Digest]:
        """Uses Directories: gives those that are missing, in order; the others stay for now. Where only the
        roots of closures are objects, others are neither missing nor used."""
        found = self.get_many(digests)
        return [digest for digest in digests if digest not in found]

    def remove_leftovers(self, unused_for: float) -> int:
        """Removes what writers have left that died in the middle of an object, and what nobody has written to
        in the last so many seconds; returns how much. Listings do not have it."""
        return 0

    def close(self) -> None:
        """Lets go of files and connections. Can be called again."""
        return


class CheckingPutter(DirectoryPutter):
    """A putter that checks the closure and leaves keeping it to ``_keep`` and ``_commit``."""

    def __init__(self, limits: ClosureLimits = DEFAULT_LIMITS) -> None:
        self._validator = LeavesToRoot(limits)
        self._last_built: Digest | None = None
        self._open = True

    def _check_open(self) -> None:
        if not self._open:
            raise InvalidRequest("the directory putter is closed")

    def put(self, directory: Directory) -> None:
        self._check_open()
        try:
            self._validator.add(directory)
            self._keep(directory.encode(), directory.digest)
        except BaseException:
            self.abandon()
            raise

    def close(self) -> Digest:
        self._check_open()
        try:
            root = self._validator.close() if self._last_built is None else self._last_built
            self._commit()
        finally:
            self.abandon()
        return root

    def abandon(self) -> None:
        if self._open:
            self._open = False
            self._release()

    @abstractmethod
    def _keep(self, encoded: bytes, digest: Digest) -> None:
        """Holds a Directory until ``_commit``; it may come more than once."""

    @abstractmethod
    def _commit(self) -> None:
        """Makes all that was kept durable and visible."""

    def _release(self) -> None:
        """Frees what ``_keep`` holds."""
        return


def _children(directory: Directory) -> Iterator[Digest]:
    return (child.digest for _, child in directory.directories())


def directory_not_found(digest: Digest) -> NotFound:
    """The error for a Directory that must be there and is not."""
    return NotFound(f"Directory {format_digest(digest)} is not in the store")
