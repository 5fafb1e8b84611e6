"""What uploads cost a daemon in memory: bounded, however many there are."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from neve.castore.digest import EMPTY_BLOB, b3_digest
from neve.proto.tvix.castore.protos import rpc_blobstore_pb2

from .foreign import BLOBS
from .raw import stub
from .serve import Served, served

Chunk = rpc_blobstore_pb2.BlobChunk

MIB = 1 << 20


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Served]:
    with (
        tempfile.TemporaryDirectory(prefix="neve-") as folder,
        served(f"local://{tmp_path / 'store'}", Path(folder) / "socket") as daemon,
    ):
        with grpc.insecure_channel(daemon.target) as channel:
            # Once through everything, so that what it loads is not counted.
            stub(channel, BLOBS, "Put")(iter([Chunk(data=os.urandom(4 * MIB))]))
        yield daemon


def put(channel: grpc.aio.Channel, messages: AsyncIterator[Any]) -> Any:
    return stub(channel, BLOBS, "Put")(messages)  # type: ignore[arg-type]


async def ask(channel: grpc.aio.Channel) -> None:
    """A question beside them all is answered."""
    await stub(channel, BLOBS, "Stat")(rpc_blobstore_pb2.StatBlobRequest(digest=EMPTY_BLOB))  # type: ignore[arg-type]


async def large_uploads(target: str, count: int, pieces: list[bytes]) -> set[bytes]:
    async def messages(number: int) -> AsyncIterator[Any]:
        yield Chunk(data=b"%d" % number)
        for piece in pieces:
            yield Chunk(data=piece)

    async with grpc.aio.insecure_channel(target) as channel:
        puts = [put(channel, messages(number)) for number in range(count)]
        for _ in range(10):
            await ask(channel)
        return {(await one).digest for one in puts}


@pytest.mark.slow
def test_large_uploads(daemon: Served) -> None:
    """It is their number that counts, not their length: two gibibytes pass through a third of that.

    A stream has its window of some mebibytes, and the last messages in several forms at a time: as they
    came, as bytes, parsed, gathered, cut into chunks. That is 10 MiB, and the allocator makes two to three
    times as much of it, because pieces of all sizes come and go in many threads. What waits for a thread or
    for the disk is bounded for all of them together, by ``max_held_bytes``.
    """
    before = daemon.memory()
    for _ in range(2):
        pieces = [os.urandom(MIB) for _ in range(64)]
        digests = asyncio.run(large_uploads(daemon.target, 16, pieces))
        assert digests == {b3_digest(b"".join([b"%d" % number, *pieces])) for number in range(16)}
    assert daemon.memory() - before <= 16 * 36 * MIB + 64 * MIB


async def idle_uploads(target: str, count: int) -> None:
    end = asyncio.Event()

    async def messages() -> AsyncIterator[Any]:
        yield Chunk(data=bytes(1000))
        await end.wait()

    async with grpc.aio.insecure_channel(target) as channel:
        puts = [put(channel, messages()) for _ in range(count)]
        for one in puts:
            await one.wait_for_connection()
        for _ in range(10):
            await ask(channel)
        end.set()
        assert {(await one).digest for one in puts} == {b3_digest(bytes(1000))}


@pytest.mark.slow
def test_idle_uploads(daemon: Served) -> None:
    """A task, a call and a message each: 25 KiB."""
    before = daemon.memory()
    asyncio.run(idle_uploads(daemon.target, 1000))
    assert daemon.memory() - before <= 1000 * 100 * 1024
