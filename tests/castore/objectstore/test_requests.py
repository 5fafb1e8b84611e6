"""How many requests things take, and how many of them at once: that is the time where each has to travel."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from neve.castore.blobs import objectstore as objectstore_blobs
from neve.castore.blobs.base import BlobService
from neve.castore.blobs.objectstore import ObjectBlobService
from neve.castore.blobs.urls import BLOB_SERVICES
from neve.castore.digest import EMPTY_BLOB, b3_digest
from neve.castore.directories import objectstore
from neve.castore.directories.objectstore import ObjectDirectoryService
from neve.castore.directories.urls import DIRECTORY_SERVICES
from neve.castore.objectstore import bucket
from neve.castore.objectstore.layout import BLOBS, CHUNKS, DIRECTORIES, key_of
from neve.store.importer import import_path
from neve.store.services import open_services
from neve.testing.blob_reading import KIB, MIB, incompressible, put
from neve.testing.directories import put_closure, tree
from tests.castore.objectstore.interference import Proxy, proxy_before
from tests.s3 import S3Server

FILES = 300
DELAY = 0.05


@pytest.fixture
def proxy(s3: S3Server) -> Iterator[Proxy]:
    with proxy_before(s3.port) as proxy:
        yield proxy


@pytest.fixture
def url(s3: S3Server, proxy: Proxy) -> str:
    return s3.url(s3.bucket(), port=proxy.port)


@pytest.fixture
def blobs(url: str) -> Iterator[BlobService]:
    service = BLOB_SERVICES.open(url)
    service.missing([b3_digest(b"absent")])  # So that it knows that there is a bucket.
    yield service
    service.close()


def since(proxy: Proxy, begin: int) -> list[str]:
    """The requests from a number on: method and table."""
    return sorted(
        f"{request.method} {next((t for t in (CHUNKS, BLOBS, DIRECTORIES) if f'/{t}/' in request.path), '')}"
        for request in proxy.requests[begin:]
    )


def test_what_is_old_is_made_to_stay_at_once(
    blobs: BlobService, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All chunks of a large blob, and those of others."""
    large = [put(blobs, incompressible(6 * MIB, seed)) for seed in (1, 2)]
    small = blobs.put_many([b"%d" % number for number in range(10)])
    absent = b3_digest(b"absent")
    for module in (bucket, objectstore_blobs):
        monkeypatch.setattr(module, "SLACK", -1000.0)
    chunks = sum(len(blobs.stored_chunks(digest)) for digest in large)
    assert chunks > 30
    begin, proxy.most_at_once, proxy.delay = len(proxy.requests), 0, DELAY
    assert blobs.missing_blobs([*large, absent, *small, large[0]]) == [absent]
    assert proxy.most_at_once >= 20
    done = since(proxy, begin)
    assert done.count(f"PUT {CHUNKS}") == chunks + len(small)
    assert done.count(f"PUT {BLOBS}") == len(large) + len(small)


def test_a_small_blob(blobs: BlobService, proxy: Proxy) -> None:
    begin = len(proxy.requests)
    [digest] = blobs.put_many([b"small"])
    assert since(proxy, begin) == ["HEAD blobs", "PUT blobs", "PUT chunks"]
    begin = len(proxy.requests)
    blobs.put_many([b"small", b"small"])
    assert since(proxy, begin) == ["HEAD blobs"]
    begin = len(proxy.requests)
    assert blobs.read(digest) == b"small"
    assert since(proxy, begin) == ["GET chunks"]


def test_the_empty_blob_is_never_asked_for(blobs: BlobService, proxy: Proxy) -> None:
    begin = len(proxy.requests)
    assert blobs.read(EMPTY_BLOB) == b""
    assert blobs.has(EMPTY_BLOB)
    assert blobs.missing([EMPTY_BLOB]) == []
    assert proxy.requests[begin:] == []


def test_no_chunk_of_a_blob_is_sent_twice(blobs: BlobService, proxy: Proxy) -> None:
    begin = len(proxy.requests)
    digest = put(blobs, bytes(5 * MIB))
    chunks = blobs.chunks(digest) or []
    distinct = len({chunk.digest for chunk in chunks})
    assert distinct < len(chunks)
    sent = [request.path for request in proxy.requests[begin:] if request.method == "PUT"]
    assert len(sent) == len(set(sent)) == distinct + 1


def test_closures(url: str, proxy: Proxy) -> None:
    directories = DIRECTORY_SERVICES.open(url)
    closure = tree()
    root = put_closure(directories, closure)
    assert since(proxy, 0) == ["PUT dirs"]
    for _ in range(2):
        assert len(list(directories.get_recursive(root))) == len(closure)
        assert len(directories.get_many([one.digest for one in closure])) == len(closure)
    assert since(proxy, 0) == ["GET dirs", "PUT dirs"]
    directories.close()


