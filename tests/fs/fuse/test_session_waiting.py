"""Sessions over backends that let one wait, fail, or are given up on."""

from __future__ import annotations

import errno
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from neve.castore.digest import b3_digest, format_digest
from neve.castore.directory import Directory
from neve.castore.node import DirectoryNode, FileNode
from neve.errors import Corrupt, LimitExceeded, PermissionDenied, Unavailable, Unsupported
from neve.fs.fuse.opcodes import Opcode
from neve.fs.fuse.session import Session, SessionOptions
from neve.fs.tree import Tree
from neve.store.root_nodes import PathInfoRoots
from neve.store.services import Services, open_services
from neve.tree import END_FILE, LEAVE_DIRECTORY, BeginFile, Data, EnterDirectory
from tests.fs.services import Gate, GatedBlobs, GatedDirectories, GatedRoots
from tests.logged import logged
from tests.store.helpers import stored

from .asking import Asker, Pending, read_body
from .conftest import NAME, PATH, put_path

INTERRUPTED = (errno.EINTR, b"")


class Gated:
    """A session over services with a gate before each."""

    def __init__(self, services: Services, **options: Any) -> None:
        self.blobs, self.directories, self.roots = Gate(), Gate(), Gate()
        tree = Tree(
            GatedBlobs(services.blobs, self.blobs),
            GatedDirectories(services.directories, self.directories),
            GatedRoots(PathInfoRoots(services.path_infos), self.roots),
        )
        self.session = Session(tree, SessionOptions(**options))
        self.asker = Asker(self.session)

    @property
    def batches(self) -> list[int]:
        """How many Directories were asked for together."""
        return [len(digests) for digests in self.directories.calls if isinstance(digests, tuple)]

    def open(self) -> None:
        for gate in (self.blobs, self.directories, self.roots):
            gate.error = None
            gate.open()

    def interrupt(self, pending: Pending) -> Pending:
        return self.asker.send(Opcode.INTERRUPT, 0, struct.pack("<Q", pending.unique))


@pytest.fixture
def gated(services: Services) -> Iterator[Gated]:
    gated = Gated(services)
    yield gated
    gated.open()
    gated.session.close()
    assert gated.session.wait_until_idle(60)


def test_who_waits_for_a_backend_keeps_nobody_else_waiting(gated: Gated) -> None:
    asker = gated.asker
    text = asker.walk(NAME, b"text").node
    assert asker.read(text) == b"Hello\n"
    gated.roots.close()
    waiting = [asker.send(Opcode.LOOKUP, 1, b"%032d-x\0" % number) for number in range(10)]
    assert asker.read(text) == b"Hello\n"
    gated.roots.open()
    assert [one.answer() for one in waiting] == [(errno.ENOENT, b"")] * 10


def test_an_interrupted_request_is_answered_at_once(gated: Gated) -> None:
    asker = gated.asker
    gated.roots.close()
    waiting = asker.send(Opcode.LOOKUP, 1, NAME + b"\0")
    gated.roots.wait_for_call()
    assert not waiting.is_answered
    assert gated.interrupt(waiting).answer() is None
    assert waiting.answer() == INTERRUPTED
    # It is answered once: a second interrupt, and what comes after all, change nothing.
    assert gated.interrupt(waiting).answer() == (errno.EAGAIN, b"")
    gated.roots.open()
    assert gated.session.wait_until_idle(60)
    assert waiting.answer() == INTERRUPTED
    # The kernel was told of no inode, so none is kept.
    assert gated.session._kernel is not None
    assert len(gated.session._kernel.inodes) == 1
    assert not gated.session._under_way


def test_an_interrupt_that_comes_too_early_is_to_be_repeated(gated: Gated) -> None:
    interrupt = gated.asker.send(Opcode.INTERRUPT, 0, struct.pack("<Q", 424242))
    assert interrupt.answer() == (errno.EAGAIN, b"")


def test_what_nobody_wants_any_more_is_not_fetched(services: Services) -> None:
    gated = Gated(services, threads=1)
    gated.roots.close()
    first = gated.asker.send(Opcode.LOOKUP, 1, NAME + b"\0")
    gated.roots.wait_for_call()
    waiting = [gated.asker.send(Opcode.LOOKUP, 1, b"%032d-x\0" % number) for number in range(5)]
    for one in waiting[1:]:
        gated.interrupt(one)
        assert one.answer() == INTERRUPTED
    gated.open()
    answer = first.answer()
    assert answer is not None
    assert answer.error == 0
    assert waiting[0].answer() == (errno.ENOENT, b"")
    assert gated.roots.calls == [NAME, b"%032d-x" % 0]
    gated.session.close()


