"""An fsspec filesystem over a store: ``neve://``, read-only.

    import fsspec

    fs = fsspec.filesystem("neve", store="local:///srv/neve")
    fs.ls("/nix/store/<digest>-<name>")
    with fsspec.open("neve:///nix/store/<digest>-<name>/file", store="local:///srv/neve") as file:
        ...

Paths are absolute (``/nix/store/...``) or relative to the store directory; the empty path and ``/`` are
the store directory, whose entries are the store paths. Bytes of a name that are no UTF-8 come as
``surrogateescape`` makes them.

Symlinks are listed as what they are: type ``link``, with ``destination``, and the size of the file they
lead to. Whatever reads (``open``, ``cat``, ``exists``, ``isfile``, ``isdir``, ``ls`` of one path) follows
them, like ``open(2)``: relative ones and those to ``/nix/store``, as far as the store has what they lead
to. A link that leads anywhere else is dangling here, whatever the local disk may have at that place.
``walk`` and ``find`` list links among the files and do not follow them.

Errors are those that fsspec and its users know: ``FileNotFoundError``, ``NotADirectoryError``,
``IsADirectoryError``, ``PermissionError``, ``ValueError`` for an address that is none, and ``OSError`` with
``EIO`` for a store that is damaged, inconsistent or out of reach, so that nothing takes that for a
missing file. Whatever writes raises ``OSError`` with ``EROFS``.
"""

from __future__ import annotations

import datetime
import errno
import os
import stat
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

from fsspec import AbstractFileSystem  # type: ignore[import-untyped]
from fsspec.utils import stringify_path  # type: ignore[import-untyped]

from neve.castore.digest import format_digest
from neve.castore.node import DirectoryNode, FileNode, Node, SymlinkNode
from neve.errors import InvalidRequest
from neve.fsspec.files import NeveFile, RawFile, os_error, os_errors
from neve.nix.store_path import STORE_DIR, StorePath

if TYPE_CHECKING:
    from neve.castore.directory import Directory
    from neve.library import Store

__all__ = ["NeveFile", "NeveFileSystem"]

Info: TypeAlias = dict[str, Any]
_Listed: TypeAlias = tuple[str, Any, Any]
Trail: TypeAlias = tuple[Node | None, ...]
"""The nodes from below ``/`` to a place; None for the directories that are above all store paths."""

_MAX_LINKS = 40
"""Links followed on the way to one node, as Linux does."""

_ABOVE = tuple(os.fsencode(part) for part in STORE_DIR.split("/") if part)
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_BUFFER_BYTES = 64 * 1024
_MTIME = datetime.datetime(1970, 1, 1, 0, 0, 1, tzinfo=datetime.UTC)
"""What Nix gives every file of a store."""


