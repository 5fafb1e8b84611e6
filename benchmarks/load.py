"""Claim: hundreds of clients of both servers at once get what they ask for, in bounded memory.

A daemon and a binary cache over the same embedded store. For a while each of 200 HTTP clients fetches
narinfos, whole NARs and ranges of them, and each of 200 gRPC clients asks for, reads and stores blobs, over
a connection of its own and without a pause. Every answer is compared with what it must be; one that is not
that, or none, is an error.
"""

from __future__ import annotations

import asyncio
import hashlib
import multiprocessing
import random
import sys
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import grpc
from common import arguments, neve, run, table, workspace
from daemon import daemon
from daemon_load import memory_mib
from serve import serve

from neve.castore.digest import b3_digest
from neve.proto.tvix.castore.protos import rpc_blobstore_pb2 as messages

PATHS, FILES, FILE_BYTES = 20, 50, 20_000
PROCESSES = 2
"""Of clients of each kind: as many as there are cores that they share with the servers."""

RANGE_BYTES = 10_000

Times = dict[str, list[float]]
"""Seconds that each request took, by what it asked for."""


def make_paths(work: Path) -> list[Path]:
    numbers = random.Random(1)
    paths = []
    for number in range(PATHS):
        folder = work / f"path-{number}"
        folder.mkdir()
        for file in range(FILES):
            (folder / f"file-{file}").write_bytes(numbers.randbytes(FILE_BYTES))
        paths.append(folder)
    return paths


