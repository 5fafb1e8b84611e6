"""What a walk leaves out."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Callable

Exclude = Callable[[bytes], bool]
"""Tells whether to leave out the entry at a path (bytes, relative to the root, no leading slash)."""


def exclude_globs(patterns: list[str]) -> Exclude | None:
    """An ``Exclude`` for shell patterns.

    A pattern without a slash is matched against the last component, anywhere; one with a slash
    against the whole path from the root. What is below an excluded directory is excluded too.
    """
    if not patterns:
        return None
    whole = [re.compile(fnmatch.translate(p.strip("/"))) for p in patterns if "/" in p.rstrip("/")]
    last = [re.compile(fnmatch.translate(p.rstrip("/"))) for p in patterns if "/" not in p.rstrip("/")]

    def excluded(path: bytes) -> bool:
        text = os.fsdecode(path)
        base = text.rpartition("/")[2]
        return any(p.match(text) for p in whole) or any(p.match(base) for p in last)

    return excluded
