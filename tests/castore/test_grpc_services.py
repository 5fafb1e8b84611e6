"""The contracts of blob and directory services, through real servers: ours on every kind of address, under
both sets of names, over both backends, and one that is not ours and has no batches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from neve.castore.blobs.base import BlobService
from neve.castore.blobs.urls import BLOB_SERVICES
from neve.castore.digest import Digest
from neve.castore.directories.base import DirectoryService
from neve.castore.directories.urls import DIRECTORY_SERVICES
from neve.server.batches import MAX_DIGESTS
from neve.testing.blobs import BlobServiceContract
from neve.testing.directories import DirectoryServiceContract
from neve.testing.servers import RunningDaemon, running_daemon
from tests.castore.damage import damage_blob, damage_directory
from tests.server.foreign import foreign_server


class Way(NamedTuple):
    """How a client reaches a daemon."""

    address: str
    backend: str
    flavor: str
    admin: bool


WAYS = [
    Way("unix", "local", "tvix", admin=True),
    Way("unix", "memory", "snix", admin=True),
    Way("tcp", "local", "snix", admin=False),
    Way("tls", "memory", "tvix", admin=False),
]


def client_url(daemon: RunningDaemon, way: Way) -> str:
    """The address of ``daemon`` with all that a client needs."""
    parameters = {"flavor": way.flavor}
    if (files := daemon.certificates) is not None:
        parameters |= {
            "ca": str(files.ca),
            "cert": str(files.client_certificate),
            "key": str(files.client_key),
        }
    url = daemon.admin_url if way.admin else daemon.url
    return f"{url}?{'&'.join(f'{name}={value}' for name, value in parameters.items())}"


@pytest.fixture
def daemon(way: Way, tmp_path: Path) -> Iterator[RunningDaemon]:
    url = f"local://{tmp_path / 'store'}" if way.backend == "local" else "memory://"
    with running_daemon(url, address=way.address, folder=tmp_path) as daemon:  # type: ignore[arg-type]
        yield daemon


class _Blobs(BlobServiceContract):
    @pytest.fixture
    def service(self, daemon: RunningDaemon, way: Way) -> Iterator[BlobService]:
        self.daemon = daemon
        service = BLOB_SERVICES.open(client_url(daemon, way))
        yield service
        service.close()

    def damage(self, service: BlobService, digest: Digest) -> None:
        damage_blob(self.daemon.services.blobs, digest)

    def test_more_to_keep_than_one_question_holds(self, service: BlobService) -> None:
        there = service.put_many([b"one", b"two"])
        absent = [number.to_bytes(32, "big") for number in range(MAX_DIGESTS + 1)]
        with service.batch() as batch:
            assert batch.keep_many([there[0], *absent, there[1]]) == absent


@pytest.mark.parametrize("way", [WAYS[0]], ids=str)
class TestBlobsOverLocal(_Blobs):
    pass


@pytest.mark.parametrize("way", [WAYS[1]], ids=str)
class TestBlobsOverMemory(_Blobs):
    finds_damage = False


@pytest.mark.parametrize("way", [WAYS[2]], ids=str)
class TestBlobsOverTcp(_Blobs):
    can_list = can_delete = False


@pytest.mark.parametrize("way", [WAYS[3]], ids=str)
class TestBlobsOverTls(_Blobs):
    can_list = can_delete = finds_damage = False


@pytest.mark.parametrize("snix", [False, True])
class TestBlobsOfAForeignServer(BlobServiceContract):
    can_list = can_delete = finds_damage = False

    @pytest.fixture
    def service(self, snix: bool) -> Iterator[BlobService]:
        with foreign_server(snix=snix) as url:
            service = BLOB_SERVICES.open(url)
            yield service
            service.close()


class _Directories(DirectoryServiceContract):
    @pytest.fixture
    def service(self, daemon: RunningDaemon, way: Way) -> Iterator[DirectoryService]:
        self.daemon = daemon
        service = DIRECTORY_SERVICES.open(client_url(daemon, way))
        yield service
        service.close()

    def damage(self, service: DirectoryService, digest: Digest) -> None:
        damage_directory(self.daemon.services.directories, digest)


@pytest.mark.parametrize("way", [WAYS[0]], ids=str)
class TestDirectoriesOverLocal(_Directories):
    pass


@pytest.mark.parametrize("way", [WAYS[1]], ids=str)
class TestDirectoriesOverMemory(_Directories):
    finds_damage = False


@pytest.mark.parametrize("way", [WAYS[2]], ids=str)
class TestDirectoriesOverTcp(_Directories):
    can_list = can_delete = False


@pytest.mark.parametrize("way", [WAYS[3]], ids=str)
class TestDirectoriesOverTls(_Directories):
    can_list = can_delete = finds_damage = False


@pytest.mark.parametrize("snix", [False, True])
class TestDirectoriesOfAForeignServer(DirectoryServiceContract):
    can_list = can_delete = finds_damage = False

    @pytest.fixture
    def service(self, snix: bool) -> Iterator[DirectoryService]:
        with foreign_server(snix=snix) as url:
            service = DIRECTORY_SERVICES.open(url)
            yield service
            service.close()
