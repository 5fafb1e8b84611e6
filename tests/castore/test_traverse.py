"""Going through stored trees: down to one node, and over all of it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings

from neve.castore import traverse
from neve.castore.blobs.base import BlobReader
from neve.castore.blobs.chunks import BytesReader
from neve.castore.blobs.memory import MemoryBlobService
from neve.castore.digest import EMPTY_BLOB, Digest, b3_digest, format_digest
from neve.castore.directories.memory import MemoryDirectoryService
from neve.castore.directory import Directory
from neve.castore.node import DirectoryNode, FileNode, Node, SymlinkNode
from neve.castore.traverse import (
    Children,
    descend,
    get_directory,
    is_whole,
    large_file,
    tree_events,
    with_contents,
)
from neve.errors import Corrupt, NotFound
from neve.store.services import Services
from neve.testing.strategies import trees
from neve.tree import (
    BATCH_BYTES,
    BATCH_EVENTS,
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
from tests.castore.ingest.disk import joined
from tests.nix.nar.cases import Case, load_trees
from tests.store.helpers import (
    CountingBlobs,
    memory_services,
    put_blob,
    put_directory,
    stored,
)

TREE: list[Event] = [
    EnterDirectory(b""),
    EnterDirectory(b"a"),
    EnterDirectory(b"\xff"),
    File(b"f", True, b"deep"),
    LEAVE_DIRECTORY,
    LEAVE_DIRECTORY,
    File(b"f", False, b"file"),
    Symlink(b"l", b"a"),
    LEAVE_DIRECTORY,
]


@pytest.fixture
def services() -> Services:
    return memory_services()


def as_digest(digest: Digest) -> str:
    return format_digest(digest).replace("+", r"\+")


# descend


def test_descending(services: Services) -> None:
    root = stored(services, TREE)

    def at(*components: bytes) -> Node | None:
        return descend(services.directories, root, components)

    assert at() == root
    assert at(b"f") == FileNode(b3_digest(b"file"), 4)
    assert at(b"a", b"\xff", b"f") == FileNode(b3_digest(b"deep"), 4, True)
    assert isinstance(at(b"a", b"\xff"), DirectoryNode)
    assert at(b"l") == SymlinkNode(b"a")


@pytest.mark.parametrize(
    "components",
    [(b"x",), (b"a", b"x"), (b"x", b"y"), (b"f", b"x"), (b"l", b"\xff"), (b"a", b"\xff", b"f", b"x")],
)
def test_nothing_is_there(services: Services, components: Sequence[bytes]) -> None:
    """Neither below a file nor below a link, even one to a directory."""
    assert descend(services.directories, stored(services, TREE), components) is None


@pytest.mark.parametrize("root", [FileNode(EMPTY_BLOB, 0), SymlinkNode(b"x")])
def test_roots_that_are_no_directory(services: Services, root: Node) -> None:
    assert descend(services.directories, root, ()) == root
    assert descend(services.directories, root, (b"x",)) is None


def test_a_missing_directory_is_an_inconsistency(services: Services) -> None:
    gone = DirectoryNode(b3_digest(b"gone"), 5)
    root = DirectoryNode(put_directory(services, Directory({b"a": gone})), 6)
    # What is referred to is there; what lies in it nobody can tell.
    assert descend(services.directories, root, (b"a",)) == gone
    for node, way in ((root, (b"a", b"x")), (gone, (b"x",))):
        with pytest.raises(NotFound, match=f"Directory {as_digest(gone.digest)}"):
            descend(services.directories, node, way)
    with pytest.raises(NotFound, match=f"Directory {as_digest(gone.digest)}"):
        get_directory(services.directories, gone.digest)


def test_descending_two_thousand_levels(services: Services) -> None:
    node: Node = FileNode(EMPTY_BLOB, 0)
    for _ in range(2000):
        directory = Directory({b"d": node})
        node = DirectoryNode(put_directory(services, directory), directory.size())
    assert descend(services.directories, node, [b"d"] * 2000) == FileNode(EMPTY_BLOB, 0)
    assert descend(services.directories, node, [b"d"] * 2001) is None


# tree_events


@pytest.mark.parametrize("case", load_trees(), ids=lambda case: case.name)
def test_what_goes_in_comes_out(services: Services, case: Case) -> None:
    root = stored(services, case.events)
    found = [e for batch in tree_events(services.blobs, services.directories, root) for e in batch]
    assert found == case.events


@settings(max_examples=30, deadline=None)
@given(trees(large_files=True))
def test_any_tree(events: list[Event]) -> None:
    services = memory_services()
    root = stored(services, events)
    found = [e for batch in tree_events(services.blobs, services.directories, root) for e in batch]
    assert joined(found) == joined(events)
    assert [type(e) for e in found if not isinstance(e, Data)] == [
        type(e) for e in events if not isinstance(e, Data)
    ]


def test_batches_are_bounded(services: Services) -> None:
    events: list[Event] = [EnterDirectory(b"")]
    events += [Symlink(b"a%05d" % i, b"x") for i in range(2 * BATCH_EVENTS)]
    events += [File(b"b%d" % i, False, b"%d" % i * (WHOLE_FILE_LIMIT // 2)) for i in range(9)]
    events += [BeginFile(b"c", False, 6 * WHOLE_FILE_LIMIT)]
    events += [Data(bytes([i]) * WHOLE_FILE_LIMIT) for i in range(6)]
    events += [END_FILE, LEAVE_DIRECTORY]
    root = stored(services, events)
    batches = list(tree_events(services.blobs, services.directories, root))
    assert [event for batch in batches for event in batch] == events
    for batch in batches:
        assert 0 < len(batch) <= BATCH_EVENTS
        size = sum(len(e.contents) for e in batch if isinstance(e, File))
        assert size + sum(len(e.data) for e in batch if isinstance(e, Data)) < BATCH_BYTES + WHOLE_FILE_LIMIT


def test_contents_are_read_as_they_are_asked_for(services: Services) -> None:
    files = [File(b"%03d" % i, False, b"%d" % i * 30_000) for i in range(200)]
    root = stored(services, [EnterDirectory(b""), *files, LEAVE_DIRECTORY])
    blobs = CountingBlobs(services.blobs)
    next(tree_events(blobs, services.directories, root))
    assert 0 < len(blobs.read_digests) < 50


@pytest.mark.parametrize("size", [10, WHOLE_FILE_LIMIT + 10])
@pytest.mark.parametrize("wrong_by", [-1, 1])
def test_a_length_that_is_not_the_nodes(services: Services, size: int, wrong_by: int) -> None:
    digest = put_blob(services, b"x" * size)
    entries: dict[bytes, Node] = {b"%04d" % i: SymlinkNode(b"l") for i in range(BATCH_EVENTS - 2)}
    directory = Directory(entries | {b"x": FileNode(digest, size + wrong_by)})
    root = DirectoryNode(put_directory(services, directory), len(directory))
    found: list[Event] = []
    with pytest.raises(Corrupt, match=f"has {size} bytes, its node says {size + wrong_by}"):  # noqa: PT012
        for batch in tree_events(services.blobs, services.directories, root):
            found += batch
    assert not any(isinstance(event, File | BeginFile | Data) for event in found)


@pytest.mark.parametrize("size", [7, WHOLE_FILE_LIMIT + 7])
def test_a_missing_blob(services: Services, size: int) -> None:
    gone = b3_digest(b"gone")
    directory = Directory({b"a": FileNode(gone, size)})
    root = DirectoryNode(put_directory(services, directory), 1)
    with pytest.raises(NotFound, match=f"blob {as_digest(gone)}"):
        list(tree_events(services.blobs, services.directories, root))


def test_a_missing_subdirectory(services: Services) -> None:
    gone = b3_digest(b"gone")
    children: dict[bytes, Node] = {b"a": DirectoryNode(EMPTY_BLOB, 0), b"b": DirectoryNode(gone, 1)}
    services.directories.put(Directory())
    root = DirectoryNode(put_directory(services, Directory(children)), 3)
    with pytest.raises(NotFound, match=f"Directory {as_digest(gone)}"):
        list(tree_events(services.blobs, services.directories, root))


# Children


class Asked(MemoryDirectoryService):
    """Notes what is asked for together."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[list[Digest]] = []

    def get_many(self, digests: Sequence[Digest]) -> dict[Digest, Directory]:
        self.calls.append(list(digests))
        return super().get_many(digests)


