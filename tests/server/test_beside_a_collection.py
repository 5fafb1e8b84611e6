"""A daemon whose store is just being swept by a collection in another process."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from neve.castore.blobs.urls import BLOB_SERVICES
from neve.packstore.gate import Gate
from neve.testing.servers import running_daemon

SECONDS = 120


def test_only_who_asks_what_is_there_waits_for_it(tmp_path: Path) -> None:
    """The others, such as who reads, are answered: nothing of that waits on the event loop."""
    with (
        running_daemon(f"local://{tmp_path}/store", folder=tmp_path, admin=False) as daemon,
        ThreadPoolExecutor(2) as pool,
    ):
        client = BLOB_SERVICES.open(daemon.url)
        try:
            (digest,) = client.put_many([b"contents"])
            gate = Gate(tmp_path / "store" / "uses")
            # What was asked for before the collection is not known to be noted any more.
            with gate.closed(begins=True):
                asking = pool.submit(client.has, digest)
                reading = pool.submit(client.read, digest)
                assert reading.result(SECONDS) == b"contents"
                assert not asking.done()
            assert asking.result(SECONDS)
            gate.close()
        finally:
            client.close()
