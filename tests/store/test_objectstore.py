"""A whole store with its contents in a bucket: imported, found again by another process, checked."""

from __future__ import annotations

from pathlib import Path

import pytest

import neve
from neve.errors import NeveError
from neve.library import Store
from neve.testing.blob_reading import MIB, incompressible
from tests.s3 import S3Server


def opened(s3: S3Server, bucket: str, tmp_path: Path) -> Store:
    url = s3.url(bucket, "/neve")
    return neve.open(f"local://{tmp_path}/store", blob_service=url, directory_service=url)


def test_a_store_in_a_bucket(each_s3: S3Server, tmp_path: Path) -> None:
    s3 = each_s3
    tree = tmp_path / "tree"
    (tree / "sub" / "deep").mkdir(parents=True)
    (tree / "sub" / "deep" / "file").write_bytes(b"contents")
    (tree / "large").write_bytes(incompressible(2 * MIB))
    (tree / "link").symlink_to("large")
    bucket = s3.bucket()
    with opened(s3, bucket, tmp_path) as store:
        path = store.import_path(tree).store_path
        nar = b"".join(store.nar(path))
    # Another process knows nothing of what this one has held.
    with opened(s3, bucket, tmp_path) as store:
        with store.open(f"{path.absolute}/sub/deep/file") as file:
            assert file.read() == b"contents"
        assert [name for name, _ in store.list_dir(f"{path.absolute}/sub")] == [b"deep"]
        assert b"".join(store.nar(path)) == nar
        assert b"".join(store.nar(path, len(nar) // 2)) == nar[len(nar) // 2 :]
        assert store.import_path(tree).store_path == path
    with opened(s3, s3.bucket(), tmp_path) as empty, pytest.raises(NeveError, match="is not in the store"):
        b"".join(empty.nar(path))
