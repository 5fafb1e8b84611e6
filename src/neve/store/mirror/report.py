"""What is asked of a mirror, and what it has done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from neve.errors import NeveError, PermissionDenied, Unavailable, Unsupported
from neve.nix.store_path import StorePath

CONCERNS_ALL = (Unavailable, PermissionDenied, Unsupported)
"""What a store raises if it will not give or take the next object either."""


@dataclass(frozen=True)
class MirrorOptions:
    """What to copy, and what to look at."""

    paths: Sequence[StorePath] | None = None
    """Only these and all that they refer to; None: every path that the source lists."""
    check: bool = False
    """Also looks whether the contents of those paths are there that the target has."""
    nars: bool = False
    """Also computes the NAR hash of what is copied, and compares it with the path info."""
    everything: bool = False
    """Also what no path info reaches, and what lies beside them."""
    dry_run: bool = False
    """Tells what would be copied, and copies nothing."""


@dataclass
class MirrorReport:
    """What became of the paths."""

    copied: int = 0
    united: int = 0
    """Paths that were there, and got signatures, or the hash of their NAR."""
    present: int = 0
    """Paths that were there and the same."""
    vanished: int = 0
    """Paths that the source has deleted meanwhile."""
    dangling: int = 0
    """References to what neither store has."""
    blobs: int = 0
    blob_bytes: int = 0
    """Contents that were copied, uncompressed."""
    directories: int = 0
    """Directories that were copied apart from any path."""
    failures: dict[str, NeveError] = field(default_factory=dict)
    """What could not be copied (a store path, or another object), and why."""
    left_out: list[str] = field(default_factory=list)
    """Paths that were not copied because they refer to one that failed."""

    def fail(self, what: str, error: NeveError) -> None:
        """Notes a failure; of several about the same thing the first counts."""
        # They lead to whole groups of paths, and there may be many failures.
        error.__traceback__ = error.__cause__ = error.__context__ = None
        self.failures.setdefault(what, error)
