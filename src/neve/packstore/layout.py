"""The folder of an embedded store: what lies where, the format version, and the locks.

::

    store.json          {"format": "neve-store", "version": 1, "key": ..., "settings": {...}, "check": ...}
    lock                flock: shared by every process that has the store open, exclusive to rebuild
    index/              the LMDB environment
    packs/NNNNNNNN.pack the pack files, eight lower-case hex digits
    uses/               what processes have promised to be there; see ``uses``
    reserve             room for a collection on a full disk; see ``reserve``
    tmp/                spool files; anything here may be deleted while no process has the store open
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neve.errors import Corrupt, DiskFull, InvalidRequest, NeveError, NotFound, PermissionDenied, Unavailable
from neve.packstore.pack import KEY_SIZE, check16
from neve.packstore.reserve import RESERVE_FILE

FORMAT = "neve-store"
VERSION = 1
STORE_FILE = "store.json"
LOCK_FILE = "lock"
INDEX_DIR = "index"
PACKS_DIR = "packs"
TMP_DIR = "tmp"
USES_DIR = "uses"
REBUILD_DIR = "index.rebuild"

_OLDER = "serve it with the neve that made it, and copy it to a new store with neve mirror (docs/backup.md)"
"""A store is not converted in its place: a failure half-way would be one of the only copy."""

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)


def translate_os_error(error: OSError, what: str) -> NeveError:
    """The error of ours for ``error``; ``what`` says what was being done, to which file."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    if error.errno in _DISK_FULL:
        return DiskFull(f"{what}: disk full ({reason}); free some space and try again")
    if error.errno in _DENIED:
        return PermissionDenied(f"{what}: {reason}")
    if error.errno == errno.ENOENT:
        return NotFound(f"{what}: {reason}")
    return Unavailable(f"{what}: {reason}")


@contextlib.contextmanager
def os_errors(what: str) -> Iterator[None]:
    """Translates every ``OSError`` of the block into an error of ours that says ``what`` failed."""
    try:
        yield
    except OSError as error:
        raise translate_os_error(error, what) from error


def pack_name(pack_id: int) -> str:
    return f"{pack_id:08x}.pack"


def pack_ids(path: Path) -> list[int]:
    """The ids of the packs in store ``path``, ascending."""
    ids = []
    for name in os.listdir(path / PACKS_DIR):
        stem, dot, suffix = name.partition(".")
        if dot and suffix == "pack" and len(stem) == 8:
            with contextlib.suppress(ValueError):
                ids.append(int(stem, 16))
    return sorted(ids)


def write_whole(fd: int, data: bytes) -> None:
    """Writes ``data`` where the file is. A disk that is nearly full takes less than it is given, without an
    error."""
    while data:
        data = data[os.write(fd, data) :]


def sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def temporary_errors(what: str, folder: str | None = None) -> Iterator[None]:
    """The same for what lies in ``folder``, or in the one for temporary files, which it names."""
    try:
        yield
    except OSError as error:
        place = folder or tempfile.tempdir or "that TMPDIR names"
        told = translate_os_error(error, f"{what} in the temporary folder {place}")
        if isinstance(told, NotFound):  # Nobody has asked for that folder.
            told = Unavailable(str(told))
        raise told from error


