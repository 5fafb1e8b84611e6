"""The interface of path info services. Synchronous and thread-safe."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

from neve.errors import (
    Corrupt,
    InvalidRequest,
    LimitExceeded,
    NeveError,
    NotFound,
    PermissionDenied,
    Unavailable,
    Unsupported,
)
from neve.nix import base32
from neve.nix.signing import Signature
from neve.nix.store_path import DIGEST_SIZE, StorePath
from neve.store.path_info import PathDescription, PathInfo, united
from neve.store.wire import encode_path_info

_PAGE = 1000

MAX_PATH_INFO_BYTES = 1024 * 1024
"""Longest encoding of a path info that is stored: some 10,000 references, or signatures. It is read
whole, and must go into a message, also with peers that take 4 MiB; and whoever may put can sign."""


class PathInfoService(ABC):
    """Keeps path infos by the digest of their store path (20 bytes).

    Failures are errors of ``neve.errors``; None means "not there".
    """

    @property
    def looks_up_at_once(self) -> bool:
        """Whether ``version``, called now, only looks into memory or a mapped file: then an event loop may
        call it."""
        return False

    only_read = False
    """Whether this is a source of path infos and nothing else: it takes none, and cannot list them."""

    may_fetch = False
    """Whether ``get`` may take minutes, because contents have to be fetched first."""

    @property
    def tells_ages(self) -> bool:
        """Whether it tells when path infos were put or asked for, as ``neve.castore.ages`` says."""
        return type(self).list_with_ages is not PathInfoService.list_with_ages

    @abstractmethod
    def get(self, digest: bytes) -> PathInfo | None:
        """The path info of the store path with this digest. ``InvalidRequest`` if it has not 20 bytes."""

    def describe(self, digest: bytes) -> PathInfo | PathDescription | None:
        """Like ``get``, but without fetching contents: a backend that would have to, gives what it knows."""
        return self.get(digest)

    def version(self, digest: bytes) -> object | None:
        """Something that is equal for as long as ``describe`` gives the same; None where that gives None.
        What is kept of an answer can be checked with it. A backend can often tell it without reading."""
        return self.describe(digest)

    @abstractmethod
    def put(self, path_info: PathInfo, *, replace: bool = False) -> PathInfo:
        """Stores a path info, durable on return; returns what is stored.

        If the path is there with the same node and NAR hash, the signatures are united; anything
        else is a ``Conflict``, unless ``replace``. What would be longer than ``MAX_PATH_INFO_BYTES`` is
        refused with ``LimitExceeded``, and nothing changes.
        """

    def put_many(self, path_infos: Sequence[PathInfo]) -> Sequence[PathInfo | NeveError]:
        """Puts path infos, durable on return; what is stored, or why one cannot be. Nobody sees one before
        those in front of it that it refers to. Raises what concerns all of them: ``Unavailable``,
        ``PermissionDenied``."""
        return [stored_or_error(self, path_info) for path_info in path_infos]

    def list(self, after: bytes = b"", limit: int = _PAGE) -> Sequence[PathInfo]:
        """Up to ``limit`` path infos with digests above ``after``, ascending. May be ``Unsupported``."""
        raise Unsupported(f"{type(self).__name__} cannot list path infos")

    def names(self, after: bytes = b"", limit: int = _PAGE) -> Sequence[StorePath]:
        """The store paths of what ``list`` gives. A backend can often tell them without reading all of it."""
        return [path_info.store_path for path_info in self.list(after, limit)]

    def list_encoded(self, after: bytes = b"", limit: int = _PAGE) -> Sequence[tuple[bytes, bytes | Corrupt]]:
        """What ``list`` gives, by digest and as ``encode_path_info`` writes it. A backend need not check what
        it says, and can tell one that is damaged by its error."""
        return [(path_info.digest, encode_path_info(path_info)) for path_info in self.list(after, limit)]

    def lists_in_pages(self) -> bool:
        """Whether a page of ``list`` costs no more than what is on it. May ask somebody."""
        return True

    def __iter__(self) -> Iterator[PathInfo]:
        """All path infos, a page at a time. May be ``Unsupported``."""
        after = b""
        while page := self.list(after):
            yield from page
            after = page[-1].digest

    def list_with_ages(self, after: bytes = b"", limit: int = _PAGE) -> Sequence[tuple[bytes, float]]:
        """The digests of what ``list`` gives, and how many seconds ago each was put, or told to be there; it
        may be up to ``ages.SLACK`` less. May be ``Unsupported``."""
        raise Unsupported(f"{type(self).__name__} cannot tell the ages of path infos")

    def delete_many(self, digests: Sequence[bytes], *, unused_for: float | None = None) -> int:
        """Deletes path infos; returns how many were there. May be ``Unsupported``.

        With ``unused_for`` only those go that were not put, nor told to be there, in so many seconds.
        """
        raise Unsupported(f"{type(self).__name__} cannot delete path infos")

    def add_signatures(self, digest: bytes, signatures: Sequence[Signature]) -> PathInfo:
        """Adds signatures to a stored path info; returns it. Raises ``NotFound``."""
        stored = self.get(digest)
        if stored is None:
            raise path_not_found(digest)
        return self.put(stored.with_signatures(signatures))

    def referrers(self, digest: bytes) -> Sequence[bytes]:
        """Digests of the stored paths that refer to this one (itself, if it does). May be ``Unsupported``."""
        raise Unsupported(f"{type(self).__name__} cannot tell referrers")

    def close(self) -> None:
        """Lets go of files and connections. Can be called again."""
        return


def stored_or_error(service: PathInfoService, path_info: PathInfo) -> PathInfo | NeveError:
    """Puts one; what ``put_many`` tells of it."""
    try:
        return service.put(path_info)
    except (Unavailable, PermissionDenied):
        raise
    except NeveError as error:
        return error


def to_be_stored(stored: PathInfo | None, new: PathInfo) -> PathInfo:
    """What a backend keeps when ``new`` is put where ``stored`` is: ``united``, if that is not too long."""
    result = united(stored, new)
    if result != stored:
        check_length(result)
    return result


def check_length(path_info: PathInfo) -> None:
    """Raises ``LimitExceeded`` if a path info is too long to be stored."""
    if (size := len(encode_path_info(path_info))) > MAX_PATH_INFO_BYTES:
        raise LimitExceeded(
            f"{path_info.store_path}: a path info of {size} bytes, with all signatures, is over the limit of "
            f"{MAX_PATH_INFO_BYTES} bytes"
        )


def check_path_digest(digest: bytes) -> bytes:
    """Returns ``digest`` if it has 20 bytes, else raises ``InvalidRequest`` with the length it has."""
    if len(digest) != DIGEST_SIZE:
        raise InvalidRequest(f"store path digest has {len(digest)} bytes, must have {DIGEST_SIZE}")
    return digest


def path_not_found(digest: bytes) -> NotFound:
    """The error for a store path that must be there and is not."""
    return NotFound(f"the store has no path with the digest {base32.encode(digest)}")
