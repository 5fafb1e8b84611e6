"""The descriptors through which guest and device wake each other: eventfd(2)."""

from __future__ import annotations

import contextlib
import os
import select

from neve.fs.vhost.messages import BadMessage

_ONE = (1).to_bytes(8, "little")
_HERE = -1
"""To preadv(2), which knows flags: no offset."""
_EVENTFD = "anon_inode:[eventfd]"


class Event:
    """An eventfd of the front-end's. Neither of its moves waits.

    Nothing else is taken: waiting for another kind of file could take for ever. (QEMU falls back to pipes
    where there is no eventfd; on Linux there is.) That the file does not block is not relied upon: the flag
    is the front-end's as well, which may clear it.
    """

    def __init__(self, file: int) -> None:
        """Owns ``file`` from now on. Raises ``BadMessage``, and has closed it then."""
        self._file = file
        try:
            if os.readlink(f"/proc/self/fd/{file}") != _EVENTFD:
                raise BadMessage("the descriptor of an event is no eventfd")
            os.set_blocking(file, False)
        except OSError as error:
            self.close()
            raise BadMessage(f"the descriptor of an event is of no use: {error.strerror}") from error
        except BadMessage:
            self.close()
            raise
        self._writable = select.poll()
        self._writable.register(file, select.POLLOUT)

    def fileno(self) -> int:
        """For ``select.poll``."""
        return self._file

    def take(self) -> None:
        """Takes all signals that have come; there may be none."""
        with contextlib.suppress(OSError):
            os.preadv(self._file, [bytearray(8)], _HERE, os.RWF_NOWAIT)

    def signal(self) -> None:
        """Wakes the other side. If it has been woken so often that no more can be counted, it is awake. Not
        for two threads at once."""
        with contextlib.suppress(OSError):
            # Of writing there is no kind that never waits.
            if self._writable.poll(0) == [(self._file, select.POLLOUT)]:
                os.write(self._file, _ONE)

    def close(self) -> None:
        """Can be called again."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
