"""Two listings of path infos side by side, a page of each at a time."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import NamedTuple

from neve.errors import Corrupt
from neve.packstore.layout import temporary_errors
from neve.store.pathinfos.base import PathInfoService
from neve.store.wire import encode_path_info

Encoded = bytes | Corrupt
"""A path info as it is encoded, or why it cannot be read."""

_PAGE = 2000
_SPOOL_IN_MEMORY = 16 * 1024 * 1024


class Pair(NamedTuple):
    """A path info of the source, and what the target has by the same digest."""

    digest: bytes
    source: Encoded
    target: Encoded | None


def pairs(source: PathInfoService, target: PathInfoService) -> Iterator[Pair]:
    """All path infos of the source, by ascending digest. Raises ``Unsupported`` if one cannot list."""
    others = _listing(target)
    other = next(others, None)
    for digest, encoded in _listing(source):
        while other is not None and other[0] < digest:
            other = next(others, None)
        found = other[1] if other is not None and other[0] == digest else None
        yield Pair(digest, encoded, found)


def _listing(path_infos: PathInfoService) -> Iterator[tuple[bytes, Encoded]]:
    return _in_pages(path_infos) if path_infos.lists_in_pages() else _sorted(path_infos)


def _in_pages(path_infos: PathInfoService) -> Iterator[tuple[bytes, Encoded]]:
    after = b""
    while page := path_infos.list_encoded(after, _PAGE):
        yield from page
        after = page[-1][0]


def _sorted(path_infos: PathInfoService) -> Iterator[tuple[bytes, Encoded]]:
    """A listing that comes in any order, and must not be kept waiting: of servers that do not let themselves
    be administered. Holds about 200 bytes for each path."""
    places: list[tuple[bytes, int, int]] = []
    end = 0
    with (
        temporary_errors("cannot hold a listing"),
        tempfile.SpooledTemporaryFile(_SPOOL_IN_MEMORY) as spool,
    ):
        for path_info in path_infos:
            encoded = encode_path_info(path_info)
            spool.write(encoded)
            places.append((path_info.digest, end, len(encoded)))
            end += len(encoded)
        places.sort()
        last = b""
        for digest, start, length in places:
            if digest != last:  # Who lists a path twice has changed it meanwhile; the next run sees that.
                spool.seek(start)
                yield digest, spool.read(length)
            last = digest
