"""``nix-cache-info``: what a binary cache says about itself.

Lines ``Key: value``: ``StoreDir``, ``WantMassQuery`` (``1``: the cache likes to be asked about many paths
at once) and ``Priority`` (lower is asked first).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from neve.errors import InvalidRequest
from neve.nix._text import InvalidText, decode_utf8, quoted, split_line
from neve.nix.store_path import STORE_DIR

MAX_CACHE_INFO_BYTES = 64 * 1024
"""Real ones are below 200 bytes; this bounds what a wrong address can make us read."""

_KEYS = ("StoreDir", "WantMassQuery", "Priority")
_PRIORITY = re.compile(r"-?[0-9]{1,9}")


class InvalidCacheInfo(InvalidRequest):
    """A ``nix-cache-info`` is malformed. The message names the line and the key."""


class ForeignStoreDir(InvalidCacheInfo):
    """A cache serves another store directory, so that its paths mean nothing here."""


@dataclass(frozen=True, slots=True)
class CacheInfo:
    """What a cache for ``/nix/store`` says about itself; ``priority`` is ``None`` where it does not say."""

    want_mass_query: bool = False
    priority: int | None = None

    @classmethod
    def parse(cls, data: str | bytes) -> CacheInfo:
        """Parses a ``nix-cache-info``; unknown keys and empty lines are skipped.

        Raises ``InvalidCacheInfo``, its subclass ``ForeignStoreDir`` when the cache is for another store
        directory than ``/nix/store``, and ``LimitExceeded`` above ``MAX_CACHE_INFO_BYTES``.
        """
        values = _read_values(data)
        store_dir = values.get("StoreDir")
        if store_dir is None:
            raise InvalidCacheInfo("nix-cache-info: StoreDir is missing")
        if store_dir != STORE_DIR:
            raise ForeignStoreDir(f"nix-cache-info: StoreDir is {quoted(store_dir)}, expected {STORE_DIR!r}")
        priority = values.get("Priority")
        if priority is not None and _PRIORITY.fullmatch(priority) is None:
            raise InvalidCacheInfo(f"nix-cache-info: Priority is {quoted(priority)}, expected a number")
        return cls(
            # As in Nix, whatever is not 1 means no.
            want_mass_query=values.get("WantMassQuery") == "1",
            priority=None if priority is None else int(priority),
        )

    def render(self) -> str:
        """The text; a line that would say nothing is left out."""
        lines = [f"StoreDir: {STORE_DIR}\n"]
        if self.want_mass_query:
            lines.append("WantMassQuery: 1\n")
        if self.priority is not None:
            lines.append(f"Priority: {self.priority}\n")
        return "".join(lines)


def _read_values(data: str | bytes) -> dict[str, str]:
    values: dict[str, str] = {}
    try:
        text = decode_utf8(data, "nix-cache-info", MAX_CACHE_INFO_BYTES)
    except InvalidText as error:
        raise InvalidCacheInfo(str(error)) from error
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            key, value = split_line(line)
        except InvalidText as error:
            raise InvalidCacheInfo(f"nix-cache-info, line {number}: {error}") from error
        if key in _KEYS:
            if key in values:
                raise InvalidCacheInfo(f"nix-cache-info, line {number}: {key} was given already")
            # These files are written by hand too: carriage returns and blanks at the end mean nothing.
            values[key] = value.strip()
    return values
