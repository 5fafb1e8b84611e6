"""Everything here needs the emulator."""

from __future__ import annotations

from tests.bigtable.emulated import bigtable_emulator, new_table

__all__ = ["bigtable_emulator", "new_table"]
