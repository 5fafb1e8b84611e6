"""Claim: importing small files into an object store that is 50 ms away, and reading them back, takes at most
5 % of the time that its requests take one after the other, and at most 5 requests for each file.

The store is a server of this script's own in memory, that answers after the delay: measured is how
many requests there are and how many of them at once. The same without a delay tells what the work takes.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import random
import time
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from urllib.parse import unquote, urlsplit

from common import table, workspace

import neve


class Store(asyncio.Protocol):
    """Objects in a dict: HEAD, GET and PUT as S3 has them, and a listing that is empty."""

    objects: dict[str, bytes] = {}  # noqa: RUF012 - one for all connections
    delay = 0.0
    requests: Synchronized[int]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._received = bytearray()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, separator, rest = bytes(self._received).partition(b"\r\n\r\n")
        if not separator:
            return
        lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
        size = int(headers.get("content-length", 0))
        if len(rest) < size:
            return
        del self._received[: len(head) + 4 + size]
        method, target, _ = lines[0].split(" ")
        self.requests.value += 1
        answer = self._answer(method, urlsplit(target), rest[:size])
        asyncio.get_running_loop().call_later(self.delay, self._transport.write, answer)

    def _answer(self, method: str, target: object, body: bytes) -> bytes:
        path = unquote(getattr(target, "path"))  # noqa: B009
        if getattr(target, "query"):  # noqa: B009
            return _answer(200, b"<ListBucketResult></ListBucketResult>")
        if method == "PUT":
            self.objects[path] = body
            return _answer(200, b"")
        data = self.objects.get(path)
        if data is None:
            return _answer(404, b"")
        return _answer(200, data, body=method == "GET")


def _answer(status: int, data: bytes, *, body: bool = True) -> bytes:
    head = (
        f'HTTP/1.1 {status} -\r\nContent-Length: {len(data)}\r\nETag: "x"\r\n'
        "Last-Modified: Thu, 26 Nov 2099 12:00:00 GMT\r\n\r\n"
    ).encode()
    return head + (data if body else b"")


def serve(delay: float, port: Synchronized[int], requests: Synchronized[int]) -> None:
    """Runs the store, in a process of its own."""

    async def main() -> None:
        Store.delay, Store.requests = delay, requests
        server = await asyncio.get_running_loop().create_server(Store, "127.0.0.1", 0, backlog=500)
        port.value = server.sockets[0].getsockname()[1]
        await server.serve_forever()

    asyncio.run(main())


def measure(folder: Path, delay: float, files: int) -> list[str]:
    """A line of the table."""
    context = multiprocessing.get_context("spawn")
    port, requests = context.Value("i", 0), context.Value("i", 0)
    server = context.Process(target=serve, args=(delay, port, requests), daemon=True)
    server.start()
    while not port.value:
        time.sleep(0.01)
    url = (
        f"objectstore+s3://bucket?endpoint=http://127.0.0.1:{port.value}&region=us-east-1"
        "&access_key_id=a&secret_access_key=b"
    )
    try:
        with neve.open("memory://", blob_service=url, directory_service=url) as store:
            begin = time.perf_counter()
            path = store.import_path(folder).store_path
            imported = time.perf_counter()
            asked = requests.value
            size = sum(map(len, store.nar(path)))
            end = time.perf_counter()
        assert size > files * 100
        count = requests.value
    finally:
        server.kill()
        server.join()
    share = (end - begin) / (count * delay) if delay else 0
    return [
        f"{delay * 1000:g} ms",
        f"{imported - begin:.2f} s",
        f"{end - imported:.2f} s",
        f"{asked / files:.2f}",
        f"{count / files:.2f}",
        f"{share:.1%}" if delay else "-",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--delay", type=float, default=0.05, help="seconds")
    parser.add_argument("--dir", help="folder for scratch data (default: the system's temporary folder)")
    given = parser.parse_args()
    rng = random.Random(1)
    with workspace(given.dir) as work:
        folder = work / "files"
        folder.mkdir()
        for number in range(given.files):
            (folder / f"{number:06}").write_bytes(rng.randbytes(rng.randrange(100, 8000)))
        rows = [measure(folder, delay, given.files) for delay in (0.0, given.delay)]
    table(
        f"{given.files} files",
        ["delay", "import", "read back", "requests/file", "with reading", "of one by one (at most 5 %)"],
        rows,
    )


if __name__ == "__main__":
    main()
