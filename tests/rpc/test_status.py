"""Errors as statuses and back."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

import grpc
import pytest

from neve import errors
from neve.errors import (
    Conflict,
    Corrupt,
    DiskFull,
    InvalidRequest,
    LimitExceeded,
    NeveError,
    NotFound,
    PermissionDenied,
    Unavailable,
    Unsupported,
)
from neve.rpc.status import ERROR_TRAILER, error_of, one_line, shortened, status_of

Code = grpc.StatusCode

STATUSES: dict[type[NeveError], grpc.StatusCode] = {
    InvalidRequest: Code.INVALID_ARGUMENT,
    Unsupported: Code.UNIMPLEMENTED,
    NotFound: Code.NOT_FOUND,
    Conflict: Code.ALREADY_EXISTS,
    Corrupt: Code.DATA_LOSS,
    PermissionDenied: Code.PERMISSION_DENIED,
    LimitExceeded: Code.RESOURCE_EXHAUSTED,
    DiskFull: Code.RESOURCE_EXHAUSTED,
    Unavailable: Code.UNAVAILABLE,
}


class Failure(grpc.RpcError):
    """A failed call, as the library gives it."""

    def __init__(self, code: Any, details: Any = "why", trailers: Any = ()) -> None:
        super().__init__()
        self._parts = code, details, trailers

    def code(self) -> Any:
        return self._parts[0]

    def details(self) -> Any:
        return self._parts[1]

    def trailing_metadata(self) -> Any:
        return self._parts[2]


def test_all_errors_have_a_status() -> None:
    named = {getattr(errors, name) for name in errors.__all__}
    assert set(STATUSES) == named - {NeveError}


@pytest.mark.parametrize(("kind", "code"), STATUSES.items())
def test_there_and_back(kind: type[NeveError], code: grpc.StatusCode) -> None:
    status = status_of(kind("the reason"))
    assert (status.code, status.details) == (code, "the reason")
    back = error_of(Failure(code, status.details, ((ERROR_TRAILER, status.kind),)), "grpc+http://h: Get")
    assert type(back) is kind
    assert str(back) == "grpc+http://h: Get: the reason"


def test_subclasses_travel_as_what_they_derive_from() -> None:
    class BadName(InvalidRequest):
        pass

    assert status_of(BadName("x"))[::2] == (Code.INVALID_ARGUMENT, "InvalidRequest")


def test_an_error_of_no_class() -> None:
    assert status_of(NeveError("x"))[::2] == (Code.UNKNOWN, "")


OF_OTHERS = {
    Code.INVALID_ARGUMENT: InvalidRequest,
    Code.FAILED_PRECONDITION: InvalidRequest,
    Code.OUT_OF_RANGE: InvalidRequest,
    Code.UNIMPLEMENTED: Unsupported,
    Code.NOT_FOUND: NotFound,
    Code.ALREADY_EXISTS: Conflict,
    Code.DATA_LOSS: Corrupt,
    Code.PERMISSION_DENIED: PermissionDenied,
    Code.UNAUTHENTICATED: PermissionDenied,
    Code.RESOURCE_EXHAUSTED: LimitExceeded,
    Code.UNAVAILABLE: Unavailable,
    Code.DEADLINE_EXCEEDED: Unavailable,
    Code.CANCELLED: Unavailable,
    Code.ABORTED: Unavailable,
    Code.INTERNAL: Unavailable,
    Code.UNKNOWN: Unavailable,
}


@pytest.mark.parametrize(("code", "kind"), OF_OTHERS.items())
def test_statuses_of_other_servers(code: grpc.StatusCode, kind: type[NeveError]) -> None:
    error = error_of(Failure(code), "grpc+http://h: Get")
    assert type(error) is kind
    assert str(error) == f"grpc+http://h: Get: why ({code.name})"


def test_every_status_is_some_error() -> None:
    assert set(OF_OTHERS) == set(Code) - {Code.OK}


@pytest.mark.parametrize("name", ["Unavailable", "NoSuchError", "", "NeveError", b"\xff", "Exception"])
def test_a_name_that_does_not_fit_the_status(name: Any) -> None:
    """A server cannot have its client take a missing blob for something else."""
    error = error_of(Failure(Code.NOT_FOUND, "why", ((ERROR_TRAILER, name),)), "x")
    assert type(error) is NotFound


@pytest.mark.parametrize(
    ("code", "details", "expected"),
    [
        (None, None, "x: no reason given (UNKNOWN)"),
        (17, "", "x: no reason given (UNKNOWN)"),
        (Code.INTERNAL, "a\nb\x1b[31mred\x00\u202e", r"x: a\nb\x1b[31mred\x00\u202e (INTERNAL)"),
    ],
)
def test_odd_statuses(code: Any, details: Any, expected: str) -> None:
    error = error_of(Failure(code, details, None), "x")
    assert type(error) is Unavailable
    assert str(error) == expected


def test_a_failure_that_is_no_call() -> None:
    assert str(error_of(grpc.RpcError("whatever"), "x")) == "x: no reason given (UNKNOWN)"


def test_one_line() -> None:
    assert one_line("plain, ünïcode") == "plain, ünïcode"
    assert one_line("a\tb\r\n") == r"a\tb\r\n"


TEXTS = ["x" * 10_000, "ü" * 10_000, "\U0001f4a9" * 10_000, "%" * 10_000, "\n" * 10_000, "\udcff" * 10_000]


@pytest.mark.parametrize("text", TEXTS)
def test_long_details_are_cut(text: str) -> None:
    cut = shortened(text)
    assert cut.endswith(" ...")
    printable = "".join(map(chr, range(32, 127))).replace("%", "")
    assert 1900 < len(quote(cut, safe=printable)) <= 2010


@pytest.mark.parametrize("text", ["", "x" * 2000, "ü" * 333, "a % b", "tab\t"])
def test_short_details_are_left_alone(text: str) -> None:
    assert shortened(text) == text


def test_what_no_utf8_can_express() -> None:
    assert shortened("a\udcffb") == r"a\udcffb"


@pytest.mark.parametrize("text", TEXTS)
def test_long_details_arrive(text: str) -> None:
    """Whatever they hold, the status is the one that was meant."""

    def fail(_: bytes, context: grpc.ServicerContext) -> bytes:
        status = status_of(InvalidRequest(text))
        context.set_trailing_metadata(((ERROR_TRAILER, status.kind),))
        context.abort(status.code, status.details)

    server = grpc.server(ThreadPoolExecutor(1))
    method: Any = grpc.unary_unary_rpc_method_handler(fail)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("a.b", {"C": method}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call: Any = channel.unary_unary("/a.b/C")
        with pytest.raises(grpc.RpcError) as failed:
            call(b"", timeout=20)
    server.stop(0)
    error = error_of(failed.value, "x")
    assert type(error) is InvalidRequest
    assert str(error) == f"x: {one_line(shortened(text))}"
