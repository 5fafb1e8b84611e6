"""``neve daemon`` on a disk that gets full: who stores too much is told so, and nobody else has to suffer."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

import neve
from neve.castore.digest import b3_digest
from neve.errors import DiskFull
from neve.proto.tvix.castore.protos import rpc_blobstore_pb2
from tests.disks import free_bytes, small_disk

from .raw import soon, status, stub
from .test_daemon_process import Process, channel

pytestmark = pytest.mark.root

SIZE = 12_000_000
PAGES = 64 * 1024
"""The index, and a pack that was begun, may have grown by a few pages."""
FULL = grpc.StatusCode.RESOURCE_EXHAUSTED
PIECE = 250_000

Chunk = rpc_blobstore_pb2.BlobChunk


def noise(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


LARGE = noise(1, 14_000_000)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", SIZE) as disk:
        yield disk


def pieces(blob: bytes) -> Iterator[Chunk]:
    for start in range(0, len(blob), PIECE):
        yield Chunk(data=blob[start : start + PIECE])


class Daemon:
    """A daemon that runs over the disk, its blobs, and what they should be."""

    def __init__(self, disk: Path, process: Process, connection: grpc.Channel) -> None:
        self.disk = disk
        self.process = process
        self._connection = connection
        self.kept: list[bytes] = []

    def call(self, method: str) -> Any:
        return stub(self._connection, rpc_blobstore_pb2.DESCRIPTOR.services_by_name["BlobService"], method)

    def put(self, blob: bytes) -> None:
        assert self.call("Put")(pieces(blob)).digest == b3_digest(blob)
        self.kept.append(blob)

    def check(self) -> None:
        """All that was acknowledged can be read."""
        for blob in self.kept:
            request = rpc_blobstore_pb2.ReadBlobRequest(digest=b3_digest(blob))
            assert b"".join(part.data for part in self.call("Read")(request)) == blob

    def check_gone(self, blob: bytes) -> None:
        with status(grpc.StatusCode.NOT_FOUND, "blob"):
            self.call("Stat")(rpc_blobstore_pb2.StatBlobRequest(digest=b3_digest(blob)))

    def check_at_the_end(self) -> None:
        """It ends, another process finds no damage, and nothing lies behind what was committed."""
        self.check()
        assert self.process.end() == 0
        packs = self.disk / "store" / "packs"
        size = sum(path.stat().st_size for path in packs.iterdir())
        command = [sys.executable, "-m", "neve.cli", "verify", "--store", f"local://{self.disk}/store"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        with neve.open(f"local://{self.disk}/store") as store:
            for blob in self.kept:
                assert store.services.blobs.read(b3_digest(blob)) == blob
        assert sum(path.stat().st_size for path in packs.iterdir()) == size


@pytest.fixture
def daemon(disk: Path, tmp_path: Path) -> Iterator[Daemon]:
    process = Process(disk, "-l", str(tmp_path / "socket"))
    try:
        with channel(process.address()) as connection:
            yield Daemon(disk, process, connection)
    finally:
        if process.process.poll() is None:
            process.process.kill()
            process.wait()


def test_one_that_is_too_large(daemon: Daemon) -> None:
    daemon.put(noise(2, 300_000))
    for turn in range(3):
        free = free_bytes(daemon.disk)
        with status(FULL, "disk full"):
            daemon.call("Put")(pieces(LARGE))
        assert soon(lambda: free_bytes(daemon.disk) > free - PAGES)  # noqa: B023
        daemon.check_gone(LARGE)
        daemon.put(b"small %d" % turn)
        daemon.put(noise(10 + turn, 1_000_000))
        daemon.check()
    daemon.check_at_the_end()


def test_several_that_are_too_large_together(daemon: Daemon) -> None:
    """All at once, and beside them small ones, each of which is stored or refused."""
    daemon.put(noise(2, 300_000))
    codes: list[grpc.StatusCode] = []

    def upload(blob: bytes) -> None:
        try:
            daemon.put(blob)
        except grpc.RpcError as error:
            codes.append(error.code())
            daemon.check_gone(blob)

    larges = [noise(20 + number, 13_000_000) for number in range(8)]
    smalls = [noise(40 + number, 20_000) for number in range(12)]
    threads = [threading.Thread(target=upload, args=[blob]) for blob in larges + smalls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(codes) == {FULL}
    assert len(codes) >= len(larges)
    for blob in larges:
        daemon.check_gone(blob)
    daemon.put(noise(3, 1_000_000))
    daemon.check_at_the_end()


def test_uploads_that_are_broken_off_leave_room(daemon: Daemon) -> None:
    """Each takes most of the disk, so two would not fit."""
    blob = noise(4, 8_000_000)
    daemon.put(noise(2, 300_000))
    for _ in range(3):
        free = free_bytes(daemon.disk)
        go_on = threading.Event()

        def half(go_on: threading.Event = go_on) -> Iterator[Chunk]:
            yield from pieces(blob[:7_000_000])
            assert go_on.wait(60)

        upload = daemon.call("Put").future(half())
        assert soon(lambda: free_bytes(daemon.disk) < free - 4_500_000)  # noqa: B023
        upload.cancel()
        go_on.set()
        assert soon(lambda: free_bytes(daemon.disk) > free - PAGES)  # noqa: B023
        daemon.check_gone(blob)
    daemon.put(blob)
    daemon.check_at_the_end()


def test_an_import_that_is_too_large(daemon: Daemon, tmp_path: Path) -> None:
    """By our own client, which sends batches."""
    small, large = tmp_path / "small", tmp_path / "large"
    small.mkdir()
    large.mkdir()
    (small / "file").write_bytes(noise(5, 100_000))
    for number in range(1500):
        (large / f"file-{number}").write_bytes(noise(100 + number, 10_000))
    with neve.open(f"grpc+unix://{tmp_path}/socket") as store:
        kept = store.import_path(small)
        for turn in range(2):
            free = free_bytes(daemon.disk)
            with pytest.raises(DiskFull, match="disk full"):
                store.import_path(large)
            assert soon(lambda: free_bytes(daemon.disk) > free - PAGES)  # noqa: B023
            daemon.put(noise(30 + turn, 1_000_000))
            assert [info.store_path for info in store.path_infos] == [kept.store_path]
        assert kept.nar is not None
        assert store.services.renderer.hash(kept.node) == (kept.nar.size, kept.nar.sha256)
    daemon.check_at_the_end()
