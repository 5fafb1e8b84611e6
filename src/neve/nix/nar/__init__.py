"""Nix archives (NAR): read them to tree events, write and hash them from tree events. No I/O."""

from __future__ import annotations

from neve.nix.nar.grammar import NarError
from neve.nix.nar.reader import NarReader
from neve.nix.nar.writer import NarEncoder, NarHasher, NarTreeError

__all__ = ["NarEncoder", "NarError", "NarHasher", "NarReader", "NarTreeError"]
