"""Uploads that end together share their syncs, counted as the daemon's system calls."""

from __future__ import annotations

import re
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import pytest

from neve.castore.digest import b3_digest
from neve.proto.tvix.castore.protos import rpc_blobstore_pb2

from .foreign import BLOBS
from .raw import reach, stub
from .serve import MARK, Served, served

CLIENTS = 64
ROUNDS = 3
"""Of which the best one counts: with other work on the machine not all ends have been sent in time."""
SENDING_SECONDS = 0.5
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
            assert upload_together(daemon, blobs) == [b3_digest(blob) for blob in blobs]
        daemon.mark()
    made = re.findall(rf"\b({calls.replace(',', '|')})\((.*)", trace.read_text())
    marks = [number for number, (_, what) in enumerate(made) if MARK in what]
    counts = [stop - start - 1 for start, stop in pairwise(marks)]
    assert len(counts) == ROUNDS
    assert 2 <= min(counts) <= MAX_SYNCS, counts


def upload_together(daemon: Served, blobs: list[bytes]) -> list[bytes]:
    """Uploads each blob by a client of its own. They all end while the daemon stands still."""
    opened = threading.Barrier(len(blobs) + 1)
    ending = threading.Barrier(len(blobs) + 1)

    def upload(number: int) -> bytes:
        def requests() -> Iterator[Any]:
            yield rpc_blobstore_pb2.BlobChunk(data=blobs[number])
            opened.wait(60)
            ending.wait(60)

        with grpc.insecure_channel(daemon.target) as channel:
            reach(channel)
            digest: bytes = stub(channel, BLOBS, "Put")(requests()).digest
            return digest

    with ThreadPoolExecutor(len(blobs)) as clients:
        digests = [clients.submit(upload, number) for number in range(len(blobs))]
        opened.wait(60)
        with daemon.paused():
            ending.wait(60)
            time.sleep(SENDING_SECONDS)
        return [digest.result() for digest in digests]
