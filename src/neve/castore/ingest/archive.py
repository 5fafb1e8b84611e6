"""The tar producer: the members of an archive, in whatever order they come, as tree events.

Events need depth-first order with sorted names, tar promises no order and lets a later member replace an
earlier one. So one pass over the archive spools all contents to an unnamed temporary file and keeps an index
of where each path's contents are; then the tree goes out in order. Memory: the index and one batch.

The standard library's ``tarfile`` reads the headers (ustar, pax, GNU). Where it is lenient this is
strict: an invalid header in the middle or a missing end marker is an error, not the end of the archive.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import IO, Any, BinaryIO, Final, NamedTuple, TypeAlias

import zstandard

from neve.castore.node import InvalidNode, SymlinkNode, validate_node
from neve.castore.path import InvalidName, check_name, show_name
from neve.errors import InvalidRequest, Unavailable
from neve.packstore.layout import temporary_errors
from neve.tree import (
    BATCH_BYTES,
    BATCH_EVENTS,
    END_FILE,
    LEAVE_DIRECTORY,
    WHOLE_FILE_LIMIT,
    Batches,
    BeginFile,
    Data,
    EnterDirectory,
    Event,
    File,
    Symlink,
)

__all__ = ["ArchiveError", "archive_events"]

MAX_PATH: Final = 64 * 1024
"""Bytes of a member's path: 16 times PATH_MAX, and a bound on what one member can cost in directories."""

MAX_EXTENDED_HEADER: Final = 1024 * 1024
"""Bytes of a pax or GNU header, which ``tarfile`` reads whole: what Linux lets a file have in extended
attributes is below that, and names and times are far below."""

_EXTENDED_HEADERS: Final = frozenset(
    (
        tarfile.XHDTYPE,
        tarfile.XGLTYPE,
        tarfile.SOLARIS_XHDTYPE,
        tarfile.GNUTYPE_LONGNAME,
        tarfile.GNUTYPE_LONGLINK,
    )
)

_KINDS: Final = {
    tarfile.CHRTYPE: "a character device",
    tarfile.BLKTYPE: "a block device",
    tarfile.FIFOTYPE: "a fifo",
}

_BUFFER: Final = 32 * 1024
"""What is handed to ``tarfile`` at once; it copies the rest of it with every header."""

_DAMAGED: Final = (EOFError, OSError, ValueError, zlib.error, lzma.LZMAError, zstandard.ZstdError)
"""What the decompressors raise for damaged data. Errors of the stream below never get there as OSError."""

_MALFORMED: Final = (tarfile.TarError, ArithmeticError, LookupError, RecursionError, ValueError)
"""What ``tarfile`` raises for malformed headers."""


class ArchiveError(InvalidRequest):
    """The archive is damaged, or a member cannot be part of a tree. The message names the member."""


class _Stored(NamedTuple):
    """A file whose contents are in the spool."""

    offset: int
    size: int
    executable: bool


class _Link(NamedTuple):
    target: bytes


_Directory: TypeAlias = "dict[bytes, _Node]"
_Node: TypeAlias = "_Stored | _Link | _Directory"


def archive_events(stream: BinaryIO, *, spool_dir: str | None = None) -> Batches:
    """The tree of a tar archive, plain or compressed with gzip, bzip2, xz or zstd; its root is a directory.

    Reads ``stream`` from where it stands to its end, forward only, and leaves it open. The contents are
    spooled to an unnamed file in ``spool_dir`` (default: the system's folder for temporary files), which
    is gone when the iterator is exhausted or closed. Nothing is read before the first batch is asked for.

    Missing parent directories are implied, a later member replaces an earlier one of the same path, and
    a file is executable if its owner may execute it. Raises ``ArchiveError`` for what is no archive, is
    damaged or cut short, and for members that are devices or fifos, sparse, outside of the root or below
    something that is no directory; ``Unavailable`` or ``DiskFull`` when the stream or the spool fails.
    """
    with (
        temporary_errors("cannot keep the contents of the archive", spool_dir),
        tempfile.TemporaryFile(dir=spool_dir, buffering=BATCH_BYTES) as spool,
    ):
        root: _Directory = {}
        _read_members(_decompressed(_Source(stream)), root, spool)
        spool.flush()
        yield from _batches(_events(root, spool.fileno()))


