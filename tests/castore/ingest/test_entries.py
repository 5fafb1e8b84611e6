"""The ingester: events to blobs, Directories and a root; nothing of a broken tree becomes visible."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neve.castore.blobs.base import BlobService
from neve.castore.digest import EMPTY_BLOB, b3_digest
from neve.castore.directories.base import DirectoryService
from neve.castore.directory import Directory, SizeRule
from neve.castore.ingest.entries import Ingester
from neve.castore.node import DirectoryNode, FileNode, Node, SymlinkNode
from neve.errors import InvalidRequest
from neve.store.services import Services, open_services
from neve.testing.strategies import trees
from neve.tree import (
    END_FILE,
    LEAVE_DIRECTORY,
    BeginFile,
    Data,
    EnterDirectory,
    Event,
    File,
    Symlink,
)
from tests.store.helpers import leaving_nothing_open, memory_services, stored


@pytest.fixture(params=["memory", "local"])
def services(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Services]:
    services = open_services("memory://" if request.param == "memory" else f"local://{tmp_path / 'store'}")
    services.blobs.put_many([b"the pack is opened by the first write"])
    yield services
    services.close()


def ingest(services: Services, batches: Sequence[Sequence[Event]], rule: SizeRule = SizeRule.EXACT) -> Node:
    with Ingester(services.blobs, services.directories, size_rule=rule) as ingester:
        for batch in batches:
            ingester.feed(batch)
        return ingester.finish()


TREE: list[Event] = [
    EnterDirectory(b""),
    EnterDirectory(b"a"),
    File(b"x", True, b"tool"),
    LEAVE_DIRECTORY,
    BeginFile(b"b", False, 6),
    Data(b"abc"),
    Data(b"def"),
    END_FILE,
    Symlink(b"c", b"a"),
    LEAVE_DIRECTORY,
]


@pytest.mark.parametrize("rule", SizeRule)
def test_a_tree(services: Services, rule: SizeRule) -> None:
    inner = Directory({b"x": FileNode(b3_digest(b"tool"), 4, True)})
    entries: dict[bytes, Node] = {
        b"a": DirectoryNode(inner.digest, inner.size(rule)),
        b"b": FileNode(b3_digest(b"abcdef"), 6),
        b"c": SymlinkNode(b"a"),
    }
    root = Directory(entries)
    with leaving_nothing_open():
        assert ingest(services, [TREE], rule) == DirectoryNode(root.digest, root.size(rule))
    assert services.directories.get(root.digest) == root
    assert services.directories.get(inner.digest) == inner
    assert services.blobs.read(b3_digest(b"abcdef")) == b"abcdef"
    assert services.blobs.read(b3_digest(b"tool")) == b"tool"


@settings(max_examples=30, deadline=None)
@given(trees(large_files=True), st.integers(1, 5))
def test_batches_may_be_cut_anywhere(events: list[Event], size: int) -> None:
    services = memory_services()
    root = stored(services, events)
    assert ingest(services, [events[at : at + size] for at in range(0, len(events), size)]) == root


@pytest.mark.parametrize(
    ("event", "node"),
    [
        (File(b"", True, b""), FileNode(EMPTY_BLOB, 0, True)),
        (File(b"any name", False, b"x"), FileNode(b3_digest(b"x"), 1)),
        (Symlink(b"", b"x"), SymlinkNode(b"x")),
    ],
)
def test_roots_that_are_no_directory(services: Services, event: Event, node: Node) -> None:
    assert ingest(services, [[event]]) == node
    assert list(services.directories.list()) == []


def in_root(*events: Event) -> list[Event]:
    return [EnterDirectory(b""), *events, LEAVE_DIRECTORY]


BAD: dict[str, tuple[list[Event], str]] = {
    "nothing": ([], "not complete"),
    "not left": ([EnterDirectory(b"")], "not complete"),
    "left twice": (in_root(LEAVE_DIRECTORY), "a directory ends that was not entered"),
    "left at once": ([LEAVE_DIRECTORY], "a directory ends that was not entered"),
    "two files": ([File(b"", False, b"a"), File(b"", False, b"b")], "more than one root"),
    "two links": ([Symlink(b"", b"a"), Symlink(b"", b"b")], "more than one root"),
    "a folder after the root": ([Symlink(b"", b"a"), *in_root()], "more than one root"),
    "half a folder after the root": ([Symlink(b"", b"a"), EnterDirectory(b"")], "not complete"),
    "contents of nothing": ([Data(b"x")], "contents come outside of a file"),
    "the end of nothing": (in_root(END_FILE), "a file ends that was not begun"),
    "a file in a file": (
        in_root(BeginFile(b"a", False, 1), BeginFile(b"b", False, 1)),
        "begins inside another",
    ),
    "a file without end": ([BeginFile(b"", False, 1), Data(b"x")], "not complete"),
    "too short": (
        in_root(BeginFile(b"a", False, 4), Data(b"abc"), END_FILE),
        "b'a' has 3 bytes, 4 were announced",
    ),
    "too long": (
        in_root(BeginFile(b"a", False, 2), Data(b"abc"), END_FILE),
        "b'a' has 3 bytes, 2 were announced",
    ),
    "unsorted": (in_root(File(b"b", False, b""), File(b"a", False, b"")), "names must ascend"),
    "twice": (in_root(File(b"a", False, b""), Symlink(b"a", b"x")), "occurs twice"),
    "a folder out of order": (
        in_root(File(b"b", False, b""), EnterDirectory(b"a"), LEAVE_DIRECTORY),
        "must ascend",
    ),
    "a slash": (in_root(File(b"a/b", False, b"")), "contains a slash"),
    "dots": (in_root(Symlink(b"..", b"x")), "reserved"),
    "no name": (in_root(EnterDirectory(b""), LEAVE_DIRECTORY), "a name is empty"),
    "a long name": (in_root(File(b"n" * 256, False, b"")), "longer than 255"),
    "no target": (in_root(Symlink(b"a", b"")), "target has 0 bytes"),
    "no target at the root": ([Symlink(b"", b"")], "target has 0 bytes"),
    "a long target": ([Symlink(b"", b"t" * 4096)], "target has 4096 bytes"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_no_tree(services: Services, what: str) -> None:
    events, message = BAD[what]
    with leaving_nothing_open(), pytest.raises(InvalidRequest, match=message):
        ingest(services, [[event] for event in events])
    with leaving_nothing_open(), pytest.raises(InvalidRequest, match=message):
        ingest(services, [events])
    assert list(services.directories.list()) == []


def test_giving_up(services: Services) -> None:
    """Directories become visible all together at the end, or not at all."""
    for count in range(len(TREE) + 1):
        with leaving_nothing_open(), Ingester(services.blobs, services.directories) as ingester:
            ingester.feed(TREE[:count])
        assert list(services.directories.list()) == []
    assert isinstance(ingest(services, [TREE]), DirectoryNode)
    assert len(services.directories.list()) == 2


def test_the_batch_is_closed_whatever_fails() -> None:
    services = memory_services()
    closed: list[str] = []

    class Blobs(type(services.blobs)):  # type: ignore[misc]
        def batch(self) -> object:
            batch = super().batch()
            batch.close = lambda: closed.append("batch")
            return batch

    class Directories(type(services.directories)):  # type: ignore[misc]
        def put_multiple(self) -> object:
            putter = super().put_multiple()

            def failing() -> None:
                raise OSError("cannot remove the spool")

            putter.abandon = failing
            return putter

    blobs: BlobService = Blobs()
    directories: DirectoryService = Directories()
    with pytest.raises(OSError, match="spool"), Ingester(blobs, directories) as ingester:
        ingester.feed(TREE[:4])
    assert closed == ["batch"]
