"""Streams that the client sends: pushed here message by message, pulled by the library."""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc

from neve.errors import NeveError
from neve.rpc.watch import WATCH

_QUEUED_MESSAGES = 4
_PATIENCE_SECONDS = 0.1
_END: Any = object()

_ENDED_EARLY = "the server ended the call before its end"
_GIVEN_UP = "the call was given up"

Start = Callable[[Iterator[Any]], Any]
"""Makes the library's call of the requests to send."""

Failure = Callable[[grpc.RpcError | str], NeveError]
"""Makes an error of what a call ended with, or of the reason why it was given up."""


def silent(seconds: float) -> str:
    """The reason for giving up a call on which nothing came."""
    return f"no answer within {seconds:g} s"


class _Sending:
    """The sending half of a call. Belongs to one thread."""

    def __init__(self, failure: Failure, timeout: float) -> None:
        self._failure = failure
        self._timeout = timeout
        self._queue: queue.Queue[Any] = queue.Queue(_QUEUED_MESSAGES)
        self._call: Any = None
        self._ended = False

    def _requests(self) -> Iterator[Any]:
        while (message := self._queue.get()) is not _END:
            yield message

    def send(self, message: Any) -> None:
        """Sends the next message; waits while the server does not take them. Raises what the server
        answered if it has ended the call, and ``Unavailable`` if it takes nothing for too long."""
        since = time.monotonic()
        while True:
            if self._call.done():
                raise self._why()
            try:
                self._queue.put(message, timeout=_PATIENCE_SECONDS)
                return
            except queue.Full:
                if time.monotonic() - since > self._timeout:
                    self.cancel()
                    raise self._failure(f"the server took nothing for {self._timeout:g} s") from None

    def _end(self) -> None:
        """No more messages come."""
        if not self._ended:
            self.send(_END)
            self._ended = True

    def _why(self) -> NeveError:
        """The error that has ended the call."""
        try:
            failure = self._call.exception(timeout=self._timeout)
        except (grpc.FutureCancelledError, grpc.FutureTimeoutError):
            failure = _GIVEN_UP
        self.cancel()
        return self._failure(_ENDED_EARLY if failure is None else failure)

    def cancel(self) -> None:
        """Ends the call, whatever its state. The server forgets what it was sent."""
        self._call.cancel()
        # So that the library's thread, which waits for the next message, ends too.
        while not self._ended:
            try:
                self._queue.put_nowait(_END)
                self._ended = True
            except queue.Full:
                with contextlib.suppress(queue.Empty):
                    self._queue.get_nowait()


class Upload(_Sending):
    """A stream of requests with one answer."""

    def __init__(self, start: Start, failure: Failure, timeout: float) -> None:
        super().__init__(failure, timeout)
        self._call = start(self._requests())

    def finish(self) -> Any:
        """The answer, once everything was sent. Raises like ``send``."""
        self._end()
        try:
            return self._call.result(timeout=self._timeout)
        except grpc.RpcError as error:
            raise self._failure(error) from error
        except (grpc.FutureTimeoutError, grpc.FutureCancelledError) as error:
            self.cancel()
            is_late = isinstance(error, grpc.FutureTimeoutError)
            raise self._failure(silent(self._timeout) if is_late else _GIVEN_UP) from error


class Exchange(_Sending):
    """A stream of requests and a stream of answers."""

    def __init__(self, start: Start, failure: Failure, timeout: float) -> None:
        super().__init__(failure, timeout)
        self._call = start(self._requests())
        self._watched = WATCH.add(self._call, timeout)

    def receive(self) -> Any:
        """The next answer. Raises like ``send``, also if the server ends the stream instead."""
        try:
            with self._watched:
                return next(self._call)
        except grpc.RpcError as error:
            self.cancel()
            raise self._failure(silent(self._timeout) if self._watched.expired else error) from error
        except StopIteration:
            self.cancel()
            raise self._failure(_ENDED_EARLY) from None

    def finish(self) -> None:
        """Ends both streams."""
        self._end()
        self.cancel()

    def cancel(self) -> None:
        super().cancel()
        WATCH.remove(self._watched)
