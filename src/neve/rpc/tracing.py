"""A span for each call of a client, that the server is told of."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import grpc

from neve import telemetry
from neve.rpc.methods import Method
from neve.rpc.status import code_of
from neve.telemetry import CLIENT, Span

STATUS_ATTRIBUTE = "rpc.grpc.status_code"


def _span(method: Method) -> Span:
    return telemetry.span(method.path[1:], method.attributes, CLIENT)


def answered(method: Method, call: Callable[..., Any], request: Any, seconds: float) -> Any:
    """What ``call`` answers to one request. Raises what it raises."""
    if not telemetry.is_tracing():
        return call(request, timeout=seconds)
    with _span(method) as span:
        try:
            answer = call(request, timeout=seconds, metadata=span.headers())
        except grpc.RpcError as failure:
            _failed(span, code_of(failure))
            span.end()
            raise
        span.set(STATUS_ATTRIBUTE, 0)
        return answer


def begun(method: Method, start: Callable[..., Any], request: Any) -> Any:
    """The call, of which one side or both are streams, that ``start`` makes. Its span ends when it does."""
    if not telemetry.is_tracing():
        return start(request)
    span = _span(method)
    try:
        call = start(request, metadata=span.headers())
    except BaseException as error:
        span.fail(type(error).__name__)
        span.end()
        raise
    if not call.add_callback(partial(_ended, span, call)):
        _ended(span, call)
    return call


def _ended(span: Span, call: Any) -> None:
    code = code_of(call)
    if code is grpc.StatusCode.OK:
        span.set(STATUS_ATTRIBUTE, 0)
    else:
        _failed(span, code)
    span.end()


def _failed(span: Span, code: grpc.StatusCode | None) -> None:
    code = code or grpc.StatusCode.UNKNOWN
    span.set(STATUS_ATTRIBUTE, code.value[0])
    # A stream of which nobody wants more is cancelled, and what is not there is an answer.
    if code not in (grpc.StatusCode.CANCELLED, grpc.StatusCode.NOT_FOUND):
        span.fail(code.name)
