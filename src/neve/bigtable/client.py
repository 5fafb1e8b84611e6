"""Calls to Bigtable: connections, credentials, deadlines, repeats, and failures as errors of ours."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, ClassVar, TypeVar

import grpc
from google.api_core.gapic_v1.routing_header import to_grpc_metadata
from google.cloud.bigtable_v2.services.bigtable.transports import BigtableGrpcTransport
from google.cloud.bigtable_v2.types import bigtable

from neve.bigtable.address import Target
from neve.bigtable.messages import Row, RowReader
from neve.errors import Corrupt, NeveError, PermissionDenied, Unavailable
from neve.rpc.status import code_of, details_of, one_line
from neve.rpc.watch import WATCH

T = TypeVar("T")

EMULATOR = "BIGTABLE_EMULATOR_HOST"
"""The variable that software for Bigtable looks into: host and port of an emulator, without credentials."""

_MAX_MESSAGE_BYTES = 256 * 1024 * 1024
"""What Bigtable takes and sends; the default of the library is less than a cell may have."""

_ATTEMPTS = 4
_FIRST_PAUSE = 0.1
"""Seconds before a call is repeated; each pause is twice the last, and shortened at random by up to half."""

_MAX_RECONNECT_MS = 1000

_PASSING = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED)
"""Statuses with which a call is repeated. All calls can be: what they do twice is done once."""

_REFUSED = (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED)

_SERVICE = "/google.bigtable.v2.Bigtable/"


class Client:
    """The connections to one instance. ``open`` shares them in this process; each ``open`` needs a ``close``.

    Connects when it is first used. Thread-safe.
    """

    _opened: ClassVar[dict[tuple[object, ...], Client]] = {}
    _opened_lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, target: Target, emulator: str, identity: tuple[object, ...]) -> None:
        self._identity = identity
        self._users = 1
        self._lock = threading.Lock()
        self._next = 0
        self._emulator = emulator
        self._channels: list[Any] = [None] * target.channels
        self._is_closed = False

    @classmethod
    def open(cls, target: Target) -> Client:
        emulator = os.environ.get(EMULATOR, "")
        identity = (os.getpid(), emulator, target.project, target.instance, target.channels)
        with cls._opened_lock:
            found = cls._opened.get(identity)
            if found is None:
                found = cls._opened[identity] = cls(target, emulator, identity)
            else:
                found._users += 1
            return found

    def close(self) -> None:
        """The last close ends the connections, and the calls that are open on them."""
        with self._opened_lock:
            self._users -= 1
            if self._users:
                return
            self._opened.pop(self._identity, None)
        with self._lock:
            self._is_closed = True
            for channel in filter(None, self._channels):
                channel.close()

    # Calls.

    def check_and_mutate(self, target: Target, request: Any) -> bool:
        """Whether the condition held. Raises ``Unavailable``, ``PermissionDenied``."""
        answer = self._repeating(
            target,
            "CheckAndMutateRow",
            lambda call, wait: call(
                request, timeout=target.timeout, metadata=_routing(target), wait_for_ready=wait
            ),
        )
        return bool(answer.predicate_matched)

    def mutate(self, target: Target, request: Any) -> None:
        """Makes changes of rows, each for itself; durable on return. Raises as the other does, for the first
        that could not be made."""
        waiting = list(request.entries)

        def attempt(call: Any, wait: bool) -> None:
            del request.entries[:]
            request.entries.extend(waiting)
            answers = list(
                self._answers(target, call(request, metadata=_routing(target), wait_for_ready=wait))
            )
            results = {entry.index: entry.status for answer in answers for entry in answer.entries}
            failed = [index for index in range(len(waiting)) if index not in results or results[index].code]
            waiting[:] = [waiting[index] for index in failed]
            if failed:
                raise _EntryError(results.get(failed[0]))

        self._repeating(target, "MutateRows", attempt)

    def read(self, target: Target, request: Callable[[bytes, int], Any]) -> Iterator[Row]:
        """Rows in the order of their keys. ``request`` makes the request for what is missing after the row of
        this key, when so many have come; None: nothing is. Raises as the others, and ``Corrupt``."""
        last, count, failures = b"", 0, 0
        reason: grpc.RpcError | None = None
        while (message := request(last, count)) is not None:
            reader = RowReader()
            call = self._call("ReadRows")(message, metadata=_routing(target), wait_for_ready=failures > 0)
            try:
                for answer in self._answers(target, call):
                    for row in reader.feed(answer):
                        last, count, failures, reason = row.key, count + 1, 0, None
                        yield row
                reader.finish()
                return
            except grpc.RpcError as failure:
                failures += 1
                if failures == _ATTEMPTS or code_of(failure) not in _PASSING:
                    raise _error(target, "ReadRows", _telling(failure, reason)) from failure
                reason = failure
            except (Corrupt, Unavailable) as error:
                raise type(error)(f"{target.shown}: {error}") from error
            finally:
                call.cancel()
            _pause(failures)

    def _answers(self, target: Target, call: Any) -> Iterator[Any]:
        """A stream of answers, for each of which nobody waits longer than the timeout."""
        watched = WATCH.add(call, target.timeout)
        try:
            while True:
                try:
                    with watched:
                        answer = next(call)
                except StopIteration:
                    return
                except grpc.RpcError as failure:
                    if watched.expired:
                        raise _SilenceError from failure
                    raise
                yield answer
        finally:
            WATCH.remove(watched)
            call.cancel()

    def _repeating(self, target: Target, name: str, attempt: Callable[[Any, bool], T]) -> T:
        failures = 0
        reason: grpc.RpcError | None = None
        while True:
            try:
                # One who was not there for the first attempt is waited for.
                return attempt(self._call(name), failures > 0)
            except grpc.RpcError as failure:
                failures += 1
                if code_of(failure) in _PASSING and failures < _ATTEMPTS:
                    reason = failure
                    _pause(failures)
                    continue
                raise _error(target, name, _telling(failure, reason)) from failure

    # How.

    def _call(self, name: str) -> Any:
        with self._lock:
            if self._is_closed:
                raise Unavailable(f"bigtable://{self._identity[3]}: the connection is closed")
            self._next = (self._next + 1) % len(self._channels)
            if self._channels[self._next] is None:
                self._channels[self._next] = self._connected()
            channel = self._channels[self._next]
        request, answer = (getattr(bigtable, f"{name}{what}").pb() for what in ("Request", "Response"))
        make = channel.unary_unary if name == "CheckAndMutateRow" else channel.unary_stream
        return partial(
            self._begun,
            make(
                _SERVICE + name,
                request_serializer=request.SerializeToString,
                response_deserializer=answer.FromString,
            ),
        )

    def _begun(self, call: Any, request: Any, **options: Any) -> Any:
        try:
            return call(request, **options)
        except ValueError as error:  # What the library says if it was closed just now.
            raise Unavailable(f"bigtable://{self._identity[3]}: the connection is closed") from error

    def _connected(self) -> Any:
        options = [
            ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
            ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.enable_retries", 0),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", _MAX_RECONNECT_MS),
            # Else all of them would be one connection.
            ("grpc.use_local_subchannel_pool", 1),
        ]
        if self._emulator:
            return grpc.insecure_channel(self._emulator, options)
        try:
            return BigtableGrpcTransport.create_channel(options=options)
        except Exception as error:  # Also what the library raises for files of another form.
            raise PermissionDenied(
                f"bigtable://{self._identity[3]}: no credentials for Google Cloud: {one_line(str(error))}"
            ) from error


def _routing(target: Target) -> Any:
    """What tells the server's front where to go, without its looking into the request."""
    make: Any = to_grpc_metadata
    return [make({"table_name": target.table_path, "app_profile_id": target.app_profile})]