def parent_of(
    directories: MemoryDirectoryService, sizes: Sequence[int]
) -> tuple[Directory, list[DirectoryNode]]:
    """A Directory with children that claim these sizes."""
    nodes = []
    for i, size in enumerate(sizes):
        child = Directory({b"%06d" % i: SymlinkNode(b"x")})
        nodes.append(DirectoryNode(directories.put(child), size))
    return Directory({b"%06d" % i: node for i, node in enumerate(nodes)}), nodes


def test_children_are_fetched_together() -> None:
    directories = Asked()
    directory, nodes = parent_of(directories, [1] * 200)
    children = Children(directories, directory)
    for i, node in enumerate(nodes):
        assert children.open(node).get(b"%06d" % i) == SymlinkNode(b"x")
    assert len(directories.calls) <= 200 / traverse._CHILDREN_AT_ONCE + 1
    assert sum(map(len, directories.calls)) == 200


def test_what_is_held_at_once_is_bounded() -> None:
    """Directories with much below them come alone, however many there are."""
    directories = Asked()
    much = traverse._NODES_AHEAD
    directory, nodes = parent_of(directories, [much, 1, 1, much - 1, much, 2 * much, 1, 1, 1, 2 * much])
    children = Children(directories, directory)
    for i, node in enumerate(nodes):
        assert children.open(node).get(b"%06d" % i) == SymlinkNode(b"x")
    size_of = {node.digest: node.size for node in nodes}
    for call in directories.calls:
        assert len(call) == 1 or sum(size_of[digest] for digest in call) <= much
    assert max(map(len, directories.calls)) > 1


