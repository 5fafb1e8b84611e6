"""Uploads that end together share their syncs, counted as the daemon's system calls."""

from __future__ import annotations

import re
import tempfile
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import pytest

from neve.castore.digest import b3_digest
from neve.proto.tvix.castore.protos import rpc_blobstore_pb2
from tests.packstore.many_puts import all_at_once

from .foreign import BLOBS
from .raw import stub
from .serve import MARK, served

CLIENTS = 64
ROUNDS = 3
"""Of which the best one counts: with other work on the machine the uploads do not end together."""
MAX_SYNCS = 8
"""For all of them, those of LMDB included, which syncs once a commit."""


@pytest.mark.strace
def test_many_uploads_share_system_calls(tmp_path: Path) -> None:
    calls = "fdatasync,fsync,msync,sync_file_range,sync,syncfs"
    trace = tmp_path / "trace"
    # Stops at these calls only: a daemon that is slowed down at every other would have more to sync.
    strace = ["strace", "-f", "--seccomp-bpf", "-y", "-e", f"trace={calls}", "-o", str(trace)]
    store = f"local://{tmp_path / 'store'}"
    with (
        tempfile.TemporaryDirectory(prefix="neve-") as folder,
        served(store, Path(folder) / "socket", under=strace) as daemon,
    ):
        with grpc.insecure_channel(daemon.target) as channel:
            # Makes the pack.
            stub(channel, BLOBS, "Put")(iter([rpc_blobstore_pb2.BlobChunk(data=b"the first one")]))
        for number in range(ROUNDS):
            daemon.mark()
            blobs = [b"round %d blob %d" % (number, i) * 100 for i in range(CLIENTS)]
            assert upload_together(daemon.target, blobs) == [b3_digest(blob) for blob in blobs]
        daemon.mark()
    made = re.findall(rf"\b({calls.replace(',', '|')})\((.*)", trace.read_text())
    marks = [number for number, (_, what) in enumerate(made) if MARK in what]
    counts = [stop - start - 1 for start, stop in pairwise(marks)]
    assert len(counts) == ROUNDS
    assert 2 <= min(counts) <= MAX_SYNCS, counts


def upload_together(target: str, blobs: list[bytes]) -> list[bytes]:
    """Uploads each blob by a client of its own. All streams are open before the first of them ends."""
    opened = threading.Barrier(len(blobs))
    digests = [b""] * len(blobs)

    def upload(number: int) -> None:
        def requests() -> Iterator[Any]:
            yield rpc_blobstore_pb2.BlobChunk(data=blobs[number])
            opened.wait(60)

        with grpc.insecure_channel(target) as channel:
            grpc.channel_ready_future(channel).result(60)
            digests[number] = stub(channel, BLOBS, "Put")(requests()).digest

    all_at_once(upload, len(blobs))
    return digests
