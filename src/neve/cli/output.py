"""Results on stdout: bytes, because names of files and contents are. Errors name the output."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
import sys
from collections.abc import Iterable, Sequence
from typing import BinaryIO

from neve.errors import DiskFull, NeveError, Unavailable

_PIPE_BYTES = 1024 * 1024
_MAX_VECTOR = os.sysconf("SC_IOV_MAX")


def _stdout() -> BinaryIO:
    if sys.stdout is None:
        raise Unavailable("cannot write the output: stdout is closed")
    return sys.stdout.buffer


def to_terminal() -> bool:
    """Whether a person sees the output as it is."""
    return sys.stdout is not None and sys.stdout.isatty()


def write(data: bytes) -> None:
    """Writes ``data``. Raises ``BrokenPipeError`` if nobody reads it, else an error of ours."""
    try:
        _stdout().write(data)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _translated(error) from error


def write_groups(groups: Iterable[Sequence[bytes]]) -> None:
    """Writes pieces that come in groups, without joining them. Raises like ``write``."""
    flush()
    try:
        file = _stdout().fileno()
    except io.UnsupportedOperation:  # a stdout that is no file, as in tests
        for group in groups:
            write(b"".join(group))
        return
    with contextlib.suppress(OSError):
        # A pipe holds 64 KiB by default: reader and writer would wait for each other all the time.
        fcntl.fcntl(file, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    try:
        for group in groups:
            for start in range(0, len(group), _MAX_VECTOR):
                _write_vector(file, group[start : start + _MAX_VECTOR])
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _translated(error) from error


def _write_vector(file: int, pieces: Sequence[bytes]) -> None:
    size = sum(map(len, pieces))
    written = os.writev(file, pieces)
    if written < size:
        # Signals and full pipes cut a write short; what is left goes the slow way.
        rest = memoryview(b"".join(pieces))[written:]
        while rest:
            rest = rest[os.write(file, rest) :]


def line(text: str) -> None:
    """Writes one line."""
    write(os.fsencode(text) + b"\n")


def flush() -> None:
    """Gives everything written so far to the reader. Raises like ``write``."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        discard()
        raise _translated(error) from error


def discard() -> None:
    """Sends what is still to be written nowhere, so that the interpreter does not trip over it again."""
    with contextlib.suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _translated(error: OSError) -> NeveError:
    reason = os.strerror(error.errno) if error.errno else str(error)
    kind = DiskFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else Unavailable
    return kind(f"cannot write the output: {reason}")
