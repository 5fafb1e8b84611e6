"""Path infos as messages: nothing is lost on the way, and what is malformed is refused by name."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from hypothesis import given

from neve.castore.node import DirectoryNode, FileNode, SymlinkNode
from neve.errors import InvalidRequest
from neve.nix import base32
from neve.nix.hashes import CAHash, CAType
from neve.nix.signing import Signature
from neve.nix.store_path import StorePath
from neve.proto.snix.store.protos import pathinfo_pb2 as snix_pathinfo_pb2
from neve.proto.tvix.store.protos import pathinfo_pb2
from neve.store.path_info import InvalidPathInfo, NarDetails, PathInfo
from neve.store.wire import (
    decode_node,
    decode_path_info,
    encode_node,
    encode_path_info,
    path_info_from_message,
    path_info_to_message,
)
from neve.testing.strategies import nodes

from .strategies import path_infos

DIGEST = bytes(range(20))
NIX32 = base32.encode(DIGEST)
REFERENCES = (StorePath(DIGEST, "b"), StorePath(bytes(20), "a"))

FULL = PathInfo(
    StorePath(DIGEST, "hello-2.12"),
    DirectoryNode(bytes(32), 7),
    tuple(path.digest for path in REFERENCES),
    NarDetails(
        size=1234,
        sha256=bytes(range(32)),
        reference_names=REFERENCES,
        signatures=(Signature("cache.example-1", bytes(64)), Signature("other", b"\1" * 64)),
        deriver=StorePath(b"\2" * 20, "hello-2.12"),
        ca=CAHash(CAType.NAR_SHA256, bytes(range(32))),
    ),
)


@given(path_infos())
def test_round_trip(path_info: PathInfo) -> None:
    encoded = encode_path_info(path_info)
    assert decode_path_info(encoded) == path_info
    assert path_info_from_message(path_info_to_message(path_info)) == path_info
    assert encode_path_info(decode_path_info(encoded)) == encoded


@given(path_infos())
def test_the_other_set_of_names_is_the_same_message(path_info: PathInfo) -> None:
    encoded = encode_path_info(path_info)
    message = snix_pathinfo_pb2.PathInfo.FromString(encoded)
    assert path_info_from_message(message) == path_info
    assert message.SerializeToString(deterministic=True) == encoded


@given(nodes())
def test_nodes(node: FileNode | SymlinkNode | DirectoryNode) -> None:
    assert decode_node(encode_node(node)) == (b"", node)


def test_the_fields_of_the_message() -> None:
    message = path_info_to_message(FULL)
    assert message.node.directory.name == f"{NIX32}-hello-2.12".encode()
    assert list(message.references) == [DIGEST, bytes(20)]
    narinfo = message.narinfo
    assert (narinfo.nar_size, narinfo.nar_sha256) == (1234, bytes(range(32)))
    assert list(narinfo.reference_names) == [f"{NIX32}-b", f"{'0' * 32}-a"]
    assert [one.name for one in narinfo.signatures] == ["cache.example-1", "other"]
    assert (narinfo.deriver.name, narinfo.deriver.digest) == ("hello-2.12", b"\2" * 20)
    assert narinfo.ca.type == pathinfo_pb2.NARInfo.CA.NAR_SHA256


def test_without_narinfo_the_message_has_none() -> None:
    bare = PathInfo(FULL.store_path, SymlinkNode(b"x"), FULL.references)
    message = path_info_to_message(bare)
    assert not message.HasField("narinfo")
    assert path_info_from_message(message) == bare


@pytest.mark.parametrize("ca_type", CAType)
def test_numbers_of_content_addresses(ca_type: CAType) -> None:
    assert pathinfo_pb2.NARInfo.CA.Hash.Value(ca_type.name) == ca_type.value


Message = pathinfo_pb2.PathInfo
Change = Callable[[Message], object]


def set_field(message: object, name: str, value: object) -> None:
    setattr(message, name, value)


def truncate(field: str, size: int) -> Change:
    """Sets the bytes of a field to ``size`` zeros; the field is a path of attributes and positions."""

    def change(message: Message) -> None:
        target: object = message
        *way, last = field.split(".")
        for step in way:
            target = target[int(step)] if step.isdigit() else getattr(target, step)  # type: ignore[index]
        setattr(target, last, bytes(size))

    return change


def replace_item(values: str, position: int, value: object) -> Change:
    def change(message: Message) -> None:
        owner = message if values == "references" else message.narinfo
        getattr(owner, values)[position] = value

    return change


def set_ca(number: int, digest: bytes) -> Change:
    def change(message: Message) -> None:
        message.narinfo.ca.type = number  # type: ignore[assignment]
        message.narinfo.ca.digest = digest

    return change


def without_references(message: Message) -> None:
    message.ClearField("references")
    message.narinfo.ClearField("reference_names")
    message.narinfo.deriver.Clear()


# What is done to a valid message, and what the error says: field, position, expected and actual.
MALFORMED: dict[str, tuple[Change, str]] = {
    "no node": (lambda m: m.ClearField("node"), r"^node: .*neither directory, file nor symlink"),
    "empty node": (lambda m: m.node.Clear(), r"^node: .*neither directory, file nor symlink"),
    "node digest": (truncate("node.directory.digest", 31), r"^node: digest has 31 bytes, must have 32"),
    "no node name": (truncate("node.directory.name", 0), r"^node\.name: .*''.*no '-' at position 32"),
    "node name is no base name": (
        lambda m: set_field(m.node.directory, "name", b"hello"),
        r"^node\.name: .*'hello' has no '-' at position 32",
    ),
    "node name with a slash": (
        lambda m: set_field(m.node.directory, "name", f"{NIX32}-a/b".encode()),
        r"^node: name .*a/b.* contains a slash",
    ),
    "node name with a bad digest": (
        lambda m: set_field(m.node.directory, "name", b"e" * 32 + b"-hello"),
        r"^node\.name: .*'e'",
    ),
    "node name with a bad name": (
        lambda m: set_field(m.node.directory, "name", f"{NIX32}-a b".encode()),
        r"^node\.name: .*character ' ' at position 1",
    ),
    "node name is no UTF-8": (
        lambda m: set_field(m.node.directory, "name", NIX32.encode() + b"-\xff"),
        r"^node\.name: .*at position 0",
    ),
    "symlink without target": (
        lambda m: set_field(m.node.symlink, "name", m.node.directory.name),
        r"^node: symlink target has 0 bytes, must have 1 to 4095",
    ),
    "short reference": (
        replace_item("references", 1, bytes(19)),
        r"^references\[1\] has 19 bytes, must have 20",
    ),
    "long reference": (
        replace_item("references", 0, bytes(21)),
        r"^references\[0\] has 21 bytes, must have 20",
    ),
    "NAR hash": (truncate("narinfo.nar_sha256", 31), r"^narinfo\.nar_sha256 has 31 bytes, must have 32"),
    "no NAR hash": (truncate("narinfo.nar_sha256", 0), r"^narinfo\.nar_sha256 has 0 bytes, must have 32"),
    "fewer reference names": (
        lambda m: m.narinfo.reference_names.pop(),
        r"^narinfo\.reference_names has 1 entries, references has 2",
    ),
    "more reference names": (
        lambda m: m.narinfo.reference_names.append(f"{NIX32}-c"),
        r"^narinfo\.reference_names has 3 entries, references has 2",
    ),
    "reference name that is none": (
        replace_item("reference_names", 1, "hello"),
        r"^narinfo\.reference_names\[1\]: .*'hello' has no '-'",
    ),
    "reference name with a store directory": (
        replace_item("reference_names", 0, f"/nix/store/{NIX32}-b"),
        r"^narinfo\.reference_names\[0\]: .*has no '-' at position 32",
    ),
    "reference name of another digest": (
        replace_item("reference_names", 1, f"{NIX32}-a"),
        rf"^narinfo\.reference_names\[1\] is {NIX32}-a, references\[1\] is 00000000000000000000000000000000",
    ),
    "short signature": (
        truncate("narinfo.signatures.1.data", 63),
        r"^narinfo\.signatures\[1\]: .*'other' of 63 bytes, expected 64",
    ),
    "signature without name": (
        lambda m: set_field(m.narinfo.signatures[0], "name", ""),
        r"^narinfo\.signatures\[0\]: .*bad key name",
    ),
    "deriver digest": (
        truncate("narinfo.deriver.digest", 21),
        r"^narinfo\.deriver\.digest has 21 bytes, must have 20",
    ),
    "deriver name": (
        lambda m: set_field(m.narinfo.deriver, "name", "a/b"),
        r"^narinfo\.deriver: character '/' at position 1",
    ),
    "deriver without name": (
        lambda m: set_field(m.narinfo.deriver, "name", ""),
        r"^narinfo\.deriver: store path name is empty",
    ),
    "deriver without references": (without_references, r"^narinfo\.deriver\.digest has 0 bytes"),
    "unknown ca type": (set_ca(9, bytes(32)), r"^narinfo\.ca\.type 9 is unknown, expected 0 to 8"),
    "negative ca type": (set_ca(-1, bytes(32)), r"^narinfo\.ca\.type -1 is unknown, expected 0 to 8"),
    "ca digest": (
        set_ca(CAType.NAR_SHA1, bytes(32)),
        r"^narinfo\.ca\.digest: sha1 digest of 32 bytes, expected 20$",
    ),
    "no ca digest": (
        set_ca(CAType.TEXT_SHA256, b""),
        r"^narinfo\.ca\.digest: sha256 digest of 0 bytes, expected 32$",
    ),
    "ca digest as text": (
        set_ca(CAType.NAR_SHA256, b"sha256:" + b"0" * 52),
        r"^narinfo\.ca\.digest: sha256 digest of 59 bytes, expected 32; it holds text, as one old release",
    ),
}


@pytest.mark.parametrize("name", MALFORMED)
@pytest.mark.parametrize("snix", [False, True], ids=["tvix", "snix"])
def test_malformed_messages(name: str, snix: bool) -> None:
    change, expected = MALFORMED[name]
    message = path_info_to_message(FULL)
    change(message)
    message_class = snix_pathinfo_pb2.PathInfo if snix else pathinfo_pb2.PathInfo
    sent = message_class.FromString(message.SerializeToString())
    with pytest.raises(InvalidPathInfo) as refused:
        path_info_from_message(sent)
    assert re.search(expected, str(refused.value))


def test_digests_that_look_like_text_are_taken() -> None:
    """Every digest may begin with any bytes."""
    for digest in (b"sha256:" + bytes(25), b"md5:" + b"x" * 28):
        message = path_info_to_message(FULL)
        message.narinfo.ca.digest = digest
        path_info = path_info_from_message(message)
        assert path_info.nar is not None
        assert path_info.nar.ca == CAHash(CAType.NAR_SHA256, digest)


def test_each_algorithm_written_as_text_gets_the_hint() -> None:
    for ca_type in CAType:
        text = f"{ca_type.algorithm.value}:{'0' * ca_type.algorithm.digest_size * 2}".encode()
        message = path_info_to_message(FULL)
        message.narinfo.ca.type = ca_type.value  # type: ignore[assignment]
        message.narinfo.ca.digest = text
        with pytest.raises(InvalidPathInfo, match="must be the raw digest"):
            path_info_from_message(message)


@pytest.mark.parametrize("data", [b"\xff", b"\x0a\x05", b"\x1a\x02\x22\xff"])
def test_bytes_that_are_no_message(data: bytes) -> None:
    with pytest.raises(InvalidPathInfo, match=f"{len(data)} bytes are no PathInfo message"):
        decode_path_info(data)
    with pytest.raises(InvalidRequest):
        decode_node(data)


def test_an_empty_message_lacks_a_node() -> None:
    with pytest.raises(InvalidPathInfo, match=r"^node: "):
        decode_path_info(b"")


def test_names_that_only_old_nix_made_are_read() -> None:
    message = path_info_to_message(FULL)
    message.node.directory.name = f"{NIX32}-.-old".encode()
    assert path_info_from_message(message).store_path == StorePath(DIGEST, ".-old")
