"""Connections on which nobody is waited for in vain.

A timeout for each read is not enough: who sends a byte a second would hold it for ever. So while an
answer is waited for, ``MIN_BYTES`` of it must come within each ``seconds`` of waiting, or the end of it.
Time in which nobody reads does not count: it is not the server who is slow then.
"""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Iterable
from typing import Any

import httpcore

MIN_BYTES = 16 * 1024
"""Half a KiB a second with the default of 30 seconds: slower than any line that is in use for this."""

_READ_BYTES = 256 * 1024
"""More than the library asks for, which takes what it gets: each call means waiting for the interpreter's
lock, which the threads that hash and compress have meanwhile."""

_LOOK_UP_SECONDS = 0.25
"""How often whoever waits sees whether anybody still wants it."""


class PacedBackend(httpcore.NetworkBackend):
    """Makes connections that wait no longer than ``seconds`` for anything; not at all once ``closing``."""

    def __init__(self, seconds: float, min_bytes: int, closing: threading.Event) -> None:
        self._seconds = seconds
        self._min_bytes = min_bytes
        self._closing = closing
        self._inner = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        stream = self._inner.connect_tcp(host, port, self._seconds, local_address, socket_options)
        return _PacedStream(stream, self._seconds, self._min_bytes, self._closing)


class _PacedStream(httpcore.NetworkStream):
    def __init__(
        self, inner: httpcore.NetworkStream, seconds: float, min_bytes: int, closing: threading.Event
    ) -> None:
        self._inner = inner
        self._seconds = seconds
        self._min_bytes = min_bytes
        self._closing = closing
        self._restart()

    def _restart(self) -> None:
        self._waited = 0.0
        self._came = 0

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        size = max(max_bytes, _READ_BYTES)
        while not self._closing.is_set():
            left = self._seconds - self._waited
            if left <= 0:
                came = self._came or "no"
                raise httpcore.ReadTimeout(f"{came} bytes came in {self._seconds:g} seconds of waiting")
            start = time.monotonic()
            try:
                data = self._inner.read(size, min(left, _LOOK_UP_SECONDS))
            except httpcore.ReadTimeout:
                self._waited += time.monotonic() - start
                continue
            self._waited += time.monotonic() - start
            self._came += len(data)
            if self._came >= self._min_bytes:
                self._restart()
            return data
        raise httpcore.ReadError("the cache is being closed")

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, self._seconds)
        self._restart()  # For the answer to what was written.

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        # The library's handshake has a deadline for all of it, and so has its reading of a record.
        stream = self._inner.start_tls(ssl_context, server_hostname, self._seconds)
        return _PacedStream(stream, self._seconds, self._min_bytes, self._closing)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)
