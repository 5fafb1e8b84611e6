"""Store paths by base name, as the root of a file system."""

from __future__ import annotations

from neve.castore.digest import EMPTY_BLOB
from neve.castore.node import FileNode
from neve.nix.store_path import StorePath
from neve.store.path_info import PathInfo
from neve.store.root_nodes import PathInfoRoots

from .helpers import memory_services


def test_store_paths_by_base_name() -> None:
    services = memory_services()
    roots = PathInfoRoots(services.path_infos)
    assert list(roots.list()) == []
    paths = [StorePath(bytes([number]) * 20, f"name-{number}") for number in range(3)]
    for number, path in enumerate(paths):
        services.path_infos.put(PathInfo(path, FileNode(EMPTY_BLOB, 0, bool(number))))
    for number, path in enumerate(paths):
        assert roots.get(path.base_name.encode()) == FileNode(EMPTY_BLOB, 0, bool(number))
    assert sorted(name for name, _ in roots.list()) == sorted(path.base_name.encode() for path in paths)
    services.close()


def test_what_is_not_there() -> None:
    services = memory_services()
    path = StorePath(bytes(20), "name")
    services.path_infos.put(PathInfo(path, FileNode(EMPTY_BLOB, 0)))
    roots = PathInfoRoots(services.path_infos)
    base_name = path.base_name.encode()
    for name in (
        b"",
        b"name",
        b"1" * 32 + b"-name",
        b"\xff" * 40,
        b"e" * 32 + b"-name",
        # The digest of one that is there, with another name or none.
        base_name + b"2",
        base_name[:32],
        base_name[:33],
        base_name + b"/x",
        b"/nix/store/" + base_name,
    ):
        assert roots.get(name) is None
    services.close()
