"""A store that is described by a file: services that refer to each other by name.

    [blobservices.root]
    type = "cache"
    near = "disk"
    far = "grpc+http://store.example:8000"

    [blobservices.disk]
    type = "local"
    path = "/var/cache/neve"

and likewise ``[directoryservices.NAME]`` and ``[pathinfoservices.NAME]``. ``file`` reads that into a
``Composition``, ``types`` has the table of types with their keys, ``opening`` opens it. Where the address of
a whole store is wanted, ``composition:///path/of/file`` is one.
"""

from __future__ import annotations

from neve.store.composition.file import Composition, InvalidComposition, of_address, parse, read
from neve.store.composition.opening import Opening
from neve.store.composition.types import BLOBS, DIRECTORIES, KINDS, PATH_INFOS

__all__ = [
    "BLOBS",
    "DIRECTORIES",
    "KINDS",
    "PATH_INFOS",
    "Composition",
    "InvalidComposition",
    "Opening",
    "of_address",
    "parse",
    "read",
]
