"""Servers that answer wrongly when they are asked for Directories."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grpc
import pytest

from neve.castore.blobs.grpc_read import BATCHES
from neve.castore.digest import b3_digest, format_digest
from neve.castore.directories.base import DirectoryService
from neve.castore.directories.urls import DIRECTORY_SERVICES
from neve.castore.directory import Directory
from neve.castore.node import DirectoryNode, FileNode, Node, SymlinkNode
from neve.errors import Corrupt, LimitExceeded, NeveError, NotFound, Unavailable
from neve.proto.neve.castore.protos import rpc_batch_pb2
from neve.proto.tvix.castore.protos import rpc_directory_pb2
from neve.rpc import channel

from .foreign import ForeignDirectories, foreign_server
from .misbehaving import nothing_left


def directory(**children: Node) -> Directory:
    return Directory({name.encode(): node for name, node in children.items()})


def node(child: Directory, size: int | None = None) -> DirectoryNode:
    return DirectoryNode(child.digest, child.size() if size is None else size)


FILE = FileNode(b3_digest(b"x"), 1, False)
LEAF = directory(f=FILE)
OTHER_LEAF = directory(g=FILE)
MIDDLE = directory(leaf=node(LEAF), twin=node(LEAF))
ROOT = directory(m=node(MIDDLE), n=node(OTHER_LEAF), l=node(LEAF))
CLOSURE = [ROOT, LEAF, MIDDLE, OTHER_LEAF]
STRANGER = directory(s=SymlinkNode(b"elsewhere"))
ENCODED = [one.encode() for one in CLOSURE]


class Directories(ForeignDirectories):
    """Gives the encodings that it is told to, whatever it is asked."""

    def __init__(self, answer: Callable[[Any], Iterator[bytes]]) -> None:
        super().__init__()
        self.answer = answer
        self.asked = 0
        self.sent = 0

    def Get(self, _: Any, context: grpc.ServicerContext) -> Iterator[Any]:  # noqa: N802
        self.asked += 1
        for encoded in self.answer(context):
            if not context.is_active():
                return
            yield encoded
            self.sent += 1


class Batches:
    """The same by the calls for many."""

    def __init__(self, directories: Directories) -> None:
        self._directories = directories

    def Missing(self, _request: Any, _: grpc.ServicerContext) -> Any:  # noqa: N802
        return rpc_batch_pb2.MissingResponse()

    def GetClosure(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:  # noqa: N802
        for encoded in self._directories.Get(request, context):
            yield rpc_batch_pb2.Directories(directories=[encoded])

    def GetDirectories(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:  # noqa: N802
        return self.GetClosure(request, context)


@contextlib.contextmanager
def client_of(directories: Directories, *, batches: bool = False) -> Iterator[DirectoryService]:
    others = ((BATCHES, Batches(directories)),) if batches else ()
    with foreign_server(directories=directories, others=others) as url, nothing_left():
        service = DIRECTORY_SERVICES.open(url)
        try:
            yield service
        finally:
            service.close()


def of(*encoded: bytes) -> Directories:
    return Directories(lambda _: iter(encoded))


def aborting(code: grpc.StatusCode, *encoded: bytes) -> Directories:
    def answer(context: Any) -> Iterator[bytes]:
        yield from encoded
        context.abort(code, "had enough")

    return Directories(answer)


# One Directory.

UNKNOWN_FIELD = LEAF.encode() + b"\x22\x01x"
NOT_MINIMAL = LEAF.encode()[:-1] + b"\x81\x00"
UNSORTED = directory(b=FILE).encode() + directory(a=FILE).encode()
TWICE = LEAF.encode() * 2

INVALID = [b"\xff", b"\x0a", UNKNOWN_FIELD, UNSORTED, TWICE, directory(a=FILE).encode() * 2]


def test_another_directory() -> None:
    for encoded in (STRANGER.encode(), b"", LEAF.encode() + b"\x00"):
        with client_of(of(encoded)) as service:
            with pytest.raises(Corrupt, match=r"grpc\+unix:///.*does not match the digest") as failed:
                service.get(LEAF.digest)
            assert format_digest(LEAF.digest) in str(failed.value)


@pytest.mark.parametrize("encoded", INVALID)
@pytest.mark.parametrize("batches", [False, True])
def test_what_is_no_directory(encoded: bytes, batches: bool) -> None:
    """It has the digest that was asked for, so somebody refers to it, and yet it is none."""
    with client_of(of(encoded), batches=batches) as service:
        with pytest.raises(Corrupt, match="is invalid"):
            service.get(b3_digest(encoded))
        with pytest.raises(Corrupt):
            service.get_many([b3_digest(encoded), LEAF.digest])
        with pytest.raises(Corrupt, match="is no closure"):
            list(service.get_recursive(b3_digest(encoded)))


@pytest.mark.parametrize("more", [LEAF.encode(), STRANGER.encode()])
def test_several_directories(more: bytes) -> None:
    directories = Directories(lambda _: itertools.chain([LEAF.encode()], itertools.repeat(more)))
    with (
        client_of(directories) as service,
        pytest.raises(Corrupt, match="several Directories instead of one"),
    ):
        service.get(LEAF.digest)
    assert directories.sent < 1000


def test_no_directory() -> None:
    with client_of(of()) as service:
        assert service.get(LEAF.digest) is None
        assert list(service.get_recursive(LEAF.digest)) == []
        assert service.get_many([LEAF.digest, ROOT.digest]) == {}
    with client_of(aborting(grpc.StatusCode.NOT_FOUND)) as service:
        assert service.get(LEAF.digest) is None
        assert list(service.get_recursive(LEAF.digest)) == []
        assert service.get_many([LEAF.digest, ROOT.digest]) == {}


def test_a_status_after_the_directory() -> None:
    """What came is right, but the call has failed."""
    statuses = {grpc.StatusCode.DATA_LOSS: Corrupt, grpc.StatusCode.UNAVAILABLE: Unavailable}
    for code, error in statuses.items():
        raising = pytest.raises(error, match="had enough")
        with client_of(aborting(code, LEAF.encode())) as service, raising:
            service.get(LEAF.digest)


@pytest.mark.parametrize(
    "encoded", [[LEAF, STRANGER], [LEAF, LEAF], [LEAF, ROOT, LEAF]], ids=["a stranger", "twice", "once more"]
)
def test_many_and_not_asked_for(encoded: Sequence[Directory]) -> None:
    directories = of(*[one.encode() for one in encoded])
    raising = pytest.raises(Corrupt, match="without being asked for, or twice")
    with client_of(directories, batches=True) as service, raising:
        service.get_many([LEAF.digest, ROOT.digest])


def test_endless_messages_of_nothing() -> None:
    class Empty(Batches):
        def GetClosure(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:  # noqa: N802
            while context.is_active():
                yield rpc_batch_pb2.Directories()

        def GetDirectories(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:  # noqa: N802
            return self.GetClosure(request, context)

    with foreign_server(others=((BATCHES, Empty(of())),)) as url, nothing_left():
        service = DIRECTORY_SERVICES.open(url)
        with pytest.raises(Corrupt, match=r"grpc\+unix:///.*a message without Directories"):
            service.get_many([LEAF.digest, ROOT.digest])
        with pytest.raises(Corrupt, match=r"grpc\+unix:///.*a message without Directories"):
            list(service.get_recursive(ROOT.digest))
        service.close()


# Closures.

LIAR = directory(m=node(MIDDLE, 7), n=node(OTHER_LEAF), l=node(LEAF))
TORN = directory(a=node(LEAF, 1), b=DirectoryNode(MIDDLE.digest, 5))

FALSE_CLOSURES: dict[str, tuple[list[Directory], str]] = {
    "another root": ([STRANGER, *CLOSURE], "came first, requested was"),
    "leaves first": (CLOSURE[::-1], "came first, requested was"),
    "a stranger at the end": ([*CLOSURE, STRANGER], "was referred to by nothing"),
    "a stranger in between": ([*CLOSURE[:2], STRANGER, *CLOSURE[2:]], "was referred to by nothing"),
    "one twice": ([*CLOSURE[:2], LEAF, *CLOSURE[2:]], "came twice"),
    "the root twice": ([ROOT, *CLOSURE], "came twice"),
    "cut": (CLOSURE[:-1], "the stream ended early, 1 still expected"),
    "the root alone": (CLOSURE[:1], "the stream ended early, 3 still expected"),
}


@pytest.mark.parametrize("batches", [False, True])
@pytest.mark.parametrize(("closure", "match"), FALSE_CLOSURES.values(), ids=list(FALSE_CLOSURES))
def test_false_closures(closure: list[Directory], match: str, batches: bool) -> None:
    with client_of(of(*[one.encode() for one in closure]), batches=batches) as service:
        received: list[Directory] = []
        with pytest.raises(Corrupt, match=rf"grpc\+unix:///.*is no closure: .*{match}"):
            received.extend(service.get_recursive(ROOT.digest))


def test_wrong_sizes() -> None:
    for root in (LIAR, TORN):
        raising = pytest.raises(Corrupt, match="a parent states size")
        with client_of(of(root.encode(), LEAF.encode(), MIDDLE.encode())) as service, raising:
            list(service.get_recursive(root.digest))


@pytest.mark.parametrize("batches", [False, True])
@pytest.mark.parametrize("more", [STRANGER.encode(), ENCODED[1]])
def test_endless_closures(more: bytes, batches: bool) -> None:
    """What nothing refers to is refused at once, and what came before as well."""
    endless = Directories(lambda _: itertools.chain(ENCODED, itertools.repeat(more)))
    raising = pytest.raises(Corrupt, match="is no closure")
    with client_of(endless, batches=batches) as service, raising:
        list(service.get_recursive(ROOT.digest))
    assert endless.sent < 1000


@pytest.mark.parametrize("batches", [False, True])
@pytest.mark.parametrize("came", [0, 1, 3, 4])
@pytest.mark.parametrize(
    ("code", "error"),
    [
        (grpc.StatusCode.UNAVAILABLE, Unavailable),
        (grpc.StatusCode.NOT_FOUND, NotFound),
        (grpc.StatusCode.DATA_LOSS, Corrupt),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, LimitExceeded),
    ],
)
def test_closures_that_are_cut(
    code: grpc.StatusCode, error: type[NeveError], came: int, batches: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "_FIRST_PAUSE", 0.001)
    directories = aborting(code, *ENCODED[:came])
    with client_of(directories, batches=batches) as service:
        received = service.get_recursive(ROOT.digest)
        assert [next(received) for _ in range(came)] == CLOSURE[:came]
        if error is NotFound and not came:
            assert list(received) == []
        else:
            with pytest.raises(error, match="had enough"):
                next(received)
        repeated = code is grpc.StatusCode.UNAVAILABLE and not came
        assert directories.asked == (channel._ATTEMPTS if repeated else 1)


def test_a_consumer_that_stops() -> None:
    directories = Directories(lambda _: itertools.chain(ENCODED[:1], itertools.repeat(ENCODED[1])))
    with client_of(directories) as service:
        received = service.get_recursive(ROOT.digest)
        assert next(received) == ROOT
        received.close()  # type: ignore[attr-defined]
    assert directories.sent < 1000


# Uploads.


@pytest.mark.parametrize("digest", [b"", bytes(31), bytes(32), STRANGER.digest])
@pytest.mark.parametrize("batches", [False, True])
def test_put_answers_with_another_digest(digest: bytes, batches: bool) -> None:
    class Liar(Directories):
        def Put(self, requests: Iterator[Any], _: grpc.ServicerContext) -> Any:  # noqa: N802
            for _request in requests:
                pass
            return rpc_directory_pb2.PutDirectoryResponse(root_digest=digest)

    class LyingBatches(Batches):
        def PutClosure(self, requests: Iterator[Any], _: grpc.ServicerContext) -> Any:  # noqa: N802
            for _request in requests:
                pass
            return rpc_batch_pb2.PutClosureResponse(root_digest=digest)

    liar = Liar(lambda _: iter(()))
    others = ((BATCHES, LyingBatches(liar)),) if batches else ()
    with foreign_server(directories=liar, others=others) as url, nothing_left():
        service = DIRECTORY_SERVICES.open(url)
        with pytest.raises(Corrupt, match=r"grpc\+unix:///.*arrived at the server as another"):
            service.put(LEAF)
        putter = service.put_multiple()
        putter.put(LEAF)
        putter.put(MIDDLE)
        with pytest.raises(Corrupt, match=r"grpc\+unix:///.*arrived at the server as another"):
            putter.close()
        service.close()