@pytest.mark.parametrize("kind", ["file", "s3"])
def test_a_long_closure_goes_in_parts(
    kind: str, url: str, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objectstore, "_PART_BYTES", 100)
    service = DIRECTORY_SERVICES.open(url if kind == "s3" else f"objectstore+file://{tmp_path}/store")
    assert isinstance(service, ObjectDirectoryService)
    closure = tree()
    root = put_closure(service, closure)
    assert len(list(service.get_recursive(root))) == len(closure)
    # And what is long is made new in parts.
    monkeypatch.setattr(bucket, "_WHOLE_BYTES", 100)
    assert service.freshen([root]) == []
    assert (proxy.count("POST") > 0) == (kind == "s3")
    service._held.clear()
    assert len(list(service.get_recursive(root))) == len(closure)
    service.close()


def test_what_is_gone_already_keeps_no_other_from_being_deleted(tmp_path: Path) -> None:
    service = BLOB_SERVICES.open(f"objectstore+file://{tmp_path}/store")
    assert isinstance(service, ObjectBlobService)
    digests = service.put_many([b"%d" % number for number in range(30)])
    keys = [key_of(BLOBS, digest) for digest in digests]
    service._bucket.delete([keys[0]])
    service._bucket.delete(keys)
    assert service.list() == []
    service.close()


def test_deleting_goes_in_groups(blobs: BlobService, proxy: Proxy) -> None:
    digests = blobs.put_many([b"%d" % number for number in range(40)])
    begin = len(proxy.requests)
    assert blobs.delete_many(digests) == 40
    assert since(proxy, begin) == [
        *(["HEAD blobs"] * 40 + ["HEAD chunks"] * 40),
        *["POST "] * 2,
    ]


def test_importing_and_reading_back_many_small_files(s3: S3Server, tmp_path: Path) -> None:
    """At most 5 requests for a new file, and so many at once that together they take less than a twentieth of
    the time that they would take one by one."""
    rng = random.Random(7)
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(FILES):
        (folder / f"{number:05}").write_bytes(rng.randbytes(rng.randrange(100, 3000)))
    with proxy_before(s3.port, delay=DELAY) as proxy:
        url = s3.url(s3.bucket(), port=proxy.port)
        services = open_services("memory://", blob_service=url, directory_service=url)
        try:
            path_info = import_path(services, folder)
            assert len(proxy.requests) <= 5 * FILES
            assert proxy.most_at_once >= 20
            written, proxy.most_at_once = len(proxy.requests), 0
            nar = b"".join(services.renderer.stream(path_info.node))
            assert path_info.nar is not None
            assert hashlib.sha256(nar).digest() == path_info.nar.sha256
            assert len(proxy.requests) - written <= FILES + 5
            assert proxy.most_at_once >= 20
        finally:
            services.close()


# What is old.


@pytest.fixture
def files(tmp_path: Path) -> Iterator[ObjectBlobService]:
    service = BLOB_SERVICES.open(f"objectstore+file://{tmp_path}/store")
    assert isinstance(service, ObjectBlobService)
    yield service
    service.close()


def test_what_lies_in_a_folder_is_synced_before_it_is_visible(
    files: ObjectBlobService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file's contents before it has its name, then the folder, and each folder that was made in the one
    above. And a chunk before the list."""
    done: list[str] = []
    fdatasync, fsync, replace = os.fdatasync, os.fsync, os.replace
    root = str(tmp_path / "store")

    def name(fd: int) -> str:
        return os.readlink(f"/proc/self/fd/{fd}").removeprefix(root).partition("#")[0]

    def synced(fd: int) -> None:
        done.append(f"contents {name(fd)}")
        fdatasync(fd)

    def folder(fd: int) -> None:
        done.append(f"folder {name(fd)}")
        fsync(fd)

    def named(old: Path, new: Path) -> None:
        done.append(f"name {str(new).removeprefix(root)}")
        replace(old, new)

    monkeypatch.setattr(os, "fdatasync", synced)
    monkeypatch.setattr(os, "fsync", folder)
    monkeypatch.setattr(os, "replace", named)
    digest = put(files, b"contents")
    expected = [f"folder {above}" for above in Path(root).parents]
    for table in (CHUNKS, BLOBS):
        key = key_of(table, digest)
        folder_of_it = f"/{key.rpartition('/')[0]}"
        expected += ["folder ", f"folder /{table}", f"folder /{table}/b3"]
        expected += [f"contents /{key}", f"name /{key}", f"folder {folder_of_it}"]
    assert done == expected
    done.clear()
    put(files, b"contents")
    assert done == []


def test_unfinished_files_are_nobodys(files: ObjectBlobService, tmp_path: Path) -> None:
    digest = put(files, incompressible(10 * KIB))
    path = tmp_path / "store" / key_of(BLOBS, digest)
    path.with_name(f"{path.name}#123").write_bytes(b"unfinished")
    path.with_name("README").write_bytes(b"somebody's")
    assert files.list() == [digest]
