"""The contracts over a WebDAV server that is not ours.

With its folders cached, as it is by default: told to look anew at each request, it reads all folders beside
the one that is asked for, and a thousand requests take a minute.
"""

from __future__ import annotations

import http.client
import re
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from neve.castore.blobs.base import BlobService
from neve.castore.blobs.urls import BLOB_SERVICES
from neve.castore.directories.base import DirectoryService
from neve.castore.directories.urls import DIRECTORY_SERVICES
from tests.castore.test_objectstore_blobs import ObjectStoreContract as BlobContract
from tests.castore.test_objectstore_directories import ObjectStoreContract as DirectoryContract
from tests.s3 import running

pytestmark = pytest.mark.webdav


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    folder: Path = tmp_path_factory.mktemp("webdav")
    command = ["rclone", "serve", "webdav", str(folder), "--addr", "127.0.0.1:0", "--config", "/dev/null"]
    with running(command, re.compile(rb"started on http://127\.0\.0\.1:([0-9]+)")) as port:
        yield port


@pytest.fixture
def url(port: int) -> str:
    """The address of a new folder, made through the server, which would not see it else."""
    name = uuid.uuid4().hex
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("MKCOL", f"/{name}")
    assert connection.getresponse().status == 201
    connection.close()
    return f"objectstore+http://127.0.0.1:{port}/{name}"


class TestBlobs(BlobContract):
    @pytest.fixture
    def service(self, url: str) -> Iterator[BlobService]:
        service = BLOB_SERVICES.open(url)
        yield service
        service.close()


class TestDirectories(DirectoryContract):
    @pytest.fixture
    def service(self, url: str) -> Iterator[DirectoryService]:
        service = DIRECTORY_SERVICES.open(url)
        yield service
        service.close()
