"""The folder of an embedded store: what lies where, the format version, and the locks.

::

    store.json          {"format": "neve-store", "version": 1, "settings": {...}}
    lock                flock: shared by every process that has the store open, exclusive to rebuild
    index/              the LMDB environment
    packs/NNNNNNNN.pack the pack files, eight lower-case hex digits
    tmp/                spool files; anything here may be deleted while no process has the store open
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from neve.errors import Corrupt, DiskFull, InvalidRequest, NeveError, NotFound, PermissionDenied, Unavailable

FORMAT = "neve-store"
VERSION = 1
STORE_FILE = "store.json"
LOCK_FILE = "lock"
INDEX_DIR = "index"
PACKS_DIR = "packs"
TMP_DIR = "tmp"
REBUILD_DIR = "index.rebuild"

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


def sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


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


def create(path: Path, settings: dict[str, Any]) -> None:
    """Makes an empty store in ``path``, which must be missing or empty. Safe against a second creator."""
    with os_errors(f"cannot create a store in {path}"):
        path.mkdir(mode=0o755, parents=True, exist_ok=True)
        known = {STORE_FILE, LOCK_FILE, INDEX_DIR, PACKS_DIR, TMP_DIR, "lost+found"}
        strangers = [n for n in os.listdir(path) if n not in known and not n.startswith(f".{STORE_FILE}.")]
        if strangers:
            raise InvalidRequest(
                f"{path} is not a neve store and not empty (it holds {sorted(strangers)[0]!r}); "
                "name a new or empty folder"
            )
        for sub in (INDEX_DIR, PACKS_DIR, TMP_DIR):
            (path / sub).mkdir(mode=0o755, exist_ok=True)
        if not (path / STORE_FILE).exists():
            document = {"format": FORMAT, "version": VERSION, "settings": settings}
            write_atomically(path / STORE_FILE, json.dumps(document, indent=1).encode() + b"\n")
        sync_directory(path.parent)


def read_settings(path: Path) -> dict[str, Any]:
    """The settings of the store in ``path``; refuses a folder that is none, or of a newer version."""
    with os_errors(f"cannot open the store in {path}"):
        if path.exists() and not path.is_dir():
            raise InvalidRequest(f"{path} is not a folder, so it cannot be a neve store")
        try:
            data = (path / STORE_FILE).read_bytes()
        except FileNotFoundError:
            raise NotFound(f"{path} is not a neve store (it has no {STORE_FILE})") from None
    try:
        document = json.loads(data)
        name, version, settings = document["format"], document["version"], document["settings"]
    except (ValueError, KeyError, TypeError) as error:
        raise Corrupt(f"{path / STORE_FILE} cannot be read as a store description: {error}") from error
    if name != FORMAT or not isinstance(version, int) or not isinstance(settings, dict):
        raise InvalidRequest(f"{path / STORE_FILE} does not describe a neve store")
    if version > VERSION:
        raise InvalidRequest(
            f"the store in {path} has format version {version}, "
            f"this neve knows up to {VERSION}: use a newer neve"
        )
    return settings


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
