from __future__ import annotations

import base64
import json
import subprocess
import sys
import tracemalloc
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neve.castore.digest import EMPTY_BLOB, b3_digest
from neve.castore.directory import Directory, DirectoryBuilder, InvalidDirectory, SizeRule
from neve.castore.node import DirectoryNode, FileNode, Node, SymlinkNode
from neve.errors import InvalidRequest
from neve.proto.tvix.castore.protos import castore_pb2
from neve.testing.strategies import directories

DIGEST = bytes(range(32))
OTHER = bytes(range(1, 33))

TREES: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "vectors" / "trees.json").read_text(encoding="utf-8")
)


def add(builder: DirectoryBuilder, name: bytes, node: Node) -> None:
    if isinstance(node, FileNode):
        builder.add_file(name, node.digest, node.size, node.executable)
    elif isinstance(node, SymlinkNode):
        builder.add_symlink(name, node.target)
    else:
        builder.add_directory(name, node.digest, node.size)


def build(entries: Iterable[tuple[bytes, Node]], rule: SizeRule = SizeRule.EXACT) -> DirectoryBuilder:
    builder = DirectoryBuilder(rule)
    for name, node in entries:
        add(builder, name, node)
    return builder


def encoded(entries: Iterable[tuple[bytes, Node]]) -> bytes:
    """What protobuf makes of entries, right or wrong, in the order given."""
    message = castore_pb2.Directory()
    for name, node in entries:
        if isinstance(node, FileNode):
            message.files.add(name=name, digest=node.digest, size=node.size, executable=node.executable)
        elif isinstance(node, SymlinkNode):
            message.symlinks.add(name=name, target=node.target)
        else:
            message.directories.add(name=name, digest=node.digest, size=node.size)
    return message.SerializeToString()


# Known values


class Tree:
    """A tree of the vectors as Directories, children first."""

    def __init__(self) -> None:
        self.directories: list[Directory] = []

    def node(self, described: dict[str, Any]) -> Node:
        if described["type"] == "symlink":
            return SymlinkNode(described["target"].encode())
        if described["type"] == "file":
            contents = base64.b64decode(described["contents_b64"])
            return FileNode(b3_digest(contents), len(contents), described["executable"])
        children = sorted((name.encode(), child) for name, child in described["entries"].items())
        directory = Directory((name, self.node(child)) for name, child in children)
        self.directories.append(directory)
        return DirectoryNode(directory.digest, directory.size())


@pytest.mark.parametrize("case", TREES, ids=[case["name"] for case in TREES])
def test_vectors(case: dict[str, Any]) -> None:
    tree = Tree()
    root = tree.node(case["tree"])
    expected = case["node"]
    if "digest_b64" in expected:
        assert not isinstance(root, SymlinkNode)
        assert root.digest == base64.b64decode(expected["digest_b64"])
        assert root.size == expected["size"]
    ours = {directory.digest: directory.encode() for directory in tree.directories}
    theirs = {
        base64.b64decode(known["digest_b64"]): base64.b64decode(known["encoded_b64"])
        for known in case["directories"]
    }
    assert ours == theirs
    for directory in tree.directories:
        assert Directory.decode(directory.encode()) == directory
        assert build(directory).finish() == (directory.encode(), directory.digest, directory.size())


def test_empty() -> None:
    empty = Directory()
    assert (empty.encode(), empty.digest, empty.size(), len(empty)) == (b"", EMPTY_BLOB, 0, 0)
    assert empty.size(SizeRule.SNIX) == 0
    assert Directory.decode(b"") == empty
    assert DirectoryBuilder().finish() == (b"", EMPTY_BLOB, 0)
    assert empty, "an empty Directory is a Directory"


def test_encoding_by_hand() -> None:
    entries: dict[bytes, Node] = {
        b"b": FileNode(DIGEST, 300, True),
        b"\xff": FileNode(DIGEST, 0),
        b"a": SymlinkNode(b"../x"),
        b"c": DirectoryNode(DIGEST, 2**64 - 6),
        b"n" * 128: DirectoryNode(DIGEST, 0),
    }
    directory = Directory(entries)
    assert directory.encode() == (
        b"\x0a\x30\x0a\x01c\x12\x20" + DIGEST + b"\x18\xfa\xff\xff\xff\xff\xff\xff\xff\xff\x01"
        b"\x0a\xa5\x01\x0a\x80\x01" + b"n" * 128 + b"\x12\x20" + DIGEST + b"\x12\x2a\x0a\x01b\x12\x20"
        b"" + DIGEST + b"\x18\xac\x02\x20\x01"
        b"\x12\x25\x0a\x01\xff\x12\x20" + DIGEST + b"\x1a\x09\x0a\x01a\x12\x04../x"
    )
    assert [name for name, _ in directory] == [b"a", b"b", b"c", b"n" * 128, b"\xff"]


