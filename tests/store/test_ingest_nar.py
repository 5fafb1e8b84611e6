"""Taking NARs in: what Nix wrote becomes the tree it was, and nothing of a bad one can be seen."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neve.castore.digest import b3_digest
from neve.castore.directory import SizeRule
from neve.castore.node import DirectoryNode, FileNode, Node, SymlinkNode
from neve.errors import InvalidRequest
from neve.nix.nar import NarError
from neve.nix.store_path import StorePath
from neve.store.importer import import_nar
from neve.store.nar.ingest import NarMismatch, ingest_nar, read_pieces
from neve.store.nar_nodes import Nar
from neve.store.services import Services, open_services
from neve.testing.strategies import trees
from neve.tree import WHOLE_FILE_LIMIT, Event, File
from tests.nix.nar.cases import VECTORS, load_bad_nars, load_trees, slices

from .helpers import encoded, everything, leaving_nothing_open, memory_services

TREES = {case.name: case for case in load_trees()}
VECTOR_ITEMS: dict[str, dict[str, Any]] = {
    item["name"]: item for item in json.loads((VECTORS / "trees.json").read_text())
}
BAD_NARS = load_bad_nars()


@pytest.fixture(params=["memory", "local"])
def services(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Services]:
    services = open_services("memory://" if request.param == "memory" else f"local://{tmp_path / 'store'}")
    yield services
    services.close()


def ingest(services: Services, pieces: list[bytes], expected: Nar | None = None) -> tuple[Node, Nar]:
    return ingest_nar(pieces, services.blobs, services.directories, expected=expected)


def nar_of(data: bytes) -> Nar:
    return Nar(len(data), hashlib.sha256(data).digest())


def expected_node(item: dict[str, Any]) -> Node:
    node = item["node"]
    if node["type"] == "symlink":
        return SymlinkNode(node["target"].encode())
    digest = base64.b64decode(node["digest_b64"])
    if node["type"] == "directory":
        return DirectoryNode(digest, node["size"])
    return FileNode(digest, node["size"], node["executable"])


@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize("piece", [1, 7, 4096, None])
def test_what_nix_wrote(name: str, piece: int | None) -> None:
    case = TREES[name]
    services = memory_services()
    data = encoded(case.events)
    node, nar = ingest(services, slices(data, piece or len(data)), nar_of(data))
    assert node == expected_node(VECTOR_ITEMS[name])
    assert nar == nar_of(data)
    digests = {base64.b64decode(one["digest_b64"]) for one in VECTOR_ITEMS[name]["directories"]}
    assert set(services.directories.list()) == digests
    assert b"".join(services.renderer.stream(node)) == data


@settings(max_examples=30, deadline=None)
@given(trees(large_files=True), st.integers(1, 100_000))
def test_there_and_back(events: list[Event], piece: int) -> None:
    services = memory_services()
    data = encoded(events)
    node, nar = ingest(services, slices(data, max(piece, len(data) // 1000)))
    assert nar == nar_of(data)
    assert b"".join(services.renderer.stream(node)) == data


def test_the_size_rule_of_the_store_counts() -> None:
    data = encoded(TREES["same-content"].events)
    services = memory_services()
    node, _ = ingest_nar([data], services.blobs, services.directories, size_rule=SizeRule.SNIX)
    assert isinstance(node, DirectoryNode)
    assert node.size > expected_node(VECTOR_ITEMS["same-content"]).size  # type: ignore[union-attr]
    assert b"".join(services.renderer.stream(node)) == data


@pytest.mark.parametrize("name", BAD_NARS)
@pytest.mark.parametrize("piece", [1, None])
def test_nothing_of_a_bad_nar_can_be_seen(services: Services, name: str, piece: int | None) -> None:
    data = BAD_NARS[name]
    pieces = slices(data, piece or max(len(data), 1))
    path = StorePath(bytes(20), "bad")
    with leaving_nothing_open(), pytest.raises(NarError):
        ingest(services, pieces)
    with pytest.raises(NarError):
        import_nar(services, pieces, store_path=path)
    _, directories, path_infos = everything(services)
    assert (directories, path_infos) == ([], [])
    assert services.nar_nodes.node(hashlib.sha256(data).digest()) is None


def test_a_claimed_length_allocates_nothing(services: Services) -> None:
    claim = encoded([File(b"", False, b"")]).replace(bytes(8), (2**62).to_bytes(8, "little"), 1)
    with pytest.raises(NarError, match=r"found the end of the data"):
        ingest(services, [claim])


def test_an_archive_cut_anywhere(services: Services) -> None:
    data = encoded(TREES["complicated"].events)
    for end in range(0, len(data), 11):
        with pytest.raises(NarError):
            ingest(services, [data[:end]])
    assert everything(services)[1] == []


def test_bytes_after_the_archive(services: Services) -> None:
    data = encoded(TREES["complicated"].events)
    for extra in (b"\0", data):
        with pytest.raises(NarError, match="the end of the archive"):
            ingest(services, [data, extra])
    assert everything(services)[1] == []


def _wrong(nar: Nar) -> dict[str, Nar]:
    return {
        "another hash": nar._replace(sha256=bytes(32)),
        "a smaller size": nar._replace(size=nar.size - 1),
        "a larger size": nar._replace(size=nar.size + 1),
        "no size": nar._replace(size=0),
    }


@pytest.mark.parametrize("what", _wrong(Nar(1, b"")))
def test_another_nar_than_promised(services: Services, what: str) -> None:
    data = encoded(TREES["complicated"].events)
    expected = _wrong(nar_of(data))[what]
    with leaving_nothing_open(), pytest.raises(NarMismatch) as refused:
        ingest(services, slices(data, 64), expected)
    if expected.size < len(data):
        assert str(refused.value) == f"the NAR is longer than the {expected.size} bytes it should have"
    else:
        for part in (len(data), nar_of(data).sha256.hex(), expected.size, expected.sha256.hex()):
            assert str(part) in str(refused.value)
    assert everything(services)[1:] == ([], [])


def test_what_is_too_long_is_not_read_to_the_end() -> None:
    taken = 0

    def endless() -> Iterator[bytes]:
        nonlocal taken
        yield encoded([File(b"", False, bytes(1000))])[:-600]
        while True:
            taken += 1
            yield bytes(100)

    services = memory_services()
    with pytest.raises((NarMismatch, NarError)):
        ingest_nar(endless(), services.blobs, services.directories, expected=Nar(1112, bytes(32)))
    assert taken < 10


def test_a_source_that_fails(services: Services) -> None:
    data = encoded(TREES["complicated"].events)

    def failing() -> Iterator[bytes]:
        yield data[:300]
        raise ConnectionResetError("gone")

    with leaving_nothing_open(), pytest.raises(ConnectionResetError):
        ingest_nar(failing(), services.blobs, services.directories)
    assert everything(services)[1:] == ([], [])


def test_large_files_pass_through(services: Services) -> None:
    contents = bytes(range(256)) * (3 * WHOLE_FILE_LIMIT // 256) + b"end"
    data = encoded_large(contents)
    node, nar = ingest(services, slices(data, 100_000))
    assert node == FileNode(b3_digest(contents), len(contents), True)
    assert nar == nar_of(data)
    reader = services.blobs.open_read(b3_digest(contents))
    assert reader is not None
    assert reader.read() == contents


def encoded_large(contents: bytes) -> bytes:
    from neve.tree import END_FILE, BeginFile, Data

    pieces = [Data(piece) for piece in slices(contents, WHOLE_FILE_LIMIT)]
    return encoded([BeginFile(b"", True, len(contents)), *pieces, END_FILE])


# import_nar


def test_an_import_without_a_path_computes_it(services: Services) -> None:
    for name in ("complicated", "hello", "link"):
        case = TREES[name]
        path_info = import_nar(services, [encoded(case.events)], name=name)
        assert path_info.store_path.absolute == VECTOR_ITEMS[name]["store_path"]
        assert path_info.nar is not None
        assert str(path_info.nar.ca).startswith("fixed:r:sha256:")
        assert services.path_infos.get(path_info.digest) == path_info


def test_an_import_with_a_path_takes_it_as_it_is(services: Services) -> None:
    path, other = StorePath(bytes(20), "input-addressed"), StorePath(b"\1" * 20, "dep")
    deriver = StorePath(b"\2" * 20, "d")
    data = encoded(TREES["complicated"].events)
    path_info = import_nar(services, [data], store_path=path, references=[other, path], deriver=deriver)
    assert path_info.store_path == path
    assert path_info.references == (path.digest, other.digest)
    assert path_info.nar is not None
    assert (path_info.nar.ca, path_info.nar.deriver) == (None, deriver)
    assert (path_info.nar.size, path_info.nar.sha256) == nar_of(data)
    assert services.nar_calculation.calculate_nar(path_info.node) == nar_of(data)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either a store path or a name"),
        ({"name": "x", "store_path": StorePath(bytes(20), "x")}, "either a store path or a name"),
        ({"name": "a b"}, "character ' ' at position 1"),
        ({"name": ".-a"}, "begins with"),
    ],
)
def test_what_an_import_needs(arguments: dict[str, Any], message: str) -> None:
    services = memory_services()
    with pytest.raises(InvalidRequest, match=message):
        import_nar(services, [encoded(TREES["hello"].events)], **arguments)
    assert everything(services) == ([], [], [])


def test_reading_pieces_of_a_file() -> None:
    assert list(read_pieces(io.BytesIO(b"abcdefg"), 3)) == [b"abc", b"def", b"g"]
    assert list(read_pieces(io.BytesIO(b""))) == []
