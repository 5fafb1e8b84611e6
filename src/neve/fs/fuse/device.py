"""/dev/fuse: requests are read, replies are written, by a few threads."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Sequence

from neve.fs.fuse import protocol
from neve.fs.fuse.session import Session
from neve.telemetry import LOGGER

_BUFFER_BYTES = 64 * 1024
"""The kernel wants room for what it may write, and a page; and puts as many forgotten inodes into one
request as there is room for."""

_GONE = {errno.ENODEV, errno.ECONNABORTED}
"""Nothing more will come: it is unmounted, or was aborted."""

_AGAIN = {errno.EINTR, errno.EAGAIN, errno.ENOENT}
"""ENOENT: the request that was to be read has been given up meanwhile."""


class Device:
    """The connection to the kernel behind one mount. Owns ``fd``, but closes it only if no thread uses it."""

    def __init__(self, fd: int, session: Session, threads: int) -> None:
        self._fd = fd
        self._session = session
        session.may_notify(self._notify)
        self._ended = threading.Event()
        self._failure: OSError | None = None
        self._threads = [
            threading.Thread(target=self._serve, name=f"neve-fuse-{number}", daemon=True)
            for number in range(threads)
        ]

    def start(self) -> None:
        """Begins to answer."""
        for thread in self._threads:
            thread.start()

    def wait(self) -> None:
        """Returns when nothing more will come: the file system is no longer mounted anywhere, or was cut off
        by force and is still mounted. Raises ``OSError`` if the device fails."""
        self._ended.wait()
        if self._failure is not None:
            raise self._failure

    def wait_at_most(self, seconds: float) -> bool:
        """The same, but only for some time; whether it came to that."""
        return self._ended.wait(seconds)

    def _serve(self) -> None:
        try:
            self._answer_all()
        except OSError as error:
            if error.errno not in _GONE:
                self._failure = error
        finally:
            self._ended.set()

    def _answer_all(self) -> None:
        fd, handle, reply = self._fd, self._session.handle, self._reply
        buffer = bytearray(_BUFFER_BYTES)
        view = memoryview(buffer)
        buffers = [buffer]
        while True:
            try:
                size = os.readv(fd, buffers)
            except OSError as error:
                if error.errno in _AGAIN:
                    continue
                raise
            if not size:
                return
            try:
                handle(view[:size], reply)
            except Exception:  # One request, not the mount.
                LOGGER.exception("internal error, please report it")

    def _notify(self, parts: Sequence[bytes | memoryview]) -> None:
        with contextlib.suppress(OSError):  # It would have been good, that is all.
            os.writev(self._fd, parts)

    def _reply(self, parts: Sequence[bytes | memoryview]) -> None:
        if not parts:
            return
        try:
            os.writev(self._fd, parts)
        except OSError as error:
            # ENOENT: nobody waits for it any more.
            if error.errno != errno.ENOENT and error.errno not in _GONE:
                LOGGER.error("the kernel does not take a reply: %s", error.strerror)
                self._fail(parts[0])

    def _fail(self, header: bytes | memoryview) -> None:
        """Whoever waits for a reply that is not taken must not wait for ever."""
        with contextlib.suppress(OSError):
            os.write(self._fd, protocol.failed_reply(header, errno.EIO))