def test_looking_up_many_names_leaves_threads_to_read(services: Services) -> None:
    """Looking a name up may fetch all that it stands for."""
    gate = Gate()
    tree = Tree(services.blobs, services.directories, GatedRoots(PathInfoRoots(services.path_infos), gate))
    session = Session(tree, SessionOptions(threads=4))
    asker = Asker(session)
    root = asker.lookup(NAME)
    gate.close()
    looking = [asker.send(Opcode.LOOKUP, 1, b"%032d-name\0" % number) for number in range(8)]
    gate.wait_for_call()
    assert asker.read(asker.lookup(b"text", root.node).node) == b"Hello\n"
    assert not any(pending.is_answered for pending in looking)
    gate.open()
    for pending in looking:
        answer = pending.answer()
        assert answer is not None
        assert answer.error == errno.ENOENT
    session.close()


def test_many_who_want_the_same_take_one_thread(services: Services) -> None:
    gated = Gated(services, threads=2)
    asker = gated.asker
    text, other = asker.walk(NAME, b"text").node, asker.walk(NAME, b"file-000").node
    gated.blobs.close()
    waiting = [asker.send(Opcode.READ, text, read_body(0, 100)) for _ in range(20)]
    gated.blobs.wait_for_call()
    # The other thread is free for something else.
    gated.roots.close()
    lookup = asker.send(Opcode.LOOKUP, 1, b"0" * 32 + b"-x\0")
    gated.roots.wait_for_call()
    gated.interrupt(waiting[3])
    gated.open()
    assert lookup.answer() == (errno.ENOENT, b"")
    expected = [(0, b"Hello\n")] * 20
    expected[3] = INTERRUPTED
    assert [one.answer() for one in waiting] == expected
    assert gated.blobs.calls.count(("read", b3_digest(b"Hello\n"))) == 1
    assert asker.read(other) == b"0" * 100
    gated.session.close()


def test_what_waits_when_it_is_closed_is_answered(services: Services) -> None:
    gated = Gated(services, threads=1)
    gated.roots.close()
    waiting = [gated.asker.send(Opcode.LOOKUP, 1, b"%032d-x\0" % number) for number in range(3)]
    gated.roots.wait_for_call()
    with logged() as lines:
        gated.session.close()
        assert [one.answer() for one in waiting] == [(errno.EIO, b"")] * 3
        assert gated.asker.send(Opcode.LOOKUP, 1, b"0" * 32 + b"-x\0").answer() == (errno.EIO, b"")
    assert lines == []
    # The one call that was made goes on as long as it likes.
    assert not gated.session.wait_until_idle(0)
    gated.open()
    assert gated.session.wait_until_idle(60)
    gated.session.close()


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (Unavailable("nobody answers"), errno.EIO),
        (Corrupt("it is damaged"), errno.EIO),
        (LimitExceeded("too much"), errno.EIO),
        (PermissionDenied("not for you"), errno.EACCES),
        (Unsupported("not here"), errno.EOPNOTSUPP),
    ],
)
def test_errors_of_backends(gated: Gated, error: Any, number: int) -> None:
    """They are told the kernel and, once, the log; and the next request asks again."""
    asker = gated.asker
    text = asker.walk(NAME, b"text").node
    for gate in (gated.blobs, gated.directories, gated.roots):
        gate.error = error
    with logged() as lines:
        assert asker.error(Opcode.LOOKUP, 1, b"0" * 32 + b"-x\0") == number
        assert asker.error(Opcode.READ, text, read_body(0, 100)) == number
    assert lines == [f"LOOKUP of {b'0' * 32 + b'-x'!r}, inode 1: {error}"]
    gated.open()
    assert asker.read(text) == b"Hello\n"


def test_an_error_of_a_neighbour_is_not_told(gated: Gated) -> None:
    """Contents that are fetched along with others may be missing: that is for him who reads them."""
    asker = gated.asker
    top = asker.lookup(NAME).node
    nodes = {one.name: one.entry.node for one in asker.list(top, plus=True) if one.entry}
    with logged() as lines:
        for number in range(0, 200, 7):
            assert asker.read(nodes[b"file-%03d" % number]) == b"%d" % number * 100
    assert lines == []


def test_bugs_are_told_and_answered(gated: Gated, monkeypatch: pytest.MonkeyPatch) -> None:
    text = gated.asker.walk(NAME, b"text").node

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    with logged() as lines:
        monkeypatch.setattr(gated.session._tree.contents, "small_at_hand", fail)
        assert gated.asker.error(Opcode.READ, text, read_body(0, 100)) == errno.EIO
        monkeypatch.undo()
        monkeypatch.setattr(GatedBlobs, "read_many", fail)
        assert gated.asker.error(Opcode.READ, text, read_body(0, 100)) == errno.EIO
    assert lines[:2] == ["internal error, please report it"] * 2


# Messages that nobody asked for.


