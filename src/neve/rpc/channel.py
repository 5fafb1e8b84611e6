"""The client's side: one connection to a server, shared by all services that name the same address.

Calls are synchronous and thread-safe. Every failure is one of ``neve.errors`` and names the server.
A call that can be repeated is, when the server cannot be reached for a moment; a server that was never
reached is not waited for.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from functools import partial
from typing import Any, ClassVar, TypeVar

import grpc
from google.protobuf.descriptor import ServiceDescriptor

from neve.errors import NeveError, Unavailable, Unsupported
from neve.registry import Address
from neve.rpc.methods import Method, methods_of, snix_name
from neve.rpc.status import ERROR_TRAILER, code_of, details_of, error_of, trailers_of
from neve.rpc.target import PARAMETERS, Target, target_of
from neve.rpc.tracing import answered, begun
from neve.rpc.upload import Exchange, Upload, silent
from neve.rpc.watch import WATCH

T = TypeVar("T")

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""Longest message sent or taken. Other implementations take 4 MiB."""

_ATTEMPTS = 6
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0
"""Seconds before a call is repeated; each pause is twice the last, and shortened at random by up to half."""

_RECONNECT_SECONDS = 3.0
"""Seconds to wait for a server that was not there for another call."""

_MAX_RECONNECT_MS = 1000
"""Pause between attempts to connect. The pauses before a call is repeated are longer in all, so that a
call that fails because the server restarts reaches it when it is back."""

_CONNECT_SECONDS = 20.0
"""Most that an attempt to connect may take, if the address does not say less."""

_NEVER_CONNECTED = ("failed to connect", "errors resolving")
"""How the library begins the reason when there was no connection at all, which no server can say."""