def test_children_that_are_equal_or_skipped() -> None:
    directories = Asked()
    same = DirectoryNode(directories.put(Directory()), 0)
    directory = Directory({b"%d" % i: same for i in range(9)})
    children = Children(directories, directory)
    assert all(children.open(same) == Directory() for _ in range(9))
    assert len(directories.calls) == 1
    wide, nodes = parent_of(directories, [1] * 300)
    children = Children(directories, wide)
    for i in (0, 250, 299):
        assert children.open(nodes[i]).get(b"%06d" % i) == SymlinkNode(b"x")


# with_contents, large_file


def test_items_and_contents_stay_in_step(services: Services) -> None:
    digests = services.blobs.put_many([b"one", b"two"])
    one, two = (FileNode(digest, 3) for digest in digests)
    items: list[FileNode | None] = [None, one, None, None, two, one, FileNode(EMPTY_BLOB, 0), None]
    found = list(with_contents(services.blobs, items, lambda item: item))
    assert found == list(zip(items, [b"", b"one", b"", b"", b"two", b"one", b"", b""], strict=True))


def test_parts_of_a_large_file(services: Services) -> None:
    contents = bytes(range(256)) * 5000
    node = FileNode(put_blob(services, contents), len(contents))
    for start, stop in ((0, None), (1, None), (len(contents), None), (5, 5), (700_000, 700_001), (3, 10**9)):
        pieces = list(large_file(services.blobs, node, start, stop))
        assert b"".join(pieces) == contents[start:stop]
        assert all(0 < len(piece) <= WHOLE_FILE_LIMIT for piece in pieces)


def test_a_reader_that_ends_early_is_noticed() -> None:
    """Even one that claims the right length."""
    length = 2 * WHOLE_FILE_LIMIT

    class Lying(BytesReader):
        @property
        def size(self) -> int:
            return length

    class Backend(MemoryBlobService):
        def open_read(self, digest: Digest) -> BlobReader:
            return Lying(b"x" * (length - 1))

    pieces = large_file(Backend(), FileNode(bytes(32), length))
    assert len(next(pieces)) == WHOLE_FILE_LIMIT
    with pytest.raises(Corrupt, match=f"has {length - 1} bytes, its node says {length}"):
        list(pieces)


def test_what_is_whole(services: Services) -> None:
    root = stored(services, TREE)

    def whole(node: Node) -> bool:
        return is_whole(services.blobs, services.directories, node)

    assert whole(root)
    assert whole(SymlinkNode(b"nowhere"))
    assert whole(FileNode(EMPTY_BLOB, 0))
    assert whole(FileNode(b3_digest(b"deep"), 4))
    assert not whole(FileNode(bytes(32), 8))
    assert not whole(DirectoryNode(bytes(32), 8))
    services.blobs.delete_many([b3_digest(b"deep")])
    assert not whole(root)
    put_blob(services, b"deep")
    assert whole(root)
    assert isinstance(root, DirectoryNode)
    below = descend(services.directories, root, [b"a", b"\xff"])
    assert isinstance(below, DirectoryNode)
    services.directories.delete_many([below.digest])
    assert not whole(root)
