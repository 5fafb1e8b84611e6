"""Trees that share most of their contents, and what their NARs are."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterator
from pathlib import Path

_SHARED = 60
_LARGE_BYTES = 2_000_000


def make_tree(root: Path, number: int) -> None:
    """Each tree has a quarter of its small files for itself, and a stretch of its large file."""
    own = random.Random(f"tree {number}")
    for place in range(_SHARED):
        folder = root / f"d{place % 7}" / f"e{place % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        numbers = own if place % 4 == number % 4 else random.Random(f"file {place}")
        file = folder / f"file-{place}"
        file.write_bytes(numbers.randbytes(numbers.randrange(20_000)) + b"text " * numbers.randrange(2000))
        file.chmod(0o755 if place % 5 == 0 else 0o644)
    (root / "link").symlink_to(f"d{number % 7}/somewhere")
    (root / "empty").mkdir()
    large = bytearray(random.Random("large").randbytes(_LARGE_BYTES))
    start = own.randrange(_LARGE_BYTES - 100_000)
    large[start : start + 100_000] = own.randbytes(100_000)
    (root / "large").write_bytes(large)


def nar_hash(path: Path) -> str:
    """SHA-256 of the NAR of what lies on the disk, in hex."""
    digest = hashlib.sha256()
    for piece in archive(path):
        digest.update(piece)
    return digest.hexdigest()


def archive(path: Path) -> Iterator[bytes]:
    """The NAR of what lies on the disk."""
    yield _string(b"nix-archive-1")
    yield from _node(path)


def _node(path: Path) -> Iterator[bytes]:
    yield _string(b"(") + _string(b"type")
    if path.is_symlink():
        yield _string(b"symlink") + _string(b"target") + _string(os.fsencode(path.readlink()))
    elif path.is_dir():
        yield _string(b"directory")
        for name in sorted(os.listdir(os.fsencode(path))):
            yield b"".join(map(_string, (b"entry", b"(", b"name", name, b"node")))
            yield from _node(path / os.fsdecode(name))
            yield _string(b")")
    else:
        yield _string(b"regular")
        if os.access(path, os.X_OK) and path.stat().st_mode & 0o100:
            yield _string(b"executable") + _string(b"")
        yield _string(b"contents") + _string(path.read_bytes())
    yield _string(b")")


def _string(value: bytes) -> bytes:
    return len(value).to_bytes(8, "little") + value + bytes(-len(value) % 8)
