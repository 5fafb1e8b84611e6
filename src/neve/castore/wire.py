"""Nodes as protobuf messages, in both sets of names, and the pieces of blobs.

``tvix.castore.v1.Node`` and ``snix.castore.v1.Entry`` are the same message under two names, so each
function takes either. Directories need nothing here: their encoding is their message.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

from neve.castore.node import DirectoryNode, FileNode, InvalidNode, Node, SymlinkNode, validate_node
from neve.castore.path import check_name
from neve.proto.tvix.castore.protos import castore_pb2

if TYPE_CHECKING:
    from neve.proto.snix.castore.protos import castore_pb2 as snix_castore_pb2

__all__ = ["encode_blob_chunk", "fill_node_message", "node_from_message", "node_to_message"]

NodeMessage = TypeVar("NodeMessage", castore_pb2.Node, "snix_castore_pb2.Entry")


def encode_blob_chunk(pieces: Sequence[bytes]) -> bytes:
    """A serialized ``BlobChunk`` of ``pieces`` together. The message class would copy them twice."""
    size = sum(map(len, pieces))
    head = bytearray(b"\x0a")
    while size > 0x7F:
        head.append(size & 0x7F | 0x80)
        size >>= 7
    head.append(size)
    return b"".join((head, *pieces))


def fill_node_message(message: NodeMessage, name: bytes, node: Node) -> NodeMessage:
    """Replaces what ``message`` holds by a valid node and returns it; ``name`` may be empty.

    Takes any ``Node`` or ``Entry`` message, also one inside another message. Raises
    ``InvalidName``, ``InvalidDigest`` or ``InvalidNode``; the message is then as before.
    """
    _check(name, node)
    message.Clear()
    if isinstance(node, DirectoryNode):
        message.directory.name = name
        message.directory.digest = node.digest
        message.directory.size = node.size
    elif isinstance(node, FileNode):
        message.file.name = name
        message.file.digest = node.digest
        message.file.size = node.size
        message.file.executable = node.executable
    else:
        message.symlink.name = name
        message.symlink.target = node.target
    return message


def node_to_message(name: bytes, node: Node) -> castore_pb2.Node:
    """A new ``tvix.castore.v1.Node``. Raises as ``fill_node_message`` does."""
    return fill_node_message(castore_pb2.Node(), name, node)


def node_from_message(message: NodeMessage) -> tuple[bytes, Node]:
    """Name (perhaps empty) and node of a ``Node`` or ``Entry`` message.

    Raises ``InvalidName``, ``InvalidDigest`` or ``InvalidNode``.
    """
    name: bytes
    node: Node
    if message.HasField("directory"):
        name = message.directory.name
        node = DirectoryNode(message.directory.digest, message.directory.size)
    elif message.HasField("file"):
        name = message.file.name
        node = FileNode(message.file.digest, message.file.size, message.file.executable)
    elif message.HasField("symlink"):
        name = message.symlink.name
        node = SymlinkNode(message.symlink.target)
    else:
        raise InvalidNode("the message has no node: neither directory, file nor symlink is set")
    _check(name, node)
    return name, node


def _check(name: bytes, node: Node) -> None:
    if name:
        check_name(name)
    validate_node(node)
