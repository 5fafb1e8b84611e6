from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neve.castore.digest import InvalidDigest
from neve.castore.node import DirectoryNode, FileNode, InvalidNode, Node, SymlinkNode
from neve.castore.path import InvalidName
from neve.castore.wire import encode_blob_chunk, fill_node_message, node_from_message, node_to_message
from neve.errors import InvalidRequest
from neve.proto.snix.castore.protos import castore_pb2 as snix_castore_pb2
from neve.proto.tvix.castore.protos import castore_pb2, rpc_blobstore_pb2
from neve.proto.tvix.store.protos import pathinfo_pb2
from neve.testing.strategies import names, nodes

DIGEST = bytes(range(32))


@given(names() | st.just(b""), nodes())
def test_round_trip_in_both_sets(name: bytes, node: Node) -> None:
    message = node_to_message(name, node)
    assert node_from_message(message) == (name, node)
    entry = fill_node_message(snix_castore_pb2.Entry(), name, node)
    assert node_from_message(entry) == (name, node)
    assert entry.SerializeToString() == message.SerializeToString()
    assert node_from_message(castore_pb2.Node.FromString(message.SerializeToString())) == (name, node)


@pytest.mark.parametrize(
    ("node", "encoded"),
    [
        (DirectoryNode(DIGEST, 4), b"\x0a\x27\x0a\x01n\x12\x20" + DIGEST + b"\x18\x04"),
        (FileNode(DIGEST, 0), b"\x12\x25\x0a\x01n\x12\x20" + DIGEST),
        (FileNode(DIGEST, 0, True), b"\x12\x27\x0a\x01n\x12\x20" + DIGEST + b"\x20\x01"),
        (SymlinkNode(b"t"), b"\x1a\x06\x0a\x01n\x12\x01t"),
    ],
)
def test_encoding(node: Node, encoded: bytes) -> None:
    assert node_to_message(b"n", node).SerializeToString() == encoded


def test_fill_replaces_what_was_there() -> None:
    info = pathinfo_pb2.PathInfo()
    fill_node_message(info.node, b"old", FileNode(DIGEST, 1, True))
    assert fill_node_message(info.node, b"", SymlinkNode(b"t")) is info.node
    assert info == pathinfo_pb2.PathInfo(node=castore_pb2.Node(symlink=castore_pb2.SymlinkNode(target=b"t")))


def test_a_refused_fill_changes_nothing() -> None:
    message = node_to_message(b"n", SymlinkNode(b"t"))
    with pytest.raises(InvalidDigest):
        fill_node_message(message, b"n", FileNode(b"", 0))
    assert node_from_message(message) == (b"n", SymlinkNode(b"t"))


def file_message(**values: object) -> castore_pb2.Node:
    return castore_pb2.Node(file=castore_pb2.FileNode(**values))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("message", "error", "reason"),
    [
        (castore_pb2.Node(), InvalidNode, "neither directory, file nor symlink is set"),
        (snix_castore_pb2.Entry(), InvalidNode, "neither directory, file nor symlink is set"),
        (file_message(), InvalidDigest, "digest has 0 bytes"),
        (file_message(digest=DIGEST + b"x"), InvalidDigest, "digest has 33 bytes"),
        (file_message(digest=DIGEST, name=b"a/b"), InvalidName, "name b'a/b' contains a slash"),
        (file_message(digest=DIGEST, name=b".."), InvalidName, "name b'..' is reserved"),
        (castore_pb2.Node(symlink=castore_pb2.SymlinkNode()), InvalidNode, "target has 0 bytes"),
        (castore_pb2.Node(directory=castore_pb2.DirectoryNode()), InvalidDigest, "digest has 0 bytes"),
    ],
)
def test_invalid_messages(message: castore_pb2.Node, error: type[InvalidRequest], reason: str) -> None:
    with pytest.raises(error) as caught:
        node_from_message(message)
    assert reason in str(caught.value)


def test_invalid_nodes_are_not_sent() -> None:
    with pytest.raises(InvalidName):
        node_to_message(b".", FileNode(DIGEST, 0))
    with pytest.raises(InvalidNode):
        node_to_message(b"", FileNode(DIGEST, 2**64))


@pytest.mark.parametrize("pieces", [[], [b""], [b"x"], [b"x" * 127], [b"x" * 100, b"y" * 28], [b"z" * 2**21]])
def test_a_blob_chunk_is_what_the_message_class_makes(pieces: list[bytes]) -> None:
    contents = b"".join(pieces)
    encoded = encode_blob_chunk(pieces)
    assert rpc_blobstore_pb2.BlobChunk.FromString(encoded).data == contents
    if contents:
        assert encoded == rpc_blobstore_pb2.BlobChunk(data=contents).SerializeToString()
