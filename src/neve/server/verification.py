"""The call Verify: the work in a thread, what it tells on the stream."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

from neve.proto.neve.admin.protos import rpc_admin_pb2
from neve.rpc.status import shortened
from neve.server.calls import Calls, Context
from neve.server.long_work import StopFlag, ended, run_stoppable
from neve.store.check import VerifyReport, verify_store
from neve.store.services import Services

_INTERVAL_SECONDS = 0.1
_SILENT_INTERVALS = 10
"""After so many intervals without progress an empty message says that the server still works."""

_PROBLEMS_A_MESSAGE = 500


async def send_verification(
    services: Services,
    calls: Calls,
    turns: asyncio.Semaphore,
    request: rpc_admin_pb2.VerifyRequest,
    context: Context,
) -> None:
    """Verifies the store, when it is this call's turn, and writes the messages of the answer."""
    told = _Told()

    def verify(stop: StopFlag) -> VerifyReport:
        told.stop = stop
        return verify_store(services, told, nar_hashes=request.nar_hashes)

    async def take_turn() -> VerifyReport:
        async with turns:
            return await run_stoppable(calls, verify)

    async def write(message: rpc_admin_pb2.VerifyResponse) -> None:
        await context.write(message)
        # It takes few bytes, and yet the client is not one of those that hold a stream and do nothing.
        calls.moved(calls.limits.min_stream_bytes)

    running = asyncio.ensure_future(take_turn())
    try:
        silent = 0
        while not running.done():
            await asyncio.wait({running}, timeout=_INTERVAL_SECONDS)
            message = told.take()
            silent = silent + 1 if message is None else 0
            if message is not None or silent % _SILENT_INTERVALS == 0:
                await write(message or rpc_admin_pb2.VerifyResponse())
        for message in _conclusion(running.result()):
            await write(message)
    finally:
        running.cancel()
        await ended(running)


class _Told:
    """What the work has told since it was asked last. The work is in another thread."""

    def __init__(self) -> None:
        self.stop = StopFlag()
        self._lock = threading.Lock()
        self._news = rpc_admin_pb2.VerifyResponse()

    def start(self, total: int | None) -> None:
        with self._lock:
            self._news.total = total or 0

    def advance(self, amount: int, current: str = "") -> None:
        self.stop.check()
        with self._lock:
            self._news.advance += amount
            if current:
                self._news.current = shortened(current)

    def take(self) -> rpc_admin_pb2.VerifyResponse | None:
        """The news, if there are any."""
        with self._lock:
            news, self._news = self._news, rpc_admin_pb2.VerifyResponse()
        return news if news.ByteSize() else None


def _conclusion(report: VerifyReport) -> Iterator[rpc_admin_pb2.VerifyResponse]:
    problems = [shortened(problem) for problem in report.problems]
    for start in range(0, len(problems), _PROBLEMS_A_MESSAGE):
        yield rpc_admin_pb2.VerifyResponse(problems=problems[start : start + _PROBLEMS_A_MESSAGE])
    yield rpc_admin_pb2.VerifyResponse(summary=shortened(report.summary), done=True)
