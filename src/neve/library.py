"""The library: ``neve.open`` gives a ``Store``, ``StoreIO`` is the view of a Nix evaluator."""

from __future__ import annotations

import contextlib
import errno
import io
import os
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

from neve.castore.blobs.base import BlobReader, BlobService, blob_not_found
from neve.castore.directories.base import DirectoryService
from neve.castore.directory import Directory
from neve.castore.node import DirectoryNode, FileNode, Node, SymlinkNode
from neve.castore.path import parse_path
from neve.castore.traverse import descend, get_directory, wrong_length
from neve.errors import InvalidRequest, NeveError, NotFound, PermissionDenied, Unavailable, Unsupported
from neve.nix.store_path import STORE_DIR, StorePath
from neve.store.composition import Composition
from neve.store.importer import ImportOptions, import_path
from neve.store.path_info import PathInfo
from neve.store.pathinfos.base import PathInfoService
from neve.store.services import Services, open_services
from neve.telemetry import NO_PROGRESS, Progress

if TYPE_CHECKING:
    from neve.store.mirror import MirrorOptions, MirrorReport


class Store:
    """A store of Nix store paths. Thread-safe; use it as a context manager, or ``close`` it."""

    def __init__(self, services: Services) -> None:
        self.services = services

    @property
    def blobs(self) -> BlobService:
        """File contents, by digest."""
        return self.services.blobs

    @property
    def directories(self) -> DirectoryService:
        """Directories, by digest."""
        return self.services.directories

    @property
    def path_infos(self) -> PathInfoService:
        """Path infos, by store path digest."""
        return self.services.path_infos

    def import_path(
        self,
        path: str | bytes | os.PathLike[str],
        options: ImportOptions | None = None,
        *,
        progress: Progress = NO_PROGRESS,
    ) -> PathInfo:
        """Imports a file, folder or symlink from disk; see ``neve.store.importer``."""
        return import_path(self.services, path, options, progress=progress)

    def path_info(self, path: str | StorePath) -> PathInfo:
        """The path info of a store path (absolute, or a base name). Raises ``NotFound``."""
        return self.resolve(path)[0]

    def resolve(self, path: str | bytes | StorePath) -> tuple[PathInfo, tuple[bytes, ...]]:
        """The path info of a store path and the components of what follows it.

        Takes an absolute path or one that begins with a base name. Raises ``NotFound`` if the store
        does not have the store path, ``InvalidRequest`` if it is none.
        """
        store_path, components = split_path(path)
        path_info = self.path_infos.get(store_path.digest)
        if path_info is None or path_info.store_path.name != store_path.name:
            raise NotFound(f"{store_path} is not in the store")
        return path_info, components

    def node(self, path: str | bytes | StorePath) -> Node | None:
        """The node at a path in or below a store path, or None if nothing is there. Links are not
        followed. Raises ``NotFound`` if the store does not have the store path."""
        path_info, components = self.resolve(path)
        return descend(self.directories, path_info.node, components)

    def existing_node(self, path: str | bytes | StorePath) -> Node:
        """Like ``node``, but raises ``NotFound`` if nothing is there."""
        return _existing(self.node(path), path)

    def open(self, path: str | bytes | StorePath) -> BlobReader:
        """A seekable reader of a file. Raises ``NotFound``, or ``Unsupported`` if it is no file."""
        return self.open_node(_file(self.node(path), path))

    def open_node(self, node: FileNode) -> BlobReader:
        """A seekable reader of the contents of a file. Raises ``NotFound`` and, if their length is not
        the node's, ``Corrupt``."""
        reader = self.blobs.open_read(node.digest)
        if reader is None:
            raise blob_not_found(node.digest)
        if reader.size != node.size:
            reader.close()
            raise wrong_length(node, reader.size)
        return reader

    def list_dir(self, path: str | bytes | StorePath) -> Directory:
        """The Directory at a path. Raises ``NotFound``, or ``Unsupported`` if it is none."""
        return get_directory(self.directories, _directory(self.node(path), path).digest)

    def nar(self, path: str | StorePath, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """The NAR of a store path (or its bytes ``start`` to ``stop``), in pieces."""
        return self.services.renderer.stream(self.existing_node(path), start, stop)

    def mirror_to(
        self,
        target: Store,
        options: MirrorOptions | None = None,
        *,
        progress: Progress = NO_PROGRESS,
    ) -> MirrorReport:
        """Copies to another store what it misses of this one; see ``neve.store.mirror``. What could not be
        copied is told in the report."""
        from neve.store.mirror import mirror

        return mirror(self.services, target.services, options, progress=progress)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of everything. Can be called again."""
        self.services.close()


def open_store(
    url: str | None = None,
    *,
    composition: Composition | str | os.PathLike[str] | None = None,
    blob_service: str | None = None,
    directory_service: str | None = None,
    path_info_service: str | None = None,
    netrc_file: str | None = None,
) -> Store:
    """Opens the store at an address, for example ``local:///srv/neve`` or ``memory://``, or the one that a
    file describes (``docs/composition.md``).

    ``blob_service``, ``directory_service`` and ``path_info_service`` override one service each;
    ``netrc_file`` may have passwords for binary caches, and need not exist.
    """
    return Store(
        open_services(
            url,
            composition=composition,
            blob_service=blob_service,
            directory_service=directory_service,
            path_info_service=path_info_service,
            netrc_file=netrc_file,
        )
    )


def split_path(path: str | bytes | StorePath) -> tuple[StorePath, tuple[bytes, ...]]:
    """A store path and the components below it, from an absolute path or one relative to the store."""
    if isinstance(path, StorePath):
        return path, ()
    try:
        raw = os.fsencode(path)
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"path {path!r} stands for no bytes: {error}") from error
    if not raw.startswith(b"/"):
        raw = os.fsencode(STORE_DIR) + b"/" + raw
    store_path, rest = StorePath.parse_with_rest(raw)
    return store_path, parse_path(rest)


def _shown(path: str | bytes | StorePath) -> str:
    return path.decode("utf-8", "backslashreplace") if isinstance(path, bytes) else str(path)


def _existing(node: Node | None, path: str | bytes | StorePath) -> Node:
    if node is None:
        raise NotFound(f"{_shown(path)} does not exist in the store")
    return node


def _file(node: Node | None, path: str | bytes | StorePath) -> FileNode:
    node = _existing(node, path)
    if not isinstance(node, FileNode):
        raise Unsupported(f"{_shown(path)} is {_kind(node)}, not a file")
    return node


def _directory(node: Node | None, path: str | bytes | StorePath) -> DirectoryNode:
    node = _existing(node, path)
    if not isinstance(node, DirectoryNode):
        raise Unsupported(f"{_shown(path)} is {_kind(node)}, not a directory")
    return node


def _kind(node: Node) -> str:
    if isinstance(node, DirectoryNode):
        return "a directory"
    return "a symlink" if isinstance(node, SymlinkNode) else "a file"


class StoreIO:
    """File access as a Nix evaluator needs it: store paths from the store, all else from disk.

    A path below ``/nix/store`` whose store path the store does not have is looked for on disk too.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    @property
    def store_dir(self) -> str:
        """``/nix/store``"""
        return STORE_DIR

    def _in_store(self, path: str | os.PathLike[str]) -> tuple[PathInfo, tuple[bytes, ...]] | None:
        """The path info and the components below it, if the store has the path."""
        normalized = _normalized(path)
        if not normalized.startswith(STORE_DIR + "/"):
            return None
        try:
            return self._store.resolve(normalized)
        except (NotFound, InvalidRequest):
            return None

    def _node(self, path: str | os.PathLike[str]) -> Node | Literal[False] | None:
        """The node in the store, None if nothing is there, False if the disk is to be asked."""
        found = self._in_store(path)
        return False if found is None else descend(self._store.directories, found[0].node, found[1])

    def path_exists(self, path: str | os.PathLike[str]) -> bool:
        """Whether something is at ``path``; a symlink counts, wherever it points to."""
        node = self._node(path)
        return os.path.lexists(path) if node is False else node is not None

    def open(self, path: str | os.PathLike[str]) -> io.RawIOBase:
        """A binary reader. Raises ``NotFound``, ``Unsupported`` (no file), ``PermissionDenied``."""
        node = self._node(path)
        if node is not False:
            return self._store.open_node(_file(node, os.fspath(path)))
        with _disk_errors("read", path):
            return open(path, "rb", buffering=0)

    def read_bytes(self, path: str | os.PathLike[str]) -> bytes:
        """The contents of a file. Raises like ``open``."""
        with self.open(path) as file, _disk_errors("read", path):
            return file.read() or b""

    def read_to_string(self, path: str | os.PathLike[str]) -> str:
        """The contents of a file as UTF-8. Raises like ``open``, and ``InvalidRequest`` if it is none."""
        try:
            return self.read_bytes(path).decode()
        except UnicodeDecodeError as error:
            raise InvalidRequest(f"{path} is no UTF-8: {error}") from error

    def read_dir(self, path: str | os.PathLike[str]) -> Mapping[bytes, str]:
        """Name to ``regular``, ``directory`` or ``symlink``. Raises ``NotFound``, ``Unsupported``."""
        node = self._node(path)
        if node is not False:
            digest = _directory(node, os.fspath(path)).digest
            directory = get_directory(self._store.directories, digest)
            return {name: _TYPES[type(child)] for name, child in directory}
        with _disk_errors("list", path), os.scandir(path) as entries:
            return {os.fsencode(entry.name): _entry_type(entry) for entry in entries}

    def import_path(self, path: str | os.PathLike[str]) -> str:
        """Imports a path from disk; the absolute store path."""
        return self._store.import_path(path).store_path.absolute


_TYPES: dict[type, str] = {FileNode: "regular", DirectoryNode: "directory", SymlinkNode: "symlink"}


def _normalized(path: str | os.PathLike[str]) -> str:
    """The path without ``.``, ``..`` and repeated slashes, as an evaluator writes it: lexically."""
    text = os.path.normpath(os.fspath(path))
    return text[1:] if text.startswith("//") else text


@contextlib.contextmanager
def _disk_errors(verb: str, path: str | os.PathLike[str]) -> Iterator[None]:
    """Translates what the operating system raises in the block."""
    try:
        yield
    except ValueError as error:  # A NUL byte, or text that stands for no bytes.
        raise InvalidRequest(f"cannot {verb} {path!r}: {error}") from error
    except OSError as error:
        kind: type[NeveError] = Unavailable
        if isinstance(error, IsADirectoryError) or (
            isinstance(error, NotADirectoryError) and os.path.lexists(path)
        ):
            kind = Unsupported
        elif error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG):
            kind = NotFound
        elif isinstance(error, PermissionError):
            kind = PermissionDenied
        raise kind(f"cannot {verb} {path}: {error.strerror}") from error


def _entry_type(entry: os.DirEntry[str]) -> str:
    if entry.is_symlink():
        return "symlink"
    if entry.is_dir(follow_symlinks=False):
        return "directory"
    return "regular" if entry.is_file(follow_symlinks=False) else "unknown"
