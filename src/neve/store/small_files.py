"""SmallFiles: what a binary cache keeps beside store paths, and does not look into: logs, realisations.

A file is known by its kind and its name. Where the map of NARs lies in the embedded store these lie
beside it, so that all who share the store share them.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence

from neve.errors import InvalidRequest, LimitExceeded
from neve.packstore.frames import Record
from neve.packstore.store import PackStore, Table
from neve.store.nar_nodes import LocalNarNodes, MemoryNarNodes, NarNodes

SMALL_FILES = Table(6, "small-files")
"""Keys are kind, ``/`` and name."""

MAX_NAME_BYTES = 255
"""Of kind, ``/`` and name together: the longest key that a pack knows. The base name of a store path has 244
bytes at most."""

MAX_MEMORY_BYTES = 64 * 1024 * 1024
"""All that a store in memory keeps."""

_TAG = 1


class SmallFiles(ABC):
    """The files. Thread-safe; a file is durable when ``put`` returns, and the last one put counts.

    A kind or name that is too long, or empty, is an ``InvalidRequest``. How long contents may be is for
    the caller to limit, to what he can hold in memory.
    """

    @abstractmethod
    def get(self, kind: str, name: str) -> bytes | None:
        """The contents, or None."""

    @abstractmethod
    def put(self, kind: str, name: str, contents: bytes) -> None:
        """Stores a file, in place of one by the same name."""

    @abstractmethod
    def list(self, after: tuple[str, str] = ("", ""), limit: int = 1000) -> Sequence[tuple[str, str]]:
        """Up to ``limit`` kinds and names after ``after``, in the order of their bytes."""


class MemorySmallFiles(SmallFiles):
    """Holds them for as long as it lives, up to ``MAX_MEMORY_BYTES``."""

    def __init__(self) -> None:
        self._files: dict[bytes, bytes] = {}
        self._size = 0
        self._lock = threading.Lock()

    def get(self, kind: str, name: str) -> bytes | None:
        return self._files.get(file_key(kind, name))

    def put(self, kind: str, name: str, contents: bytes) -> None:
        key = file_key(kind, name)
        with self._lock:
            size = self._size + len(contents) - len(self._files.get(key, b""))
            if size > MAX_MEMORY_BYTES:
                raise LimitExceeded(f"a store in memory keeps at most {MAX_MEMORY_BYTES} bytes of such files")
            self._files[key] = contents
            self._size = size

    def list(self, after: tuple[str, str] = ("", ""), limit: int = 1000) -> Sequence[tuple[str, str]]:
        with self._lock:
            keys = sorted(self._files)
        start = bisect_right(keys, key_after(after))
        return [kind_and_name(key) for key in keys[start : start + limit]]


class LocalSmallFiles(SmallFiles):
    """The files in the embedded store, which the caller keeps open."""

    def __init__(self, store: PackStore) -> None:
        self._store = store

    def get(self, kind: str, name: str) -> bytes | None:
        return self._store.get(SMALL_FILES, file_key(kind, name))

    def put(self, kind: str, name: str, contents: bytes) -> None:
        key = file_key(kind, name)
        if self._store.get(SMALL_FILES, key) != contents:
            self._store.update(lambda transaction: transaction.put(SMALL_FILES, Record(_TAG, key, contents)))

    def list(self, after: tuple[str, str] = ("", ""), limit: int = 1000) -> Sequence[tuple[str, str]]:
        page = self._store.page(SMALL_FILES, key_after(after), limit)
        return [kind_and_name(key) for key, _ in page]


def small_files_beside(nar_nodes: NarNodes) -> SmallFiles | None:
    """Those that lie where ``nar_nodes`` does, or None if nothing else can lie there. They can be used
    until that is closed."""
    if isinstance(nar_nodes, LocalNarNodes):
        return LocalSmallFiles(nar_nodes.store)
    return MemorySmallFiles() if isinstance(nar_nodes, MemoryNarNodes) else nar_nodes.small_files()


def kind_and_name(key: bytes) -> tuple[str, str]:
    kind, _, name = key.decode().partition("/")
    return kind, name


def file_key(kind: str, name: str) -> bytes:
    key = f"{kind}/{name}".encode()
    if not kind or not name or len(key) > MAX_NAME_BYTES:
        raise InvalidRequest(
            f"a name of {len(name)} characters; it must have 1 to less than {MAX_NAME_BYTES}"
        )
    return key


def key_after(last: tuple[str, str]) -> bytes:
    return "/".join(last).encode() if last[0] else b""