_WITHOUT_ANSWER = (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
"""Statuses that the library makes up when the server has said nothing."""

_ANY_METHOD = "/grpc.health.v1.Health/Check"
"""What is asked of a server to see whether it is there; it need not have it."""

_KEEPALIVE_MS = 30_000
_KEEPALIVE_TIMEOUT_MS = 20_000

__all__ = ["MAX_MESSAGE_BYTES", "PARAMETERS", "Connection", "NotOffered"]


class NotOffered(Unsupported):
    """The server does not have the service or method at all."""


class Connection:
    """A channel to one server. ``open`` shares it in this process; each ``open`` needs a ``close``."""

    _opened: ClassVar[dict[tuple[object, ...], Connection]] = {}
    _opened_lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, target: Target) -> None:
        self.target = target
        self.url = target.url
        self.timeout = target.timeout
        self._users = 1
        self._reached = False
        # Whether a call has not found the server, and none has been answered since.
        self._lost = False
        self._closed = False
        self._lacking: set[str] = set()
        self._having: set[str] = set()
        self._methods: dict[str, dict[str, Method]] = {}
        self._stubs: dict[tuple[object, ...], Any] = {}
        self._channel = _make_channel(target)

    @classmethod
    def open(cls, address: Address) -> Connection:
        """The connection for an address of ``grpc+unix``, ``grpc+http`` or ``grpc+https``.

        Connects when first used, or at once with ``?wait-connect=1``. Raises ``InvalidRequest``,
        ``Unavailable``.
        """
        target = target_of(address)
        with cls._opened_lock:
            found = cls._opened.get(target.identity)
            if found is None:
                found = cls._opened[target.identity] = cls(target)
            else:
                found._users += 1
        if target.wait:
            try:
                found.wait_connected()
            except BaseException:
                found.close()
                raise
        return found

    def close(self) -> None:
        """The last close ends the connection, and the calls that are open on it."""
        with self._opened_lock:
            self._users -= 1
            if self._users == 0:
                self._opened.pop(self.target.identity, None)
                self._closed = True
                self._channel.close()

    def wait_connected(self) -> None:
        """Returns when the server is reached. Raises ``Unavailable`` after the timeout."""
        self._wait(self.timeout)

    def _wait(self, seconds: float) -> None:
        # A call, which is the library's only way to wait for a connection that leaves no thread behind.
        # Whatever the server says about it: it is there.
        ask: Any = self._channel.unary_unary(_ANY_METHOD)
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            try:
                ask(b"", timeout=left, wait_for_ready=True)
            except grpc.RpcError as failure:
                code = code_of(failure)
                if code is grpc.StatusCode.UNAVAILABLE:
                    time.sleep(min(_FIRST_PAUSE, left))
                    continue
                if code in _WITHOUT_ANSWER:
                    break
            self._answered()
            return
        raise Unavailable(f"{self.url} cannot be reached within {seconds:g} s")

    def _answered(self) -> None:
        self._reached, self._lost = True, False

    def _find_again(self) -> None:
        """Waits a moment for a server that was not there for another call. The library would not look
        again so soon, but repeat what it has found."""
        if self._lost and not self._closed:
            self._wait(min(self.timeout, _RECONNECT_SECONDS))

    # What the server has.

    def offers(self, service: ServiceDescriptor) -> bool:
        """False once a call has shown that the server does not have ``service``."""
        return service.full_name not in self._lacking

    def lacks(self, service: ServiceDescriptor) -> None:
        """Remembers that the server does not have ``service``."""
        self._lacking.add(service.full_name)

    def has(self, service: ServiceDescriptor, ask: Callable[[], object]) -> bool:
        """Whether the server has ``service``; found out once, by a call that asks for nothing much."""
        name = service.full_name
        if name not in self._having and name not in self._lacking:
            try:
                ask()
            except NotOffered:
                self._lacking.add(name)
            else:
                self._having.add(name)
        return name in self._having

    def unless_lacking(
        self, service: ServiceDescriptor, call: Callable[[], T], otherwise: Callable[[], T]
    ) -> T:
        """``call`` if the server has ``service``, else ``otherwise``; finds out by the first call."""
        if self.offers(service):
            try:
                return call()
            except NotOffered:
                self.lacks(service)
        return otherwise()

    # Calls.

    def call(
        self,
        service: ServiceDescriptor,
        name: str,
        request: Any,
        *,
        timeout: float | None = None,
        raw: bool = False,
    ) -> Any:
        """One request, one answer; repeated while the server cannot be reached, so it must be a call
        that can be. ``timeout`` in seconds, default that of the address; ``raw``: bytes in and out."""
        self._find_again()
        method = self._method(service, name)
        stub = self._stub(method, raw)
        seconds = timeout or self.timeout
        return self._repeating(method, lambda: answered(method, stub, request, seconds))

    def receive(
        self, service: ServiceDescriptor, name: str, request: Any, *, raw: bool = False
    ) -> Generator[Any, None, None]:
        """One request, a stream of answers. Repeated only while there was no answer yet.

        With ``raw`` the answers are bytes. A generator: ending it early cancels the call.
        """
        self._find_again()
        method = self._method(service, name)
        stub = self._stub(method, raw)
        pauses = self._pauses()
        while True:
            call = begun(method, stub, request)
            watched = WATCH.add(call, self.timeout)
            has_come = False
            try:
                while True:
                    with watched:
                        answer = next(call)
                    has_come = True
                    self._answered()
                    yield answer
            except StopIteration:
                return
            except grpc.RpcError as failure:
                if watched.expired:
                    raise self._failure(method)(silent(self.timeout)) from failure
                pause = next(pauses, None)
                if has_come or pause is None or not self._may_pass(failure):
                    raise self._error(method, failure) from failure
            finally:
                WATCH.remove(watched)
                call.cancel()
            time.sleep(pause)

    def upload(self, service: ServiceDescriptor, name: str, *, raw: bool = False) -> Upload:
        """A stream of requests, one answer. Never repeated. ``raw``: the requests are bytes."""
        self._find_again()
        method = self._method(service, name)
        start = partial(begun, method, self._stub(method, raw).future)
        return Upload(start, self._failure(method), self.timeout)

    def exchange(self, service: ServiceDescriptor, name: str) -> Exchange:
        """A stream of requests and one of answers. Never repeated."""
        self._find_again()
        method = self._method(service, name)
        start = partial(begun, method, self._stub(method, raw=False))
        return Exchange(start, self._failure(method), self.timeout)

    def _failure(self, method: Method) -> Callable[[grpc.RpcError | str], NeveError]:
        """Makes the error of a failed call, or one that says why it was given up."""

        def failure(error: grpc.RpcError | str) -> NeveError:
            if isinstance(error, str):
                return Unavailable(f"{self.url}: {method.name}: {error}")
            return self._error(method, error)

        return failure

    # How.

    def _method(self, service: ServiceDescriptor, name: str) -> Method:
        if self._closed:
            raise Unavailable(f"{self.url}: {name}: the connection is closed")
        methods = self._methods.get(service.full_name)
        if methods is None:
            named = snix_name(service.full_name) if self.target.flavor == "snix" else service.full_name
            methods = self._methods[service.full_name] = methods_of(service, named)
        return methods[name]

    def _stub(self, method: Method, raw: bool) -> Any:
        stub = self._stubs.get((method.path, raw))
        if stub is None:
            make: Any = {
                (False, False): self._channel.unary_unary,
                (False, True): self._channel.unary_stream,
                (True, False): self._channel.stream_unary,
                (True, True): self._channel.stream_stream,
            }[method.client_streaming, method.server_streaming]
            stub = make(
                method.path,
                request_serializer=None
                if raw and method.client_streaming
                else method.request.SerializeToString,
                response_deserializer=None if raw and method.server_streaming else method.response.FromString,
            )
            self._stubs[method.path, raw] = stub
        return stub

    def _repeating(self, method: Method, attempt: Callable[[], T]) -> T:
        pauses = self._pauses()
        while True:
            try:
                result = attempt()
            except grpc.RpcError as failure:
                pause = next(pauses, None)
                if pause is None or not self._may_pass(failure):
                    raise self._error(method, failure) from failure
            else:
                self._answered()
                return result
            time.sleep(pause)

    def _pauses(self) -> Iterator[float]:
        pause = _FIRST_PAUSE
        for _ in range(_ATTEMPTS - 1):
            yield pause * random.uniform(0.5, 1)
            pause = min(pause * 2, _LONGEST_PAUSE)

    def _may_pass(self, failure: grpc.RpcError) -> bool:
        """Whether repeating the call may help."""
        self._note(failure)
        return self._reached and code_of(failure) is grpc.StatusCode.UNAVAILABLE

    def _note(self, failure: grpc.RpcError) -> None:
        """Learns from a failed call whether there is a server."""
        code = code_of(failure)
        if code is grpc.StatusCode.UNAVAILABLE:
            self._reached |= not details_of(failure).startswith(_NEVER_CONNECTED)
            self._lost = True
        elif code not in _WITHOUT_ANSWER:
            self._answered()

    def _error(self, method: Method, failure: grpc.RpcError) -> NeveError:
        self._note(failure)
        service = method.path.split("/")[1]
        doing = f"{self.url}: {method.name}"
        if code_of(failure) is grpc.StatusCode.UNIMPLEMENTED and ERROR_TRAILER not in trailers_of(failure):
            return NotOffered(f"{doing}: the server does not offer this call (of {service})")
        return error_of(failure, doing)


def _make_channel(target: Target) -> grpc.Channel:
    options: Mapping[str, int | str] = {
        "grpc.max_receive_message_length": MAX_MESSAGE_BYTES,
        "grpc.max_send_message_length": MAX_MESSAGE_BYTES,
        "grpc.keepalive_time_ms": _KEEPALIVE_MS,
        "grpc.keepalive_timeout_ms": _KEEPALIVE_TIMEOUT_MS,
        "grpc.enable_retries": 0,
        "grpc.initial_reconnect_backoff_ms": 100,
        "grpc.max_reconnect_backoff_ms": _MAX_RECONNECT_MS,
        # Unlike its name this is how long an attempt may take; it goes on when the channel is closed.
        "grpc.min_reconnect_backoff_ms": int(min(target.timeout, _CONNECT_SECONDS) * 1000),
        # Each connection is one of its own, so that what was found out about a server holds for it.
        "grpc.use_local_subchannel_pool": 1,
        **({"grpc.default_authority": "localhost"} if target.is_socket else {}),
    }
    credentials = target.credentials()
    if credentials is None:
        return grpc.insecure_channel(target.name, options=list(options.items()))
    return grpc.secure_channel(target.name, credentials, options=list(options.items()))
