"""Caches that the installed Nix has written."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from neve.nix.narinfo import NarInfo
from neve.nix.signing import SecretKey
from neve.nix.store_path import StorePath

KEY = SecretKey("nix-test-1", bytes(range(32)))


def nix(*command: str | Path, store: Path) -> str:
    """Runs ``nix`` over a store of its own; gives what it prints."""
    # Without the setting, Nix as root complains about its missing build users.
    environment = {**os.environ, "NIX_CONFIG": "build-users-group =\nexperimental-features = nix-command"}
    done = subprocess.run(
        ["nix", "--store", f"local?root={store}", *command], check=True, capture_output=True, env=environment
    )
    return done.stdout.decode().strip()


class NixCache:
    """Some trees as store paths, in a cache that Nix wrote and signed."""

    def __init__(self, folder: Path, compression: str, *trees: Path) -> None:
        folder.mkdir()
        self.folder = folder / "cache"
        self.url = f"nix+file://{self.folder}"
        key = folder / "key"
        key.write_text(KEY.render())
        root = folder / "root"
        self.sources = {nix("store", "add-path", tree, store=root): tree for tree in trees}
        """Where what is behind each store path came from."""
        where = f"file://{self.folder}?compression={compression}&secret-key={key}"
        nix("copy", "--to", where, *self.sources, store=root)

    def narinfo(self, path: str) -> NarInfo:
        name = f"{StorePath.parse(path).base_name[:32]}.narinfo"
        return NarInfo.parse((self.folder / name).read_bytes())
