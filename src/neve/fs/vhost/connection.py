"""Messages on the socket of a front-end: whole ones in, with the descriptors that belong to them; replies
out."""

from __future__ import annotations

import array
import contextlib
import os
import socket
import struct

from neve.errors import Unavailable
from neve.fs.vhost.device import Device
from neve.fs.vhost.messages import HEADER_BYTES, MAX_REGIONS, BadMessage, Header, parse_header

_TURN = 32
"""Messages that are handled before rings have a turn again."""
_FILE_BYTES = array.array("i").itemsize
_ANCILLARY_BYTES = socket.CMSG_SPACE(MAX_REGIONS * _FILE_BYTES)


_CREDENTIALS = struct.Struct("=iII")
"""``struct ucred``: process, user, group."""


def peer_of(sock: socket.socket) -> int:
    """The process at the other end."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    process: int = _CREDENTIALS.unpack(raw)[0]
    return process


class Connection:
    """A connected front-end and its device. Used by one thread; nothing here waits for the front-end."""

    def __init__(self, sock: socket.socket, device: Device) -> None:
        """Owns both from now on."""
        sock.setblocking(False)
        self._socket = sock
        self.peer = peer_of(sock)
        """The process at the other end."""
        self.device = device
        self.spoke = False
        """Whether a message has come yet."""
        self._header: Header | None = None
        self._buffer = b""
        self._files: list[int] = []

    def fileno(self) -> int:
        """For ``select.poll``."""
        return self._socket.fileno()

    def receive(self) -> bool:
        """Handles what has come, or some of it; whether the connection goes on.

        Raises ``InvalidRequest`` and ``Unavailable``: it is of no use any more.
        """
        done = 0
        while done < _TURN:
            try:
                if not self._read():
                    return False
            except BlockingIOError:
                return True
            done += self._advance()
        return True

    def close(self) -> None:
        """Stops the device and closes all descriptors."""
        self._close_files()
        self.device.close()
        self._socket.close()

    def _wanted(self) -> int:
        """How many bytes are missing. Never more are read: descriptors come with the first byte of their
        message."""
        size = HEADER_BYTES if self._header is None else self._header.size
        return size - len(self._buffer)

    def _read(self) -> bool:
        """Reads a part of a message; whether there is one and not the end. Raises ``BlockingIOError``."""
        try:
            data, ancillary, flags, _ = self._socket.recvmsg(
                self._wanted(), _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            raise
        except OSError as error:
            raise Unavailable(f"the connection is broken: {error.strerror}") from error
        for level, kind, raw in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                self._files += array.array("i", raw[: len(raw) // _FILE_BYTES * _FILE_BYTES])
        if flags & socket.MSG_CTRUNC or len(self._files) > MAX_REGIONS:
            raise BadMessage(f"a message with more than {MAX_REGIONS} descriptors")
        if not data:
            if self._buffer or self._header is not None:
                raise BadMessage("the connection ends in the middle of a message")
            return False
        self._buffer += data
        self.spoke = True
        return True

    def _advance(self) -> bool:
        """Goes on with what has been read; whether that was a whole message, which is done then."""
        if self._wanted():
            return False
        if self._header is None:
            self._header = parse_header(self._buffer)
            self._buffer = b""
            if self._header.size:
                return False
        header, payload = self._header, self._buffer
        self._header, self._buffer = None, b""
        try:
            reply = self.device.handle(header, payload, self._files)
        except Exception:
            # It hears of it, if it listens, and the connection ends all the same.
            with contextlib.suppress(Unavailable):
                self._send(self.device.acknowledgement(header, 1))
            raise
        finally:
            self._close_files()
        self._send(reply)
        return True

    def _send(self, reply: bytes | None) -> None:
        if reply is None:
            return
        try:
            sent = self._socket.send(reply)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise Unavailable(f"the connection is broken: {error.strerror}") from error
        if sent != len(reply):
            raise Unavailable("the front-end does not read replies")

    def _close_files(self) -> None:
        while self._files:
            os.close(self._files.pop())
