"""Daemons that end in the middle of an upload, killed or told to: nothing half is visible when they are
back, what was acknowledged is there, and the same client goes on."""

from __future__ import annotations

import contextlib
import random
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

import neve
from neve.castore.blobs.base import BlobService
from neve.castore.blobs.urls import BLOB_SERVICES
from neve.castore.digest import Digest, b3_digest
from neve.castore.directories.base import DirectoryService
from neve.castore.directories.urls import DIRECTORY_SERVICES
from neve.castore.directory import Directory
from neve.castore.node import DirectoryNode, FileNode
from neve.errors import Unavailable
from neve.proto.tvix.castore.protos import rpc_blobstore_pb2
from neve.server.limits import Limits
from neve.store.check import verify_store
from neve.testing.servers import running_daemon

from .misbehaving import nothing_left
from .peer import Peer
from .raw import soon, status
from .serve import Served, served

Step = Callable[[], None]
Chunk = rpc_blobstore_pb2.BlobChunk

numbers = random.Random(11)
PIECES = [numbers.randbytes(1_000_000) for _ in range(12)]
BLOB = b"".join(PIECES)
SMALL = [numbers.randbytes(numbers.randrange(1, 40_000)) for _ in range(800)]
FILE = FileNode(b3_digest(b"x"), 1, False)
LEAVES = [Directory([(b"%d-%d" % (i, j), FILE) for j in range(60)]) for i in range(400)]
ROOT = Directory([(b"%03d" % i, DirectoryNode(leaf.digest, leaf.size())) for i, leaf in enumerate(LEAVES)])


class Client:
    """Both services, opened once. Each upload calls ``step`` now and then."""

    def __init__(self, url: str) -> None:
        self.blobs: BlobService = BLOB_SERVICES.open(url)
        self.directories: DirectoryService = DIRECTORY_SERVICES.open(url)

    def close(self) -> None:
        self.blobs.close()
        self.directories.close()

    def put_blob(self, step: Step) -> None:
        with self.blobs.open_write() as writer:
            for piece in PIECES:
                step()
                writer.write(piece)
            step()
            writer.close()

    def put_batch(self, step: Step) -> None:
        with self.blobs.batch() as batch:
            for start in range(0, len(SMALL), 80):
                step()
                batch.put_many(SMALL[start : start + 80])
            with batch.open_write() as writer:
                writer.write(BLOB)
                step()
                writer.close()
            step()
            batch.commit()

    def put_closure(self, step: Step) -> None:
        with self.directories.put_multiple() as putter:
            for leaf in LEAVES:
                putter.put(leaf)
            putter.put(ROOT)
            step()
            putter.close()


class Kind:
    """What is uploaded, in how many steps, and what it makes."""

    def __init__(
        self, put: Callable[[Client, Step], None], steps: int, seconds: float, makes: list[Digest]
    ) -> None:
        self.put = put
        self.steps = steps
        self.seconds = seconds
        """How long about the server has something to do after a step."""
        self.makes = makes


KINDS = {
    "a blob": Kind(Client.put_blob, 13, 0.02, [b3_digest(BLOB)]),
    "a batch": Kind(Client.put_batch, 12, 0.08, [*map(b3_digest, SMALL), b3_digest(BLOB)]),
    "a closure": Kind(Client.put_closure, 1, 0.04, [*(leaf.digest for leaf in LEAVES), ROOT.digest]),
}


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="neve-") as folder:
        yield Path(folder)


def check(store: Path, kind: Kind, *, complete: bool) -> None:
    """What is visible is right, and nothing but what was meant to be stored; all of it if ``complete``."""
    if not (store / "store.json").exists():
        assert not complete
        return
    with neve.open(f"local://{store}") as opened:
        services = opened.services
        assert verify_store(services).problems == []
        visible = {*services.blobs.list(limit=10_000), *services.directories.list(limit=10_000)}
        assert visible <= set(kind.makes)
        for digest in services.blobs.list(limit=10_000):
            assert b3_digest(services.blobs.read(digest)) == digest
        for digest in services.directories.list(limit=10_000):
            assert len(list(services.directories.get_recursive(digest))) >= 1
        if complete:
            assert visible == set(kind.makes)


