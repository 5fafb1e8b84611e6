"""Carries connections from listening sockets to the private sockets of workers, byte for byte.

gRPC adopts no sockets, so somebody else accepts where several processes share one path, or where the
sockets come from outside. One thread does it for all connections. Each socket is registered once,
edge-triggered: what is known of its state is kept here, and an idle connection costs nothing.

Of each direction at most one chunk is held, that which the receiver did not take yet; until it did,
nothing more is read from the sender.
"""

from __future__ import annotations

import collections
import contextlib
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Mapping

from neve.server.carrying import connected, prepare
from neve.telemetry import LOGGER

_CHUNK_BYTES = 256 * 1024
_ROUNDS = 16
"""Chunks moved before others have their turn."""
_ACCEPTS = 64
_PAUSE_SECONDS = 0.1
"""How long nobody is accepted after there was nowhere to put one."""
_SILENT_SECONDS = 60.0
"""How long such a pause is not logged again."""
_NOBODY = "a connection waits: no worker can be reached"
_MAX_EVENTS = 256
_CLOSE_CHECK_SECONDS = 0.02

_EVENTS = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET
_EVENTS_WHEN_FULL = _EVENTS | select.EPOLLOUT
_READABLE = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
_GONE = select.EPOLLHUP | select.EPOLLERR
_ENDING = select.EPOLLRDHUP | _GONE


class _Backend:
    """A worker: its private sockets by route, and how many connections it has."""

    def __init__(self, paths: Mapping[str, str]) -> None:
        self.paths = paths
        self.connections = 0


class _Side:
    """One of the two sockets of a connection."""

    __slots__ = ("ending", "finished", "full", "peer", "pending", "queued", "readable", "shut", "socket")

    peer: _Side

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.pending: memoryview | None = None
        """What is still to be sent to it; it took no more."""
        self.full = False
        """Whether it is to tell when it takes more."""
        self.readable = False
        self.ending = False
        """Whether an end has come behind what can be read."""
        self.finished = False
        """Nothing more is read from it."""
        self.shut = False
        """Nothing more is sent to it."""
        self.queued = False

    @property
    def over(self) -> bool:
        """Whether all that ever comes from it has arrived at its peer."""
        return self.finished and self.peer.pending is None


