"""Hypothesis strategies."""

from __future__ import annotations

from hypothesis import strategies as st

from neve.castore.directory import Directory
from neve.castore.node import MAX_SIZE, DirectoryNode, FileNode, Node, SymlinkNode
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


def names() -> st.SearchStrategy[bytes]:
    """Names of directory entries: 1 to 255 bytes, often not UTF-8, often prefixes of each other."""
    letters = st.sampled_from([b"a", b"b", b".", b"-", b" ", b"\n", b"\xc3\xa9", b"\xff", b"\x01"])
    short = st.lists(letters, min_size=1, max_size=9).map(b"".join)
    wild = st.binary(min_size=1, max_size=12).map(lambda name: name.translate(None, b"\0/"))
    long = st.integers(200, 255).map(lambda size: b"n" * size)
    return st.one_of(short, wild, long).filter(lambda name: name not in (b"", b".", b".."))


def targets() -> st.SearchStrategy[bytes]:
    """Targets of symlinks: 1 to 4095 bytes without NUL."""
    short = st.binary(min_size=1, max_size=20).map(lambda target: target.replace(b"\0", b"/"))
    return st.one_of(short, st.integers(1, 4095).map(lambda size: b"t" * size))


def trees(*, max_leaves: int = 12, large_files: bool = False) -> st.SearchStrategy[list[Event]]:
    """Whole trees as events, the root named ``b""``; with ``large_files`` some are longer than
    ``WHOLE_FILE_LIMIT`` and come in pieces."""
    leaves: st.SearchStrategy[list[Event]] = st.one_of(
        st.builds(_file, st.booleans(), st.binary(max_size=40)),
        targets().map(lambda target: [Symlink(b"", target)]),
    )
    if large_files:
        leaves |= st.builds(
            _large_file, st.booleans(), st.integers(1, 2 * WHOLE_FILE_LIMIT), st.binary(max_size=9)
        )
    return st.recursive(
        leaves,
        lambda nodes: st.dictionaries(names(), nodes, max_size=5).map(_directory),
        max_leaves=max_leaves,
    )


def digests() -> st.SearchStrategy[bytes]:
    """BLAKE3 digests of nothing in particular."""
    return st.binary(min_size=32, max_size=32)


def nodes() -> st.SearchStrategy[Node]:
    """Valid nodes of all kinds; the sizes of directories leave room for thousands in one Directory."""
    lengths = st.sampled_from([0, 1, 0x7F, 0x80, 0x3FFF, 0x4000, 0x1FFFFF, 0x200000, MAX_SIZE])
    sizes = st.sampled_from([0, 1, 0x7F, 0x80, 0x4000, 2**40])
    return st.one_of(
        st.builds(FileNode, digests(), lengths | st.integers(0, MAX_SIZE), st.booleans()),
        st.builds(SymlinkNode, targets()),
        st.builds(DirectoryNode, digests(), sizes | st.integers(0, 2**40)),
    )


def directories(*, max_size: int = 12) -> st.SearchStrategy[Directory]:
    """Valid Directories of up to ``max_size`` entries, whose children are stored nowhere."""
    return st.dictionaries(names(), nodes(), max_size=max_size).map(Directory)


def _file(executable: bool, contents: bytes) -> list[Event]:
    return [File(b"", executable, contents)]


def _large_file(executable: bool, excess: int, seed: bytes) -> list[Event]:
    """A file of ``excess`` bytes more than the limit, made of repetitions of ``seed``."""
    size = WHOLE_FILE_LIMIT + excess
    contents = ((seed or b"\0") * (size // max(len(seed), 1) + 1))[:size]
    pieces = [Data(contents[at : at + WHOLE_FILE_LIMIT]) for at in range(0, size, WHOLE_FILE_LIMIT)]
    return [BeginFile(b"", executable, size), *pieces, END_FILE]


def _directory(entries: dict[bytes, list[Event]]) -> list[Event]:
    events: list[Event] = [EnterDirectory(b"")]
    for name, node in sorted(entries.items()):
        first = node[0]
        if isinstance(first, File | BeginFile | Symlink | EnterDirectory):
            events.append(first._replace(name=name))
        events += node[1:]
    events.append(LEAVE_DIRECTORY)
    return events
