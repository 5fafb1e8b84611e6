"""Mounting and unmounting: as root by the system calls, as anybody else with the help of ``fusermount3``."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import shutil
import socket
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from neve.errors import Conflict, InvalidRequest, NeveError, NotFound, PermissionDenied, Unavailable
from neve.telemetry import LOGGER

DEVICE = "/dev/fuse"
_TYPE = "neve"
_HELPERS = ("fusermount3", "fusermount")
_HELPER_SECONDS = 60

_AUTOMOUNT = "autofs"
"""What lies where something is to be mounted once somebody looks for it."""

_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 1, 2, 4, 8
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8

_READ_AHEAD_KIB = 2048
"""How far the kernel reads ahead, if it lets us say so: requests of a megabyte, two at a time."""


@dataclass(frozen=True)
class MountOptions:
    """How it is mounted."""

    source: str = _TYPE
    """What lists of mounts name as its source."""
    allow_other: bool = False
    """Whether other users may look into it."""
    nonempty: bool = False
    """Whether what lies in the folder may be hidden."""
    noexec: bool = False
    """Whether nothing in it can be executed."""


class Mounted(NamedTuple):
    """A mounted file system, nobody serves it yet."""

    fd: int
    """The device."""
    path: Path
    device_number: str
    """As ``major:minor``."""


def mount(folder: Path, options: MountOptions) -> Mounted:
    """Mounts at ``folder``, which must be there. Raises errors of ``neve.errors`` that say what to do."""
    path = check_mount_point(folder, options)
    fd = _mount_as_root(path, options) if os.geteuid() == 0 else _mount_as_user(path, options)
    mounted = Mounted(fd, path, _device_number(path))
    _read_ahead(mounted)
    return mounted


def unmount(mounted: Mounted, *, everywhere: bool = False) -> None:
    """Ends the mount, in any case: what has files open there keeps them for as long as somebody serves them.

    With ``everywhere`` also where it was moved, and parts of it bound, to other places. Only for who knows
    that it is still mounted: else another file system may have its number. Nothing happens if it is not
    mounted any more. Raises errors of ``neve.errors``.
    """
    ours = mounted.device_number
    if everywhere and ours:
        for path in reversed([mount.path for mount in _mounts() if mount.is_of(ours)]):
            _unmount_at(path, ours)
    else:
        _unmount_at(mounted.path, ours)


def _unmount_at(path: Path, device_number: str) -> None:
    for lazily in (False, True):
        if device_number and not _can_be_unmounted(path, device_number):
            return
        reason = _unmount_once(path, lazily=lazily)
        if reason is None:
            return
        LOGGER.debug("cannot unmount %s: %s", path, reason)
    raise Unavailable(f"cannot unmount {path}: {reason}")


def _can_be_unmounted(path: Path, device_number: str) -> bool:
    """Whether there is anything of ours there. Raises ``Conflict`` if it cannot be got at."""
    there = [mount for mount in _mounts() if mount.path == path]
    if not any(mount.is_of(device_number) for mount in there):
        return False
    if not there[-1].is_of(device_number):
        raise Conflict(
            f"cannot unmount {path}: another file system ({there[-1].kind}) is mounted over it; "
            "umount that one, then this one"
        )
    return True


def _unmount_once(path: Path, *, lazily: bool) -> str | None:
    """Why it did not work, or None."""
    if os.geteuid() == 0:
        flags = _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazily else 0)
        if _libc().umount2(os.fsencode(path), flags) == 0:
            return None
        return os.strerror(ctypes.get_errno())
    helper = _helper()
    done = _run_helper([helper, "-u", *(["-z"] if lazily else []), "--", os.fspath(path)])
    return None if done.returncode == 0 else _last_line(done.stderr)


# Before.


def check_mount_point(folder: Path, options: MountOptions) -> Path:
    """The path of ``folder`` without links, if something can be mounted there. Raises errors that say why
    not."""
    try:
        path = Path(os.path.realpath(folder))
        mode = os.stat(path).st_mode
    except OSError as error:
        raise _unusable(folder, error) from error
    if not stat.S_ISDIR(mode):
        raise InvalidRequest(f"{folder} is no folder, so nothing can be mounted there")
    _check_not_mounted(folder, path)
    if not options.nonempty:
        try:
            with os.scandir(path) as entries:
                empty = next(entries, None) is None
        except OSError as error:
            raise _unusable(folder, error) from error
        if not empty:
            raise Conflict(
                f"{folder} is not empty; name another folder, or hide its contents with --nonempty"
            )
    return path


def _check_not_mounted(folder: Path, path: Path) -> None:
    found = _topmost(path)
    if found is None or found.kind == _AUTOMOUNT:
        return
    if found.kind.startswith("fuse"):
        # The kernel may know enough of a dead one to tell what it is, but not how full.
        try:
            os.statvfs(path)
        except OSError as error:
            raise _unusable(folder, error) from error
    raise Conflict(
        f"{folder} is busy: a file system ({found.kind}) is mounted there already; umount it first"
    )


def is_automount(path: Path) -> bool:
    """Whether somebody waits there for something to be mounted: all but the process group of who has made the
    automount do, when they come near it."""
    found = _topmost(path)
    return found is not None and found.kind == _AUTOMOUNT


def _unusable(folder: Path, error: OSError) -> NeveError:
    if error.errno == errno.ENOTCONN:
        return Conflict(f"{folder} is mounted, and whoever served it has died; run: umount {folder}")
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return NotFound(f"{folder} does not exist; make it first: mkdir {folder}")
    kind = PermissionDenied if error.errno in (errno.EACCES, errno.EPERM) else Unavailable
    return kind(f"cannot look at {folder}: {error.strerror}")


class _Mount(NamedTuple):
    path: Path
    device_number: str
    kind: str

    def is_of(self, device_number: str) -> bool:
        """Whether it is of our file system. Of another kind may be who gets the number after us."""
        return self.device_number == device_number and self.kind == f"fuse.{_TYPE}"


def _mounts() -> list[_Mount]:
    """What is mounted, as the kernel tells this process; what lies over something else comes after it."""
    found = []
    with contextlib.suppress(OSError), open("/proc/self/mountinfo", "rb") as lines:
        for line in lines:
            fields, _, rest = line.partition(b" - ")
            device_number, point = fields.split(b" ")[2], fields.split(b" ")[4]
            kind = rest.split(b" ")[0].decode(errors="replace")
            found.append(_Mount(Path(os.fsdecode(_unescaped(point))), device_number.decode(), kind))
    return found


def _topmost(path: Path) -> _Mount | None:
    """What is mounted at ``path``."""
    return next((mount for mount in reversed(_mounts()) if mount.path == path), None)


def _unescaped(field: bytes) -> bytes:
    return re.sub(rb"\\([0-7]{3})", lambda match: bytes((int(match[1], 8),)), field)


def _device_number(path: Path) -> str:
    found = _topmost(path)
    return "" if found is None else found.device_number


def _read_ahead(mounted: Mounted) -> None:
    """Lets the kernel read ahead farther than its 128 KiB. Only root may say so; it works without too."""
    setting = Path(f"/sys/class/bdi/{mounted.device_number}/read_ahead_kb")
    with contextlib.suppress(OSError):
        setting.write_text(str(_READ_AHEAD_KIB))


# As root.


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _mount_as_root(path: Path, options: MountOptions) -> int:
    try:
        fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise _no_device(error) from error
    settings = [f"fd={fd}", "rootmode=40000", "user_id=0", "group_id=0", "default_permissions"]
    if options.allow_other:
        settings.append("allow_other")
    flags = _MS_RDONLY | _MS_NOSUID | _MS_NODEV | (_MS_NOEXEC if options.noexec else 0)
    done = _libc().mount(
        os.fsencode(options.source),
        os.fsencode(path),
        f"fuse.{_TYPE}".encode(),
        ctypes.c_ulong(flags),
        ",".join(settings).encode(),
    )
    if done != 0:
        number = ctypes.get_errno()
        os.close(fd)
        raise _not_mounted(path, number)
    return fd


def _no_device(error: OSError) -> NeveError:
    if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        return Unavailable(f"{DEVICE} is not there: this kernel has no FUSE, or needs: modprobe fuse")
    return PermissionDenied(f"cannot open {DEVICE}: {error.strerror}")


def _not_mounted(path: Path, number: int) -> NeveError:
    reason = os.strerror(number)
    if number in (errno.EPERM, errno.EACCES):
        return PermissionDenied(f"cannot mount at {path}: {reason}; is this a container?")
    if number == errno.EBUSY:
        return Conflict(f"cannot mount at {path}: it is busy")
    if number == errno.ENODEV:
        return Unavailable(f"cannot mount at {path}: this kernel has no FUSE, or needs: modprobe fuse")
    return Unavailable(f"cannot mount at {path}: {reason}")


# As an ordinary user.


def _helper() -> str:
    """The program that may mount for users."""
    for name in _HELPERS:
        found = shutil.which(name)
        if found is not None:
            return found
    raise Unavailable("only root can mount without fusermount3, and it is not installed (Debian: fuse3)")


def _mount_as_user(path: Path, options: MountOptions) -> int:
    """The helper mounts, and passes the open device on through a socket."""
    helper = _helper()
    settings = ["ro", "nosuid", "nodev", "default_permissions", f"subtype={_TYPE}"]
    settings.append("fsname=" + re.sub(r"([\\,])", r"\\\1", options.source))
    if options.allow_other:
        settings.append("allow_other")
    if options.noexec:
        settings.append("noexec")
    ours, its = socket.socketpair()
    with ours, its:
        command = [helper, "-o", ",".join(settings), "--", os.fspath(path)]
        done = _run_helper(command, its)
        its.close()
        fd = _received(ours) if done.returncode == 0 else None
    if fd is None:
        raise _refused(path, options, _last_line(done.stderr))
    return fd


def _run_helper(command: list[str], its: socket.socket | None = None) -> subprocess.CompletedProcess[bytes]:
    descriptors = () if its is None else (its.fileno(),)
    environment = dict(os.environ)
    if its is not None:
        environment["_FUSE_COMMFD"] = str(its.fileno())
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=environment,
            pass_fds=descriptors,
            timeout=_HELPER_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{command[0]} does not work: {error}") from error


def _received(ours: socket.socket) -> int | None:
    """The descriptor that came through the socket."""
    ours.setblocking(False)  # The helper has ended, so what it sent is here.
    with contextlib.suppress(OSError):
        _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
        if descriptors:
            os.set_inheritable(descriptors[0], False)
            return descriptors[0]
    return None


def _refused(path: Path, options: MountOptions, reason: str) -> NeveError:
    if options.allow_other and "user_allow_other" in reason:
        return PermissionDenied("--allow-other needs a line user_allow_other in /etc/fuse.conf")
    if "/dev/fuse" in reason or "device not found" in reason:
        return Unavailable(f"cannot mount at {path}: {reason}")
    return PermissionDenied(f"cannot mount at {path}: {reason}")


def _last_line(output: bytes) -> str:
    lines = output.decode(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else "fusermount3 failed without a word"
