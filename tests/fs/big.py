"""Trees of very many names. Nothing is behind them: they are only walked over."""

from __future__ import annotations

import neve
from neve.castore.digest import b3_digest
from neve.castore.directory import DirectoryBuilder
from neve.castore.node import DirectoryNode
from neve.nix.store_path import StorePath
from neve.store.path_info import PathInfo


def directory_of(url: str, count: int, folders: int = 0) -> str:
    """Stores a tree of ``count`` different files in one directory, or in each of so many folders; the base
    name of its store path."""
    root = DirectoryBuilder()
    with neve.open(url) as store:
        with store.directories.put_multiple() as putter:
            for folder in range(max(folders, 1)):
                builder = DirectoryBuilder()
                for number in range(count):
                    name = b"n%06d" % number
                    builder.add_file(name, b3_digest(b"%d/%d" % (folder, number)), 1000)
                encoded, digest, size = builder.finish()
                putter.put_built(encoded, digest)
                if folders:
                    root.add_directory(b"f%06d" % folder, digest, size)
            if folders:
                encoded, digest, size = root.finish()
                putter.put_built(encoded, digest)
            putter.close()
        path = StorePath(b3_digest(digest)[:20], "big")
        store.path_infos.put(PathInfo(path, DirectoryNode(digest, size)))
    return path.base_name
