"""Calls with nothing of our client in between."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import ServiceDescriptor

from neve.rpc.methods import methods_of, snix_name


def stub(
    channel: grpc.Channel,
    service: ServiceDescriptor,
    name: str,
    *,
    snix: bool = False,
    request_as_bytes: bool = False,
) -> Any:
    """The method ``name``; with ``snix``, under the second set of names and with its messages' twins."""
    method = methods_of(service, snix_name(service.full_name) if snix else None)[name]
    make: Any = {
        (False, False): channel.unary_unary,
        (False, True): channel.unary_stream,
        (True, False): channel.stream_unary,
        (True, True): channel.stream_stream,
    }[method.client_streaming, method.server_streaming]
    serializer = None if request_as_bytes else method.request.SerializeToString
    return make(method.path, request_serializer=serializer, response_deserializer=method.response.FromString)


def reach(channel: grpc.Channel) -> None:
    """Returns when the channel is connected. Unlike the library's future it leaves no thread behind, which
    would fail if the channel is closed soon."""
    ask: Any = channel.unary_unary("/test.Nothing/Nothing")
    with status(grpc.StatusCode.UNIMPLEMENTED, "not found"):
        ask(b"", timeout=60, wait_for_ready=True)


@contextlib.contextmanager
def status(code: grpc.StatusCode, match: str) -> Iterator[None]:
    """The block must fail with this status, and with details in which ``match`` is found."""
    with pytest.raises(grpc.RpcError, match=match) as failed:
        yield
    assert failed.value.code() is code


def soon(condition: Callable[[], bool]) -> bool:
    """Whether ``condition`` comes true; gives up after many seconds."""
    deadline = time.monotonic() + 20
    while not (found := condition()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return found
