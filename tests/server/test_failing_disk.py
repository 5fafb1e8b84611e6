"""A disk that is full for a moment, while several clients upload."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from neve.castore.blobs.local import LocalBlobService
from neve.castore.digest import b3_digest
from neve.proto.tvix.castore.protos import rpc_blobstore_pb2
from neve.testing.blob_reading import MIB, incompressible

from .peer import serving
from .raw import soon, status


def test_an_upload_whose_chunks_were_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else's Put fails while it is on its way; it must fail too, and be seen by nobody."""
    contents, go_on = incompressible(8 * MIB), threading.Event()

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def messages() -> Iterator[rpc_blobstore_pb2.BlobChunk]:
        for start in range(0, len(contents), MIB):
            yield rpc_blobstore_pb2.BlobChunk(data=contents[start : start + MIB])
        assert go_on.wait(60)

    later = b"by somebody else, later"
    with serving("local", tmp_path, new=[b3_digest(later)]) as peer:
        blobs = peer.daemon.services.blobs
        assert isinstance(blobs, LocalBlobService)
        writer = blobs._store.writer
        upload = peer.blobs("Put").future(messages())
        assert soon(lambda: writer._staging.amount()[1] > 0)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", full)
            with status(grpc.StatusCode.RESOURCE_EXHAUSTED, "disk"):
                peer.put(b"by somebody else")
        go_on.set()
        with status(grpc.StatusCode.RESOURCE_EXHAUSTED, "disk"):
            upload.result()
        assert peer.put(later) == b3_digest(later)
        with status(grpc.StatusCode.NOT_FOUND, "blob"):
            peer.blobs("Stat")(rpc_blobstore_pb2.StatBlobRequest(digest=b3_digest(contents)))
