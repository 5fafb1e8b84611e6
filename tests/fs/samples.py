"""Trees to look at through the file system."""

from __future__ import annotations

import os
import random
from pathlib import Path

import neve

LARGE = 3 * 1024 * 1024 + 17


def make_tree(root: Path) -> Path:
    """A tree with one of everything that can be in one, and some of what is seldom."""
    root.mkdir(parents=True)
    raw = os.fsencode(root)
    rng = random.Random(6)
    (root / "bin").mkdir()
    (root / "bin" / "run").write_text("#!/bin/sh\necho ran\n")
    (root / "bin" / "run").chmod(0o755)
    (root / "bin" / "alias").symlink_to("run")
    (root / "empty").mkdir()
    (root / "nothing").touch()
    (root / "text").write_text("Hello\n")
    (root / "same").write_text("Hello\n")
    for size in (4095, 4096, 4097, 512 * 1024, 512 * 1024 + 1, LARGE):
        (root / f"bytes-{size}").write_bytes(rng.randbytes(size))
    (root / "repetitive").write_bytes(b"all work and no play " * 100_000)
    for name in (b"na\xffme", b"new\nline", b"x" * 255, b"-option", b" "):
        Path(os.fsdecode(os.path.join(raw, name))).write_bytes(name)
    os.symlink(b"to\xfe", os.path.join(raw, b"odd-link"))
    os.symlink(b"t" * 4095, os.path.join(raw, b"long-link"))
    deep = root
    for depth in range(40):
        deep = deep / f"level-{depth}"
        deep.mkdir()
    (deep / "bottom").write_text("deep\n")
    (root / "many").mkdir()
    for number in range(700):
        (root / "many" / f"file-{number:03}").write_text(f"{number}\n" * (number % 50))
    return root


def imported(store: str, path: Path) -> str:
    """Imports a path; the base name of its store path."""
    with neve.open(store) as opened:
        return opened.import_path(path).store_path.base_name
