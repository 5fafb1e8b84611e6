"""What a search asks for, and what it finds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from neve.castore.path import parse_path
from neve.errors import Corrupt, InvalidRequest, Unsupported
from neve.http_cache.pages.scan import LARGE_PAGE, Scan
from neve.nix import base32
from neve.nix.store_path import DIGEST_SIZE, STORE_DIR, StorePath
from neve.store.path_info import PathInfo
from neve.store.pathinfos.base import PathInfoService

MAX_QUERY = 8192
"""Characters. A store path with what lies below it has at most some thousands."""

_FOUND = 50
"""Results on a page."""
_EXAMINED = 50_000
_SECONDS = 2.0
"""What one request may look through: a person waits for it, and a thread is taken."""
_GOING_ON_EXAMINED = 500_000
_GOING_ON_SECONDS = 5.0
"""The same for who wants to go on, and so knows that it takes a while: six times for a million paths."""
_DIGEST_CHARACTERS = base32.encoded_length(DIGEST_SIZE)


class Unreadable(NamedTuple):
    """A store path of which only the name can be read. Its page tells what is the matter with it."""

    store_path: StorePath
    nar: None = None


@dataclass(frozen=True)
class Found:
    """The store paths that one request has found."""

    paths: tuple[PathInfo | Unreadable, ...]
    examined: int
    """How many were looked at for it."""
    after: bytes | None
    """Where to go on; None at the end."""
    share: float
    """How much of the store has been looked through, 0 to 1."""
    problem: str | None = None
    """Why this is not all there is."""


def exact_place(query: str) -> tuple[StorePath, tuple[bytes, ...]] | None:
    """The place that an absolute path names, or None if ``query`` is no absolute path.

    Raises ``InvalidRequest`` for one that names no store path.
    """
    if not query.startswith("/"):
        return None
    # As text, which errors show as people wrote it; names of files are bytes.
    store_path, rest = StorePath.parse_with_rest(query)
    return store_path, parse_path(rest.encode("utf-8", "surrogateescape"))


def whole_digest(query: str) -> bytes | None:
    """The digest in a base name or in 32 characters of nixbase32, else None."""
    digits, hyphen, name = query[:_DIGEST_CHARACTERS], query[_DIGEST_CHARACTERS:][:1], query[33:]
    if len(digits) < _DIGEST_CHARACTERS or hyphen not in ("", "-") or "/" in name:
        return None
    try:
        return base32.decode(digits)
    except InvalidRequest:
        return None


def parse_after(text: str) -> bytes:
    """The digest behind which a search goes on. Raises ``InvalidRequest``."""
    if not text:
        return b""
    if len(text) != _DIGEST_CHARACTERS:
        raise InvalidRequest(f"after has {len(text)} characters, must have {_DIGEST_CHARACTERS}")
    return base32.decode(text)


def search(
    path_infos: PathInfoService,
    query: str,
    after: bytes = b"",
    *,
    found: int = _FOUND,
    examined: int | None = None,
    seconds: float | None = None,
) -> Found:
    """Store paths whose name contains ``query`` or whose hash begins with it, whatever the case.

    Looks at up to ``examined`` paths behind ``after``, in the order of their digests, for ``seconds``; by
    default at less for the first page than for those who go on.
    """
    matches = _matcher(query.lower())
    if examined is None:
        examined = _GOING_ON_EXAMINED if after else _EXAMINED
    if seconds is None:
        seconds = _GOING_ON_SECONDS if after else _SECONDS
    scan = Scan(path_infos.names, after=after, limit=examined, seconds=seconds, largest_page=LARGE_PAGE)
    matching: list[PathInfo | Unreadable] = []
    problem = None
    try:
        for store_path in scan:
            if matches(store_path) and (listed := _listed(path_infos, store_path)) is not None:
                matching.append(listed)
                if len(matching) == found:
                    break
    except Unsupported:
        problem = (
            "The store behind this cache cannot list its paths, so there is no search by name. "
            f"A path is found by its whole hash, or its full name: {STORE_DIR}/…"
        )
        return Found((), 0, None, 0.0, problem)
    if scan.damage is not None:
        problem = f"The list of paths is damaged, and ends here for now: {scan.damage}"
    stopped = scan.ended or scan.damage is not None
    return Found(tuple(matching), scan.examined, None if stopped else scan.after, scan.share, problem)


def _matcher(needle: str) -> Callable[[StorePath], bool]:
    """Whether a path is looked for."""
    if not set(needle) <= set(base32.ALPHABET):  # No hash begins so.
        return lambda path: needle in path.name.lower()
    return lambda path: needle in path.name.lower() or base32.encode(path.digest).startswith(needle)


def _listed(path_infos: PathInfoService, path: StorePath) -> PathInfo | Unreadable | None:
    """The path info of what has just been listed, unless it is gone. Asking for it by its digest might
    fetch it from somewhere else."""
    before = int.from_bytes(path.digest, "big") - 1
    try:
        page = path_infos.list(before.to_bytes(DIGEST_SIZE, "big") if before >= 0 else b"", 1)
    except Corrupt:
        return Unreadable(path)
    return next((path_info for path_info in page if path_info.digest == path.digest), None)
