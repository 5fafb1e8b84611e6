"""Rendering NARs of stored trees: the bytes Nix printed, any range of them, and nothing else read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neve.castore.digest import EMPTY_BLOB, b3_digest, format_digest
from neve.castore.directories.memory import MemoryDirectoryService
from neve.castore.directory import Directory
from neve.castore.node import DirectoryNode, FileNode, Node, SymlinkNode
from neve.errors import Corrupt, InvalidRequest, NotFound
from neve.store.nar import render
from neve.store.nar.render import NarRenderer, RenderingNarCalculation
from neve.store.nar_nodes import MemoryNarNodes, Nar
from neve.store.services import Services, open_services
from neve.testing.strategies import trees
from neve.tree import (
    END_FILE,
    LEAVE_DIRECTORY,
    WHOLE_FILE_LIMIT,
    BeginFile,
    Data,
    EnterDirectory,
    Event,
    File,
    Symlink,
)
from tests.nix.nar.cases import load_trees, nix32

from .helpers import CountingBlobs, ForgedBlobs, encoded, memory_services, put_blob, put_directory, stored

TREES = {case.name: case for case in load_trees()}
SMALL = [name for name, case in TREES.items() if case.nar_size <= 4000]

LARGE = WHOLE_FILE_LIMIT + 12345
LARGE_TREE: list[Event] = [
    EnterDirectory(b""),
    File(b"a", False, b"first"),
    BeginFile(b"b", True, LARGE),
    Data(bytes(range(256)) * (WHOLE_FILE_LIMIT // 256)),
    Data(b"x" * 12345),
    END_FILE,
    EnterDirectory(b"c"),
    File(b"\xff", True, b"in between"),
    LEAVE_DIRECTORY,
    Symlink(b"d", b"a"),
    File(b"e", False, b""),
    File(b"f", False, b"last"),
    LEAVE_DIRECTORY,
]


@pytest.fixture(params=["memory", "local"])
def services(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Services]:
    services = open_services("memory://" if request.param == "memory" else f"local://{tmp_path / 'store'}")
    yield services
    services.close()


@pytest.mark.parametrize("name", TREES)
def test_the_bytes_that_nix_printed(services: Services, name: str) -> None:
    case = TREES[name]
    root = stored(services, case.events)
    nar = b"".join(services.renderer.stream(root))
    assert nar == encoded(case.events)
    assert case.nar is None or nar == case.nar
    assert services.renderer.size(root) == len(nar) == case.nar_size
    assert nix32(hashlib.sha256(nar).digest()) == case.nar_sha256_nix32
    assert services.nar_calculation.calculate_nar(root) == Nar(len(nar), hashlib.sha256(nar).digest())


@pytest.mark.parametrize("name", SMALL)
def test_every_start_and_every_stop(name: str) -> None:
    case = TREES[name]
    services = memory_services()
    root = stored(services, case.events)
    nar = encoded(case.events)
    stream = services.renderer.stream
    for start in range(len(nar) + 3):
        assert b"".join(stream(root, start)) == nar[start:], start
        assert b"".join(stream(root, start, start + 9)) == nar[start : start + 9], start
    for stop in range(len(nar) + 3):
        assert b"".join(stream(root, 0, stop)) == nar[:stop], stop


def test_every_range_of_a_tree() -> None:
    """All starts with all stops, for one with every kind of node and paddings of all sorts."""
    case = TREES["complicated"]
    services = memory_services()
    root = stored(services, case.events)
    nar = encoded(case.events)
    for start in range(0, len(nar), 3):
        for stop in range(start, len(nar) + 1, 5):
            assert b"".join(services.renderer.stream(root, start, stop)) == nar[start:stop], (start, stop)


@settings(max_examples=60, deadline=None)
@given(trees(large_files=True), st.data())
def test_any_range_of_any_tree(events: list[Event], data: st.DataObject) -> None:
    services = memory_services()
    root = stored(services, events)
    nar = encoded(events)
    assert services.renderer.size(root) == len(nar)
    assert b"".join(services.renderer.stream(root)) == nar
    for _ in range(4):
        start = data.draw(st.integers(0, len(nar)))
        stop = data.draw(st.none() | st.integers(start, len(nar) + 5))
        assert b"".join(services.renderer.stream(root, start, stop)) == nar[start:stop]


def test_ranges_around_a_large_file(services: Services) -> None:
    root = stored(services, LARGE_TREE)
    nar = encoded(LARGE_TREE)
    begin = nar.index(bytes(range(256)))
    edges = [begin, begin + 1, begin + WHOLE_FILE_LIMIT, begin + LARGE - 1, begin + LARGE, len(nar)]
    for start in edges:
        for stop in (*edges, None):
            if stop is None or stop >= start:
                assert b"".join(services.renderer.stream(root, start, stop)) == nar[start:stop], (start, stop)


@pytest.mark.parametrize(("start", "stop"), [(-1, None), (-5, -1), (3, 2), (0, -1)])
def test_ranges_that_are_none(start: int, stop: int | None) -> None:
    with pytest.raises(InvalidRequest, match=f"no such range of a NAR: {start} to {stop}"):
        memory_services().renderer.stream(SymlinkNode(b"x"), start, stop)


def test_pieces_are_about_a_megabyte(services: Services) -> None:
    contents = [b"%d" % i * 30_000 for i in range(60)]
    files = [File(b"%03d" % i, False, data) for i, data in enumerate(contents)]
    events: list[Event] = [EnterDirectory(b""), *files, LEAVE_DIRECTORY]
    pieces = list(services.renderer.stream(stored(services, events)))
    assert b"".join(pieces) == encoded(events)
    assert all(render.PIECE_BYTES <= len(piece) < 2 * render.PIECE_BYTES for piece in pieces[:-1])
    assert len(pieces) >= 3


# What is read


def _counting(services: Services) -> tuple[CountingBlobs, NarRenderer]:
    blobs = CountingBlobs(services.blobs)
    return blobs, NarRenderer(blobs, services.directories)


def test_the_size_needs_no_blob(services: Services) -> None:
    root = stored(services, LARGE_TREE)
    blobs, renderer = _counting(services)
    assert renderer.size(root) == len(encoded(LARGE_TREE))
    assert blobs.read_digests == []


def test_blobs_outside_of_a_range_are_not_opened(services: Services) -> None:
    root = stored(services, LARGE_TREE)
    nar = encoded(LARGE_TREE)
    large = bytes(range(256)) * (WHOLE_FILE_LIMIT // 256) + b"x" * 12345
    places = [(nar.index(data), data) for data in (b"first", large, b"in between", b"last")]
    boundaries = sorted(
        {0, len(nar), *(p + d for p, data in places for d in (0, 1, len(data) - 1, len(data)))}
    )
    blobs, renderer = _counting(services)
    for start in boundaries:
        for stop in boundaries:
            if start > stop:
                continue
            blobs.read_digests.clear()
            assert b"".join(renderer.stream(root, start, stop)) == nar[start:stop]
            inside = {b3_digest(d) for p, d in places if p < stop and p + len(d) > start}
            assert set(blobs.read_digests) == (inside if start < stop else set()), (start, stop)


def test_a_reader_that_stops_early_reads_no_further() -> None:
    services = memory_services()
    contents = [b"%d" % i * 30_000 for i in range(200)]
    files = [File(b"%03d" % i, False, data) for i, data in enumerate(contents)]
    root = stored(services, [EnterDirectory(b""), *files, LEAVE_DIRECTORY])
    blobs, renderer = _counting(services)
    stream = renderer.stream(root)
    next(stream)
    assert 0 < len(blobs.read_digests) < 50


def test_a_range_far_behind_looks_into_few_directories() -> None:
    """The sizes of subtrees are known after the first time, so the way there is short."""
    services = memory_services()
    events: list[Event] = [EnterDirectory(b"")]
    for i in range(200):
        events += [EnterDirectory(b"%03d" % i), File(b"f", False, b"%d" % i), LEAVE_DIRECTORY]
    events.append(LEAVE_DIRECTORY)
    root = stored(services, events)
    nar = encoded(events)
    asked: list[bytes] = []

    class Counting(MemoryDirectoryService):
        def get(self, digest: bytes) -> Directory | None:
            asked.append(digest)
            return services.directories.get(digest)

    renderer = NarRenderer(services.blobs, Counting())
    renderer.size(root)
    asked.clear()
    assert b"".join(renderer.stream(root, len(nar) - 200)) == nar[-200:]
    assert len(asked) < 5


# Damage


def _files(*contents: bytes) -> list[Event]:
    files = [File(b"%d" % i, False, data) for i, data in enumerate(contents)]
    return [EnterDirectory(b""), *files, LEAVE_DIRECTORY]


@pytest.mark.parametrize("size", [10, LARGE])
@pytest.mark.parametrize("wrong_by", [-1, 1])
def test_a_blob_of_another_length_than_its_node(services: Services, size: int, wrong_by: int) -> None:
    before = put_blob(services, b"before")
    with services.blobs.open_write() as writer:
        writer.write(b"x" * size)
        digest = writer.close()
    lie = FileNode(digest, size + wrong_by)
    directory = put_directory(services, Directory({b"a": FileNode(before, 6), b"b": lie}))
    for root in (lie, DirectoryNode(directory, 2)):
        got = b""
        with pytest.raises(Corrupt) as refused:  # noqa: PT012 - what came before the error matters
            for piece in services.renderer.stream(root):
                got += piece
        expected = f"blob {format_digest(digest)} has {size} bytes, its node says {size + wrong_by}"
        assert str(refused.value) == expected
        assert b"x" not in got.replace(b"nix-archive", b"")


@pytest.mark.parametrize("forged", [b"x" * 9, b"x" * 11, b"", b"x" * LARGE])
def test_a_backend_that_answers_with_another_length(forged: bytes) -> None:
    services = memory_services()
    root = stored(services, _files(b"0123456789"))
    blobs = ForgedBlobs(services.blobs, {b3_digest(b"0123456789"): forged})
    with pytest.raises(Corrupt, match=f"has {len(forged)} bytes, its node says 10"):
        list(NarRenderer(blobs, services.directories).stream(root))


def test_a_missing_blob_is_named(services: Services) -> None:
    digest = b3_digest(b"nowhere")
    for size in (7, LARGE):
        directory = put_directory(services, Directory({b"a": FileNode(digest, size)}))
        root = DirectoryNode(directory, 1)
        assert services.renderer.size(root) > size
        with pytest.raises(NotFound, match=f"blob {format_digest(digest)}".replace("+", r"\+")):
            list(services.renderer.stream(root))


def test_a_missing_directory_is_named(services: Services) -> None:
    digest = b3_digest(b"nowhere")
    inner = put_directory(services, Directory({b"b": DirectoryNode(digest, 3)}))
    match = f"Directory {format_digest(digest)}".replace("+", r"\+")
    for root in (DirectoryNode(digest, 3), DirectoryNode(inner, 4)):
        with pytest.raises(NotFound, match=match):
            services.renderer.size(root)
        with pytest.raises(NotFound, match=match):
            list(services.renderer.stream(root))
        with pytest.raises(NotFound, match=match):
            list(services.renderer.stream(root, 200))


# Shapes


def test_two_thousand_levels(services: Services) -> None:
    depth = 2000
    events: list[Event] = [EnterDirectory(b"")]
    events += [EnterDirectory(b"d%d" % i) for i in range(depth)]
    events.append(File(b"f", True, b"bottom"))
    events += [LEAVE_DIRECTORY] * (depth + 1)
    root = stored(services, events)
    nar = encoded(events)
    assert services.renderer.size(root) == len(nar)
    assert b"".join(services.renderer.stream(root)) == nar
    middle = nar.index(b"bottom")
    assert b"".join(services.renderer.stream(root, middle, middle + 6)) == b"bottom"


def test_a_wide_directory(services: Services) -> None:
    events: list[Event] = [EnterDirectory(b"")]
    for i in range(3000):
        name = b"%05d" % i
        if i % 3 == 0:
            events += [EnterDirectory(name), Symlink(b"l", b"%d" % i), LEAVE_DIRECTORY]
        else:
            events.append(File(name, i % 2 == 0, b"%d" % i))
    events.append(LEAVE_DIRECTORY)
    root = stored(services, events)
    nar = encoded(events)
    assert services.renderer.size(root) == len(nar)
    assert b"".join(services.renderer.stream(root)) == nar
    assert b"".join(services.renderer.stream(root, len(nar) // 2)) == nar[len(nar) // 2 :]


def test_shared_subtrees() -> None:
    """Each level holds the one below it twice: 2^12 files of one blob, 13 Directories."""
    services = memory_services()
    node: Node = FileNode(put_blob(services, b"leaf"), 4)
    events: list[Event] = [File(b"", False, b"leaf")]
    for _ in range(12):
        directory = Directory({b"a": node, b"b": node})
        node = DirectoryNode(put_directory(services, directory), directory.size())
        events = [EnterDirectory(b""), *_renamed(events, b"a"), *_renamed(events, b"b"), LEAVE_DIRECTORY]
    nar = encoded(events)
    assert services.renderer.size(node) == len(nar)
    assert b"".join(services.renderer.stream(node)) == nar
    assert b"".join(services.renderer.stream(node, 54321, 65432)) == nar[54321:65432]


def _renamed(events: list[Event], name: bytes) -> list[Event]:
    first: Any = events[0]
    return [first._replace(name=name), *events[1:]]


def test_the_size_of_a_tree_that_nobody_could_render() -> None:
    """Every level doubles, so the NAR passes 64 bits; only the Directories are looked at."""
    services = memory_services()
    node: Node = FileNode(EMPTY_BLOB, 0)
    for _ in range(63):
        directory = Directory({b"a": node, b"b": node})
        node = DirectoryNode(put_directory(services, directory), directory.size())
    size = services.renderer.size(node)
    assert size > 2**70
    assert len(b"".join(services.renderer.stream(node, size - 1000))) == 1000


def test_sizes_are_forgotten_when_they_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render, "_MAX_SIZES", 3)
    services = memory_services()
    for _ in range(3):
        for case in TREES.values():
            root = stored(services, case.events)
            assert services.renderer.size(root) == case.nar_size
            assert b"".join(services.renderer.stream(root, 100)) == encoded(case.events)[100:]
    deepest = max(sum(isinstance(event, EnterDirectory) for event in case.events) for case in TREES.values())
    assert len(services.renderer._sizes) <= 3 + deepest


# calculate_nar


def test_a_nar_is_calculated_once(services: Services) -> None:
    root = stored(services, LARGE_TREE)
    blobs, renderer = _counting(services)
    calculation = RenderingNarCalculation(renderer, services.nar_nodes)
    nar = calculation.calculate_nar(root)
    assert nar == Nar(len(encoded(LARGE_TREE)), hashlib.sha256(encoded(LARGE_TREE)).digest())
    assert blobs.read_digests
    blobs.read_digests.clear()
    assert calculation.calculate_nar(root) == nar
    assert blobs.read_digests == []
    assert services.nar_nodes.node(nar.sha256) == (root, nar.size)


def test_a_failed_calculation_is_not_remembered() -> None:
    services = memory_services()
    digest = b3_digest(b"later")
    root = FileNode(digest, 5)
    with pytest.raises(NotFound):
        services.nar_calculation.calculate_nar(root)
    put_blob(services, b"later")
    assert services.nar_calculation.calculate_nar(root).size == 120


def test_calculating_in_a_store_that_is_open_read_only(tmp_path: Path) -> None:
    services = open_services(f"local://{tmp_path / 'store'}")
    root = stored(services, LARGE_TREE)
    services.close()
    services = open_services(f"local://{tmp_path / 'store'}?mode=ro")
    assert services.nar_calculation.calculate_nar(root).size == len(encoded(LARGE_TREE))
    assert services.nar_nodes.nar(root) is None
    services.close()


def test_only_what_was_computed_is_trusted() -> None:
    """The map answers by node: another node with the same blob is another NAR."""
    services = memory_services()
    nar_nodes = MemoryNarNodes()
    calculation = RenderingNarCalculation(services.renderer, nar_nodes)
    digest = put_blob(services, b"x")
    plain, executable = FileNode(digest, 1), FileNode(digest, 1, executable=True)
    assert calculation.calculate_nar(plain) != calculation.calculate_nar(executable)


def test_a_large_blob_behind_a_node_that_says_it_is_small_is_not_loaded(services: Services) -> None:
    contents = b"large" * 300_000
    digest = put_blob(services, contents)
    node = FileNode(digest, 10)
    with pytest.raises(Corrupt, match="has 1500000 bytes, its node says 10"):
        b"".join(services.renderer.stream(node))
