"""Nix stores on disk, made without Nix: store paths with contents, and the JSON that describes them."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from neve.castore.ingest.filesystem import FilesystemWalk
from neve.nix.hashes import HashAlgorithm, NixHash
from neve.nix.nar import NarHasher
from neve.nix.store_path import StorePath


def store_path(name: str) -> StorePath:
    """A path that is always the same for a name."""
    return StorePath(hashlib.sha1(name.encode()).digest(), name)


class NixStore:
    """A Nix store below a folder. Names stand for store paths."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / "nix" / "store"
        self.folder.mkdir(parents=True)
        self.entries: dict[str, dict[str, Any]] = {}

    def place(self, name: str) -> Path:
        """Where a path is on disk."""
        return self.folder / store_path(name).base_name

    def add(
        self, name: str, references: Iterable[str] = (), files: dict[str, bytes] | None = None, **more: Any
    ) -> StorePath:
        """A path that mentions what it refers to, with ``files`` beside."""
        path = store_path(name)
        place = self.place(name)
        (place / "bin").mkdir(parents=True)
        (place / "bin" / name).write_text(f"I am {name}")
        (place / "bin" / name).chmod(0o755)
        (place / "alias").symlink_to(f"bin/{name}")
        mentioned = [store_path(reference).absolute for reference in references]
        (place / "references").write_text("\n".join(mentioned))
        for file, contents in (files or {}).items():
            (place / file).write_bytes(contents)
        self.entries[name] = self.describe(name, references, **more)
        return path

    def describe(self, name: str, references: Iterable[str] = (), **more: Any) -> dict[str, Any]:
        """What ``nix path-info --json`` tells of it."""
        hasher = NarHasher()
        for batch in FilesystemWalk(os.fsencode(self.place(name))):
            hasher.feed(batch)
        size, sha256 = hasher.result()
        return {
            "path": store_path(name).absolute,
            "narHash": NixHash(HashAlgorithm.SHA256, sha256).render(),
            "narSize": size,
            "references": [store_path(reference).absolute for reference in references],
            **more,
        }

    def add_many(self, count: int, *, seed: int = 1) -> list[str]:
        """Paths of different sizes; most refer to some of those before them, each to itself."""
        numbers = random.Random(seed)
        names: list[str] = []
        for number in range(count):
            name = f"package-{number}"
            references = numbers.sample(names, min(len(names), numbers.randrange(4)))
            files = {f"file-{i}": numbers.randbytes(numbers.randrange(20_000)) for i in range(8)}
            if number % 10 == 3:
                files["large"] = numbers.randbytes(1_500_000)
            self.add(name, [*references, name], files)
            names.append(name)
        return names

    @property
    def closure(self) -> list[dict[str, Any]]:
        """All entries, in no helpful order."""
        entries = list(self.entries.values())
        random.Random(2).shuffle(entries)
        return entries
