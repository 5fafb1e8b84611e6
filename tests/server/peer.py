"""A daemon seen by a client with raw stubs, and what it must be like when the client is gone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import grpc

from neve.castore.blobs.grpc_read import BATCHES
from neve.castore.digest import EMPTY_BLOB
from neve.proto.tvix.castore.protos import rpc_blobstore_pb2
from neve.server.limits import Limits
from neve.testing.servers import RunningDaemon, running_daemon

from .foreign import BLOBS, DIRECTORIES, PATH_INFOS
from .misbehaving import nothing_left
from .raw import soon, stub

BACKENDS = ["memory", "local"]

_SERVICES = {"blobs": BLOBS, "directories": DIRECTORIES, "path_infos": PATH_INFOS, "batches": BATCHES}


class Peer:
    """The methods of a running daemon, as ``peer.blobs("Put")``."""

    def __init__(self, daemon: RunningDaemon, channel: grpc.Channel) -> None:
        self.daemon = daemon
        self.channel = channel
        self.calls = daemon._daemon._calls
        self.limits = self.calls.limits

    def __getattr__(self, service: str) -> Any:
        return lambda name, **options: stub(self.channel, _SERVICES[service], name, **options)

    def put(self, blob: bytes) -> bytes:
        """Stores a blob as it should be done; its digest."""
        digest: bytes = self.blobs("Put")(iter([rpc_blobstore_pb2.BlobChunk(data=blob)])).digest
        return digest

    def stored(self) -> set[bytes]:
        """The digests of all blobs and Directories."""
        services = self.daemon.services
        return {*services.blobs.list(limit=10**6), *services.directories.list(limit=10**6)}

    def answers(self) -> bool:
        """Whether a question is answered."""
        request = rpc_blobstore_pb2.StatBlobRequest(digest=EMPTY_BLOB)
        self.blobs("Stat")(request, timeout=60)
        return True

    def is_idle(self) -> bool:
        """Whether no call is open."""
        return self.calls.active == 0 and not self.calls._streams


@contextlib.contextmanager
def serving(backend: str, folder: Path, *, new: Iterable[bytes] | None = (), **limits: Any) -> Iterator[Peer]:
    """A daemon with these limits. When the block is left it must still answer, have no call open, have
    stored nothing but what ``new`` names (None: anything), and leave nothing behind when it ends."""
    folder.mkdir(exist_ok=True)
    url = f"local://{folder / 'store'}" if backend == "local" else "memory://"
    with (
        nothing_left(),
        running_daemon(url, folder=folder, admin=False, limits=Limits(**limits)) as daemon,
        daemon.channel() as channel,
    ):
        peer = Peer(daemon, channel)
        before = peer.stored()
        yield peer
        assert soon(peer.is_idle)
        assert peer.answers()
        if new is not None:
            assert peer.stored() - before <= set(new)
