"""Sizes for people."""

from __future__ import annotations


def shown_bytes(size: int) -> str:
    """Bytes, and the same in a unit that people can compare."""
    if size < 1024:
        return f"{size} bytes"
    value, unit = size / 1024, "KiB"
    for larger in ("MiB", "GiB", "TiB", "PiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{size} bytes ({value:.1f} {unit})"
