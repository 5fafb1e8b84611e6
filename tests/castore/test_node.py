from __future__ import annotations

import pytest
from hypothesis import given

from neve.castore.digest import InvalidDigest
from neve.castore.node import (
    DirectoryNode,
    FileNode,
    InvalidNode,
    Node,
    SymlinkNode,
    validate_node,
)
from neve.errors import InvalidRequest
from neve.testing.strategies import nodes

DIGEST = bytes(range(32))


@pytest.mark.parametrize(
    "node",
    [
        FileNode(DIGEST, 0),
        FileNode(DIGEST, 2**64 - 1, True),
        DirectoryNode(DIGEST, 0),
        DirectoryNode(DIGEST, 2**64 - 1),
        SymlinkNode(b"t"),
        SymlinkNode(b"t" * 4095),
        SymlinkNode(b"/\xff\n"),
    ],
)
def test_valid_nodes(node: Node) -> None:
    validate_node(node)


@pytest.mark.parametrize(
    ("node", "error", "message"),
    [
        (FileNode(DIGEST[:31], 0), InvalidDigest, "digest has 31 bytes, must have 32"),
        (DirectoryNode(DIGEST + b"x", 0), InvalidDigest, "digest has 33 bytes, must have 32"),
        (FileNode(DIGEST, 2**64), InvalidNode, "size 18446744073709551616 does not fit 64 bits"),
        (DirectoryNode(DIGEST, -1), InvalidNode, "size -1 does not fit 64 bits"),
        (SymlinkNode(b""), InvalidNode, "symlink target has 0 bytes, must have 1 to 4095"),
        (SymlinkNode(b"t" * 4096), InvalidNode, "symlink target has 4096 bytes, must have 1 to 4095"),
        (SymlinkNode(b"ab\0c"), InvalidNode, "symlink target has a NUL byte at position 2"),
    ],
)
def test_invalid_nodes(node: Node, error: type[InvalidRequest], message: str) -> None:
    with pytest.raises(error) as caught:
        validate_node(node)
    assert str(caught.value) == message


@given(nodes())
def test_strategy_yields_valid_nodes(node: Node) -> None:
    validate_node(node)


def test_kinds_never_compare_equal() -> None:
    kinds: list[Node] = [FileNode(DIGEST, 0), DirectoryNode(DIGEST, 0), SymlinkNode(DIGEST)]
    assert len(set(kinds)) == 3
