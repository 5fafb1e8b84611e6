"""Stops at system calls: seccomp's user notification, as far as faults need it; see seccomp_unotify(2).

A process that has called ``install`` sleeps in each of the calls in ``CALLS`` until somebody who has the
descriptor that this returned says what becomes of it. So every write of every library is reached, LMDB's in C
too, whichever thread makes it, and one at a time.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import platform
import struct
from enum import Enum
from typing import NamedTuple


class Kind(Enum):
    """What a call does to the disk."""

    WRITE = "write"
    SYNC = "sync"
    MOVE = "move"
    RESIZE = "resize"
    REMOVE = "remove"
    CREATE = "create"
    MARK = "mark"
    """Times and permissions."""


class Shape(NamedTuple):
    """Where the arguments of a call are."""

    name: str
    kind: Kind
    fd: int | None = None
    """Of the open file it is about, or else"""
    path: int | None = None
    """of the path, which is relative to"""
    folder: int | None = None
    """this; None: to the working directory."""
    flags: int | None = None
    """Of an open: only one that may make a file is stopped at."""


# Numbers of x86-64: other machines go without these tests.
CALLS: dict[int, Shape] = {
    1: Shape("write", Kind.WRITE, fd=0),
    2: Shape("open", Kind.CREATE, path=0, flags=1),
    18: Shape("pwrite64", Kind.WRITE, fd=0),
    20: Shape("writev", Kind.WRITE, fd=0),
    26: Shape("msync", Kind.SYNC),
    40: Shape("sendfile", Kind.WRITE, fd=0),
    74: Shape("fsync", Kind.SYNC, fd=0),
    75: Shape("fdatasync", Kind.SYNC, fd=0),
    76: Shape("truncate", Kind.RESIZE, path=0),
    77: Shape("ftruncate", Kind.RESIZE, fd=0),
    82: Shape("rename", Kind.MOVE, path=1),
    83: Shape("mkdir", Kind.CREATE, path=0),
    84: Shape("rmdir", Kind.REMOVE, path=0),
    86: Shape("link", Kind.MOVE, path=1),
    87: Shape("unlink", Kind.REMOVE, path=0),
    88: Shape("symlink", Kind.CREATE, path=1),
    90: Shape("chmod", Kind.MARK, path=0),
    91: Shape("fchmod", Kind.MARK, fd=0),
    257: Shape("openat", Kind.CREATE, path=1, folder=0, flags=2),
    258: Shape("mkdirat", Kind.CREATE, path=1, folder=0),
    263: Shape("unlinkat", Kind.REMOVE, path=1, folder=0),
    264: Shape("renameat", Kind.MOVE, path=3, folder=2),
    265: Shape("linkat", Kind.MOVE, path=3, folder=2),
    266: Shape("symlinkat", Kind.CREATE, path=2, folder=1),
    268: Shape("fchmodat", Kind.MARK, path=1, folder=0),
    277: Shape("sync_file_range", Kind.SYNC, fd=0),
    280: Shape("utimensat", Kind.MARK, path=1, folder=0),
    285: Shape("fallocate", Kind.RESIZE, fd=0),
    296: Shape("pwritev", Kind.WRITE, fd=0),
    306: Shape("syncfs", Kind.SYNC, fd=0),
    316: Shape("renameat2", Kind.MOVE, path=3, folder=2),
    326: Shape("copy_file_range", Kind.WRITE, fd=2),
    328: Shape("pwritev2", Kind.WRITE, fd=0),
}

_SECCOMP, _PIDFD_GETFD = 317, 438
_SET_MODE_FILTER, _NEW_LISTENER, _WAIT_KILLABLE = 1, 1 << 3, 1 << 5
_ALLOW, _NOTIFY = 0x7FFF0000, 0x7FC00000
_RECEIVE, _SEND = 0xC0502100, 0xC0182101  # ioctl
_CONTINUE = 1

_LOAD, _IF_EQUAL, _IF_ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06  # BPF, of 32-bit words
_NUMBER_AT, _ARGUMENTS_AT = 0, 16
_MAKES_FILES = os.O_CREAT | (os.O_TMPFILE & ~os.O_DIRECTORY)

_REQUEST = struct.Struct("<QIIiIQ6Q")
_ANSWER = struct.Struct("<QqiI")

_libc = ctypes.CDLL(None, use_errno=True)


def missing() -> str | None:
    """What there is not, for these tests: a reason, or None."""
    if platform.machine() != "x86_64":
        return "the numbers of system calls are known for x86-64 only"
    if tuple(map(int, platform.release().split(".")[:2])) < (5, 19):
        return "Linux is older than 5.19"
    child = os.fork()
    if child == 0:
        try:
            install()
            os._exit(0)
        finally:
            os._exit(1)
    return "the kernel gives no notifications of system calls" if os.waitpid(child, 0)[1] else None


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, value)


def _filter() -> bytes:
    code = _instruction(_LOAD, _NUMBER_AT)
    for number, shape in CALLS.items():
        if shape.flags is None:
            code += _instruction(_IF_EQUAL, number, 0, 1) + _instruction(_RETURN, _NOTIFY)
        else:
            code += _instruction(_IF_EQUAL, number, 0, 4)
            code += _instruction(_LOAD, _ARGUMENTS_AT + 8 * shape.flags)
            code += _instruction(_IF_ANY_BIT, _MAKES_FILES, 0, 1)
            code += _instruction(_RETURN, _NOTIFY) + _instruction(_RETURN, _ALLOW)
    return code + _instruction(_RETURN, _ALLOW)


def install() -> int:
    """Has this process stopped at its calls from now on. Returns the descriptor for who answers them."""
    code = ctypes.create_string_buffer(_filter())
    program = ctypes.create_string_buffer(
        struct.pack("<HxxxxxxQ", (len(code) - 1) // 8, ctypes.addressof(code))
    )
    flags = _NEW_LISTENER | _WAIT_KILLABLE
    listener: int = _libc.syscall(_SECCOMP, _SET_MODE_FILTER, flags, program)
    if listener < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return listener


class Request(NamedTuple):
    """A call that waits for an answer."""

    id: int
    thread: int
    shape: Shape
    arguments: tuple[int, ...]


def receive(listener: int) -> Request:
    """The next call. Raises ``FileNotFoundError`` if who made it has died."""
    data = bytearray(_REQUEST.size)
    fcntl.ioctl(listener, _RECEIVE, data)
    identity, thread, _, number, _, _, *arguments = _REQUEST.unpack(data)
    return Request(identity, thread, CALLS[number], tuple(arguments))


def go_on(listener: int, request: Request) -> None:
    """Lets a call happen."""
    _answer(listener, _ANSWER.pack(request.id, 0, 0, _CONTINUE))


def fail(listener: int, request: Request, error: int) -> None:
    """A call fails with this ``errno``, and does nothing."""
    _answer(listener, _ANSWER.pack(request.id, 0, -error, 0))


def give(listener: int, request: Request, result: int) -> None:
    """A call has done what it should, says its result, but nothing is done any more."""
    _answer(listener, _ANSWER.pack(request.id, result, 0, 0))


def _answer(listener: int, answer: bytes) -> None:
    with contextlib.suppress(FileNotFoundError):  # It died meanwhile.
        fcntl.ioctl(listener, _SEND, answer)


def same_descriptor(process: int, descriptor: int) -> int:
    """Another process's open file, position and all."""
    holder = os.pidfd_open(process)
    try:
        found: int = _libc.syscall(_PIDFD_GETFD, holder, descriptor, 0)
    finally:
        os.close(holder)
    if found < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return found