class Splicer:
    """Accepts and carries connections until it is closed. All methods may be called from any thread."""

    def __init__(self, failed: Callable[[], None] | None = None) -> None:
        """``failed`` is called should its thread end with an error, as it never does."""
        self._failed = failed
        self._epoll = select.epoll()
        self._waker = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._waker, select.EPOLLIN)
        self._commands: collections.deque[Callable[[], object]] = collections.deque()
        self._listeners: dict[int, tuple[socket.socket, str]] = {}
        self._backends: dict[object, _Backend] = {}
        self._sides: dict[int, _Side] = {}
        self._owners: dict[_Side, _Backend] = {}
        """Who has the connection, by the side of the client."""
        self._ready: collections.deque[_Side] = collections.deque()
        """Those that had their turn and may have more."""
        self._homeless: collections.deque[tuple[socket.socket, str]] = collections.deque()
        """Accepted, but no worker could be reached."""
        self._accepting = False
        self._paused_until: float | None = None
        self._silent_until = 0.0
        self._answered = threading.Event()
        self._answered.set()
        self._over = False
        self._closed = False
        self._buffer = memoryview(bytearray(_CHUNK_BYTES))
        self._thread = threading.Thread(target=self._run, name="neve-splice", daemon=True)
        self._thread.start()

    # What others call.

    def add_listener(self, listener: socket.socket, route: str) -> None:
        """Accepts on a listening socket, which belongs to the splicer from now on. Its connections go
        to the sockets that the workers have for ``route``."""
        listener.setblocking(False)

        def add() -> None:
            self._listeners[listener.fileno()] = (listener, route)
            if self._accepting:
                self._epoll.register(listener, select.EPOLLIN)

        self._do(add)

    def add_backend(self, key: object, paths: Mapping[str, str]) -> None:
        """A worker is ready: its private sockets by route. Replaces one of the same key."""
        self._do(lambda: self._backends.update({key: _Backend(paths)}))

    def remove_backend(self, key: object) -> None:
        """A worker takes no new connections; those it has go on. Without any, nobody is accepted."""
        self._do(lambda: self._backends.pop(key, None))

    def stop_accepting(self) -> None:
        """Closes the listening sockets; connections go on."""
        self._do(self._close_listeners)

    def answers(self) -> bool:
        """Whether the thread has done what it was asked when this was called before; asks again. Never
        waits."""
        answered = self._answered.is_set()
        self._answered.clear()
        self._do(self._answered.set)
        return answered

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._owners)

    def close(self, linger: float = 1.0) -> None:
        """Ends. Connections may take ``linger`` seconds to be closed by their ends, and to take what is
        on its way to them. A second time it does nothing."""
        if self._closed:
            return
        self.stop_accepting()
        deadline = time.monotonic() + linger
        while self._owners and time.monotonic() < deadline and self._thread.is_alive():
            time.sleep(_CLOSE_CHECK_SECONDS)
        self._do(self._finish)
        self._thread.join()
        self._closed = True
        os.close(self._waker)

    def _finish(self) -> None:
        self._over = True

    def _do(self, command: Callable[[], object]) -> None:
        """Has ``command`` run in the thread, soon; never if that has ended."""
        if not self._closed:
            self._commands.append(command)
            os.eventfd_write(self._waker, 1)

    # The thread.

    def _run(self) -> None:
        try:
            while not self._over:
                self._turn()
        except Exception:
            LOGGER.exception("the thread that carries connections failed")
            if self._failed is not None:
                self._failed()
        finally:
            self._close_listeners()
            for side in list(self._owners):
                self._close(side)
            self._epoll.close()

    def _turn(self) -> None:
        """Handles what has happened, or waits until something does."""
        called = []
        for descriptor, events in self._epoll.poll(self._timeout(), _MAX_EVENTS):
            if descriptor == self._waker:
                os.eventfd_read(self._waker)
            elif descriptor in self._listeners:
                called.append(descriptor)
            elif (side := self._sides.get(descriptor)) is not None:
                self._attend(side, events)
        for _ in range(len(self._ready)):
            side = self._ready.popleft()
            side.queued = False
            self._attend(side, 0)
        while self._commands:
            self._commands.popleft()()
        # After all others: a new connection may get the descriptor of one that was closed just now.
        for descriptor in called:
            if descriptor in self._listeners:
                self._accept(*self._listeners[descriptor])
        if self._paused_until is not None and time.monotonic() >= self._paused_until:
            self._paused_until = None
            self._place_homeless()
        self._accept_or_not()

    def _timeout(self) -> float | None:
        if self._ready or self._commands:
            return 0.0
        if self._paused_until is None:
            return None
        return max(0.0, self._paused_until - time.monotonic())

    # Accepting.

    def _accept_or_not(self) -> None:
        """Nobody is accepted during a pause, and while there is no worker: they wait in the queue of
        the listening socket."""
        wanted = bool(self._backends) and self._paused_until is None
        if wanted is not self._accepting:
            self._accepting = wanted
            for listener, _ in self._listeners.values():
                if wanted:
                    self._epoll.register(listener, select.EPOLLIN)
                else:
                    self._epoll.unregister(listener)

    def _accept(self, listener: socket.socket, route: str) -> None:
        for _ in range(_ACCEPTS):
            if self._paused_until is not None:
                return
            try:
                client, _ = listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                self._pause(f"cannot accept a connection: {error.strerror}")
                return
            if not self._place(client, route):
                self._homeless.append((client, route))
                self._pause(_NOBODY)

    def _pause(self, reason: str) -> None:
        now = time.monotonic()
        self._paused_until = now + _PAUSE_SECONDS
        if now >= self._silent_until:
            self._silent_until = now + _SILENT_SECONDS
            LOGGER.warning("%s; trying again", reason)

    def _place_homeless(self) -> None:
        """Tries again to find workers for those who wait for one."""
        for _ in range(len(self._homeless)):
            client, route = self._homeless.popleft()
            if not self._place(client, route):
                self._homeless.append((client, route))
                self._pause(_NOBODY)

    def _place(self, client: socket.socket, route: str) -> bool:
        """Connects the client with the worker that has the fewest connections, of those that answer."""
        for backend in sorted(self._backends.values(), key=lambda backend: backend.connections):
            if (private := connected(backend.paths[route])) is not None:
                self._join(client, private, backend)
                return True
        return False

    def _join(self, client: socket.socket, private: socket.socket, backend: _Backend) -> None:
        one, other = _Side(client), _Side(private)
        one.peer, other.peer = other, one
        self._owners[one] = backend
        backend.connections += 1
        for side in (one, other):
            prepare(side.socket)
            self._sides[side.socket.fileno()] = side
            self._epoll.register(side.socket, _EVENTS)

    def _close_listeners(self) -> None:
        for listener, _ in self._listeners.values():
            if self._accepting:
                self._epoll.unregister(listener)
            listener.close()
        self._listeners.clear()
        for client, _ in self._homeless:
            client.close()
        self._homeless.clear()

    # Carrying.

    def _attend(self, side: _Side, events: int) -> None:
        """Does for a connection what can be done after ``events`` on one of its sides."""
        if events & _READABLE:
            side.readable = True
            side.ending = side.ending or bool(events & _ENDING)
        try:
            if events & _GONE:
                self._gone(side)
            if side.pending is not None and not side.peer.queued:
                self._pump(side.peer)
            if (side.readable or side.finished) and not side.queued:
                self._pump(side)
        except Exception:
            LOGGER.exception("a connection is closed after an error in carrying it")
            self._close(side)

    def _pump(self, source: _Side) -> None:
        """Moves what there is from ``source`` to its peer, as far as that takes it."""
        if source.socket.fileno() < 0:
            return  # Closed since it was queued.
        target = source.peer
        for _ in range(_ROUNDS):
            if target.pending is not None and not self._flush(target):
                return
            if source.finished:
                self._end(source)
                return
            if not source.readable or not self._read(source, target):
                return
        source.queued = True
        self._ready.append(source)

    def _read(self, source: _Side, target: _Side) -> bool:
        """Reads a chunk and sends it. False: that is all for now."""
        try:
            size = source.socket.recv_into(self._buffer)
        except (BlockingIOError, InterruptedError):
            source.readable = False
            return False
        except OSError:
            size = 0
            self._gone(source)
        if not size:
            source.finished = True
        else:
            target.pending = self._buffer[:size]
            if not self._flush(target):
                if target.pending is not None:
                    # The buffer belongs to everybody.
                    target.pending = memoryview(bytes(target.pending))
                    self._epoll.modify(target.socket, _EVENTS_WHEN_FULL)
                    target.full = True
                return False
            if size < _CHUNK_BYTES and not source.ending:
                # That was all there is (see epoll(7)): what comes later is an event again.
                source.readable = False
                return False
        return True

    def _flush(self, target: _Side) -> bool:
        """Sends what is pending; whether all of it went."""
        while target.pending is not None:
            try:
                sent = target.socket.send(target.pending)
            except (BlockingIOError, InterruptedError):
                return False
            except OSError:
                self._gone(target)
                return True
            target.pending = target.pending[sent:] if sent < len(target.pending) else None
        if target.full:
            target.full = False
            self._epoll.modify(target.socket, _EVENTS)
        return True

    def _gone(self, side: _Side) -> None:
        """Nobody is there to send to any more; what came from there before still goes to the peer."""
        side.shut = True
        side.pending = None
        side.readable = True
        side.peer.finished = True
        if not side.queued:
            side.queued = True
            self._ready.append(side)

    def _end(self, source: _Side) -> None:
        """All that came from ``source`` has arrived: tells its peer."""
        target = source.peer
        if not target.shut:
            target.shut = True
            with contextlib.suppress(OSError):
                target.socket.shutdown(socket.SHUT_WR)
        if source.over and target.over:
            self._close(source)

    def _close(self, side: _Side) -> None:
        """Closes both sides of a connection."""
        client = side if side in self._owners else side.peer
        backend = self._owners.pop(client, None)
        if backend is None:
            return
        backend.connections -= 1
        for each in (client, client.peer):
            del self._sides[each.socket.fileno()]
            each.socket.close()
