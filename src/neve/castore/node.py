"""The three kinds of nodes. A node has no name of its own; the Directory or root around it knows it."""

from __future__ import annotations

from typing import Final, NamedTuple, TypeAlias

from neve.castore.digest import DIGEST_SIZE, Digest, check_digest
from neve.errors import InvalidRequest

__all__ = [
    "MAX_SIZE",
    "MAX_TARGET_BYTES",
    "DirectoryNode",
    "FileNode",
    "InvalidNode",
    "Node",
    "SymlinkNode",
    "validate_node",
]

MAX_SIZE: Final = 2**64 - 1
"""The largest size that fits the 64 bit field of the messages."""

MAX_TARGET_BYTES: Final = 4095
"""The longest symlink target that Linux takes (PATH_MAX without the NUL)."""


class InvalidNode(InvalidRequest):
    """A node with a size or a target that no node can have."""


class FileNode(NamedTuple):
    """A regular file."""

    digest: Digest
    """Digest of the contents."""
    size: int
    """Length of the contents in bytes."""
    executable: bool = False


class SymlinkNode(NamedTuple):
    """A symbolic link."""

    target: bytes
    """1 to 4095 bytes without NUL."""


class DirectoryNode(NamedTuple):
    """A reference to a Directory."""

    digest: Digest
    """Digest of the canonical encoding of the Directory."""
    size: int
    """Number of nodes below, by the size rule of the closure it belongs to."""


Node: TypeAlias = FileNode | SymlinkNode | DirectoryNode


def validate_node(node: Node) -> None:
    """Raises ``InvalidDigest`` or ``InvalidNode``, naming field and value, unless the node can be stored."""
    if isinstance(node, SymlinkNode):
        check_target(node.target)
        return
    if len(node.digest) != DIGEST_SIZE:
        check_digest(node.digest)
    if not 0 <= node.size <= MAX_SIZE:
        raise InvalidNode(f"size {node.size} does not fit 64 bits")


def check_target(target: bytes) -> None:
    """Raises ``InvalidNode`` unless ``target`` is 1 to 4095 bytes without NUL."""
    if not 1 <= len(target) <= MAX_TARGET_BYTES:
        raise InvalidNode(f"symlink target has {len(target)} bytes, must have 1 to {MAX_TARGET_BYTES}")
    if b"\0" in target:
        raise InvalidNode(f"symlink target has a NUL byte at position {target.index(0)}")
