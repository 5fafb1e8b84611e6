"""The limits that docs/security.md tells are those of the program, and all of them."""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path

import neve
from neve.cli.server_options import shown_size

TEXT = (Path(__file__).parents[1] / "docs" / "security.md").read_text()

NOT_FOR_INPUT = {
    "castore.node.MAX_SIZE",
    "nix._text.MAX_U64",
    "fs.fuse.session.MAX_READ_AHEAD_BYTES",
    "packstore.pack.MAX_SEQ",
    "packstore.staging.MAX_PACKS",
    "packstore.staging.MAX_STAGED_BYTES",
    "packstore.staging.MAX_STAGED_RECORDS",
    "packstore.staging.MAX_WAITING_BYTES",
    "store.mirror.contents.MAX_PATHS",
}
"""Constants by such names that bound our own work, or say how large a number can be."""


def shown(name: str, value: int) -> str:
    """A limit as the table has it: a number that says nothing to people, by its power of two."""
    for power in (32, 63):
        if value == (1 << power) - 1:
            return f"2^{power} - 1"
    sizes = (
        "_BYTES",
        "MAX_PIECE",
        "MAX_MEMORY",
        "MAX_WINDOW",
        "MAX_RECORD",
        "MAX_EXTENDED_HEADER",
        "MAX_PATH",
    )
    return shown_size(value) if name.endswith(sizes) and value >= 1024 else str(value)


def limits() -> dict[str, str]:
    """Every constant that is named like a limit."""
    found = {}
    for module in pkgutil.walk_packages(neve.__path__, "neve."):
        if module.name.startswith(("neve.proto", "neve.testing")) or module.name.endswith("__main__"):
            continue
        source = Path(importlib.import_module(module.name).__file__ or "").read_text()
        for name in re.findall(r"^(MAX_[A-Z0-9_]+)(?:: \w+)? = ", source, re.MULTILINE):
            value = getattr(importlib.import_module(module.name), name)
            if isinstance(value, int):
                found[f"{module.name.removeprefix('neve.')}.{name}"] = shown(name, value)
    return found


def test_every_limit_is_told_with_its_value() -> None:
    rows = dict(re.findall(r"^\| `([a-z_.]+\.MAX_[A-Z0-9_]+)` \| ([^|]+) \|", TEXT, re.MULTILINE))
    there = limits()
    assert set(there) >= NOT_FOR_INPUT
    assert rows == {name: value for name, value in there.items() if name not in NOT_FOR_INPUT}