class _Source(io.RawIOBase):
    """The caller's stream, with its first bytes in ``head`` and its errors translated."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.head = b""
        while len(self.head) < 6 and (more := self._read(6 - len(self.head))):
            self.head += more
        self._unread = self.head

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._unread[: len(buffer)] or self._read(len(buffer))
        self._unread = self._unread[len(data) :]
        buffer[: len(data)] = data
        return len(data)

    def _read(self, size: int) -> bytes:
        try:
            return self._stream.read(size)
        except OSError as error:
            raise Unavailable(f"cannot read the archive: {error}") from error


class _Decompressed(io.RawIOBase):
    """Reads through a decompressor, with its errors translated."""

    def __init__(self, inner: IO[bytes], algorithm: str) -> None:
        self._inner = inner
        self._algorithm = algorithm

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._inner.read(len(buffer))
        except _DAMAGED as error:
            raise ArchiveError(f"the {self._algorithm} data of the archive is damaged: {error}") from error
        buffer[: len(data)] = data
        return len(data)


def _open_zstd(source: IO[bytes]) -> IO[bytes]:
    return zstandard.ZstdDecompressor().stream_reader(source, read_across_frames=True)


_ALGORITHMS: Final[tuple[tuple[bytes, str, Callable[[Any], Any]], ...]] = (
    (b"\x1f\x8b", "gzip", lambda source: gzip.GzipFile(fileobj=source)),
    (b"BZh", "bzip2", bz2.BZ2File),
    (b"\xfd7zXZ\x00", "xz", lzma.LZMAFile),
    (b"\x28\xb5\x2f\xfd", "zstd", _open_zstd),
)
"""Magic bytes, name and decompressor."""


def _decompressed(source: _Source) -> io.RawIOBase:
    for magic, algorithm, decompress in _ALGORITHMS:
        if source.head.startswith(magic):
            return _Decompressed(decompress(io.BufferedReader(source)), algorithm)
    if not source.head:
        raise ArchiveError("the archive is empty")
    return source


class _StrictInfo(tarfile.TarInfo):
    """Raises where ``TarInfo`` would have the archive end early, or memory depend on a claim."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _StrictInfo:
        if len(buf) != tarfile.BLOCKSIZE:
            raise tarfile.ReadError("the data ends before the end marker")
        if not any(buf):
            return super().frombuf(buf, encoding, errors)  # the end marker: raises what TarFile takes for it
        try:
            info = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"the next header is none ({error})") from error
        if info.size < 0 or (info.type in _EXTENDED_HEADERS and info.size > MAX_EXTENDED_HEADER):
            raise tarfile.ReadError(f"the next header claims {info.size} bytes")
        return info


def _read_members(source: io.RawIOBase, root: _Directory, spool: IO[bytes]) -> None:
    """Fills the tree and the spool."""
    after = "at the beginning"
    try:
        with tarfile.open(
            mode="r|",
            fileobj=source,
            bufsize=_BUFFER,
            tarinfo=_StrictInfo,
            encoding="utf-8",
            errors="surrogateescape",
        ) as tar:
            while (member := tar.next()) is not None:
                name = _to_bytes(member.name)
                after = f"after member {show_name(name)}"
                _add_member(tar, member, name, root, spool)
                tar.members.clear()  # type: ignore[attr-defined]  # else it keeps them all
    except _MALFORMED as error:
        raise ArchiveError(f"not a tar archive, or damaged {after}: {error}") from error
    while source.read(BATCH_BYTES):
        pass  # the checksums of compressed data stand at the end


def _add_member(
    tar: tarfile.TarFile, member: tarfile.TarInfo, name: bytes, root: _Directory, spool: IO[bytes]
) -> None:
    path = _components(name, name)
    if member.isdir():
        _make_directory(root, path, name)
    elif member.issparse():
        raise _refused(name, "is a sparse file; pack the archive without --sparse")
    elif member.isreg():
        _place(root, path, _spool_contents(tar, member, name, spool), name)
    elif member.issym():
        link = _Link(_to_bytes(member.linkname))
        try:
            validate_node(SymlinkNode(link.target))
        except InvalidNode as error:
            raise _refused(name, str(error)) from error
        _place(root, path, link, name)
    elif member.islnk():
        _place(root, path, _find_linked(root, _to_bytes(member.linkname), name), name)
    else:
        kind = _KINDS.get(member.type, f"of the unknown type {member.type!r}")
        raise _refused(name, f"is {kind}; only files, directories and symlinks can be stored")


