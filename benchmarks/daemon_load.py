"""Claim: the memory of a daemon is bounded, whatever its clients do, and small calls are quick beside them.

Many large uploads at once, and many streams that are open and idle with Stat calls beside them. Each
upload is a blob of its own, of contents that repeat, so that the disk does not decide.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import threading
import time
from pathlib import Path

import grpc
from common import arguments, fresh, median_of, table, workspace
from daemon import MIB, daemon

import neve as library
from neve.castore.blobs.grpc import BLOBS
from neve.castore.digest import EMPTY_BLOB
from neve.proto.tvix.castore.protos import rpc_blobstore_pb2
from neve.registry import parse_address
from neve.rpc.channel import Connection

PROCESSES = 4
CALLS = 500


def memory_mib(pid: int) -> tuple[float, float]:
    """What a process holds now and held at most, in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    found = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines if line.startswith("Vm")}
    return found["VmRSS"], found["VmHWM"]


def upload_some(url: str, first: int, count: int, size: int) -> None:
    """Puts ``count`` blobs of ``size`` bytes at once."""
    block = os.urandom(64 * 1024) * 16

    def upload(number: int) -> None:
        writer = store.blobs.open_write()
        writer.write(number.to_bytes(8, "little"))
        for _ in range(size // len(block)):
            writer.write(block)
        writer.close()

    with library.open(url) as store:
        threads = [threading.Thread(target=upload, args=(first + i,)) for i in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def measure_uploads(work: Path, uploads: int, size: int) -> list[list[object]]:
    context = multiprocessing.get_context("spawn")
    with daemon(fresh(work / "store"), work) as (url, pid):
        with library.open(url) as store:
            store.blobs.has(b"x" * 32)
        before, _ = memory_mib(pid)
        started = time.perf_counter()
        each = max(1, uploads // PROCESSES)
        clients = [
            context.Process(target=upload_some, args=(url, first, each, size))
            for first in range(0, uploads, each)
        ]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
            assert client.exitcode == 0
        wall = time.perf_counter() - started
        _, most = memory_mib(pid)
    return [
        ["daemon at rest, MiB", before, "-"],
        [f"daemon at most, {uploads} uploads of {size // MIB} MiB at once, MiB", most, "bounded"],
        ["all of them together, MiB/s", uploads * size / MIB / wall, "reported"],
    ]


async def hold_streams(url: str, count: int, opened: threading.Event, over: threading.Event) -> None:
    """Opens uploads of which each has sent a byte, and holds them."""
    target = url.replace("grpc+unix://", "unix://")
    async with grpc.aio.insecure_channel(target) as channel:
        put = channel.stream_unary(
            "/tvix.castore.v1.BlobService/Put",
            request_serializer=rpc_blobstore_pb2.BlobChunk.SerializeToString,
            response_deserializer=rpc_blobstore_pb2.PutBlobResponse.FromString,
        )
        calls = [put() for _ in range(count)]
        for call in calls:
            await call.write(rpc_blobstore_pb2.BlobChunk(data=b"x"))
        opened.set()
        while not over.is_set():
            await asyncio.sleep(0.05)
        for call in calls:
            call.cancel()


def measure_idle(work: Path, streams: int) -> list[list[object]]:
    opened, over = threading.Event(), threading.Event()
    request = rpc_blobstore_pb2.StatBlobRequest(digest=EMPTY_BLOB)
    with daemon(fresh(work / "store"), work) as (url, pid):
        connection = Connection.open(parse_address(url))
        connection.call(BLOBS, "Stat", request)
        before, _ = memory_mib(pid)
        holder = threading.Thread(target=lambda: asyncio.run(hold_streams(url, streams, opened, over)))
        holder.start()
        opened.wait()
        times = []
        for _ in range(CALLS):
            started = time.perf_counter()
            connection.call(BLOBS, "Stat", request)
            times.append((time.perf_counter() - started) * 1000)
        held, _ = memory_mib(pid)
        over.set()
        holder.join()
        connection.close()
    times.sort()
    return [
        ["daemon at rest, MiB", before, "-"],
        [f"daemon with {streams} idle streams, MiB", held, "bounded"],
        ["Stat beside them, median, ms", median_of(times), "20"],
        ["Stat beside them, 99 of 100, ms", times[len(times) * 99 // 100], "20"],
    ]


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--uploads", type=int, default=64, help="uploads at once (default 64)")
    parser.add_argument("--size", type=int, default=1024, help="MiB of each (default 1024)")
    parser.add_argument("--streams", type=int, default=1000, help="idle streams (default 1000)")
    args = parser.parse_args()
    with workspace(args.dir) as work:
        header = ["what", "measured", "goal"]
        table("idle streams", header, measure_idle(work, args.streams))
        table("uploads", header, measure_uploads(work, args.uploads, args.size * MIB))


if __name__ == "__main__":
    main()
