"""The sockets between which the splicer carries bytes."""

from __future__ import annotations

import socket

_SOCKET_BUFFER_BYTES = 1024 * 1024


def connected(path: str) -> socket.socket | None:
    """A connection to a worker, or None if it takes none now, or there is no descriptor left."""
    try:
        private = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    except OSError:
        return None
    try:
        private.connect(path)
    except OSError:
        private.close()
        return None
    return private


def prepare(sock: socket.socket) -> None:
    """Set before anything is moved: large buffers, and no waiting for more to send."""
    sock.setblocking(False)
    if sock.family == socket.AF_UNIX:
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BUFFER_BYTES)
    else:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
