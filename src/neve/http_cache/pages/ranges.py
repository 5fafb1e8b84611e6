"""The ``Range`` header (RFC 9110), as far as files of the pages need it: one range of bytes."""

from __future__ import annotations

import re

from neve.errors import InvalidRequest

_ONE_RANGE = re.compile(r"bytes\s*=\s*([0-9]{0,20})\s*-\s*([0-9]{0,20})", re.ASCII | re.IGNORECASE)


class RangeNotSatisfiable(InvalidRequest):
    """The range lies behind the end."""


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """The bytes asked for, ``(start, stop)``, or None for all of them.

    A header that is malformed or asks for several ranges means all, as RFC 9110 allows. Raises
    ``RangeNotSatisfiable``.
    """
    match = None if header is None else _ONE_RANGE.fullmatch(header.strip())
    if match is None or not any(match.groups()):
        return None
    first, last = match.groups()
    if not first:
        start, stop = max(0, size - int(last)), size
    else:
        start, stop = int(first), size
        if last:
            if int(last) < start:
                return None
            stop = min(size, int(last) + 1)
    if start >= stop:
        raise RangeNotSatisfiable(f"the file has {size} bytes, none of them in {match.group()!r}")
    return start, stop
