"""What is missing or damaged somewhere in a large tree is found, whatever is asked for together."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from neve.castore.blobs.local_write import BLOBS
from neve.castore.digest import Digest, b3_digest, format_digest
from neve.castore.directories.local import DIRECTORIES
from neve.castore.node import DirectoryNode
from neve.packstore.store import PackStore
from neve.store import path_check
from neve.store.check import verify_store
from neve.store.services import Services, open_services
from neve.tree import LEAVE_DIRECTORY, EnterDirectory, Event, File

from .mirror.stores import add

FOLDERS, FILES, DEPTH = 9, 8, 3


def contents(*place: int) -> bytes:
    return b"contents of " + repr(place).encode()


def tree() -> list[Event]:
    """Folders within folders, and files in all of them; one file, and one folder, are in many places."""
    events: list[Event] = [EnterDirectory(b"")]

    def folder(name: bytes, number: int, level: int) -> None:
        events.append(EnterDirectory(name))
        if level == DEPTH - 1:
            events.extend([EnterDirectory(b"a-common"), File(b"a", False, b"below"), LEAVE_DIRECTORY])
        events.append(File(b"common", False, b"common"))
        events.extend(File(b"f%d" % file, False, contents(number, level, file)) for file in range(FILES))
        if level < DEPTH - 1:
            folder(b"inner", number, level + 1)
        events.append(LEAVE_DIRECTORY)

    for number in range(FOLDERS):
        folder(b"d%d" % number, number, 0)
    return [*events, LEAVE_DIRECTORY]


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Services]:
    opened = open_services(f"local://{tmp_path}/store")
    yield opened
    opened.close()


def packs_of(services: Services) -> PackStore:
    assert services.packs is not None
    return services.packs


@pytest.mark.parametrize("at_once", [1, 10, 33, 1000])
def test_whatever_is_missing(services: Services, monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(path_check, "_SETTLED_AT_ONCE", at_once)
    first = add(services, "first", events=tree())
    second = add(services, "second", events=[File(b"", False, contents(3, 1, 2))])
    whole = add(services, "whole", events=[File(b"", False, contents(3, 1, 3))])
    assert verify_store(services).problems == []
    lost = [contents(3, 1, 2), contents(8, 0, 7), b"below"]
    packs_of(services).delete_many(BLOBS, [b3_digest(each) for each in lost])
    assert isinstance(first.node, DirectoryNode)
    root = services.directories.get(first.node.digest)
    assert root is not None
    ((_, folder), *_) = root.directories()
    packs_of(services).delete_many(DIRECTORIES, [folder.digest])
    problems = sorted(verify_store(services).problems)
    broken = {b3_digest(each): [first.store_path.absolute] for each in lost}
    broken[b3_digest(lost[0])] = sorted([first.store_path.absolute, second.store_path.absolute])
    expected = [
        f"blob {format_digest(digest)}: is missing; breaks {', '.join(paths)}"
        for digest, paths in broken.items()
    ]
    expected.append(
        f"Directory {format_digest(folder.digest)}: is missing; breaks {first.store_path.absolute}"
    )
    assert problems == sorted(expected)
    assert not any(whole.store_path.absolute in problem for problem in problems)


def test_few_questions(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one for each Directory."""
    add(services, "first", events=tree())
    asked: list[int] = []
    real = services.blobs.missing

    def missing(digests: list[Digest]) -> list[Digest]:
        asked.append(len(digests))
        return real(digests)

    monkeypatch.setattr(services.blobs, "missing", missing)
    assert verify_store(services).problems == []
    assert asked == [FOLDERS * DEPTH * FILES + 2]
