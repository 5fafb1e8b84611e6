"""Results on stdout: bytes, because names of files and contents are. Errors name the output."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import queue
import sys
import threading
from collections.abc import Generator, Iterable
from typing import BinaryIO

from neve.errors import DiskFull, NeveError, Unavailable

_PIPE_BYTES = 1024 * 1024
_PIECES_AHEAD = 4


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


def write_stream(pieces: Iterable[bytes]) -> None:
    """Writes large pieces. A second thread makes the next ones meanwhile."""
    with contextlib.suppress(OSError):
        # A pipe holds 64 KiB by default: reader and writer would wait for each other all the time.
        fcntl.fcntl(_stdout().fileno(), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    with contextlib.closing(_made_ahead(pieces)) as ready:
        for piece in ready:
            write(piece)


def _made_ahead(pieces: Iterable[bytes]) -> Generator[bytes, None, None]:
    """The same pieces, from a thread that is up to ``_PIECES_AHEAD`` ahead and ends with the iterator."""
    made: queue.Queue[bytes | None] = queue.Queue(_PIECES_AHEAD)
    wanted = True
    failures: list[BaseException] = []

    def make() -> None:
        try:
            for piece in pieces:
                made.put(piece)
                if not wanted:
                    return
        except BaseException as error:
            failures.append(error)
        finally:
            made.put(None)

    thread = threading.Thread(target=make, name="neve-output", daemon=True)
    thread.start()
    try:
        while (piece := made.get()) is not None:
            yield piece
        if failures:
            raise failures[0]
    finally:
        wanted = False
        while thread.is_alive():
            with contextlib.suppress(queue.Empty):
                made.get(timeout=0.01)
        thread.join()


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
