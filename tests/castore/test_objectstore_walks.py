"""Walking trees where only roots can be asked for: what came with a root is held, or found again."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

import pytest

from neve.castore.blobs.memory import MemoryBlobService
from neve.castore.directories import closures
from neve.castore.directories.base import DirectoryService
from neve.castore.directories.closures import HeldClosures
from neve.castore.directories.objectstore import ObjectDirectoryService
from neve.castore.directories.urls import DIRECTORY_SERVICES
from neve.castore.directory import Directory
from neve.castore.node import DirectoryNode, SymlinkNode
from neve.castore.objectstore.layout import DIRECTORIES, key_of
from neve.castore.traverse import descend, tree_events
from neve.errors import NotFound, Unsupported
from neve.testing.directories import leaf, parent, put_closure, tree


@pytest.fixture
def service(tmp_path: Path) -> Iterator[ObjectDirectoryService]:
    service = DIRECTORY_SERVICES.open(f"objectstore+file://{tmp_path}/store")
    assert isinstance(service, ObjectDirectoryService)
    yield service
    service.close()


def chain(name: str, length: int = 5) -> list[Directory]:
    """A closure in which each Directory has one below it, leaves first."""
    below = [Directory({b"end": SymlinkNode(name.encode())})]
    while len(below) < length:
        below.append(Directory({b"x": DirectoryNode(below[-1].digest, below[-1].size())}))
    return below


def walk(service: DirectoryService, root: Directory) -> int:
    """How many events the tree makes."""
    node = DirectoryNode(root.digest, root.size())
    return sum(len(batch) for batch in tree_events(MemoryBlobService(), service, node))


def test_a_single_directory_with_children_is_refused(service: ObjectDirectoryService) -> None:
    one = leaf("one")
    for put in (
        lambda: service.put(parent(one)),
        lambda: service.put_many([leaf("other"), parent(one)]),
    ):
        with pytest.raises(Unsupported, match=r"keeps whole closures: Directory b3:.* put it together"):
            put()
    assert service.list() == []


def test_children_are_found_once_their_root_was_asked_for(service: ObjectDirectoryService) -> None:
    closure = tree()
    put_closure(service, closure)
    assert service.get(closure[1].digest) is None
    assert service.get(closure[-1].digest) == closure[-1]
    assert service.get_many([one.digest for one in closure]) == {one.digest: one for one in closure}
    below = list(service.get_recursive(closure[3].digest))
    assert below[0] == closure[3]
    assert len(below) == 4


@pytest.mark.parametrize("spool", [10, 10**6])
def test_closures_that_were_let_go_of_are_found_again(
    service: ObjectDirectoryService, spool: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In memory or on the disk; with room for one at a time, and two that are walked in turns."""
    monkeypatch.setattr(closures, "_SPOOL_BYTES", spool)
    service._held = HeldClosures(0, 0)
    first, second = chain("first"), chain("second")
    for closure in (first, second):
        put_closure(service, closure)
        assert service.get(closure[-1].digest) == closure[-1]
    for one, other in zip(reversed(first), reversed(second), strict=True):
        assert service.get(one.digest) == one
        assert service.get(other.digest) == other
    # What is gone from the store is not there, though it is remembered where it was.
    service.delete_many([first[-1].digest])
    assert service.get(first[0].digest) is None
    assert list(service.get_recursive(first[1].digest)) == []


def test_what_is_not_even_remembered_is_found_by_who_walks(
    service: ObjectDirectoryService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(closures, "MAX_REMEMBERED", 0)
    service._held = HeldClosures(0, 0)
    first, second = chain("first"), chain("second")
    for closure in (first, second):
        put_closure(service, closure)
    root = DirectoryNode(first[-1].digest, first[-1].size())

    class Disturbed(ObjectDirectoryService):
        """Somebody else's walk lets go of what this one needs, again and again."""

        def get_many(self, digests: Sequence[bytes]) -> dict[bytes, Directory]:
            found = super().get_many(digests)
            super().get_many([second[-1].digest])
            return found

    disturbed = Disturbed(service._bucket)
    disturbed._held = HeldClosures(0, 0)
    assert descend(disturbed, root, [b"x"] * 4) == DirectoryNode(first[0].digest, 1)
    assert walk(disturbed, first[-1]) == 2 * len(first) + 1


def test_a_closure_is_fetched_once_for_all_who_want_it(service: ObjectDirectoryService) -> None:
    closure = chain("once")
    put_closure(service, closure)
    asked: list[str] = []
    pieces = service._bucket.pieces
    begun = threading.Barrier(8)

    def counted(key: str, most: int | None = None) -> Iterator[bytes] | None:
        asked.append(key)
        return pieces(key, most)

    def ask() -> None:
        begun.wait(60)
        assert service.get(closure[-1].digest) == closure[-1]

    service._bucket.pieces = counted  # type: ignore[method-assign]
    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    service.get_many([one.digest for one in closure])
    assert walk(service, closure[-1]) > len(closure)
    assert asked == [key_of(DIRECTORIES, closure[-1].digest)]


def test_a_root_that_is_near_leads_to_children_that_are_far(tmp_path: Path) -> None:
    """In a cache before the store, when near has kept no more of the closure than its root."""
    closure = chain("far")
    store = f"objectstore+file://{tmp_path}/store"
    far = DIRECTORY_SERVICES.open(store)
    put_closure(far, closure)
    far.close()
    near = f"local://{tmp_path}/near"
    alone = DIRECTORY_SERVICES.open(near)
    alone.put(closure[-1])
    alone.close()
    service = DIRECTORY_SERVICES.open(f"cache://?near={quote(near, '')}&far={quote(store, '')}")
    assert walk(service, closure[-1]) == 2 * len(closure) + 1
    service.close()
    alone = DIRECTORY_SERVICES.open(near)
    assert len(list(alone.get_recursive(closure[-1].digest))) == len(closure)
    alone.close()


def test_a_gap_is_an_error(tmp_path: Path) -> None:
    """A walk from a root of which nothing is there."""
    service = DIRECTORY_SERVICES.open(f"objectstore+file://{tmp_path}/store")
    with pytest.raises(NotFound):
        walk(service, chain("absent")[-1])
    service.close()
