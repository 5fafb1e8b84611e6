"""All that comes on a connection to the binary cache, which answers it over a store in memory."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import re
import socket

from neve.http_cache.app import CacheApp
from neve.http_cache.limits import Limits
from neve.http_cache.metrics import LAYOUT, Counters
from neve.http_cache.pages import page_routes
from neve.http_cache.server import Server
from neve.http_cache.settings import Settings
from neve.http_cache.site import Site
from neve.nix.store_path import StorePath
from neve.serving.metrics import BUG, KINDS, SharedRows
from neve.store.path_info import NarDetails, PathInfo
from neve.tree import LEAVE_DIRECTORY, EnterDirectory, File, Symlink
from tests.fuzz.closing import opened
from tests.fuzz.target import Bound, Target
from tests.store.helpers import memory_services, stored

PATH = StorePath(bytes(range(20)), "tree")

_QUIET_LOOKS = 4
"""So often in a row nothing is being done before the client has nothing more to say."""
_LOOK_SECONDS = 0.001

_HEAD = re.compile(rb"HTTP/1\.1 ([1-5][0-9][0-9]) [^\r\n]*\r\n")


class _Cache:
    def __init__(self) -> None:
        self._services = opened.enter_context(contextlib.closing(memory_services()))
        events = (File(b"a", True, b"contents"), Symlink(b"b", b"a"))
        node = stored(self._services, [EnterDirectory(b""), *events, LEAVE_DIRECTORY])
        nar = self._services.nar_calculation.calculate_nar(node)
        details = NarDetails(size=nar.size, sha256=nar.sha256)
        self._services.path_infos.put(PathInfo(PATH, node, (), details))
        self._rows = SharedRows(LAYOUT, 1)
        opened.callback(self._rows.close)
        self._loop = asyncio.new_event_loop()
        opened.callback(self._loop.close)
        self._loop.run_until_complete(self._begin())

    async def _begin(self) -> None:
        limits = Limits(max_nar_bytes=1 << 20, max_small_file_bytes=1 << 16)
        settings = Settings(limits=limits, insecure_allow_upload=True)
        pages = page_routes(self._services, Site(settings.name))
        self._app = CacheApp(self._services, settings, Counters(self._rows, 0), pages)
        opened.callback(self._app.close)
        self._server = Server(self._app, settings)

    def answers(self, data: bytes) -> bytes:
        """All that comes back."""
        return self._loop.run_until_complete(self._converse(data))

    async def _converse(self, data: bytes) -> bytes:
        ours, theirs = socket.socketpair()
        with ours:
            ours.setblocking(False)
            await self._loop.connect_accepted_socket(self._server._connection, theirs)
            await self._loop.sock_sendall(ours, data)
            listening = asyncio.create_task(self._received(ours))
            await self._quiet(listening)
            with contextlib.suppress(OSError):
                ours.shutdown(socket.SHUT_WR)
            received = await listening
            while tasks := list(self._server._state.tasks):
                await asyncio.wait(tasks)
            return received

    async def _quiet(self, listening: asyncio.Task[bytes]) -> None:
        """Returns when everything is answered, or waits for the client."""
        quiet = 0
        while not listening.done() and quiet < _QUIET_LOOKS:
            await asyncio.sleep(_LOOK_SECONDS)
            busy = any(exchange.busy for exchange in self._app.exchanges)
            quiet = 0 if busy else quiet + 1

    async def _received(self, ours: socket.socket) -> bytes:
        received = b""
        with contextlib.suppress(ConnectionError):
            while part := await self._loop.sock_recv(ours, 65536):
                received += part
        return received

    @property
    def bugs(self) -> float:
        """Requests that came to an end that nobody has thought of."""
        return self._rows.total()[LAYOUT.errors.place(KINDS.index(BUG))]


@functools.cache
def _cache() -> _Cache:
    return _Cache()


def _served(data: bytes) -> None:
    cache = _cache()
    before = cache.bugs
    answers = cache.answers(data)
    assert cache.bugs == before
    assert not answers or _HEAD.match(answers)
    assert b"HTTP/1.1 500 " not in answers


_ADDRESS = b"/00000000000000000000000000000000"

TARGETS = (
    Target(
        "served",
        _served,
        (),
        memory=Bound(8 * 1024 * 1024, 200),
        steps=Bound(200_000, 1000),
        rounds=60,
        words=(
            *(b"GET ", b"HEAD ", b"PUT ", b" HTTP/1.1\r\nhost: x\r\n", b"connection: close\r\n"),
            *(b"content-length: 5\r\n", b"transfer-encoding: chunked\r\n", b"range: bytes=0-5\r\n"),
            *(
                b"expect: 100-continue\r\n",
                b"upgrade: websocket\r\n",
                b"\r\n\r\n",
                b"5\r\nhello\r\n0\r\n\r\n",
            ),
            *(_ADDRESS + b".narinfo", b"/nar/", b"/path/", b"/search?q=", b"/log/", b"authorization: Basic "),
        ),
    ),
)