# Properties


@given(directories())
def test_round_trip(directory: Directory) -> None:
    data = directory.encode()
    decoded = Directory.decode(data)
    assert decoded == directory
    assert list(decoded) == list(directory)
    assert decoded.digest == directory.digest == b3_digest(data)
    assert hash(decoded) == hash(directory)
    assert decoded.encode() == data


@given(directories())
def test_encoding_is_that_of_protobuf(directory: Directory) -> None:
    """The two encoders are written independently; decoding relies on protobuf's being canonical."""
    assert directory.encode() == encoded(directory)


@given(directories(), st.sampled_from(SizeRule))
def test_builder_agrees(directory: Directory, rule: SizeRule) -> None:
    assert build(directory, rule).finish() == (directory.encode(), directory.digest, directory.size(rule))


@given(directories())
def test_sizes(directory: Directory) -> None:
    files = sum(isinstance(node, FileNode) for _, node in directory)
    symlinks = sum(isinstance(node, SymlinkNode) for _, node in directory)
    children = [node.size for _, node in directory.directories()]
    assert directory.size() == directory.size(SizeRule.EXACT)
    assert directory.size() == files + symlinks + sum(1 + size for size in children)
    assert directory.size(SizeRule.SNIX) == 2 * len(directory) + sum(children)


@given(directories(max_size=4), st.data())
def test_damaged_encodings_are_refused_or_canonical(directory: Directory, data: st.DataObject) -> None:
    """Whatever the bytes are: what decodes encodes to the same bytes."""
    damaged = bytearray(directory.encode() + data.draw(st.binary(max_size=3)))
    for _ in range(data.draw(st.integers(0, 2))):
        if damaged:
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        decoded = Directory.decode(bytes(damaged))
    except InvalidDirectory:
        return
    assert Directory(decoded).encode() == damaged


def test_lookup() -> None:
    child = DirectoryNode(DIGEST, 3)
    directory = Directory([(b"z", SymlinkNode(b"t")), (b"d", child), (b"e", DirectoryNode(OTHER, 0))])
    assert directory.get(b"d") == child
    assert directory.get(b"missing") is None
    assert list(directory.directories()) == [(b"d", child), (b"e", DirectoryNode(OTHER, 0))]
    assert len(directory) == 3


def test_decode_keeps_the_digest_it_is_given() -> None:
    data = Directory({b"s": SymlinkNode(b"t")}).encode()
    digest = b3_digest(data)
    assert Directory.decode(data, digest=digest).digest is digest


def test_comparison() -> None:
    directory = Directory({b"a": SymlinkNode(b"t")})
    assert directory != Directory({b"a": SymlinkNode(b"u")})
    assert directory != Directory({b"b": SymlinkNode(b"t")})
    assert directory != {b"a": SymlinkNode(b"t")}
    assert "b'a'" in repr(directory)


# Sizes that do not fit


def test_size_overflow() -> None:
    most = 2**64 - 2
    fits = Directory({b"d": DirectoryNode(DIGEST, most)})
    assert fits.size() == 2**64 - 1
    assert Directory.decode(fits.encode()).size() == 2**64 - 1
    message = r"the size of the Directory \(snix: 18446744073709551616\) does not fit 64 bits"
    with pytest.raises(InvalidDirectory, match=message):
        fits.size(SizeRule.SNIX)
    with pytest.raises(InvalidDirectory, match=message):
        build(fits, SizeRule.SNIX).finish()

    entries: dict[bytes, Node] = {b"d": DirectoryNode(DIGEST, most), b"s": SymlinkNode(b"t")}
    message = r"the size of the Directory \(exact: 18446744073709551616\) does not fit 64 bits"
    with pytest.raises(InvalidDirectory, match=message):
        Directory(entries)
    builder = DirectoryBuilder()
    builder.add_directory(b"d", DIGEST, most)
    builder.add_symlink(b"s", b"t")
    with pytest.raises(InvalidDirectory, match=message):
        builder.finish()
    with pytest.raises(InvalidDirectory, match=message):
        Directory.decode(builder.encode())


