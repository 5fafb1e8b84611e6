"""Addresses, taken apart."""

from __future__ import annotations

import base64

import pytest

from neve.castore.node import DirectoryNode, FileNode, Node, SymlinkNode
from neve.castore.wire import fill_node_message
from neve.errors import InvalidRequest
from neve.http_cache.routes import MAX_NODE_BYTES, parse_nar_name, parse_node, route_of
from neve.nix import base32
from neve.nix.compression import SUFFIXES
from neve.proto.tvix.castore.protos import castore_pb2
from neve.store.wire import encode_node

DIGEST = "0c9qn3kxgbsqi5xbipjyhf6bx1k4i4h3"
SHA256 = bytes(range(32))


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/nix-cache-info", ("cache-info", "")),
        (f"/{DIGEST}.narinfo", ("narinfo", DIGEST)),
        (f"/{DIGEST}.ls", ("listing", DIGEST)),
        ("/nar/tvix-castore/abc", ("node", "abc")),
        ("/nar/snix-castore/abc", ("node", "abc")),
        ("/nar/tvix-castore/", ("node", "")),
        ("/nar/x.nar", ("nar", "x.nar")),
        ("/nar/", ("nar", "")),
        ("/log/x-y.drv", ("log", "x-y.drv")),
        ("/log/", ("log", "")),
        ("/realisations/sha256:00!out.doi", ("realisation", "sha256:00!out.doi")),
        ("/debuginfo/00ff.debug", ("debuginfo", "00ff.debug")),
        ("/debuginfo/../x", ("debuginfo", "../x")),
        ("/metrics", ("metrics", "")),
        ("/healthz", ("ready", "")),
        ("/healthz/live", ("alive", "")),
        ("/", None),
        ("/nix-cache-info/", None),
        (f"/{DIGEST}.narinfo/", None),
        (f"/{DIGEST}.narinfo\n", None),
        (f"/{DIGEST[:-1]}.narinfo", None),
        (f"/{DIGEST.upper()}.narinfo", None),
        (f"/{'e' * 32}.narinfo", None),
        (f"/x/{DIGEST}.narinfo", None),
        ("/nar/../../etc/passwd", None),
        ("/nar/other-castore/abc", None),
        ("/nar/tvix-castore/abc/d", None),
    ],
)
def test_routes(path: str, expected: tuple[str, str] | None) -> None:
    assert route_of(path) == expected


def text_of(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def named(node: Node) -> bytes:
    data: bytes = fill_node_message(castore_pb2.Node(), b"name", node).SerializeToString()
    return data


NODES: list[Node] = [
    DirectoryNode(SHA256, 7),
    FileNode(SHA256, 0, False),
    FileNode(SHA256, 1 << 40, True),
    SymlinkNode(b"t" * 4095),
]


@pytest.mark.parametrize("node", NODES)
def test_nodes(node: Node) -> None:
    assert parse_node(text_of(encode_node(node))) == node


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "node"),
        ("A", "base64"),
        ("AAAAA", "base64"),
        ("AA==", "base64"),
        ("A/+A", "base64"),
        ("A A", "base64"),
        ("\u00e4bc", "base64"),
        (text_of(bytes(MAX_NODE_BYTES + 1)), "at most 4352"),
        ("A" * 100_000, "at most 4352"),
        (text_of(named(NODES[0])), "has a name"),
        (text_of(encode_node(NODES[0]) + b"\x00"), "Node"),
        (text_of(encode_node(NODES[0])[:-1]), "Node"),
        (text_of(b"\xff" * 40), "Node"),
        # The digest is too short; a symlink to nowhere; more than one kind.
        (text_of(b"\x0a\x07\x12\x03abc\x18\x01"), "digest"),
        (text_of(b"\x1a\x00"), "target"),
        (text_of(encode_node(NODES[1]) + encode_node(NODES[3])), "encoded"),
    ],
)
def test_what_is_no_node(text: str, complaint: str) -> None:
    with pytest.raises(InvalidRequest, match=complaint):
        parse_node(text)


def test_another_spelling_of_a_node_is_refused() -> None:
    data = encode_node(NODES[0])
    text = text_of(data)
    # Bits beyond the last byte, and a varint that is longer than needed.
    assert len(data) % 3 == 2
    last = text[-1]
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    other = alphabet[alphabet.index(last) | 1]
    assert other != last
    with pytest.raises(InvalidRequest, match="base64"):
        parse_node(text[:-1] + other)
    with pytest.raises(InvalidRequest):
        parse_node(text_of(data[:-1] + bytes([data[-1] | 0x80, 0])))


@pytest.mark.parametrize("compression", SUFFIXES)
def test_names_of_nars(compression: str) -> None:
    found = parse_nar_name(f"{base32.encode(SHA256)}.nar{SUFFIXES[compression]}")
    assert found == (SHA256, compression)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".nar",
        base32.encode(SHA256),
        f"{base32.encode(SHA256)}.nar.rar",
        f"{base32.encode(SHA256)}.nar.",
        f"{base32.encode(SHA256)}.nar.xz.xz",
        f"{base32.encode(SHA256)}.nar\n",
        f"{base32.encode(SHA256)}.NAR",
        f"{base32.encode(SHA256)[1:]}.nar",
        f"z{base32.encode(SHA256)[1:]}.nar",
        f"../{base32.encode(SHA256)}.nar",
        SHA256.hex() + ".nar",
    ],
)
def test_what_is_no_name_of_a_nar(name: str) -> None:
    assert parse_nar_name(name) is None