def write_atomically(path: Path, data: bytes) -> None:
    """Writes ``data`` so that ``path`` holds either what it held or all of ``data``, also after a crash."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


@dataclass(frozen=True)
class Description:
    """What ``store.json`` says: the key of the packs (32 bytes), and the settings."""

    key: bytes
    settings: dict[str, Any]


def create(path: Path, settings: dict[str, Any], make_index: Callable[[Path], None]) -> None:
    """Makes an empty store in ``path``, which must be missing or empty. Safe against a second creator.

    ``make_index`` makes an index in an empty folder. The store is one when its index is complete: of what was
    broken off before that, the next creator keeps nothing.
    """
    with os_errors(f"cannot create a store in {path}"):
        _make_folder(path)
        with locked_folder(path):
            if (path / STORE_FILE).exists():
                return
            _check_free(path)
            if (path / PACKS_DIR).exists() and pack_ids(path):
                raise Corrupt(f"{path} holds the packs of a neve store, but {STORE_FILE} is missing")
            for sub in (PACKS_DIR, TMP_DIR):
                (path / sub).mkdir(mode=0o755, exist_ok=True)
            _fill_index(path / INDEX_DIR, make_index)
            document = {
                "format": FORMAT,
                "version": VERSION,
                "key": secrets.token_hex(KEY_SIZE),
                "settings": settings,
            }
            document["check"] = _check_of(document)
            write_atomically(path / STORE_FILE, json.dumps(document, indent=1).encode() + b"\n")


def _check_free(path: Path) -> None:
    """Refuses a folder with something else in it; removes half a description of a creator that died."""
    known = {STORE_FILE, LOCK_FILE, INDEX_DIR, PACKS_DIR, TMP_DIR, USES_DIR, RESERVE_FILE, "lost+found"}
    names = os.listdir(path)
    left = [name for name in names if name.startswith(f".{STORE_FILE}.")]
    if strangers := sorted(set(names) - known - set(left)):
        raise InvalidRequest(
            f"{path} is not a neve store and not empty (it holds {strangers[0]!r}); "
            "name a new or empty folder"
        )
    for name in left:
        (path / name).unlink()


def _fill_index(index: Path, make_index: Callable[[Path], None]) -> None:
    """Has the index made inside its folder, which may be a disk of its own, but not in its place."""
    index.mkdir(mode=0o755, exist_ok=True)
    scratch = index / "new"
    shutil.rmtree(scratch, ignore_errors=True)
    for left in index.glob("*.mdb*"):
        left.unlink()
    scratch.mkdir(mode=0o755)
    try:
        make_index(scratch)
        for made in scratch.iterdir():
            made.replace(index / made.name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    sync_directory(index)


def _make_folder(path: Path) -> None:
    """Makes ``path`` and what is missing above it, durably."""
    if path.exists():
        if not path.is_dir():
            raise InvalidRequest(f"{path} is not a folder, so it cannot be a neve store")
        return
    _make_folder(path.parent)
    path.mkdir(mode=0o755, exist_ok=True)
    sync_directory(path.parent)


@contextlib.contextmanager
def locked_folder(path: Path) -> Iterator[None]:
    """Keeps others who make something in ``path`` out."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def is_store(path: Path) -> bool:
    """Whether there is a store in ``path``, of whatever version."""
    with os_errors(f"cannot open the store in {path}"):
        return (path / STORE_FILE).exists()


def read_description(path: Path) -> Description:
    """Describes the store in ``path``; refuses a folder that is none, or of another version."""
    with os_errors(f"cannot open the store in {path}"):
        if path.exists() and not path.is_dir():
            raise InvalidRequest(f"{path} is not a folder, so it cannot be a neve store")
        try:
            data = (path / STORE_FILE).read_bytes()
        except FileNotFoundError:
            raise NotFound(f"{path} is not a neve store (it has no {STORE_FILE})") from None
    try:
        document = json.loads(data)
        name, version = document["format"], document["version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _unreadable(path, error) from error
    if name != FORMAT or type(version) is not int or version < 1:
        raise InvalidRequest(f"{path / STORE_FILE} does not describe a neve store")
    if version != VERSION:
        raise InvalidRequest(
            f"the store in {path} has format version {version}, this neve knows version {VERSION}: "
            + ("use a newer neve" if version > VERSION else _OLDER)
        )
    if document.get("check") != _check_of(document):
        raise Corrupt(f"{path / STORE_FILE} is damaged: it does not match its checksum")
    try:
        description = Description(bytes.fromhex(document["key"]), document["settings"])
    except (ValueError, KeyError, TypeError) as error:
        raise _unreadable(path, error) from error
    if len(description.key) != KEY_SIZE or not isinstance(description.settings, dict):
        raise Corrupt(f"{path / STORE_FILE}: the key or the settings are not of their kind")
    return description


def _unreadable(path: Path, error: Exception) -> Corrupt:
    return Corrupt(f"{path / STORE_FILE} cannot be read as a store description: {error!r}")


def read_settings(path: Path) -> dict[str, Any]:
    """The settings of the store in ``path``. Raises what ``read_description`` raises."""
    return read_description(path).settings


def _check_of(document: dict[str, Any]) -> str:
    """The checksum of a store description, which is kept beside what it is over."""
    checked = {name: value for name, value in document.items() if name != "check"}
    return check16(json.dumps(checked, sort_keys=True).encode()).hex()


class StoreLock:
    """The lock that keeps a rebuild away from everyone who has the store open.

    Raises ``Unavailable`` when it is held the other way. On read-only media without a lock file
    nobody can rebuild either, so none is needed.
    """

    def __init__(self, path: Path, *, exclusive: bool, read_only: bool) -> None:
        self._fd = -1
        flags = os.O_RDONLY if read_only else os.O_RDWR | os.O_CREAT
        try:
            self._fd = os.open(path / LOCK_FILE, flags | os.O_CLOEXEC, 0o644)
            fcntl.flock(self._fd, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            who = "another process has it open" if exclusive else "its index is being rebuilt"
            raise Unavailable(f"the store in {path} is busy: {who}; try again when that has ended") from None
        except OSError as error:
            self.close()
            if not read_only:
                raise translate_os_error(error, f"cannot lock the store in {path}") from error

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
