"""Open files of a store for fsspec, and errors of neve as those of the operating system."""

from __future__ import annotations

import contextlib
import errno
import io
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from neve.castore.node import FileNode
from neve.errors import InvalidRequest, NeveError, PermissionDenied, Unsupported

if TYPE_CHECKING:
    from neve.fsspec import NeveFileSystem


class RawFile(io.RawIOBase):
    """A file of the store, whose errors are those of the operating system."""

    mode = "rb"

    def __init__(self, fs: NeveFileSystem, path: str) -> None:
        node = fs.node(path)
        if not isinstance(node, FileNode):
            raise os_error(errno.EISDIR, path)
        self.name = path
        self.size = node.size
        with os_errors(path):
            self._reader = fs.store.open_node(node)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        return self._reader.seek(offset, whence)

    def tell(self) -> int:
        return self._reader.tell()

    def readinto(self, buffer: Any, /) -> int | None:
        with os_errors(self.name):
            return self._reader.readinto(buffer)

    def read(self, size: int | None = -1, /) -> bytes:
        with os_errors(self.name):
            return self._reader.read(-1 if size is None else size) or b""

    def readall(self) -> bytes:
        return self.read()

    def close(self) -> None:
        if not self.closed and hasattr(self, "_reader"):
            self._reader.close()
        super().close()


class NeveFile(io.BufferedReader):
    """An open file: seekable, with ``fs``, ``path`` and ``size`` (bytes)."""

    def __init__(self, fs: NeveFileSystem, path: str, buffer_size: int) -> None:
        raw = RawFile(fs, path)
        super().__init__(raw, buffer_size)
        self.fs = fs
        self.path = path
        self.size = raw.size


def os_error(code: int, path: str) -> OSError:
    """The error of that code, of the subclass of ``OSError`` that belongs to it."""
    return OSError(code, os.strerror(code), path)


@contextlib.contextmanager
def os_errors(path: str | None = None) -> Iterator[None]:
    """Translates errors of neve to those that users of fsspec expect, as the module tells."""
    try:
        yield
    except Unsupported as error:
        raise OSError(errno.ENOTSUP, str(error), path) from error
    except InvalidRequest as error:
        raise ValueError(str(error)) from error
    except PermissionDenied as error:
        raise PermissionError(errno.EACCES, str(error), path) from error
    except NeveError as error:
        raise OSError(errno.EIO, str(error), path) from error
