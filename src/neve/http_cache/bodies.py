"""NARs as the bodies of answers: as they are, or compressed; made in threads, as far as they are sent.

A body makes about a megabyte at a time, when it is asked to: a client that reads slowly holds no thread.
What reads ahead in the store holds some megabytes more; so only a bounded number of bodies do. The others
render each piece anew from where they are, which costs a walk down to that place and little more.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Protocol

from neve.castore.node import Node
from neve.errors import Corrupt
from neve.http_cache.packing import Compressor
from neve.http_cache.zstd_frames import ZstdFrames, compressed
from neve.store.nar.render import NarRenderer

_ALONE_BYTES = 512 * 1024
"""What is rendered at a time by those that do not read ahead."""

_STALLED_SECONDS = 2.0
"""Whoever has not asked for more in this time lets another one read ahead."""


class Body(Protocol):
    """What is sent. Used by one thread at a time."""

    @property
    def is_ahead(self) -> bool:
        """Whether the next piece is worth to be made before it is wanted."""

    def read(self) -> bytes:
        """The next piece; empty at the end. Raises like ``NarRenderer.groups``."""

    def close(self) -> None:
        """Lets go of what is read ahead. Can be called again."""


class Ahead:
    """Which bodies may read ahead. Thread-safe."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._bodies: dict[NarBody, float] = {}
        """Those that do, and when each was asked last."""

    def enter(self, body: NarBody) -> bool:
        """Whether ``body``, which is being asked for a piece, may read ahead."""
        now = time.monotonic()
        with self._lock:
            if body in self._bodies:
                self._bodies[body] = now
                return True
            if len(self._bodies) >= self._most and not self._take_from_stalled(now):
                return False
            self._bodies[body] = now
            return True

    def _take_from_stalled(self, now: float) -> bool:
        for other, asked in self._bodies.items():
            if now - asked > _STALLED_SECONDS and other.stop_ahead():
                del self._bodies[other]
                return True
        return False

    def leave(self, body: NarBody) -> None:
        """It is at its end."""
        with self._lock:
            self._bodies.pop(body, None)


class NarBody:
    """The bytes ``start`` to ``stop`` of the NAR of a tree."""

    def __init__(self, renderer: NarRenderer, node: Node, start: int, stop: int, ahead: Ahead) -> None:
        self._renderer = renderer
        self._node = node
        self._at = start
        self._stop = stop
        self._ahead = ahead
        self._groups: Iterator[list[bytes]] | None = None
        self._busy = threading.Lock()

    @property
    def is_ahead(self) -> bool:
        return self._groups is not None

    def read(self) -> bytes:
        with self._busy:
            if self._at == self._stop:
                return b""
            data = self._next() if self._ahead.enter(self) else self._alone()
            if not data or self._at + len(data) > self._stop:
                raise Corrupt(f"a NAR of {self._stop} bytes came out with another length")
            self._at += len(data)
            return data

    def _next(self) -> bytes:
        if self._groups is None:
            self._groups = self._renderer.groups(self._node, self._at, self._stop)
        return b"".join(next(self._groups, ()))

    def _alone(self) -> bytes:
        stop = min(self._stop, self._at + _ALONE_BYTES)
        pieces: list[bytes] = []
        for group in self._renderer.groups(self._node, self._at, stop):
            pieces += group
        return b"".join(pieces)

    def stop_ahead(self) -> bool:
        """Has it let go of what it has read ahead, unless it is at work."""
        if not self._busy.acquire(blocking=False):
            return False
        try:
            self._let_go()
        finally:
            self._busy.release()
        return True

    def _let_go(self) -> None:
        groups, self._groups = self._groups, None
        if (close := getattr(groups, "close", None)) is not None:
            close()

    def close(self) -> None:
        with self._busy:
            self._let_go()
        self._ahead.leave(self)


class PackedBody:
    """A whole NAR, as one member of what ``compressor`` makes."""

    def __init__(self, inner: Body, compressor: Compressor) -> None:
        self._inner = inner
        self._compressor = compressor
        self._ended = False

    @property
    def is_ahead(self) -> bool:
        return self._inner.is_ahead

    def read(self) -> bytes:
        # It keeps some of what it gets to itself: that must not look like the end.
        while not self._ended:
            if data := self._inner.read():
                packed = self._compressor.compress(data)
            else:
                self._ended = True
                packed = self._compressor.flush()
            if packed:
                return packed
        return b""

    def close(self) -> None:
        self._inner.close()


class ZstdBody(NarBody):
    """A whole NAR, as zstd frames: what is stored as one already goes as it is (see ``zstd_frames``)."""

    def __init__(
        self, renderer: NarRenderer, node: Node, size: int, ahead: Ahead, frames: ZstdFrames
    ) -> None:
        super().__init__(renderer, node, 0, size, ahead)
        self._makes = frames
        self._frames: Iterator[tuple[int, bytes]] | None = None

    @property
    def is_ahead(self) -> bool:
        return self._frames is not None

    def read(self) -> bytes:
        with self._busy:
            if self._at == self._stop:
                return b""
            # Frames are cut at the places of files, so reading ahead can only begin at the beginning.
            may = self._ahead.enter(self) if self._at == 0 or self._frames is not None else False
            size, data = self._next_frames() if may else self._frame_alone()
            if not size or self._at + size > self._stop:
                raise Corrupt(f"a NAR of {self._stop} bytes came out with another length")
            self._at += size
            return data

    def _next_frames(self) -> tuple[int, bytes]:
        if self._frames is None:
            self._frames = self._makes.of(self._renderer.segments(self._node))
        return next(self._frames, (0, b""))

    def _frame_alone(self) -> tuple[int, bytes]:
        data = self._alone()
        return len(data), compressed(data)

    def _let_go(self) -> None:
        frames, self._frames = self._frames, None
        if (close := getattr(frames, "close", None)) is not None:
            close()
