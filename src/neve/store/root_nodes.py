"""Path infos as the root of a file system: base names, and the nodes behind them."""

from __future__ import annotations

from collections.abc import Iterator

from neve.castore.node import Node
from neve.errors import InvalidRequest
from neve.nix.store_path import StorePath
from neve.store.pathinfos.base import PathInfoService


class PathInfoRoots:
    """The store paths that a path info service knows, by base name.

    With a service that fetches, looking a name up may fetch what it stands for.
    """

    def __init__(self, path_infos: PathInfoService) -> None:
        self._path_infos = path_infos

    def get(self, name: bytes) -> Node | None:
        """The root node of the store path with this base name, or None: also for what is no base name."""
        try:
            store_path = StorePath.parse_base_name(name)
        except InvalidRequest:
            return None
        path_info = self._path_infos.get(store_path.digest)
        # Whoever asks for another name with the digest of a stored path asks for something else.
        if path_info is None or path_info.store_path.name != store_path.name:
            return None
        return path_info.node

    def list(self) -> Iterator[tuple[bytes, Node]]:
        """All of them, as the service lists them. May be ``Unsupported``."""
        for path_info in self._path_infos:
            yield path_info.store_path.base_name.encode(), path_info.node
