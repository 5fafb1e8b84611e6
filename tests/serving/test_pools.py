"""Threads behind an event loop, and whether they get anything done."""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from neve.errors import Unavailable
from neve.http_cache import process as http_process
from neve.http_cache.metrics import LAYOUT, Counters
from neve.http_cache.process import Share
from neve.http_cache.settings import Settings as HttpSettings
from neve.http_cache.threads import Threads
from neve.server import process as grpc_process
from neve.server.calls import Calls
from neve.server.limits import Limits
from neve.server.settings import Endpoint
from neve.server.settings import Settings as GrpcSettings
from neve.serving import pools
from neve.serving.metrics import SharedRows
from neve.serving.pools import STUCK_SECONDS, Pool, Pulse
from neve.serving.process import Course
from neve.serving.stopping import Stop
from neve.store.services import open_services
from tests.logged import logged

BEAT = STUCK_SECONDS / 4


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """Lets go of what is blocked, at the latest at the end."""
    event = threading.Event()
    yield event
    event.set()


def blocking(release: threading.Event) -> Callable[[], None]:
    return lambda: assert_released(release)


def assert_released(release: threading.Event) -> None:
    assert release.wait(90)


def test_results_and_errors() -> None:
    def fail() -> None:
        raise Unavailable("no")

    async def main() -> None:
        pool = Pool("some", 2)
        assert await pool.run(divmod, 7, 2) == (3, 1)
        with pytest.raises(Unavailable):
            await pool.run(fail)
        await asyncio.to_thread(pool.shutdown)

    asyncio.run(main())


def test_threads_that_are_blocked_have_no_pulse(release: threading.Event) -> None:
    async def main() -> list[bool]:
        pool, other = Pool("some", 2), Pool("other", 1)
        pulse = Pulse([other, pool])
        blocked = [pool.run(blocking(release)) for _ in range(2)]
        found = [pulse.beats(BEAT) for _ in range(7)]
        release.set()
        await asyncio.gather(*blocked)
        await pool.run(int)  # Behind all that was sent before.
        found.append(pulse.beats(BEAT))
        for each in (pool, other):
            await asyncio.to_thread(each.shutdown)
        found.append(pulse.beats(BEAT))  # While it ends.
        return found

    with logged() as messages:
        assert asyncio.run(main()) == [True] * 4 + [False] * 3 + [True] * 2
    assert messages[0] == "some threads have ended nothing for 120 s"


def test_threads_that_have_much_to_do_have_one() -> None:
    """What is sent waits behind all the rest, but that goes on."""

    async def main() -> list[bool]:
        pool = Pool("some", 1)
        events = [threading.Event() for _ in range(12)]
        works = [pool.run(blocking(event)) for event in events]
        pulse = Pulse([pool])
        found = []
        for event, work in zip(events, works, strict=True):
            found.append(pulse.beats(STUCK_SECONDS))
            event.set()
            await work
        await asyncio.to_thread(pool.shutdown)
        return found

    assert all(asyncio.run(main()))


Closes = list[Callable[[], object]]


def of_http(name: str) -> tuple[Pulse, Pool, Closes]:
    rows = SharedRows(LAYOUT, 1)
    threads = Threads(1, 1, Counters(rows, 0).queued)
    pool = {"work": threads._work, "render": threads._render}[name]
    return threads.pulse, pool, [threads.close, rows.close]


def of_grpc(name: str) -> tuple[Pulse, Pool, Closes]:
    calls = Calls(Limits())
    return calls.pulse, {"work": calls._workers, "ingest": calls._ingesters}[name], [calls.close]


@pytest.mark.parametrize(
    ("make", "name"), [(of_http, "work"), (of_http, "render"), (of_grpc, "work"), (of_grpc, "ingest")]
)
def test_which_threads_of_a_server_are_felt(
    release: threading.Event, make: Callable[[str], tuple[Pulse, Pool, Closes]], name: str
) -> None:
    async def main() -> None:
        pulse, pool, closes = make(name)
        for _ in range(pool._threads):
            pool.run(blocking(release))
        assert [pulse.beats(STUCK_SECONDS) for _ in range(2)] == [True, False]
        release.set()
        for close in closes:
            await asyncio.to_thread(close)

    asyncio.run(main())


def serve_http(course: Course) -> None:
    services = open_services("memory://")
    rows = SharedRows(LAYOUT, 1)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        share = Share(sockets=[listener], rows=rows, row=0)
        http_process.serve(services, HttpSettings(grace=1), share, lambda *_: [], course)
    rows.close()
    services.close()


def serve_grpc(course: Course) -> None:
    services = open_services("memory://")
    endpoints = [Endpoint("127.0.0.1:0")]
    grpc_process.serve(services, endpoints, GrpcSettings(grace=1), course)
    services.close()


@pytest.mark.parametrize("serve", [serve_http, serve_grpc])
def test_a_server_without_pulse_does_not_beat(
    serve: Callable[[Course], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = Stop()
    felt: list[float] = []
    beats: list[int] = []

    def feel(self: Pulse, seconds: float) -> bool:
        felt.append(seconds)
        if len(felt) == 20:
            stop.request()
        return len(felt) in (3, 7)

    monkeypatch.setattr(pools.Pulse, "beats", feel)
    course = Course(
        stop=stop,
        ready=lambda: None,
        stopping=lambda: None,
        beat=lambda: beats.append(len(felt)),
        beat_seconds=0.001,
    )
    before = sys.getswitchinterval()
    thread = threading.Thread(target=serve, args=(course,))
    thread.start()
    thread.join()
    sys.setswitchinterval(before)
    assert beats == [3, 7]
    assert set(felt) == {0.001}
