"""Room for uploads, and what a call leaves when it is cancelled more than once."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from neve.castore.blobs import grpc_batch
from neve.errors import LimitExceeded
from neve.server import calls
from neve.server.limits import Limits
from neve.server.streams import Pull, Room, cleared
from neve.serving.pools import Pool
from neve.testing.blob_reading import incompressible
from neve.testing.servers import RunningDaemon, running_daemon


async def turns(count: int = 20) -> None:
    """Gives everybody else a few turns."""
    for _ in range(count):
        await asyncio.sleep(0)


def test_room_is_given_in_order() -> None:
    async def run() -> list[str]:
        room, order = Room(64), list[str]()

        async def take(name: str, size: int) -> None:
            await room.take(size)
            order.append(name)

        await take("first", 40)
        large = asyncio.create_task(take("large", 60))
        await turns()
        small = asyncio.create_task(take("small", 10))
        await turns()
        # It would fit, but somebody was there before.
        assert order == ["first"]
        room.give(40)
        await turns()
        assert order == ["first", "large"]
        room.give(60)
        await asyncio.gather(large, small)
        return order

    assert asyncio.run(run()) == ["first", "large", "small"]


def test_more_than_there_is_room_for_goes_alone() -> None:
    async def run() -> None:
        room = Room(64)
        await room.take(1)
        waiting = asyncio.create_task(room.take(1000))
        await turns()
        assert not waiting.done()
        room.give(1)
        await waiting
        room.give(1000)
        await room.take(64)

    asyncio.run(run())


def test_few_answers_are_made_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those that nobody reads on; all come whole, and in order, nevertheless."""
    monkeypatch.setattr(calls, "_AHEAD", 2)

    async def run() -> None:
        calls_ = calls.Calls(Limits())
        made = [0] * 5

        def items(number: int) -> Iterator[int]:
            for item in range(4):
                made[number] += 1
                yield item

        pool = Pool("test", 1)
        pulls = [Pull(calls_, pool, items(number)) for number in range(5)]
        assert [await anext(pull) for pull in pulls] == [0] * 5
        # One thread works for all: once it has done this, nothing is left to be done.
        await pool.run(int)
        assert made == [2, 2, 1, 1, 1]
        await pulls[0].close()
        assert [item async for item in pulls[4]] == [1, 2, 3]
        assert [item async for item in pulls[1]] == [1, 2, 3]
        for pull in pulls:
            await pull.close()
        assert calls_.ahead.take()
        assert calls_.ahead.take()
        assert not calls_.ahead.take()
        await asyncio.to_thread(calls_.close)
        pool.shutdown()

    asyncio.run(run())


def test_too_many_that_wait_are_refused() -> None:
    async def run() -> None:
        room = Room(64)
        await room.take(64)
        waiting = [asyncio.create_task(room.take(32)) for _ in range(8)]
        await turns()
        with pytest.raises(LimitExceeded, match="max_held_bytes"):
            await room.take(1)
        waiting[0].cancel()
        await turns()
        last = asyncio.create_task(room.take(1))
        for _ in range(8):
            room.give(32)
            await turns()
        assert last.done()
        await asyncio.gather(*waiting[1:])

    asyncio.run(run())


def test_clearing_up_is_done_however_often_it_is_cancelled() -> None:
    async def run() -> list[str]:
        done: list[str] = []

        async def clear() -> None:
            for name in ("one", "two", "three"):
                await asyncio.sleep(0.01)
                done.append(name)

        async def call() -> None:
            try:
                await asyncio.sleep(60)
            finally:
                await cleared(clear())

        task = asyncio.create_task(call())
        for _ in range(4):
            await turns(3)
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return done

    assert asyncio.run(run()) == ["one", "two", "three"]


@pytest.fixture
def strict(tmp_path: Path) -> Iterator[RunningDaemon]:
    """A daemon that soon ends streams on which nothing comes."""
    limits = Limits(stream_idle_seconds=1.0)
    with running_daemon(f"local://{tmp_path}/store", limits=limits, folder=tmp_path) as daemon:
        yield daemon


def test_a_batch_may_pause(strict: RunningDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an import does that finds much of its tree in the store already, or waits for a slow disk."""
    from neve.library import open_store

    monkeypatch.setattr(grpc_batch, "_QUIET_SECONDS", 0.2)
    with open_store(strict.url) as store, store.blobs.batch() as batch:
        (first,) = batch.put_many([b"first"])
        batch.keep_many([first])  # Sends what there is.
        time.sleep(2.5)
        large = incompressible(1 << 20)
        with batch.open_write() as writer:
            writer.write(large)
            digest = writer.close()
        (last,) = batch.put_many([b"last"])
        batch.commit()
        assert store.blobs.missing([first, digest, last]) == []
    names = {thread.name for thread in threading.enumerate()}
    deadline = time.monotonic() + 5
    while "neve-batch-quiet" in names and time.monotonic() < deadline:
        time.sleep(0.05)
        names = {thread.name for thread in threading.enumerate()}
    assert "neve-batch-quiet" not in names
