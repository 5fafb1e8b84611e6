"""Numbers for what the kernel knows."""

from __future__ import annotations

import threading
import tracemalloc

import pytest

from neve.castore.digest import b3_digest
from neve.castore.node import DirectoryNode, FileNode, Node, SymlinkNode
from neve.fs.inodes import ROOT, DirectoryInode, InodeTable, TooManyInodes

A, B = b3_digest(b"a"), b3_digest(b"b")


def remember(table: InodeTable, parent: int, name: bytes, node: Node, children: int = 0) -> int:
    (number,) = table.remember(parent, [(name, node, children)])
    return number


def test_what_is_remembered_is_found() -> None:
    table = InodeTable()
    nodes: list[Node] = [
        FileNode(A, 0),
        FileNode(A, 2**64 - 1, True),
        SymlinkNode(b"t" * 4095),
        SymlinkNode(b"x"),
    ]
    for node in nodes:
        assert table.get(remember(table, ROOT, b"name", node)) == node
    number = remember(table, 7, b"name", DirectoryNode(A, 100), 9)
    assert table.get(number) == DirectoryInode(7, b"name", A, 9)
    assert table.get(ROOT) == DirectoryInode(ROOT, b"", b"", 0)
    assert table.get(999) is None
    assert len(table) == 6


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (FileNode(A, 5), FileNode(A, 5), True),
        (FileNode(A, 5, True), FileNode(A, 5, True), True),
        (FileNode(A, 5), FileNode(A, 5, True), False),
        (FileNode(A, 5), FileNode(B, 5), False),
        # One of them lies, and the other must not suffer for it.
        (FileNode(A, 5), FileNode(A, 6), False),
        (SymlinkNode(b"x"), SymlinkNode(b"x"), True),
        (SymlinkNode(b"x"), SymlinkNode(b"y"), False),
        (DirectoryNode(A, 1), DirectoryNode(A, 1), False),
    ],
)
def test_what_shares_an_inode(one: Node, other: Node, same: bool) -> None:
    table = InodeTable()
    numbers = remember(table, 2, b"one", one), remember(table, 3, b"other", other)
    assert (numbers[0] == numbers[1]) is same


def test_a_directory_has_one_for_each_place() -> None:
    table = InodeTable()
    node = DirectoryNode(A, 1)
    first = remember(table, 2, b"name", node)
    assert remember(table, 2, b"name", node) == first
    others = [
        remember(table, 2, b"other", node),
        remember(table, 3, b"name", node),
        remember(table, 2, b"name", DirectoryNode(B, 1)),  # The store path means something else by now.
    ]
    assert len({first, *others}) == 4


def test_forgetting() -> None:
    table = InodeTable()
    node = FileNode(A, 5)
    number = remember(table, ROOT, b"x", node)
    for _ in range(4):
        assert remember(table, ROOT, b"y", node) == number
    table.forget(number, 2)
    table.forget(number, 2)
    assert table.get(number) == node
    table.forget(number, 1)
    assert table.get(number) is None
    assert table.number(ROOT, b"x", node) is None
    # No number is used again.
    assert remember(table, ROOT, b"x", node) > number


@pytest.mark.parametrize("lookups", [1, 2, 2**64 - 1])
def test_forgetting_more_than_there_is(lookups: int) -> None:
    table = InodeTable()
    number = remember(table, ROOT, b"x", FileNode(A, 5))
    for victim in (999, ROOT, number, number):
        table.forget(victim, lookups)
    assert len(table) == 1
    assert table.get(ROOT)


def test_forgetting_nothing() -> None:
    table = InodeTable()
    number = remember(table, ROOT, b"x", FileNode(A, 5))
    table.forget(number, 0)
    assert table.get(number)


def test_there_is_a_limit() -> None:
    table = InodeTable(limit=4)
    numbers = table.remember(ROOT, [(b"n", FileNode(A, size), 0) for size in range(2)])
    with pytest.raises(TooManyInodes, match="3 inodes"):
        table.remember(ROOT, [(b"n", FileNode(B, size), 0) for size in range(2)])
    # None of them counts, and what is known can be told again.
    assert len(table) == 3
    assert table.remember(ROOT, [(b"n", FileNode(A, size), 0) for size in range(2)]) == numbers
    assert remember(table, ROOT, b"n", FileNode(B, 0))


def test_files_that_were_told_together() -> None:
    table = InodeTable()
    link = SymlinkNode(b"x")
    nodes: list[Node] = [FileNode(A, 1), DirectoryNode(A, 1), FileNode(A, 2), link, FileNode(A, 3, True)]
    numbers = table.remember(ROOT, [(b"n%d" % n, node, 0) for n, node in enumerate(nodes)])
    assert numbers == sorted(numbers)
    found = list(table.files(numbers[1], numbers[-1] + 10))
    assert found == [(numbers[2], nodes[2]), (numbers[4], nodes[4])]


def test_threads_that_remember_and_forget() -> None:
    table = InodeTable()
    names = [(b"n", FileNode(A, size), 0) for size in range(50)]

    def work() -> None:
        for _ in range(200):
            for number in table.remember(ROOT, names):
                table.forget(number, 1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(table) == 1
    assert not table._numbers
    assert not table._more_lookups


def test_a_file_takes_little_memory() -> None:
    table = InodeTable()
    count = 20_000
    tracemalloc.start()
    for number in range(count):
        remember(table, ROOT, b"n", FileNode(b3_digest(b"%d" % number), number))
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used / count < 400  # What the dictionaries have in reserve included.
