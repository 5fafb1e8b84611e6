"""Byte ranges of a request, and answers of several of them. No I/O.

RFC 9110, section 14. A header in another unit means nothing, and neither does one whose ranges make up
more than there is (they overlap, so it is an attack or a mistake): then all is sent.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from neve.http_cache.statuses import Header, Refused

MAX_RANGES = 16
"""Most ranges in one request; clients that resume or look into an archive ask for one to three."""

_RANGE = re.compile(r"\s*(?:([0-9]{1,19})\s*-\s*([0-9]{1,19})?|-\s*([0-9]{1,19}))\s*")
_UNIT = "bytes="


class Range(NamedTuple):
    """Bytes from ``start`` up to, and without, ``stop``."""

    start: int
    stop: int

    def header(self, size: int) -> bytes:
        """The value of ``Content-Range``."""
        return b"bytes %d-%d/%d" % (self.start, self.stop - 1, size)


def parse_ranges(header: str | None, size: int) -> list[Range] | None:
    """The ranges to send of something of ``size`` bytes, in the order asked for; None: all of it.

    Raises ``Refused`` (416) if a range cannot be read, none of them has a byte that is there, or there are
    more than ``MAX_RANGES``.
    """
    if header is None or header[: len(_UNIT)].lower() != _UNIT:
        return None
    items = [item for item in header[len(_UNIT) :].split(",", MAX_RANGES + 1) if item.strip()]
    if len(items) > MAX_RANGES:
        raise _unsatisfiable(f"more than {MAX_RANGES} ranges in one request", size)
    found: list[Range] = []
    for item in items:
        match = _RANGE.fullmatch(item)
        if match is None or (match[2] is not None and int(match[2]) < int(match[1])):
            raise _unsatisfiable("the header Range cannot be read", size)
        if match[3] is not None:
            found.append(Range(max(0, size - int(match[3])), size))
        else:
            found.append(Range(int(match[1]), size if match[2] is None else min(size, int(match[2]) + 1)))
    found = [each for each in found if each.start < each.stop]
    if not found:
        raise _unsatisfiable(f"none of the ranges lies within {size} bytes", size)
    return None if sum(each.stop - each.start for each in found) > size else found


def _unsatisfiable(message: str, size: int) -> Refused:
    return Refused(416, message, [(b"content-range", b"bytes */%d" % size)])


class Multipart:
    """An answer of several ranges: ``multipart/byteranges``, of a length that is known beforehand."""

    def __init__(self, ranges: list[Range], size: int, media_type: bytes, boundary: bytes) -> None:
        """``boundary`` must not occur in what is sent: random bytes, in letters."""
        self.ranges = ranges
        self.heads = [
            b"\r\n--%s\r\ncontent-type: %s\r\ncontent-range: %s\r\n\r\n"
            % (boundary, media_type, each.header(size))
            for each in ranges
        ]
        """What stands before each range."""
        self.tail = b"\r\n--%s--\r\n" % boundary
        self.content_type: Header = (b"content-type", b"multipart/byteranges; boundary=" + boundary)

    @property
    def length(self) -> int:
        """Of all of it, in bytes."""
        contents = sum(each.stop - each.start for each in self.ranges)
        return contents + sum(map(len, self.heads)) + len(self.tail)
