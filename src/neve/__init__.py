"""neve: a content-addressed, deduplicating store for Nix.

    import neve

    with neve.open("local:///srv/neve") as store:
        path_info = store.import_path("src")
        print(path_info.store_path)
        with store.open(f"{path_info.store_path}/README.md") as file:
            print(file.read())

From here on inwards: ``library`` (Store, StoreIO), ``store`` (store paths and NARs), ``castore``
(blobs and Directories), ``packstore`` (the embedded engine), ``nix`` (formats), ``tree`` and
``errors`` (what everyone shares). ARCHITECTURE.md has the map.

Importing this module is cheap: the names below are loaded when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neve.castore.node import DirectoryNode, FileNode, Node, SymlinkNode
    from neve.errors import NeveError
    from neve.library import Store, StoreIO
    from neve.library import open_store as open  # noqa: A004 - neve.open, as in gzip.open
    from neve.nix.store_path import StorePath
    from neve.store.importer import ImportOptions
    from neve.store.path_info import PathInfo

__version__ = "0.1.0"

_HOMES = {
    "DirectoryNode": "neve.castore.node:DirectoryNode",
    "FileNode": "neve.castore.node:FileNode",
    "ImportOptions": "neve.store.importer:ImportOptions",
    "NeveError": "neve.errors:NeveError",
    "Node": "neve.castore.node:Node",
    "PathInfo": "neve.store.path_info:PathInfo",
    "Store": "neve.library:Store",
    "StoreIO": "neve.library:StoreIO",
    "StorePath": "neve.nix.store_path:StorePath",
    "SymlinkNode": "neve.castore.node:SymlinkNode",
    "open": "neve.library:open_store",
}

__all__ = [
    "DirectoryNode",
    "FileNode",
    "ImportOptions",
    "NeveError",
    "Node",
    "PathInfo",
    "Store",
    "StoreIO",
    "StorePath",
    "SymlinkNode",
    "__version__",
    "open",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'neve' has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
