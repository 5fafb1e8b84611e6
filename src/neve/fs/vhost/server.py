"""Listens for front-ends, and serves one after the other.

One thread does all but the backends' work: it waits for the socket, the front-end and its kicks at once, so
nothing of the device has to be locked but the rings against late answers.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import select
import socket
import sys
import time
from collections.abc import Callable, Sequence

from neve.errors import NeveError, Unsupported
from neve.fs.vhost.connection import Connection, peer_of
from neve.fs.vhost.device import Device, DeviceOptions
from neve.fs.vhost.ring import Handler, Ring
from neve.serving.manager import Beat
from neve.telemetry import LOGGER

_NO_ROOM = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}
_PAUSE_SECONDS = 0.1
"""Before it is tried again to accept a connection for which there are no descriptors."""


class Server:
    """A file system for guests, on a socket that listens."""

    def __init__(
        self, listener: socket.socket, options: DeviceOptions | None = None, beat: Beat | None = None
    ) -> None:
        """``listener`` stays the caller's. ``beat`` is kept between whatever else there is to do.

        Raises ``Unsupported`` on a machine with the wrong order of bytes.
        """
        if sys.byteorder != "little":
            raise Unsupported("virtio-fs needs a machine that is little-endian, as the rings are")
        listener.setblocking(False)
        self._listener = listener
        self._options = options or DeviceOptions()
        self._beat = beat or Beat(None, lambda: None)
        self._connection: Connection | None = None
        self._handler: Handler | None = None
        self._stop = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def run(self, make_handler: Callable[[], Handler]) -> None:
        """Serves until ``stop`` is called. Each front-end gets a handler of its own."""
        try:
            while not self._turn(make_handler):
                pass
        finally:
            self._disconnect()

    def stop(self) -> None:
        """Ends ``run``. From any thread or a signal handler."""
        with contextlib.suppress(OSError):
            os.eventfd_write(self._stop, 1)

    def close(self) -> None:
        """To be called when ``run`` is over."""
        os.close(self._stop)

    def _turn(self, make_handler: Callable[[], Handler]) -> bool:
        """Waits until there is something to do, and does it; whether to stop."""
        poll = select.poll()
        poll.register(self._stop, select.POLLIN)
        poll.register(self._listener, select.POLLIN)
        rings = []
        if self._connection is not None:
            poll.register(self._connection, select.POLLIN)
            rings = [ring for ring in self._connection.device.rings if ring.running]
        for ring in rings:
            if ring.kick is not None:
                poll.register(ring.kick, select.POLLIN)
        busy = any(ring.restless and ring.enabled for ring in rings)
        self._beat.beat()
        left = self._beat.left()
        # Rounded up, not to turn in vain in the last millisecond.
        patience = None if left is None else math.ceil(left * 1000)
        ready = {file for file, _ in poll.poll(0 if busy else patience)}
        try:
            self._work(rings, ready, make_handler)
        except Exception:
            # Whatever somebody may have found: the next one is served.
            LOGGER.exception("internal error, please report it")
            self._disconnect()
        return self._stop in ready

    def _work(self, rings: Sequence[Ring], ready: set[int], make_handler: Callable[[], Handler]) -> None:
        """Does what there is to do: what is urgent to the guest first."""
        for ring in rings:
            if ring.kick is not None and ring.kick.fileno() in ready:
                ring.kick.take()
                ring.restless = True
            if ring.restless:
                ring.turn()
        if self._connection is not None and self._connection.fileno() in ready:
            self._receive()
        if self._listener.fileno() in ready:
            self._accept(make_handler)

    def _receive(self) -> None:
        connection = self._connection
        assert connection is not None
        spoke = connection.spoke
        try:
            goes_on = connection.receive()
        except NeveError as error:
            self._disconnect()
            LOGGER.warning("virtio-fs: process %d is disconnected: %s", connection.peer, str(error))
            return
        if connection.spoke and not spoke:
            LOGGER.info("virtio-fs: process %d is connected", connection.peer)
        if not goes_on:
            self._disconnect()  # What is said to have gone touches no memory any more.
            if connection.spoke:
                LOGGER.info("virtio-fs: process %d has gone", connection.peer)

    def _accept(self, make_handler: Callable[[], Handler]) -> None:
        try:
            accepted, _ = self._listener.accept()
        except OSError as error:
            if error.errno in _NO_ROOM:
                time.sleep(_PAUSE_SECONDS)
            return
        if self._connection is not None:
            self._receive()  # That it has gone may not have been noticed yet.
        if self._connection is not None:
            LOGGER.warning(
                "virtio-fs: process %d is refused: there is a front-end already", peer_of(accepted)
            )
            accepted.close()
            return
        try:
            self._handler = make_handler()
            self._connection = Connection(accepted, Device(self._handler, self._options))
        except BaseException:
            accepted.close()
            raise

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._handler is not None:
            self._handler.close()
            self._handler = None