def killing(server: Served, at: int, seconds: float) -> Step:
    """Kills the daemon so many ``seconds`` after the ``at``-th step."""
    steps = [0]

    def step() -> None:
        steps[0] += 1
        if steps[0] == at:
            threading.Timer(seconds, server.kill).start()

    return step


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
def test_killed_in_the_middle(kind: Kind, folder: Path) -> None:
    store, socket = folder / "store", folder / "socket"
    moments = random.Random(len(kind.makes))
    client: Client | None = None
    broken = 0
    for number in range(4):
        with served(f"local://{store}", socket) as server:
            client = client or Client(server.url)
            assert not client.blobs.has(bytes(32))
            # The last step is where the end is sent: a little later the server is busy with it.
            at = kind.steps if number % 2 else moments.randrange(1, kind.steps + 1)
            step = killing(server, at, moments.uniform(0, kind.seconds))
            acknowledged = False
            with contextlib.suppress(Unavailable):
                kind.put(client, step)
                acknowledged = True
            broken += not acknowledged
            server.process.wait()
        check(store, kind, complete=acknowledged)
    assert broken, "no upload was still running when the daemon was killed"
    with served(f"local://{store}", socket):
        assert client is not None
        kind.put(client, lambda: None)
        if kind is KINDS["a closure"]:
            assert len(list(client.directories.get_recursive(ROOT.digest))) == len(kind.makes)
        else:
            assert client.blobs.missing(kind.makes) == []
            assert client.blobs.read(b3_digest(BLOB)) == BLOB
        client.close()
    check(store, kind, complete=True)


def test_the_retry_comes_while_the_server_starts(folder: Path) -> None:
    """Who asks again at once need not know how long that takes."""
    store, socket = folder / "store", folder / "socket"
    with served(f"local://{store}", socket) as server:
        client = Client(server.url)
        assert not client.blobs.has(b3_digest(BLOB))
        server.kill()
    answers: list[object] = []

    def ask() -> None:
        while not answers:
            with contextlib.suppress(Unavailable):
                answers.append(client.blobs.has(b3_digest(BLOB)))

    thread = threading.Thread(target=ask)
    thread.start()
    with served(f"local://{store}", socket):
        thread.join()
        assert answers == [False]
        client.put_blob(lambda: None)
        client.close()


# Told to stop.


class Upload:
    """One upload in flight, of which the end is still to come."""

    def __init__(self, peer: Peer) -> None:
        self._end = threading.Event()
        self.call = peer.blobs("Put").future(self._requests())
        assert soon(lambda: peer.calls.active >= 1)

    def _requests(self) -> Iterator[Chunk]:
        yield Chunk(data=BLOB[:3_000_000])
        self._end.wait(60)

    def end(self) -> None:
        self._end.set()


@pytest.mark.parametrize("backend", ["memory", "local"])
def test_a_call_in_flight_may_finish(backend: str, tmp_path: Path) -> None:
    url = "memory://" if backend == "memory" else f"local://{tmp_path / 'store'}"
    with running_daemon(url, folder=tmp_path, admin=False) as daemon, daemon.channel() as channel:
        peer = Peer(daemon, channel)
        upload = Upload(peer)
        stopping = threading.Thread(target=daemon.stop, args=[None])
        stopping.start()
        assert soon(lambda: peer.calls.draining)
        with status(grpc.StatusCode.UNAVAILABLE, "the server is shutting down"):
            peer.answers()
        with status(grpc.StatusCode.UNAVAILABLE, "the server is shutting down"):
            peer.put(b"x")
        upload.end()
        digest = b3_digest(BLOB[:3_000_000])
        assert upload.call.result(timeout=60).digest == digest
        stopping.join()
        assert peer.stored() == {digest}
        with status(grpc.StatusCode.UNAVAILABLE, "."):
            peer.answers()


@pytest.mark.parametrize("backend", ["memory", "local"])
@pytest.mark.parametrize("grace", [0, 0.2])
def test_a_call_that_does_not_finish_in_time(grace: float, backend: str, tmp_path: Path) -> None:
    url = "memory://" if backend == "memory" else f"local://{tmp_path / 'store'}"
    limits = Limits(stream_idle_seconds=60)
    with (
        running_daemon(url, folder=tmp_path, admin=False, limits=limits) as daemon,
        daemon.channel() as channel,
    ):
        peer = Peer(daemon, channel)
        upload = Upload(peer)
        daemon.stop(grace)
        # The library says one or the other, whichever end of the call it comes to first.
        failure = upload.call.exception(timeout=60)
        assert failure.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
        assert peer.calls.active == 0
        assert peer.stored() == set()
        upload.end()


def test_many_calls_when_it_stops(tmp_path: Path) -> None:
    """Each of them ends, and everything that they have open."""
    with (
        nothing_left(),
        running_daemon(f"local://{tmp_path / 'store'}", folder=tmp_path, admin=False) as daemon,
        daemon.channel() as channel,
    ):
        peer = Peer(daemon, channel)
        digest = peer.put(BLOB)
        reads = [peer.blobs("Read")(rpc_blobstore_pb2.ReadBlobRequest(digest=digest)) for _ in range(20)]
        assert all(next(read).data for read in reads)
        uploads = [Upload(peer) for _ in range(20)]
        assert soon(lambda: peer.calls.active >= 20)
        daemon.stop(0)
        assert peer.calls.active == 0
        for read in reads:
            # Perhaps all of it was on its way already.
            with contextlib.suppress(grpc.RpcError):
                list(read)
        for upload in uploads:
            assert upload.call.exception(timeout=60) is not None
            upload.end()
        assert peer.stored() == {digest}