def test_files_that_are_read_in_order_come_before_they_are_asked_for(services: Services) -> None:
    sent: list[bytes] = []
    gated = Gated(services)
    gated.session.may_notify(lambda parts: sent.append(b"".join(parts)))
    asker = gated.asker
    asker.init()
    top = asker.lookup(NAME).node
    nodes = {one.name: one.entry.node for one in asker.list(top, 1 << 20, plus=True) if one.entry}
    numbers = {nodes[b"file-%03d" % number]: b"%d" % number * 100 for number in range(200)}
    known: set[int] = set()
    asked = 0
    for number, contents in numbers.items():
        for message in list(sent):
            length, code, unique, node, offset, size, _ = struct.unpack_from("<IiQQQII", message)
            assert (length, code, unique, offset) == (len(message), 4, 0, 0)
            assert message[40:] == numbers.get(node, b"Hello\n")
            assert size == len(message) - 40
            known.add(node)
        if number not in known:
            asked += 1
            assert asker.read(number) == contents
            assert gated.session.wait_until_idle(60)
    assert asked < 50
    # And none comes twice.
    assert len(sent) == len({message[16:24] for message in sent})
    gated.session.close()


# Large files, over services that have their chunks and over others.

LARGE = random.Random(5).randbytes(5_000_000)


@pytest.fixture(scope="module", params=["chunks", "blocks", "memory"])
def large(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gated]:
    if request.param == "memory":
        services = open_services("memory://")
    else:
        services = open_services(f"local://{tmp_path_factory.mktemp('large')}/store")
    pieces = [Data(LARGE[start : start + 500_000]) for start in range(0, len(LARGE), 500_000)]
    node = stored(
        services,
        [EnterDirectory(b""), BeginFile(b"large", False, len(LARGE)), *pieces, END_FILE, LEAVE_DIRECTORY],
    )
    put_path(services, PATH, node)
    gated = Gated(services)
    if request.param == "blocks":
        gated.session._tree.contents._sealed = False
    yield gated
    gated.session.close()
    assert gated.session.wait_until_idle(60)
    services.close()


def test_a_large_file_in_order(large: Gated) -> None:
    node = large.asker.walk(NAME, b"large").node
    for size in (1 << 20, 131072, 100_001):
        read = b""
        while part := large.asker.read(node, len(read), size):
            read += part
        assert read == LARGE


def test_a_large_file_out_of_order(large: Gated) -> None:
    node = large.asker.walk(NAME, b"large").node
    rng = random.Random(9)
    for _ in range(200):
        start, size = rng.randrange(len(LARGE) + 10), rng.choice([1, 4096, 300_000, 1 << 20])
        assert large.asker.read(node, start, size) == LARGE[start : start + size]


def test_a_large_file_that_many_read_at_once(large: Gated) -> None:
    large.asker.init()
    node = large.asker.walk(NAME, b"large").node
    starts = range(0, len(LARGE), 1 << 20)
    pending = [
        (start, large.asker.send(Opcode.READ, node, read_body(start, 1 << 20))) for start in starts
    ] * 2
    for start, one in pending:
        assert one.answer() == (0, LARGE[start : start + (1 << 20)])


def test_a_large_file_of_which_a_part_fails(large: Gated) -> None:
    """The next one who asks gets it, if it is there again."""
    large.asker.init()
    assert large.session.wait_until_idle(60)
    node = large.asker.walk(NAME, b"large").node
    contents = large.session._tree.contents
    contents._cache._items.clear()
    contents._blocks.close()
    large.blobs.error = Unavailable("nobody answers")
    with logged() as lines:
        assert large.asker.error(Opcode.READ, node, read_body(0, 4096)) == errno.EIO
    assert lines == [f"READ, inode {node}: nobody answers"]
    large.open()
    assert large.asker.read(node) == LARGE[: 1 << 20]


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("size", [10, len(LARGE) + 1, len(LARGE) - 1])
def test_a_node_that_lies_about_the_size(tmp_path: Path, sealed: bool, size: int) -> None:
    services = open_services(f"local://{tmp_path}/store")
    with services.blobs.open_write() as writer:
        writer.write(LARGE)
        digest = writer.close()
    small = services.blobs.put_many([b"small"])[0]
    files = {b"large": FileNode(digest, size), b"small": FileNode(small, 4), b"right": FileNode(small, 5)}
    top = services.directories.put(Directory(files))
    put_path(services, PATH, DirectoryNode(top, 3))
    gated = Gated(services)
    gated.session._tree.contents._sealed = sealed
    for name, wrong in ((b"large", digest), (b"small", small)):
        with logged() as lines:
            node = gated.asker.walk(NAME, name).node
            assert gated.asker.error(Opcode.READ, node, read_body(0, 4096)) == errno.EIO
        assert format_digest(wrong) in lines[0]
    assert gated.asker.read(gated.asker.walk(NAME, b"right").node) == b"small"
    # Also when the contents are at hand.
    assert gated.asker.error(Opcode.READ, gated.asker.walk(NAME, b"small").node, read_body(0, 9)) == errno.EIO
    gated.session.close()
    services.close()


def test_a_walk_fetches_directories_together(services: Services) -> None:
    gated = Gated(services)
    asker = gated.asker
    top = asker.lookup(NAME).node
    folders = [one.entry.node for one in asker.list(top, 1 << 20, plus=True) if one.entry and one.kind == 4]
    # Meanwhile what is below them is fetched, too.
    assert gated.session.wait_until_idle(60)
    for folder in folders[2:]:
        assert asker.list(folder, plus=True)
    assert gated.batches == [1, 3, 1]
    gated.session.close()