def _spool_contents(tar: tarfile.TarFile, member: tarfile.TarInfo, name: bytes, spool: IO[bytes]) -> _Stored:
    offset = spool.tell()
    left = member.size
    contents = tar.extractfile(member)
    with suppress(tarfile.ReadError):  # the end of the data; then some is left
        while left and contents is not None and (data := contents.read(min(left, WHOLE_FILE_LIMIT))):
            spool.write(data)
            left -= len(data)
    if left:
        raise _refused(name, f"is cut short: the archive ends before its {member.size} bytes do")
    return _Stored(offset, member.size, bool(member.mode & 0o100))


def _to_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _refused(name: bytes, problem: str) -> ArchiveError:
    return ArchiveError(f"archive member {show_name(name)} {problem}")


def _components(path: bytes, name: bytes) -> list[bytes]:
    """The components of a path inside the archive, which is that of member ``name`` or linked by it."""
    components: list[bytes] = []
    if path.startswith(b"/"):
        raise _refused(name, f"has the absolute path {show_name(path)}")
    if len(path) > MAX_PATH:
        raise _refused(name, f"has a path of {len(path)} bytes, more than {MAX_PATH}")
    for component in path.split(b"/"):
        if component == b"..":
            if not components:
                raise _refused(name, f"leaves the root of the archive: {show_name(path)}")
            components.pop()
        elif component not in (b"", b"."):
            try:
                check_name(component)
            except InvalidName as error:
                raise _refused(name, f"cannot be stored: {error}") from error
            components.append(component)
    return components


def _make_directory(root: _Directory, path: list[bytes], name: bytes, *, replace: bool = True) -> _Directory:
    """The directory at ``path``, made if it is missing; its parents too, which replace nothing."""
    here = root
    for depth, component in enumerate(path, 1):
        child = here.get(component)
        if not isinstance(child, dict):
            if child is not None and (depth < len(path) or not replace):
                above = b"/".join(path[:depth])
                raise _refused(name, f"is below {show_name(above)}, which is no directory")
            child = here[component] = {}
        here = child
    return here


def _place(root: _Directory, path: list[bytes], node: _Stored | _Link, name: bytes) -> None:
    if not path:
        raise _refused(name, "is the root of the archive, but no directory")
    parent = _make_directory(root, path[:-1], name, replace=False)
    before = parent.get(path[-1])
    if isinstance(before, dict) and before:
        raise _refused(name, "would replace a directory that is not empty")
    parent[path[-1]] = node


def _find_linked(root: _Directory, target: bytes, name: bytes) -> _Stored | _Link:
    """What the hard link ``name`` is another name of."""
    node: _Node | None = root
    for component in _components(target, name):
        node = node.get(component) if isinstance(node, dict) else None
    if node is None or isinstance(node, dict):
        what = "which is not in the archive before it" if node is None else "a directory"
        raise _refused(name, f"is a hard link to {show_name(target)}, {what}")
    return node


def _events(root: _Directory, spool: int) -> Iterator[Event]:
    yield EnterDirectory(b"")
    open_directories = [iter(sorted(root.items()))]
    while open_directories:
        for name, node in open_directories[-1]:
            if isinstance(node, dict):
                yield EnterDirectory(name)
                open_directories.append(iter(sorted(node.items())))
                break
            if isinstance(node, _Link):
                yield Symlink(name, node.target)
            elif node.size <= WHOLE_FILE_LIMIT:
                yield File(name, node.executable, _read_spool(spool, node.offset, node.size))
            else:
                yield BeginFile(name, node.executable, node.size)
                end = node.offset + node.size
                for offset in range(node.offset, end, WHOLE_FILE_LIMIT):
                    yield Data(_read_spool(spool, offset, min(WHOLE_FILE_LIMIT, end - offset)))
                yield END_FILE
        else:
            open_directories.pop()
            yield LEAVE_DIRECTORY


def _read_spool(spool: int, offset: int, size: int) -> bytes:
    data = os.pread(spool, size, offset)
    if len(data) != size:
        raise Unavailable(f"the spooled archive ends {size - len(data)} bytes too early")
    return data


def _batches(events: Iterable[Event]) -> Batches:
    batch: list[Event] = []
    size = 0
    for event in events:
        batch.append(event)
        if isinstance(event, File):
            size += len(event.contents)
        elif isinstance(event, Data):
            size += len(event.data)
        if size >= BATCH_BYTES or len(batch) >= BATCH_EVENTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
