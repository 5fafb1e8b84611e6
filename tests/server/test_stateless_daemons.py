"""Several daemons, as processes, over one bucket and one database: none of them has a state of its own."""

from __future__ import annotations

import json
import signal
import threading
from pathlib import Path

import pytest

import neve
from neve.errors import NeveError
from neve.library import Store
from neve.store.check import verify_store
from tests.s3 import S3Server

from .test_daemon_process import Process, Start, daemon, until

pytestmark = pytest.mark.postgresql

__all__ = ["daemon"]

BEFORE_THE_KILL = 60
"""Blobs of an upload that are in the bucket when its daemon dies."""


@pytest.fixture
def composition(tmp_path: Path, s3: S3Server, database: str) -> Path:
    options = {
        "endpoint": f"http://127.0.0.1:{s3.port}",
        "region": "us-east-1",
        "access_key_id": "somebody",
        "secret_access_key": "hush",
    }
    lines = ["[blobservices.root]", 'type = "objectstore"', f'object_store_url = "s3://{s3.bucket()}/neve"']
    lines.append("[blobservices.root.object_store_options]")
    lines += [f"{name} = {json.dumps(value)}" for name, value in options.items()]
    for kind in ("directoryservices", "pathinfoservices"):
        lines += [f"[{kind}.root]", 'type = "postgresql"', f"url = {json.dumps(database)}"]
    file = tmp_path / "store.toml"
    file.write_text("\n".join(lines))
    return file


def make_tree(folder: Path, kind: str, files: int) -> Path:
    for number in range(files):
        part = folder / f"part-{number // 50}"
        part.mkdir(parents=True, exist_ok=True)
        (part / f"file-{number}").write_bytes(b"%s %d\n" % (kind.encode(), number) * (number % 40 + 1))
    return folder


def two(daemon: Start, tmp_path: Path, composition: Path) -> list[tuple[Process, str]]:
    started = []
    for name in ("one", "two"):
        process = daemon("-l", f"unix:{tmp_path / name}", "--store-composition", str(composition))
        process.address()
        started.append((process, f"grpc+unix://{tmp_path / name}"))
    return started


def blobs_of(store: Store) -> int:
    return len(store.services.blobs.list(limit=BEFORE_THE_KILL))


def test_what_one_stores_the_other_serves(daemon: Start, tmp_path: Path, composition: Path) -> None:
    tree = make_tree(tmp_path / "tree", "whole", 60)
    (_, first), (_, second) = two(daemon, tmp_path, composition)
    with neve.open(first) as one, neve.open(second) as other:
        info = one.import_path(tree)
        assert other.path_info(info.store_path) == info
        with other.open(f"{info.store_path.absolute}/part-1/file-55") as file:
            assert file.read() == (tree / "part-1" / "file-55").read_bytes()
        assert b"".join(other.nar(info.store_path)) == b"".join(one.nar(info.store_path))
        assert other.import_path(tree) == info


def test_one_is_killed_in_the_middle_of_an_upload(daemon: Start, tmp_path: Path, composition: Path) -> None:
    """Nothing of that shows, what was there stays whole, and the other one takes the same upload."""
    (dying, first), (_, second) = two(daemon, tmp_path, composition)
    tree = make_tree(tmp_path / "tree", "killed", 600)
    failures: list[NeveError] = []

    def upload() -> None:
        try:
            with neve.open(first) as store:
                store.import_path(tree)
        except NeveError as error:
            failures.append(error)

    with neve.open(second) as other, neve.open(composition=composition) as direct:
        kept = other.import_path(make_tree(tmp_path / "kept", "kept", 5))
        uploading = threading.Thread(target=upload)
        uploading.start()
        until(lambda: blobs_of(direct) >= BEFORE_THE_KILL)
        dying.send(signal.SIGKILL)
        uploading.join()
        assert failures, "the upload ended before the kill"
        assert [info.store_path for info in other.path_infos.list()] == [kept.store_path]
        assert verify_store(direct.services, nar_hashes=True).problems == []
        info = other.import_path(tree)
        assert direct.path_info(info.store_path) == info
        assert verify_store(direct.services, nar_hashes=True).problems == []
