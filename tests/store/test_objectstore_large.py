"""What is large, where contents are objects and metadata is in a database: in bounded memory. Each has a
process of its own, whose memory nobody else has used."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

_PRELUDE = """
import sys
import neve
from blake3 import blake3
from neve.castore.digest import b3_digest
from neve.castore.directories.urls import DIRECTORY_SERVICES
from neve.castore.directory import DirectoryBuilder

def peak():
    # Of the memory that this process has had, in MiB.
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) // 1024
"""

_BLOB = """
folder, source = sys.argv[1:]
objects = f"objectstore+file://{folder}/objects"

def opened():
    return neve.open(
        blob_service=objects, directory_service=objects, path_info_service=f"local://{folder}/paths"
    )

with opened() as store:
    node = store.import_path(source).node
    assert node.size > 2**32
    assert store.blobs.missing_blobs([node.digest]) == []
with opened() as store:
    hasher, size = blake3(), 0
    with store.blobs.open_read(node.digest) as reader:
        while piece := reader.read(1 << 20):
            hasher.update(piece)
            size += len(piece)
        assert (size, hasher.digest()) == (node.size, node.digest)
        reader.seek(2**32 + 5)
        assert reader.read(4) == b"over"
assert peak() < 400, peak()
print("ok")
"""

_DIRECTORY = """
[url] = sys.argv[1:]
builder = DirectoryBuilder()
for number in range(1_000_000):
    builder.add_file(b"n%06d" % number, b3_digest(b"%d" % number), 1000)
encoded, digest, _ = builder.finish()
del builder
service = DIRECTORY_SERVICES.open(url)
with service.put_multiple() as putter:
    putter.put_built(encoded, digest)
    putter.close()
service.close()
service = DIRECTORY_SERVICES.open(url)
assert list(service.get_recursive_encoded(digest)) == [encoded]
assert service.list() == [digest]
found = service.get(digest)
assert len(found) == 1_000_000
assert found.get(b"n999999").digest == b3_digest(b"999999")
service.close()
# A Directory is one message, and an object for each of its entries when it is looked into.
assert peak() < 1400, peak()
print("ok")
"""


def run(script: str, *arguments: str | Path) -> None:
    command = [sys.executable, "-c", _PRELUDE + script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "ok\n", done.stderr


@pytest.mark.slow
def test_a_blob_over_four_gigabytes(tmp_path: Path) -> None:
    """Most of it is the same chunk, so that the disk need not have its size."""
    source = tmp_path / "source"
    with source.open("wb") as file:
        file.truncate(2**32 + 2**27)
        for place in (0, 2**31 - 10, 3 * 2**30):
            file.seek(place)
            file.write(random.Random(place).randbytes(5_000_000))
        file.seek(2**32 + 5)
        file.write(b"over")
    run(_BLOB, tmp_path / "store", source)


@pytest.mark.slow
def test_a_directory_of_a_million_entries_is_an_object(tmp_path: Path) -> None:
    run(_DIRECTORY, f"objectstore+file://{tmp_path}")


@pytest.mark.slow
@pytest.mark.postgresql
def test_a_directory_of_a_million_entries_is_a_row(database: str) -> None:
    run(_DIRECTORY, database)