# Malformed: the same rules from every side

BAD_ENTRIES: list[tuple[list[tuple[bytes, Node]], str]] = [
    ([(b"", SymlinkNode(b"t"))], "a name is empty"),
    ([(b".", FileNode(DIGEST, 0))], "name b'.' is reserved"),
    ([(b"..", DirectoryNode(DIGEST, 0))], "name b'..' is reserved"),
    ([(b"a/b", FileNode(DIGEST, 0))], "name b'a/b' contains a slash"),
    ([(b"a\0", SymlinkNode(b"t"))], r"name b'a\x00' contains a NUL byte"),
    ([(b"n" * 256, FileNode(DIGEST, 0))], "(256 bytes) is longer than 255 bytes"),
    ([(b"f", FileNode(b"", 0))], "b'f': digest has 0 bytes, must have 32"),
    ([(b"d", DirectoryNode(DIGEST[:20], 0))], "b'd': digest has 20 bytes, must have 32"),
    ([(b"s", SymlinkNode(b""))], "b's': symlink target has 0 bytes, must have 1 to 4095"),
    ([(b"s", SymlinkNode(b"t" * 4096))], "b's': symlink target has 4096 bytes, must have 1 to 4095"),
    ([(b"s", SymlinkNode(b"\0"))], "b's': symlink target has a NUL byte at position 0"),
    ([(b"a", FileNode(DIGEST, 0)), (b"a", FileNode(OTHER, 0))], "b'a': occurs twice"),
    ([(b"a", FileNode(DIGEST, 0)), (b"a", SymlinkNode(b"t"))], "b'a': occurs twice"),
    ([(b"a", DirectoryNode(DIGEST, 0)), (b"a", FileNode(DIGEST, 0))], "b'a': occurs twice"),
    ([(b"e", SymlinkNode(b"t")), (b"f", FileNode(DIGEST[1:], 0))], "b'f': digest has 31 bytes"),
]
DISORDER: list[tuple[bytes, Node]] = [(b"b", FileNode(DIGEST, 0)), (b"a", FileNode(DIGEST, 0))]
TOO_LARGE: list[tuple[list[tuple[bytes, Node]], str]] = [
    ([(b"f", FileNode(DIGEST, 2**64))], "b'f': size 18446744073709551616 does not fit 64 bits"),
    ([(b"d", DirectoryNode(DIGEST, -1))], "b'd': size -1 does not fit 64 bits"),
]


@pytest.mark.parametrize(("entries", "message"), [*BAD_ENTRIES, *TOO_LARGE])
def test_constructor_refuses(entries: list[tuple[bytes, Node]], message: str) -> None:
    with pytest.raises(InvalidDirectory) as caught:
        Directory(entries)
    assert message in str(caught.value)
    assert isinstance(caught.value, InvalidRequest)


@pytest.mark.parametrize(("entries", "message"), BAD_ENTRIES)
def test_decode_refuses(entries: list[tuple[bytes, Node]], message: str) -> None:
    with pytest.raises(InvalidDirectory) as caught:
        Directory.decode(encoded(entries))
    assert message in str(caught.value)


@pytest.mark.parametrize(("entries", "message"), [*BAD_ENTRIES, *TOO_LARGE])
def test_builder_refuses_and_stays_as_it_was(entries: list[tuple[bytes, Node]], message: str) -> None:
    *good, (bad_name, bad_node) = entries
    builder = build(good)
    before = builder.finish()
    with pytest.raises(InvalidDirectory) as caught:
        add(builder, bad_name, bad_node)
    assert message in str(caught.value)
    assert builder.finish() == before


def test_order_matters_where_it_is_given() -> None:
    message = r"b'a': comes after b'b', names must ascend"
    with pytest.raises(InvalidDirectory, match="^files: " + message):
        Directory.decode(encoded(DISORDER))
    builder = DirectoryBuilder()
    builder.add_file(b"b", DIGEST, 0)
    for node in (FileNode(DIGEST, 0), SymlinkNode(b"t"), DirectoryNode(DIGEST, 0)):
        with pytest.raises(InvalidDirectory, match="^entries: " + message):
            add(builder, b"a", node)
    assert [name for name, _ in Directory(DISORDER)] == [b"a", b"b"]


# Malformed: bytes that only a sloppy encoder writes