def _pause(failures: int) -> None:
    time.sleep(_FIRST_PAUSE * 2 ** (failures - 1) * random.uniform(0.5, 1))


class _SilenceError(grpc.RpcError):
    """A stream was given up, because nothing came."""

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.DEADLINE_EXCEEDED


class _EntryError(grpc.RpcError):
    """Of many changes, one could not be made."""

    def __init__(self, status: Any) -> None:
        super().__init__(status)
        self._status = status

    def code(self) -> grpc.StatusCode:
        number = grpc.StatusCode.UNAVAILABLE.value[0] if self._status is None else self._status.code
        known = (code for code in grpc.StatusCode if code.value[0] == number)
        return next(known, grpc.StatusCode.UNKNOWN)

    def details(self) -> str:
        return "no answer about a row" if self._status is None else self._status.message


def _telling(failure: grpc.RpcError, before: grpc.RpcError | None) -> grpc.RpcError:
    """Of the failures of a call the one to be told: that nobody has answered says less than why nobody could
    be reached before."""
    return before if before is not None and _is_silence(failure) else failure


def _is_silence(failure: grpc.RpcError) -> bool:
    return code_of(failure) is grpc.StatusCode.DEADLINE_EXCEEDED


def _error(target: Target, name: str, failure: grpc.RpcError) -> NeveError:
    """The error for a failed call. That the table is not there, or takes something else, is for who runs
    this, and not for who has asked for something in it: it must not look as if that was not there."""
    doing, details, code = f"{target.shown}: {name}", one_line(details_of(failure)), code_of(failure)
    if _is_silence(failure):
        return Unavailable(f"{doing}: no answer within {target.timeout:g} s")
    if code in _REFUSED:
        return PermissionDenied(f"{doing}: {details} ({code.name if code else ''})")
    if code is grpc.StatusCode.NOT_FOUND:
        return Unavailable(f"{doing}: the table is not there, or not all of its families: {details}")
    if code is grpc.StatusCode.DATA_LOSS:
        return Corrupt(f"{doing}: {details}")
    return Unavailable(f"{doing}: {details} ({code.name if code else 'UNKNOWN'})")
