"""What came of a collection."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class GcReport:
    """Counts, and sizes in bytes. After a dry run: what would be."""

    dry_run: bool = False
    paths_kept: int = 0
    paths_dropped: int = 0
    directories_dropped: int = 0
    blobs_dropped: int = 0
    chunks_dropped: int = 0
    content_bytes: int = 0
    """Contents that were dropped, before compression."""
    fresh: int = 0
    """Objects that no path reaches, and that stay because they were put or asked for not long ago."""
    pack_bytes: int = 0
    """All packs, before."""
    dead_bytes: int = 0
    """What of them is not in use any more, with what was not before."""
    given_back: int = 0
    busy_bytes: int = 0
    """What of the dead bytes lies in packs that others are just writing to."""
    missing: int = 0
    """Directories that something refers to and that are not there; in the near part of a cache that is
    nothing unusual."""
    problems: list[str] = field(default_factory=list)
    """What was found damaged, and stays; or why not all could be given back."""
