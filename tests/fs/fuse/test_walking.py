"""Files that are read after their directory was listed."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator

import pytest

from neve.castore.digest import Digest
from neve.errors import Corrupt
from neve.fs.fuse.session import Session, SessionOptions
from neve.fs.fuse.walking import AHEAD_BYTES
from neve.fs.tree import Listing, Tree
from neve.store.root_nodes import PathInfoRoots
from neve.store.services import Services
from neve.tree import LEAVE_DIRECTORY, EnterDirectory, Event, File
from tests.fs.services import Gate, GatedBlobs
from tests.store.helpers import memory_services, stored

from .asking import Asker, Dirent
from .conftest import NAME, PATH, put_path

FOLDERS, FILES = 40, 5


def contents(folder: int, number: int) -> bytes:
    return b"%d in %d\n" % (number, folder) * 1000


def events(folders: int = FOLDERS, files: int = FILES, depth: int = 0) -> Iterator[Event]:
    yield EnterDirectory(b"")
    for folder in range(folders):
        yield EnterDirectory(b"folder-%03d" % folder)
        yield EnterDirectory(b"deep")
        yield File(b"below", False, contents(folder, -1))
        yield LEAVE_DIRECTORY
        for number in range(files):
            yield File(b"file-%03d" % number, False, contents(folder, number))
        yield LEAVE_DIRECTORY
    yield File(b"top", False, b"top\n")
    for _ in range(depth):
        yield EnterDirectory(b"x")
    yield from [LEAVE_DIRECTORY] * depth
    yield LEAVE_DIRECTORY


class Walker:
    """A kernel that lists directories and reads files, if it has not been sent them."""

    def __init__(self, services: Services, *, sends: bool = True) -> None:
        self.gate = Gate()
        tree = Tree(
            GatedBlobs(services.blobs, self.gate), services.directories, PathInfoRoots(services.path_infos)
        )
        self.session = Session(tree, SessionOptions())
        self.sent: dict[int, bytes] = {}
        if sends:
            self.session.may_notify(lambda parts: self._take(b"".join(parts)))
        self.asker = Asker(self.session)
        self.top = self.asker.lookup(NAME).node
        self.asked = 0

    def _take(self, message: bytes) -> None:
        length, code, unique, node, offset, size, _ = struct.unpack_from("<IiQQQII", message)
        assert (length, code, unique, offset, size) == (len(message), 4, 0, 0, len(message) - 40)
        self.sent[node] = message[40:]

    def _settle(self) -> None:
        """Until nothing is on its way any more."""
        end = time.monotonic() + 60
        while self.session._loads._on_the_way:
            assert time.monotonic() < end
            time.sleep(0.001)
        assert self.session.wait_until_idle(60)

    def list(self, node: int) -> dict[bytes, int]:
        entries: list[Dirent] = self.asker.list(node, 1 << 17, plus=True)
        self._settle()
        return {one.name: one.entry.node for one in entries if one.entry and one.entry.node}

    def read(self, node: int) -> bytes:
        if node in self.sent:
            return self.sent[node]
        self.asked += 1
        data = self.asker.read(node)
        self._settle()
        return data

    @property
    def fetched(self) -> int:
        return len(self.gate.calls)


@pytest.fixture(scope="module")
def services() -> Iterator[Services]:
    services = memory_services()
    put_path(services, PATH, stored(services, list(events())))
    yield services
    services.close()


@pytest.fixture(params=[True, False])
def walker(services: Services, request: pytest.FixtureRequest) -> Iterator[Walker]:
    walker = Walker(services, sends=request.param)
    yield walker
    walker.session.close()


def test_who_reads_what_he_lists_seldom_asks_and_never_waits(services: Services) -> None:
    walker = Walker(services)
    top = walker.list(walker.top)
    assert walker.read(top[b"top"]) == b"top\n"
    for folder in range(FOLDERS):
        names = walker.list(top[b"folder-%03d" % folder])
        before = walker.fetched
        for number in range(FILES):
            assert walker.read(names[b"file-%03d" % number]) == contents(folder, number)
        below = walker.list(names[b"deep"])
        assert walker.read(below[b"below"]) == contents(folder, -1)
        assert walker.fetched == before  # All that was at hand.
    assert walker.asked < FOLDERS * (FILES + 1) // 4
    walker.session.close()


def test_what_will_be_listed_next_is_fetched_before(walker: Walker) -> None:
    top = walker.list(walker.top)
    walker.read(top[b"top"])
    assert walker.fetched < 5
    walker.list(top[b"folder-000"])
    # All is far less than what is fetched ahead.
    assert walker.fetched == FOLDERS * (FILES + 1) + 1


def test_who_only_lists_is_sent_nothing(walker: Walker) -> None:
    top = walker.list(walker.top)
    for folder in range(FOLDERS):
        walker.list(walker.list(top[b"folder-%03d" % folder])[b"deep"])
    assert walker.fetched == 0
    assert walker.sent == {}


def test_what_is_sent_when_nobody_reads_it_is_little() -> None:
    """A walk over much more than is fetched ahead, by somebody who reads one file and then only lists."""
    services = memory_services()
    large: list[Event] = [EnterDirectory(b"")]
    for folder in range(64):
        large.append(EnterDirectory(b"folder-%03d" % folder))
        large += [File(b"f%d" % n, False, bytes([folder, n]) * 200_000) for n in range(4)]
        large.append(LEAVE_DIRECTORY)
    large += [File(b"top", False, b"top\n"), LEAVE_DIRECTORY]
    put_path(services, PATH, stored(services, large))
    walker = Walker(services)
    top = walker.list(walker.top)
    walker.read(top[b"top"])
    for folder in range(64):
        walker.list(top[b"folder-%03d" % folder])
    assert 0 < sum(map(len, walker.sent.values())) <= 2 * AHEAD_BYTES
    assert walker.fetched * 400_000 < 4 * AHEAD_BYTES
    walker.session.close()
    services.close()


def test_far_down_and_up_again() -> None:
    """The way to what comes next may lead through any number of directories."""
    services = memory_services()
    put_path(services, PATH, stored(services, list(events(2, 1, depth=3000))))
    walker = Walker(services)
    top = walker.list(walker.top)
    walker.read(top[b"top"])
    walker.list(walker.list(top[b"folder-001"])[b"deep"])
    inode = top[b"x"]
    for _ in range(2999):
        inode = walker.asker.lookup(b"x", inode).node
    assert walker.list(inode) == {}
    walker.session.close()
    services.close()


def test_what_comes_next_is_not_looked_for_any_number_of_directories_above(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A guest may list the innermost as often as it likes, and all others wait for that."""
    services = memory_services()
    deep: list[Event] = [EnterDirectory(b""), *[EnterDirectory(b"x")] * 1000]
    deep += [File(b"inside", False, b"inside"), *[LEAVE_DIRECTORY] * 1001]
    put_path(services, PATH, stored(services, deep))
    walker = Walker(services)
    inode = walker.top
    for _ in range(1000):
        inode = walker.asker.lookup(b"x", inode).node
    walker.read(walker.list(inode)[b"inside"])
    looked_at: list[Digest] = []
    known = Tree.known

    def counted(tree: Tree, digest: Digest) -> Listing | None:
        looked_at.append(digest)
        return known(tree, digest)

    monkeypatch.setattr(Tree, "known", counted)
    walker.list(inode)
    assert 0 < len(looked_at) < 100
    walker.session.close()
    services.close()


def test_a_damaged_file_is_an_error_only_for_who_reads_it(services: Services) -> None:
    walker = Walker(services)
    top = walker.list(walker.top)
    walker.read(top[b"top"])
    walker.gate.error = Corrupt("damaged")
    names = walker.list(top[b"folder-000"])
    assert walker.sent == {}
    walker.gate.error = None
    assert walker.read(names[b"file-000"]) == contents(0, 0)
    walker.session.close()
