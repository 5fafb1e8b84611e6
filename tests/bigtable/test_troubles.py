"""Servers that are not there, go away, hang, refuse, or say odd things."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from google.cloud.bigtable_v2.types import bigtable

from neve.bigtable.address import target_of
from neve.bigtable.client import Client
from neve.castore.digest import EMPTY_BLOB
from neve.castore.directories.base import DirectoryService
from neve.castore.directories.urls import DIRECTORY_SERVICES
from neve.castore.directory import Directory
from neve.errors import Corrupt, NeveError, PermissionDenied, Unavailable
from neve.registry import parse_address
from neve.store.pathinfos.base import PathInfoService
from neve.store.pathinfos.urls import PATH_INFO_SERVICES
from neve.testing.bigtable import Emulator
from neve.testing.directories import leaf, put_closure, tree
from neve.testing.pathinfos import path_info
from tests.bigtable.emulated import FAMILY, NewTable
from tests.store.helpers import leaving_nothing_open

TABLE = f"bigtable://i?project_id=p&table_name=t&family_name={FAMILY}"


def calls(directories: DirectoryService, path_infos: PathInfoService) -> list[Callable[[], object]]:
    """One of each that asks the server something."""
    return [
        lambda: directories.get(EMPTY_BLOB),
        lambda: list(directories.get_recursive(EMPTY_BLOB)),
        lambda: directories.put(Directory()),
        lambda: directories.put_many([Directory()]),
        lambda: put_closure(directories, tree()),
        directories.list,
        lambda: directories.delete_many([EMPTY_BLOB]),
        lambda: path_infos.get(path_info("p").digest),
        lambda: path_infos.put(path_info("p")),
        lambda: path_infos.put(path_info("p"), replace=True),
        path_infos.list,
        lambda: path_infos.referrers(path_info("p").digest),
        lambda: path_infos.delete_many([path_info("p").digest]),
    ]


def all_fail(url: str, error: type[NeveError], message: str, those: slice = slice(None)) -> None:
    directories, path_infos = DIRECTORY_SERVICES.open(url), PATH_INFO_SERVICES.open(url)
    try:
        for call in calls(directories, path_infos)[those]:
            with pytest.raises(error, match=message) as failed:
                call()
            assert str(failed.value).startswith("bigtable://")
    finally:
        directories.close()
        path_infos.close()


@pytest.mark.bigtable
def test_a_table_that_is_not_there(new_table: NewTable) -> None:
    url = new_table()
    all_fail(
        url.replace("table-", "none-"), Unavailable, "the table is not there, or not all of its families"
    )


@pytest.mark.bigtable
def test_a_family_that_is_not_there(new_table: NewTable) -> None:
    """Nothing can be put. (That nothing is found in it, the server does not call a failure.)"""
    url = new_table().replace(f"={FAMILY}", "=none")
    directories, path_infos = DIRECTORY_SERVICES.open(url), PATH_INFO_SERVICES.open(url)
    for put in (
        lambda: directories.put(leaf("x")),
        lambda: directories.put_many([leaf("x")]),
        lambda: path_infos.put(path_info("p")),
    ):
        with pytest.raises(Unavailable, match="none"):
            put()
    directories.close()
    path_infos.close()


def test_a_server_that_was_never_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIGTABLE_EMULATOR_HOST", "127.0.0.1:1")
    # What gRPC keeps for the whole process is there from the first use on.
    with (
        contextlib.closing(DIRECTORY_SERVICES.open(f"{TABLE}&timeout=0.3")) as service,
        contextlib.suppress(Unavailable),
    ):
        service.get(bytes(32))
    with leaving_nothing_open():
        all_fail(f"{TABLE}&timeout=0.3", Unavailable, "(UNAVAILABLE)|no answer within 0.3 s", slice(0, 3))


@pytest.mark.bigtable
def test_one_that_is_killed_and_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    first = Emulator()
    port = first.port
    monkeypatch.setenv("BIGTABLE_EMULATOR_HOST", first.host)
    # They share connections; nothing that is to succeed depends on how fast this machine is.
    url = first.create_table("t", FAMILY) + "&timeout=60"
    directories, path_infos = DIRECTORY_SERVICES.open(url), PATH_INFO_SERVICES.open(url)
    hasty = DIRECTORY_SERVICES.open(url.replace("timeout=60", "timeout=0.5"))
    assert directories.put(leaf("x")) == leaf("x").digest
    first.kill()
    for call in calls(hasty, path_infos)[:3]:
        with pytest.raises(Unavailable):
            call()
    second = Emulator(port)
    try:
        second.create_table("t", FAMILY)
        for _ in range(3):
            for call in calls(directories, path_infos):
                call()
        put_closure(directories, tree())
        assert len(directories.list()) == len(tree())
        for service in (directories, path_infos, hasty):
            service.close()
    finally:
        second.kill()


@pytest.mark.bigtable
def test_a_call_waits_for_one_that_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    first = Emulator()
    port = first.port
    monkeypatch.setenv("BIGTABLE_EMULATOR_HOST", first.host)
    directories = DIRECTORY_SERVICES.open(first.create_table("t", FAMILY) + "&timeout=60")
    directories.list()
    first.kill()
    back: list[Emulator] = []

    def start() -> None:
        back.append(Emulator(port))
        back[0].create_table("t", FAMILY)

    starting = threading.Thread(target=start)
    try:
        with ThreadPoolExecutor(1) as pool:
            listing = pool.submit(lambda: until_there(directories.list))
            starting.start()
            assert listing.result(timeout=120) == []
    finally:
        starting.join()
        directories.close()
        back[0].kill()


def until_there(call: Callable[[], Any]) -> Any:
    """What it gives once the table is there; that comes a moment after the server."""
    while True:
        try:
            return call()
        except Unavailable as error:
            if "the table is not there" not in str(error):
                raise


@pytest.mark.bigtable
def test_one_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    emulator = Emulator()
    try:
        monkeypatch.setenv("BIGTABLE_EMULATOR_HOST", emulator.host)
        url = emulator.create_table("t", FAMILY)
        directories, path_infos = (
            DIRECTORY_SERVICES.open(f"{url}&timeout=0.3"),
            PATH_INFO_SERVICES.open(f"{url}&timeout=0.3"),
        )
        # It has the same connections, and time enough for a busy machine.
        patient = DIRECTORY_SERVICES.open(f"{url}&timeout=60")
        patient.put(leaf("x"))
        emulator.pause()
        for call in calls(directories, path_infos):
            with pytest.raises(Unavailable, match=r"no answer within 0\.3 s"):
                call()
        emulator.go_on()
        assert patient.get(leaf("x").digest) == leaf("x")
        for service in (directories, path_infos, patient):
            service.close()
    finally:
        emulator.go_on()
        emulator.kill()


@pytest.mark.parametrize("content", [None, b"", b"{}", b"\xff", b'{"type": "service_account"}', b"[]"])
def test_without_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None) -> None:
    """Nothing is sent to anybody then."""
    file = tmp_path / "credentials"
    if content is not None:
        file.write_bytes(content)
    monkeypatch.delenv("BIGTABLE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
    all_fail(TABLE, PermissionDenied, "no credentials for Google Cloud: ", slice(0, 3))


def test_with_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A connection is made ready, and nobody is called."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    account = {
        "type": "service_account",
        "project_id": "p",
        "private_key": pem,
        "client_email": "neve@p.example",
        "token_uri": "https://token.example",
    }
    (tmp_path / "credentials").write_text(json.dumps(account))
    monkeypatch.delenv("BIGTABLE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "credentials"))
    client = Client.open(target_of(parse_address(TABLE)))
    client._connected().close()
    client.close()


def test_a_closed_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIGTABLE_EMULATOR_HOST", "127.0.0.1:1")
    service = DIRECTORY_SERVICES.open(TABLE)
    other = DIRECTORY_SERVICES.open(TABLE)
    service.close()
    service.close()
    assert len(Client._opened) == 1
    other.close()
    assert Client._opened == {}
    with pytest.raises(Unavailable, match="the connection is closed"):
        other.list()
    with pytest.raises(Unavailable, match="the connection is closed"):
        other.put_many([leaf("one"), leaf("two")])


# A server of our own, that says what no other does.


class Odd(grpc.GenericRpcHandler):
    """Answers each call as ``answer`` does."""

    def __init__(self) -> None:
        self.answer: Callable[[str, grpc.ServicerContext], Iterator[Any]] = lambda name, context: iter(())
        self.calls: list[str] = []
        self.routing: set[str | bytes] = set()

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        name = details.method.rpartition("/")[2]
        self.routing |= {
            value for key, value in details.invocation_metadata if key == "x-goog-request-params"
        }
        unary = name == "CheckAndMutateRow"
        make: Any = grpc.unary_unary_rpc_method_handler if unary else grpc.unary_stream_rpc_method_handler

        def handle(request: bytes, context: grpc.ServicerContext) -> Any:
            self.calls.append(name)
            answers = self.answer(name, context)
            return next(answers) if unary else answers

        handler: grpc.RpcMethodHandler[Any, Any] = make(
            handle, response_serializer=lambda answer: type(answer).serialize(answer)
        )
        return handler


@pytest.fixture
def odd(monkeypatch: pytest.MonkeyPatch) -> Iterator[Odd]:
    handler = Odd()
    with ThreadPoolExecutor(4) as threads:
        server = grpc.server(threads)
        server.add_generic_rpc_handlers([handler])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        monkeypatch.setenv("BIGTABLE_EMULATOR_HOST", f"127.0.0.1:{port}")
        yield handler
        server.stop(None).wait()


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (grpc.StatusCode.PERMISSION_DENIED, PermissionDenied),
        (grpc.StatusCode.UNAUTHENTICATED, PermissionDenied),
        (grpc.StatusCode.NOT_FOUND, Unavailable),
        (grpc.StatusCode.INVALID_ARGUMENT, Unavailable),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Unavailable),
        (grpc.StatusCode.DATA_LOSS, Corrupt),
        (grpc.StatusCode.INTERNAL, Unavailable),
    ],
)
def test_one_that_refuses(odd: Odd, code: grpc.StatusCode, error: type[NeveError]) -> None:
    def refuse(name: str, context: grpc.ServicerContext) -> Iterator[Any]:
        yield context.abort(code, "so it\nis")

    odd.answer = refuse
    all_fail(f"{TABLE}&timeout=60", error, r"so it\\nis")
    assert odd.routing == {"table_name=projects/p/instances/i/tables/t&app_profile_id=default"}


def test_what_may_pass_is_tried_again(odd: Odd) -> None:
    failures = iter([grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED])

    def busy(name: str, context: grpc.ServicerContext) -> Iterator[Any]:
        if (code := next(failures, None)) is not None:
            context.abort(code, "busy")
        yield bigtable.CheckAndMutateRowResponse(predicate_matched=False)

    odd.answer = busy
    service = DIRECTORY_SERVICES.open(f"{TABLE}&timeout=60")
    service.put(Directory())
    assert len(odd.calls) == 3
    service.close()


def test_rows_go_on_where_they_broke_off(odd: Odd) -> None:
    """Each answer has one row, then it breaks off."""
    keys = [bytes([number]) * 32 for number in range(1, 6)]
    rest = iter(keys)

    def breaking(name: str, context: grpc.ServicerContext) -> Iterator[Any]:
        if (key := next(rest, None)) is not None:
            text = key.hex().encode()
            chunk = bigtable.ReadRowsResponse.CellChunk(
                row_key=text, family_name=FAMILY, qualifier=text, commit_row=True
            )
            yield bigtable.ReadRowsResponse(chunks=[chunk])
            context.abort(grpc.StatusCode.UNAVAILABLE, "moved")

    odd.answer = breaking
    service = DIRECTORY_SERVICES.open(f"{TABLE}&timeout=60")
    assert service.list() == keys
    assert len(odd.calls) == 6
    service.close()


def test_changes_of_which_some_are_not_made(odd: Odd) -> None:
    """Those are tried again, and the first that cannot be made is told."""
    answers: list[list[int | None]] = [[0, 14, None], [0, 10], [7]]
    statuses = iter(answers)

    def some(name: str, context: grpc.ServicerContext) -> Iterator[Any]:
        if name == "ReadRows":
            return
        for index, code in enumerate(next(statuses)):
            if code is not None:
                entry = bigtable.MutateRowsResponse.Entry(index=index, status={"code": code, "message": "no"})
                yield bigtable.MutateRowsResponse(entries=[entry])

    odd.answer = some
    service = DIRECTORY_SERVICES.open(f"{TABLE}&timeout=60")
    with pytest.raises(PermissionDenied, match=r"MutateRows: no \(PERMISSION_DENIED\)"):
        service.put_many([leaf("a"), leaf("b"), leaf("c")])
    assert odd.calls == ["ReadRows", *["MutateRows"] * 3]
    service.close()


def test_one_that_never_says_what_became_of_a_change(odd: Odd) -> None:
    service = DIRECTORY_SERVICES.open(f"{TABLE}&timeout=60")
    with pytest.raises(Unavailable, match="no answer about a row"):
        service.put_many([leaf("a")])
    service.close()


def test_one_that_sends_no_rows_but_something_else(odd: Odd) -> None:
    def nonsense(name: str, context: grpc.ServicerContext) -> Iterator[Any]:
        yield bigtable.ReadRowsResponse(chunks=[bigtable.ReadRowsResponse.CellChunk(value=b"x")])

    odd.answer = nonsense
    all_fail(f"{TABLE}&timeout=60", Unavailable, "the server's answer begins without a row", slice(0, 2))
