"""What a collection is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from neve.castore.ages import DEFAULT_GRACE as AGED_GRACE
from neve.errors import InvalidRequest
from neve.nix.store_path import StorePath
from neve.packstore.notes import MAX_LASTING

DEFAULT_GRACE = 6 * 3600.0
"""Seconds for which a client of a server can count on an answer: an upload of one path takes less. Where
those who write know nothing of each other it is that of ``ages``."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Which store paths stay. If none of the first four is given, all do, and what none reaches goes."""

    keep: Sequence[StorePath] | None = None
    """These paths stay, with all that they refer to."""
    only_pinned: bool = False
    """Of the others those that are pinned stay. (They stay in any case.)"""
    keep_newer: float | None = None
    """Those that were registered or asked for in the last so many seconds stay, too."""
    max_size: int | None = None
    """Of those that are neither named nor pinned, the ones that were not used for the longest time go, until
    the store has no more than so many bytes in use."""
    ignore_missing: bool = False
    """Whether paths to keep may not be there; else that is an error, because it may be a slip."""
    grace: float | None = None
    """Seconds for which what a server has answered to be there stays; default: what the store needs."""
    dry_run: bool = False
    """Nothing is dropped, but told."""

    def __post_init__(self) -> None:
        if self.grace is not None and not 0 <= self.grace <= MAX_LASTING:
            raise InvalidRequest(
                f"a grace of {self.grace:g} seconds; it must be 0 to {MAX_LASTING:g}, "
                "for so long is remembered what was promised"
            )
        if self.keep_newer is not None and self.keep_newer < 0:
            raise InvalidRequest(f"an age of {self.keep_newer:g} seconds is less than none")
        if self.max_size is not None and self.max_size < 0:
            raise InvalidRequest(f"a size of {self.max_size} bytes is less than none")
        if self.keep is not None and not self.keep:
            raise InvalidRequest("no store path is named that is to be kept: all would be dropped")

    @property
    def local_grace(self) -> float:
        """Of an embedded store."""
        return DEFAULT_GRACE if self.grace is None else self.grace

    @property
    def aged_grace(self) -> float:
        """Of a bucket or a database, see ``neve.castore.ages``."""
        return AGED_GRACE if self.grace is None else self.grace

    @property
    def drops_paths(self) -> bool:
        """Whether any store path may be dropped."""
        limits = (self.keep, self.keep_newer, self.max_size)
        return self.only_pinned or any(limit is not None for limit in limits)

    @property
    def keeps_others(self) -> bool:
        """Whether paths that are not named may stay because of their use."""
        return self.keep_newer is not None or self.max_size is not None