class Clients:
    """Some clients in this process, and how long they waited."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        self.times: Times = {}
        self.errors: list[str] = []

    async def timed(self, what: str, request: Awaitable[bool]) -> None:
        started = time.perf_counter()
        try:
            if not await request:
                self.errors.append(f"{what}: a wrong answer")
        except (OSError, EOFError, ValueError, grpc.RpcError) as error:
            self.errors.append(f"{what}: {type(error).__name__}: {error}")
        self.times.setdefault(what, []).append(time.perf_counter() - started)

    async def run(self, count: int, client: Callable[[int], Awaitable[None]]) -> None:
        await asyncio.gather(*(client(number) for number in range(count)))

    def goes_on(self) -> bool:
        return time.monotonic() < self._end


async def get(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: str, header: str = ""
) -> bytes:
    """The body of the answer to a GET."""
    writer.write(f"GET {target} HTTP/1.1\r\nHost: localhost\r\n{header}\r\n".encode())
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    if lines[0].split()[1] not in ("200", "206"):
        raise ValueError(lines[0])
    fields = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
    return await reader.readexactly(int(fields["content-length"]))


def http_clients(
    port: int, keys: list[str], first: int, count: int, seconds: float
) -> tuple[Times, list[str]]:
    clients = Clients(seconds)

    async def client(number: int) -> None:
        numbers = random.Random(first + number)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)

        async def narinfo(key: str) -> bool:
            body = await get(reader, writer, f"/{key}.narinfo")
            fields[key] = dict(line.split(": ", 1) for line in body.decode().splitlines())
            return key in fields[key]["StorePath"]

        async def nar(key: str) -> bool:
            body = await get(reader, writer, "/" + fields[key]["URL"])
            bodies[key] = body
            return len(body) == int(fields[key]["NarSize"]) and (
                not first_time(key) or hashlib.sha256(body).digest() == nar_hash(fields[key]["NarHash"])
            )

        async def part(key: str) -> bool:
            start = numbers.randrange(len(bodies[key]) - RANGE_BYTES)
            header = f"Range: bytes={start}-{start + RANGE_BYTES - 1}\r\n"
            body = await get(reader, writer, "/" + fields[key]["URL"], header)
            return body == bodies[key][start : start + RANGE_BYTES]

        while clients.goes_on():
            key = numbers.choice(keys)
            if key not in fields or numbers.random() < 0.6:
                await clients.timed("HTTP: a narinfo", narinfo(key))
            elif key not in bodies or numbers.random() < 0.3:
                await clients.timed("HTTP: a NAR of 1 MB", nar(key))
            else:
                await clients.timed("HTTP: 10 kB of one", part(key))
        writer.close()

    fields: dict[str, dict[str, str]] = {}
    bodies: dict[str, bytes] = {}
    seen: set[str] = set()

    def first_time(key: str) -> bool:
        new = key not in seen
        seen.add(key)
        return new

    asyncio.run(clients.run(count, client))
    return clients.times, clients.errors


def nar_hash(text: str) -> bytes:
    from neve.nix import base32

    return base32.decode(text.removeprefix("sha256:"))


def grpc_clients(
    target: str, known: list[bytes], first: int, count: int, seconds: float
) -> tuple[Times, list[str]]:
    clients = Clients(seconds)
    digests = [b3_digest(blob) for blob in known]

    async def client(number: int) -> None:
        numbers = random.Random(first + number)
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(target, options=options) as channel:
            service = "/tvix.castore.v1.BlobService/"
            stat = channel.unary_unary(
                service + "Stat",
                messages.StatBlobRequest.SerializeToString,
                messages.StatBlobResponse.FromString,
            )
            read = channel.unary_stream(
                service + "Read", messages.ReadBlobRequest.SerializeToString, messages.BlobChunk.FromString
            )
            put = channel.stream_unary(
                service + "Put", messages.BlobChunk.SerializeToString, messages.PutBlobResponse.FromString
            )

            async def is_there(place: int) -> bool:
                await stat(messages.StatBlobRequest(digest=digests[place]), timeout=60)
                return True

            async def is_right(place: int) -> bool:
                call = read(messages.ReadBlobRequest(digest=digests[place]), timeout=60)
                return b"".join([chunk.data async for chunk in call]) == known[place]

            async def is_taken(blob: bytes) -> bool:
                answer = await put(iter([messages.BlobChunk(data=blob)]), timeout=60)
                return answer.digest == b3_digest(blob)

            while clients.goes_on():
                place, dice = numbers.randrange(len(known)), numbers.random()
                if dice < 0.5:
                    await clients.timed("gRPC: Stat", is_there(place))
                elif dice < 0.8:
                    await clients.timed("gRPC: Read of 20 kB", is_right(place))
                else:
                    await clients.timed("gRPC: Put of 20 kB", is_taken(numbers.randbytes(FILE_BYTES)))

    asyncio.run(clients.run(count, client))
    return clients.times, clients.errors


def rows_of(times: Times, seconds: float) -> list[list[object]]:
    rows: list[list[object]] = []
    for what, values in sorted(times.items()):
        values.sort()
        ms = [values[len(values) * part // 100] * 1000 for part in (50, 99)]
        rows.append([what, len(values) / seconds, *ms, values[-1] * 1000])
    return rows


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--clients", type=int, default=200, help="of each kind (default 200)")
    parser.add_argument("--seconds", type=float, default=60, help="how long (default 60)")
    args = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    each = args.clients // PROCESSES
    with workspace(args.dir) as work:
        paths, store = make_paths(work), work / "store"
        run(neve(store, "import", *paths), output=work / "names")
        keys = [Path(line).name[:32] for line in (work / "names").read_text().split()]
        known = [(paths[0] / f"file-{number}").read_bytes() for number in range(FILES)]
        with (
            daemon(store, work) as (url, grpc_pid),
            serve(store, work) as (address, http_pid),
            ProcessPoolExecutor(2 * PROCESSES, context) as pool,
        ):
            port, target = int(address.rsplit(":", 1)[1]), url.replace("grpc+unix://", "unix:")
            before = [memory_mib(pid)[0] for pid in (http_pid, grpc_pid)]
            work_of = [
                pool.submit(function, where, what, number * each, each, args.seconds)
                for number in range(PROCESSES)
                for function, where, what in ((http_clients, port, keys), (grpc_clients, target, known))
            ]
            times: Times = {}
            errors: list[str] = []
            for future in work_of:
                some, failed = future.result()
                errors += failed
                for what, values in some.items():
                    times.setdefault(what, []).extend(values)
            after = [memory_mib(pid)[1] for pid in (http_pid, grpc_pid)]
    title = f"{args.clients} HTTP and {args.clients} gRPC clients at once for {args.seconds:g} s"
    table(
        title, ["what", "a second", "median, ms", "99 of 100, ms", "most, ms"], rows_of(times, args.seconds)
    )
    rows = [["neve serve", before[0], after[0]], ["neve daemon", before[1], after[1]]]
    table("memory, MiB", ["what", "at rest", "at most"], rows)
    print(f"\n{len(errors)} errors", *errors[:10], sep="\n  ")
    sys.exit(bool(errors))


if __name__ == "__main__":
    main()