class NeveFileSystem(AbstractFileSystem):  # type: ignore[misc]
    """The store paths of one store, as files.

    ``store`` is an address (``local:///srv/neve``), which is opened when it is first needed and closed
    when the filesystem is dropped, or an open ``neve.Store``, which stays its owner's to close. With an
    address the filesystem can be pickled. Thread-safe.
    """

    protocol = "neve"
    root_marker = STORE_DIR

    def __init__(self, store: str | Store | None = None, **storage_options: Any) -> None:
        super().__init__(**storage_options)
        if store is None:
            raise ValueError("name a store, for example store='local:///srv/neve'")
        self._given = store
        self._lock = threading.Lock()
        self._opened: tuple[int, Store] | None = None

    @property
    def store(self) -> Store:
        """The store behind this filesystem."""
        if not isinstance(self._given, str):
            return self._given
        with self._lock:
            if self._opened is None or self._opened[0] != os.getpid():
                from neve.library import open_store

                with os_errors():
                    self._opened = os.getpid(), open_store(self._given)
                weakref.finalize(self, _close, *self._opened)
            return self._opened[1]

    @property
    def fsid(self) -> str:
        """The address of the store. ``NotImplementedError`` over an open store."""
        if not isinstance(self._given, str):
            raise NotImplementedError("an open store has no address")
        return f"neve_{self._given}"

    def __reduce__(self) -> Any:
        if not isinstance(self._given, str):
            raise TypeError("a filesystem over an open store cannot be pickled; make it from an address")
        return super().__reduce__()

    # Paths

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(one) for one in path]
        text: str = stringify_path(path)
        for prefix in ("neve://", "neve::"):
            text = text.removeprefix(prefix)
        components = [part for part in text.split("/") if part]
        if not components:
            return STORE_DIR
        return ("/" if text.startswith("/") else STORE_DIR + "/") + "/".join(components)

    @classmethod
    def _parent(cls, path: str) -> str:
        stripped: str = cls._strip_protocol(path)
        return STORE_DIR if stripped == STORE_DIR else stripped.rpartition("/")[0] or STORE_DIR

    def _trail(self, path: str, *, follow: bool = True) -> Trail:
        """The way to a stripped path, which is longer than that to the store directory."""
        try:
            encoded = path.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            raise os_error(errno.ENOENT, path) from None
        trail = self._go(path, (), encoded, follow=follow)
        if len(trail) < len(_ABOVE):
            raise os_error(errno.ENOENT, path)
        return trail

    def _go(self, path: str, start: Trail, way: bytes, *, follow: bool = True) -> Trail:
        """From ``start`` along ``way``. ``path`` is what errors name."""
        todo = way.split(b"/")[::-1]
        trail = [] if way.startswith(b"/") else list(start)
        links = 0
        while todo:
            name = todo.pop()
            if name in (b"", b"."):
                continue
            if name == b"..":
                del trail[-1:]
                continue
            node = self._child(path, trail, name)
            if not isinstance(node, SymlinkNode) or not (todo or follow):
                trail.append(node)
                continue
            links += 1
            if links > _MAX_LINKS:
                raise os_error(errno.ELOOP, path)
            if node.target.startswith(b"/"):
                trail.clear()
            todo += node.target.split(b"/")[::-1]
        return tuple(trail)

    def _child(self, path: str, trail: list[Node | None], name: bytes) -> Node | None:
        if len(trail) < len(_ABOVE):
            if name != _ABOVE[len(trail)]:
                raise os_error(errno.ENOENT, path)
            return None
        parent = trail[-1]
        if parent is None:
            node = self._root_node(name)
        elif isinstance(parent, DirectoryNode):
            node = self._directory(parent).get(name)
        else:
            raise os_error(errno.ENOTDIR, path)
        if node is None:
            raise os_error(errno.ENOENT, path)
        return node

    def node(self, path: str) -> Node | None:
        """The node that a stripped path leads to; None is the store directory."""
        return self._trail(path)[-1]

    def _root_node(self, base_name: bytes) -> Node | None:
        try:
            store_path = StorePath.parse_base_name(base_name)
        except InvalidRequest:
            return None
        with os_errors():
            path_info = self.store.path_infos.get(store_path.digest)
        return path_info.node if path_info is not None and path_info.store_path == store_path else None

    def _directory(self, node: DirectoryNode) -> Directory:
        from neve.castore.traverse import get_directory

        with os_errors():
            return get_directory(self.store.directories, node.digest)

    # Looking

    def info(self, path: str, **kwargs: Any) -> Info:
        """The details of one path, links not followed: those that ``ls`` gives too.

        ``name``, ``type`` (``file``, ``directory``, ``link``), ``size`` (bytes; 0 for directories and for
        links that lead to no file), ``mode``, ``mtime``, ``islink``; of files and directories the
        ``digest``, of links the ``destination``.
        """
        stripped = self._strip_protocol(path)
        trail = self._trail(stripped, follow=False)
        return self._describe(stripped, trail[:-1], trail[-1])

    def _describe(self, path: str, parent: Trail, node: Node | None) -> Info:
        info: Info = {"name": path, "size": 0, "mtime": _MTIME.timestamp(), "islink": False}
        if node is None or isinstance(node, DirectoryNode):
            info |= {"type": "directory", "mode": stat.S_IFDIR | 0o555}
        elif isinstance(node, FileNode):
            mode = stat.S_IFREG | (0o555 if node.executable else 0o444)
            info |= {"type": "file", "size": node.size, "mode": mode}
        else:
            info |= {"type": "link", "mode": stat.S_IFLNK | 0o777, "islink": True}
            info["destination"] = _text(node.target)
            target = _found(lambda: self._go(path, parent, node.target))
            if target and isinstance(target[-1], FileNode):
                info["size"] = target[-1].size
        if node is not None and not isinstance(node, SymlinkNode):
            info["digest"] = format_digest(node.digest)
        return info

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> Any:
        """What is in a directory, or the path itself if it leads to a file."""
        stripped = self._strip_protocol(path)
        infos = [info for info, _ in self._list(stripped, self._trail(stripped))]
        return infos if detail else [info["name"] for info in infos]

    def _list(self, path: str, trail: Trail) -> Iterator[tuple[Info, Node | None]]:
        """The entries of the directory that ``trail`` leads to, or ``path`` itself."""
        node = trail[-1]
        if node is None:
            with os_errors():
                for path_info in self.store.path_infos:
                    name, child = path_info.store_path.absolute, path_info.node
                    yield self._describe(name, trail, child), child
        elif isinstance(node, DirectoryNode):
            for base_name, child in self._directory(node):
                yield self._describe(f"{path}/{_text(base_name)}", trail, child), child
        else:
            yield self.info(path), node

    def walk(
        self,
        path: str,
        maxdepth: int | None = None,
        topdown: bool = True,
        on_error: str | Callable[[OSError], object] = "omit",
        **kwargs: Any,
    ) -> Iterator[tuple[str, Any, Any]]:
        """As in the base class, but without recursion: trees may be thousands of directories deep."""
        if maxdepth is not None and maxdepth < 1:
            raise ValueError("maxdepth must be at least 1")
        stack: list[tuple[str, Trail, int, _Listed | None]] = [(self._strip_protocol(path), (), 1, None)]
        while stack:
            place, trail, depth, finished = stack.pop()
            if finished is not None:
                yield finished
                continue
            try:
                trail = trail or self._trail(place)
                listed, nodes = _sorted_out(place, self._list(place, trail), kwargs.get("detail", False))
            except OSError as error:
                if on_error == "raise":
                    raise
                if callable(on_error):
                    on_error(error)
                continue
            if topdown:
                yield listed
            else:
                stack.append((place, (), depth, listed))
            if maxdepth is None or depth < maxdepth:
                for name in reversed([*listed[1]]):  # The caller may have changed what to go into.
                    below = (*trail, nodes[name]) if name in nodes else ()
                    stack.append((f"{place}/{name}", below, depth + 1, None))

    def exists(self, path: str, **kwargs: Any) -> bool:
        """Whether the path leads to something in the store."""
        return self._followed(path) is not None

    def lexists(self, path: str, **kwargs: Any) -> bool:
        """Whether something is at the path, if only a dangling link."""
        return _found(lambda: self._trail(self._strip_protocol(path), follow=False)) is not None

    def isdir(self, path: str) -> bool:
        """Whether the path leads to a directory."""
        trail = self._followed(path)
        return trail is not None and (trail[-1] is None or isinstance(trail[-1], DirectoryNode))

    def isfile(self, path: str) -> bool:
        """Whether the path leads to a file."""
        trail = self._followed(path)
        return trail is not None and isinstance(trail[-1], FileNode)

    def _followed(self, path: str) -> Trail | None:
        return _found(lambda: self._trail(self._strip_protocol(path)))

    def modified(self, path: str) -> datetime.datetime:
        """One second after the epoch, as Nix has it."""
        self.info(path)
        return _MTIME

    # Reading

    def _open(self, path: str, mode: str = "rb", block_size: int | None = None, **kwargs: Any) -> NeveFile:
        if mode != "rb":
            self._refuse(path)
        return NeveFile(self, path, block_size or _BUFFER_BYTES)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        """The contents of a file, or ``[start:end]`` of it."""
        with RawFile(self, self._strip_protocol(path)) as file:
            first, last, _ = slice(start, end).indices(file.size)
            file.seek(first)
            return file.read(max(0, last - first))

    def _refuse(self, path: Any = None, *_: Any, **__: Any) -> NoReturn:
        shown = path if isinstance(path, str) else None
        raise OSError(errno.EROFS, "a neve store cannot be changed through fsspec; import into it", shown)

    pipe_file = put_file = cp_file = mv = rm = rm_file = _rm = mkdir = makedirs = rmdir = touch = _refuse


def _sorted_out(
    place: str, entries: Iterator[tuple[Info, Node | None]], detail: bool
) -> tuple[_Listed, dict[str, Node | None]]:
    """What ``walk`` tells of a directory (of a file: that it is there), and the nodes to go into."""
    start = len(place) + 1
    dirs: Info = {}
    files: Info = {}
    nodes: dict[str, Node | None] = {}
    for info, node in entries:
        name = info["name"][start:]
        if info["type"] == "directory":
            dirs[name], nodes[name] = info, node
        else:
            files[name] = info
    return (place, dirs, files) if detail else (place, list(dirs), list(files)), nodes


def _found(trail: Callable[[], Trail]) -> Trail | None:
    """What ``trail`` returns, or None if it finds nothing."""
    try:
        return trail()
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        raise


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _close(pid: int, store: Store) -> None:
    """Closes a store that this process has opened; a child of a fork must leave it alone."""
    if pid == os.getpid():
        store.close()
