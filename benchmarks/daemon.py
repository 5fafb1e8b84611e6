"""Claim: a store behind a daemon is nearly as fast as the same store embedded.

Client and daemon on this machine, over a Unix socket. The import of a kernel tree is compared with the
embedded import, the export with the embedded export, a large blob with ``cp``; small calls are counted. The
tree is in the page cache.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from common import (
    NEVE,
    Run,
    add_tree_argument,
    arguments,
    fresh,
    kernel_tree,
    median,
    median_of,
    neve,
    run,
    table,
    warm,
    workspace,
)

import neve as library
from neve.castore.blobs.grpc import BLOBS
from neve.castore.digest import EMPTY_BLOB
from neve.castore.directories.grpc import DIRECTORIES
from neve.castore.node import DirectoryNode
from neve.proto.tvix.castore.protos import rpc_blobstore_pb2, rpc_directory_pb2
from neve.registry import parse_address
from neve.rpc.channel import Connection

MIB = 1024 * 1024
CLIENTS = 8


@contextlib.contextmanager
def daemon(store: Path, folder: Path, workers: int = 1) -> Iterator[tuple[str, int]]:
    """A daemon over the embedded store in ``store``: its address, and its process."""
    socket = folder / "socket"
    command = [
        *NEVE,
        "daemon",
        "-l",
        f"unix:{socket}",
        "--workers",
        str(workers),
        "--store",
        f"local://{store}",
    ]
    with open(folder / "daemon.log", "wb") as log:
        process = subprocess.Popen(command, stderr=log)
    try:
        while not socket.exists():
            if process.poll() is not None:
                sys.exit((folder / "daemon.log").read_text())
            time.sleep(0.02)
        yield f"grpc+unix://{socket}", process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def seconds(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def measure_import(tree: Path, work: Path, runs: int) -> None:
    results: dict[str, list[Run]] = {}
    ours = work / "embedded"
    for _ in range(runs):
        results.setdefault("embedded", []).append(run(neve(fresh(ours), "import", tree)))
        results.setdefault("embedded again", []).append(run(neve(ours, "import", tree)))
        with daemon(fresh(work / "served"), work) as (url, _pid):
            command = [*NEVE, "import", tree, "--store", url]
            results.setdefault("daemon", []).append(run(command, output=work / "path"))
            results.setdefault("daemon again", []).append(run(command))
            path = (work / "path").read_text().strip()
            dump = [*NEVE, "nar", "export", path, "--store"]
            results.setdefault("nar, daemon", []).append(run([*dump, url]))
        results.setdefault("nar, embedded", []).append(run([*dump, f"local://{ours}"]))
    best = {name: median(several) for name, several in results.items()}
    table(f"{tree.name}, seconds (median; of the client)", ["what", "wall", "cpu", "peak MiB"], [
        [name, *one] for name, one in best.items()
    ])  # fmt: skip
    table("ratios", ["what", "ratio", "goal"], [
        ["import, daemon / embedded", best["daemon"].wall / best["embedded"].wall, "1.60"],
        ["import again / import, daemon", best["daemon again"].wall / best["daemon"].wall, "0.50"],
        ["nar export, daemon / embedded", best["nar, daemon"].wall / best["nar, embedded"].wall, "reported"],
    ])  # fmt: skip


def measure_directories(tree: Path, work: Path, runs: int) -> None:
    store = work / "embedded"
    if not store.exists():
        run(neve(store, "import", tree))
    with daemon(store, work) as (url, _), library.open(url) as opened:
        path_info = next(iter(opened.path_infos))
        assert isinstance(path_info.node, DirectoryNode)
        root = path_info.node.digest
        request = rpc_directory_pb2.GetDirectoryRequest(digest=root, recursive=True)
        connection = Connection.open(parse_address(url))

        def standard() -> int:
            return sum(1 for _ in connection.receive(DIRECTORIES, "Get", request, raw=True))

        def verified() -> int:
            return sum(1 for _ in opened.directories.get_recursive(root))

        count = standard()
        rows = [
            [name, median_of([seconds(call) for _ in range(runs)]), "0.50"]
            for name, call in (
                (f"Directory.Get recursive, {count} Directories", standard),
                ("the same by this client, verified", verified),
            )
        ]
        connection.close()
    table("closures, seconds", ["what", "seconds", "goal"], rows)


def measure_blobs(tree: Path, work: Path, runs: int, size: int) -> None:
    files = {"compressible": work / "compressible", "incompressible": work / "incompressible"}
    with files["compressible"].open("wb") as out:
        subprocess.run(["sh", "-c", f"tar -C {tree} -cf - . | head -c {size}"], stdout=out, check=False)
    with files["incompressible"].open("wb") as out:
        for _ in range(size // MIB):
            out.write(os.urandom(MIB))
    rows = []
    for name, file in files.items():
        megabytes = file.stat().st_size / MIB
        up, plain_up, down, copied = [], [], [], []
        for _ in range(runs):
            copied.append(seconds(lambda: run(["sh", "-c", f"cp {file} {work}/copy && sync {work}/copy"])))  # noqa: B023
            for call, batch in ((plain_up, False), (up, True)):
                with daemon(fresh(work / "blobs"), work) as (url, _), library.open(url) as opened:
                    call.append(seconds(lambda: upload(opened, file, batch)))  # noqa: B023
                    digest = upload(opened, file, batch)
                    down.append(seconds(lambda: sum(map(len, opened.blobs.stream(digest)))))  # noqa: B023
        rows += [
            [f"{name}: Blob.Put", megabytes / median_of(plain_up), "250"],
            [f"{name}: up by this client's batches", megabytes / median_of(up), "250"],
            [f"{name}: down (Blob.Read)", megabytes / median_of(down), "400"],
            [f"{name}: cp && sync", megabytes / median_of(copied), "-"],
        ]
    table(f"one blob of {size // MIB} MiB, MiB/s", ["what", "MiB/s", "goal"], rows)


def upload(opened: library.Store, file: Path, batch: bool) -> bytes:
    """Sends a file as one blob, by the standard call or in a batch."""
    with contextlib.ExitStack() as stack, file.open("rb") as source:
        if not batch:
            writer = stack.enter_context(opened.blobs.open_write())
            shutil.copyfileobj(source, writer, MIB)
            return writer.close()
        blobs = stack.enter_context(opened.blobs.batch())
        writer = blobs.open_write()
        shutil.copyfileobj(source, writer, MIB)
        digest = writer.close()
        blobs.commit()
        return digest


def stat_client(url: str, calls: int, ready: object, results: object) -> None:
    connection = Connection.open(parse_address(url))
    request = rpc_blobstore_pb2.StatBlobRequest(digest=EMPTY_BLOB)
    for _ in range(50):
        connection.call(BLOBS, "Stat", request)
    ready.wait()  # type: ignore[attr-defined]
    started = time.time()
    for _ in range(calls):
        connection.call(BLOBS, "Stat", request)
    results.put((started, time.time()))  # type: ignore[attr-defined]
    connection.close()


def serve_nothing(path: str) -> None:
    """A server that answers each Stat with an empty message: what gRPC in Python costs by itself."""
    import asyncio

    import grpc
    import uvloop

    async def stat(_request: bytes, _context: object) -> bytes:
        return b""

    async def serve() -> None:
        server = grpc.aio.server()
        handler = grpc.unary_unary_rpc_method_handler(stat)
        name = BLOBS.full_name
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, {"Stat": handler}),))
        server.add_insecure_port(f"unix:{path}")
        await server.start()
        await asyncio.Event().wait()

    uvloop.run(serve())


@contextlib.contextmanager
def nothing(work: Path) -> Iterator[tuple[str, int]]:
    """The address of such a server."""
    path = work / "nothing"
    process = multiprocessing.get_context("spawn").Process(target=serve_nothing, args=(str(path),))
    process.start()
    try:
        while not path.exists():
            time.sleep(0.02)
        yield f"grpc+unix://{path}", process.pid or 0
    finally:
        process.kill()
        process.join()
        path.unlink()


def calls_a_second(url: str, calls: int) -> float:
    """How many Stat calls clients make, each in a process of its own and one after the other."""
    context = multiprocessing.get_context("spawn")
    ready, results = context.Barrier(CLIENTS), context.Queue()
    clients = [context.Process(target=stat_client, args=(url, calls, ready, results)) for _ in range(CLIENTS)]
    for client in clients:
        client.start()
    times = [results.get() for _ in clients]
    for client in clients:
        client.join()
    return CLIENTS * calls / (max(t[1] for t in times) - min(t[0] for t in times))


def measure_stat(work: Path, runs: int, calls: int) -> None:
    rates: dict[str, list[float]] = {}
    for _ in range(runs):
        with nothing(work) as (url, _pid):
            rates.setdefault("a server that does nothing", []).append(calls_a_second(url, calls))
        for workers in (1, 2):
            with daemon(fresh(work / "small"), work, workers) as (url, _pid):
                rates.setdefault(f"Blob.Stat, {workers} worker(s)", []).append(calls_a_second(url, calls))
    table(f"small calls of {CLIENTS} clients", ["what", "calls/s", "goal"], [
        [name, median_of(several), "3500" if "2 worker" in name else "-"] for name, several in rates.items()
    ])  # fmt: skip


def main() -> None:
    parser = arguments(__doc__ or "")
    add_tree_argument(parser)
    parser.add_argument("--size", type=int, default=1024, help="MiB of the large blob (default 1024)")
    parser.add_argument("--calls", type=int, default=2000, help="Stat calls of each client (default 2000)")
    parser.add_argument("--only", choices=["import", "directories", "blobs", "stat"], help="one part only")
    args = parser.parse_args()
    with workspace(args.dir) as work:
        tree = kernel_tree(args.tree, work)
        os.environ["XDG_CACHE_HOME"] = str(work / "cache")
        measure(args, tree, work)


def measure(args: argparse.Namespace, tree: Path, work: Path) -> None:
    if args.only in (None, "import"):
        warm(tree)
        measure_import(tree, work, args.runs)
    if args.only in (None, "directories"):
        measure_directories(tree, work, args.runs)
    if args.only in (None, "blobs"):
        measure_blobs(tree, work, args.runs, args.size * MIB)
    if args.only in (None, "stat"):
        measure_stat(work, args.runs, args.calls)


if __name__ == "__main__":
    main()
