"""A daemon over a binary cache: what is asked for is fetched, and nobody waits for a cache who need not."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from neve.castore.digest import EMPTY_BLOB
from neve.errors import Corrupt, NeveError, NotFound
from neve.library import Store, open_store
from neve.store.services import Services
from neve.testing.pathinfos import store_path
from neve.testing.servers import running_daemon
from tests.logged import logged
from tests.store.helpers import leaving_nothing_open, memory_services
from tests.store.substitute.caches import Cache, http_cache, sha256
from tests.store.substitute.server import Exchange, Server, head, running_server, silent

HANGING = 24
"""Fetches that hang: more than there are threads for ordinary work."""


@pytest.fixture
def server() -> Iterator[Server]:
    with running_server() as server:
        yield server


def substituting(server: Server, **options: Any) -> Services:
    services = memory_services()
    services.path_infos = http_cache(server.url, services, **options)
    return services


def test_what_clients_ask_for_is_fetched(server: Server, tmp_path: Path) -> None:
    cache = Cache()
    narinfo = cache.add("tool", compression="zstd")
    lying = cache.add("lying", nar_sha256=bytes(32))
    server.serve(cache.files)
    services = substituting(server)
    with running_daemon(services, admin=False, folder=tmp_path) as daemon, open_store(daemon.url) as client:
        nar = b"".join(client.nar(narinfo.store_path))
        assert (len(nar), sha256(nar).digest) == (narinfo.nar_size, narinfo.nar_sha256)
        with pytest.raises(NotFound, match="is not in the store"):
            client.path_info(store_path("absent"))
        with pytest.raises(Corrupt, match=f"{server.url}/{lying.url}: "):
            client.path_info(lying.store_path)
    services.close()


def test_fetches_that_hang_are_in_nobodys_way(server: Server, tmp_path: Path) -> None:
    """And when the daemon ends, so do they."""
    cache = Cache()
    there = cache.add("there")
    hanging = [cache.add(f"hanging-{number}") for number in range(HANGING)]
    server.serve(cache.files)
    arrived = threading.Semaphore(0)

    def hang(exchange: Exchange) -> bool:
        arrived.release()
        return silent()(exchange)

    for narinfo in hanging:
        server.routes[f"/{narinfo.url}"] = [hang]
    services = substituting(server, timeout=3600)

    def ask(client: Store, path: int) -> str:
        try:
            client.path_info(hanging[path].store_path)
        except NeveError as error:
            return str(error)
        return "found"

    with logged(logging.WARNING), ThreadPoolExecutor(HANGING) as pool:
        with (
            running_daemon(services, admin=False, folder=tmp_path) as daemon,
            open_store(daemon.url) as client,
        ):
            asking = [pool.submit(ask, client, number) for number in range(HANGING)]
            for _ in hanging:
                assert arrived.acquire(timeout=60)
            assert client.path_info(there.store_path).store_path == there.store_path
            assert client.blobs.has(EMPTY_BLOB)
            daemon.stop()
            assert "found" not in {answer.result() for answer in asking}
        services.close()
        server.settle()


def test_closing_ends_what_hangs(server: Server) -> None:
    cache = Cache()
    narinfo = cache.add("tool")
    server.serve(cache.files)
    arrived = threading.Event()

    def hang(exchange: Exchange) -> bool:
        arrived.set()
        return silent(head(200, 1000))(exchange)

    server.routes[f"/{narinfo.url}"] = [hang]
    with leaving_nothing_open():
        services = substituting(server, timeout=3600)
        with ThreadPoolExecutor(1) as pool:
            asking = pool.submit(services.path_infos.get, narinfo.store_path.digest)
            assert arrived.wait(60)
            services.path_infos.close()
            with pytest.raises(NeveError, match=f"{server.url} is closed"):
                asking.result()
        with pytest.raises(NeveError, match="is closed"):
            services.path_infos.get(narinfo.store_path.digest)
        services.path_infos.close()
        server.settle()
