#!/usr/bin/env python3
"""Writes ``docs/neve.1``, the manual page, from what ``neve --help`` says; with ``--check``, compares it."""

from __future__ import annotations

import sys
from pathlib import Path

from neve.cli.commands import cli
from neve.cli.manual import manual

PAGE = Path(__file__).resolve().parent.parent / "docs" / "neve.1"


def main() -> int:
    """Returns the exit code."""
    made = manual(cli)
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(made, encoding="utf-8")
        return 0
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == made:
        return 0
    print(f"{PAGE.name} is not what --help says; run: make man", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