BODY = b"\x0a\x01a\x12\x20" + DIGEST
FILE = b"\x12\x27" + BODY + b"\x18\x05"
SYMLINK = b"\x1a\x06\x0a\x01s\x12\x01t"
CHILD = b"\x0a\x27\x0a\x01d\x12\x20" + DIGEST + b"\x18\x05"
NOT_CANONICAL = [
    ("length with a needless group", b"\x12\xa7\x00" + BODY + b"\x18\x05", "first difference is at byte 1"),
    ("size with a needless group", b"\x12\x28" + BODY + b"\x18\x85\x00", "first difference is at byte 1"),
    ("key with a needless group", b"\x92\x00" + FILE[1:], "first difference is at byte 0"),
    (
        "size over 64 bits",
        b"\x12\x30" + BODY + b"\x18" + b"\xff" * 9 + b"\x03",
        "first difference is at byte",
    ),
    ("true as 2", b"\x12\x27" + BODY + b"\x20\x02", "first difference is at byte 40"),
    ("size 0 written", b"\x12\x27" + BODY + b"\x18\x00", "41 bytes instead of 39"),
    ("false written", b"\x12\x27" + BODY + b"\x20\x00", "41 bytes instead of 39"),
    ("fields of an entry out of order", b"\x12\x27\x18\x05" + BODY, "41 bytes instead of 41"),
    ("lists out of order", FILE + CHILD, "82 bytes instead of 82"),
    ("symlinks before files", SYMLINK + FILE, "49 bytes instead of 49"),
    ("a field twice", b"\x12\x29" + BODY + b"\x18\x06\x18\x05", "43 bytes instead of 41"),
    ("unknown field", FILE + b"\x20\x01", "unknown fields"),
    ("unknown field before", b"\x20\x01" + FILE, "unknown fields"),
    ("unknown field of an entry", b"\x12\x29" + BODY + b"\x18\x05\x28\x01", "unknown fields"),
    ("field of files in a directory", b"\x0a\x29" + CHILD[2:] + b"\x20\x01", "unknown fields"),
    ("unknown group", FILE + b"\x23\x24", "unknown fields"),
]
NO_MESSAGE = [
    ("truncated in an entry", FILE[:-1]),
    ("truncated after a key", FILE + b"\x12"),
    ("length past the end", b"\x12\x28" + BODY + b"\x18\x05"),
    ("endless varint", b"\x12" + b"\xff" * 11),
    ("field number 0", b"\x02\x00"),
    ("end of no group", b"\x24"),
    ("text", b"Directory"),
]


def test_the_parts_of_the_tables_are_canonical() -> None:
    assert len(Directory.decode(CHILD + FILE + SYMLINK)) == 3


@pytest.mark.parametrize(
    ("data", "reason"), [case[1:] for case in NOT_CANONICAL], ids=[case[0] for case in NOT_CANONICAL]
)
def test_encodings_that_are_not_canonical(data: bytes, reason: str) -> None:
    with pytest.raises(InvalidDirectory) as caught:
        Directory.decode(data)
    assert "the encoding is not canonical: " in str(caught.value)
    assert reason in str(caught.value)


@pytest.mark.parametrize("data", [case[1] for case in NO_MESSAGE], ids=[case[0] for case in NO_MESSAGE])
def test_bytes_that_are_no_message(data: bytes) -> None:
    with pytest.raises(InvalidDirectory, match=f"^{len(data)} bytes are no Directory message: "):
        Directory.decode(data)


def test_every_prefix_is_refused_or_shorter() -> None:
    whole = CHILD + FILE + SYMLINK
    valid = {0, len(CHILD), len(CHILD + FILE), len(whole)}
    for length in range(len(whole) + 1):
        if length in valid:
            assert Directory.decode(whole[:length]).encode() == whole[:length]
        else:
            with pytest.raises(InvalidDirectory):
                Directory.decode(whole[:length])


# Cost


def test_builder_keeps_little_more_than_the_encoding() -> None:
    tracemalloc.start()
    try:
        builder = DirectoryBuilder()
        for number in range(20_000):
            builder.add_file(b"file-%06d" % number, DIGEST, number)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 1.25 * len(builder.encode())


def test_import_leaves_protobuf_alone() -> None:
    """The command line imports these modules for its help already."""
    program = (
        "import sys; import neve.castore.closure, neve.castore.path; "
        "sys.exit(any(name.startswith('google') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-I", "-c", program], check=False).returncode == 0
