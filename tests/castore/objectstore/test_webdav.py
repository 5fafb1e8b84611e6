"""A WebDAV server that is not ours: folders must be made there before there can be something in them, by one
at a time, and listings tell whole paths."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import neve
from neve.castore.blobs.urls import BLOB_SERVICES
from neve.castore.digest import b3_digest
from neve.errors import Unavailable
from neve.library import Store
from neve.store.check import verify_store
from tests.s3 import running
from tests.store.gc.helpers import collect, make_tree, paths

pytestmark = pytest.mark.webdav


@pytest.fixture(scope="module")
def webdav(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """What it serves, and its address for stores."""
    folder = tmp_path_factory.mktemp("webdav")
    command = ["rclone", "serve", "webdav", str(folder), "--addr", "127.0.0.1:0", "--config", "/dev/null"]
    # What others have put there is to be seen at once.
    with running(
        [*command, "--dir-cache-time", "0s"], re.compile(rb"started on http://127\.0\.0\.1:([0-9]+)")
    ) as port:
        yield folder, f"objectstore+http://127.0.0.1:{port}"


def test_a_whole_store(webdav: tuple[Path, str], tmp_path: Path) -> None:
    folder, address = webdav
    (folder / "below" / "there").mkdir(parents=True)
    url = f"{address}/below/there"

    def opened() -> Store:
        return neve.open(
            blob_service=url, directory_service=url, path_info_service=f"local://{tmp_path}/paths"
        )

    with opened() as store:
        kept, dropped = (
            store.import_path(make_tree(tmp_path / str(number), number, files=8)) for number in range(2)
        )
    with opened() as store:
        assert verify_store(store.services, nar_hashes=True).problems == []
        listed = store.blobs.list()
        there = {path.name for path in folder.glob("below/there/blobs/b3/*/*")}
        assert [digest.hex() for digest in listed] == sorted(there)
        assert store.blobs.list(listed[0], 3) == listed[1:4]
        report = collect(store, keep=[kept.store_path], grace=0)
        assert (report.paths_dropped, report.directories_dropped) == (1, 1)
        assert report.blobs_dropped == len(listed) - len(store.blobs.list()) > 0
        assert paths(store) == {kept.store_path}
    with opened() as store:
        assert store.import_path(tmp_path / "1") == dropped
        assert verify_store(store.services, nar_hashes=True).problems == []


def test_many_who_make_the_same_folders(webdav: tuple[Path, str]) -> None:
    folder, address = webdav
    (folder / "many").mkdir()
    services = [BLOB_SERVICES.open(f"{address}/many") for _ in range(4)]
    blobs = [b"%d" % number for number in range(12)]
    with ThreadPoolExecutor(4) as threads:
        for digests in threads.map(lambda service: service.put_many(blobs), services):
            assert digests == [b3_digest(blob) for blob in blobs]
    assert services[0].list() == sorted(b3_digest(blob) for blob in blobs)
    for service in services:
        service.close()


def test_the_folder_of_the_address_is_not_made(webdav: tuple[Path, str]) -> None:
    service = BLOB_SERVICES.open(f"{webdav[1]}/not/there")
    with pytest.raises(Unavailable, match=r"cannot write .*409 Conflict"):
        service.put_many([b"x"])
    service.close()
