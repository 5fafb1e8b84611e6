"""Access to what real Nix printed, ``tests/vectors``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

VECTORS = Path(__file__).parent.parent / "vectors"


def load(name: str) -> Any:
    return json.loads((VECTORS / name).read_bytes())


def narinfo_files() -> list[Path]:
    files = sorted(VECTORS.glob("cache-*/*.narinfo"))
    assert len(files) == 30
    return files
