"""PathInfo as a protobuf message and back, in both sets of names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeAlias

from neve.castore.node import Node
from neve.castore.wire import fill_node_message, node_from_message
from neve.errors import InvalidRequest
from neve.nix.hashes import CAHash, CAType
from neve.nix.signing import Signature
from neve.nix.store_path import DIGEST_SIZE, StorePath
from neve.proto.tvix.castore.protos import castore_pb2
from neve.proto.tvix.store.protos import pathinfo_pb2
from neve.store.path_info import InvalidPathInfo, NarDetails, PathInfo

if TYPE_CHECKING:
    from neve.proto.snix.store.protos import pathinfo_pb2 as snix_pathinfo_pb2

    PathInfoMessage: TypeAlias = pathinfo_pb2.PathInfo | snix_pathinfo_pb2.PathInfo
    NarInfoMessage: TypeAlias = pathinfo_pb2.NARInfo | snix_pathinfo_pb2.NARInfo

_ALGORITHM_PREFIXES = (b"md5:", b"sha1:", b"sha256:", b"sha512:")


def path_info_to_message(path_info: PathInfo) -> pathinfo_pb2.PathInfo:
    """The message of a path info."""
    message = pathinfo_pb2.PathInfo(references=path_info.references)
    fill_node_message(message.node, path_info.store_path.base_name.encode(), path_info.node)
    if (nar := path_info.nar) is not None:
        out = message.narinfo
        out.nar_size = nar.size
        out.nar_sha256 = nar.sha256
        for signature in nar.signatures:
            out.signatures.add(name=signature.name, data=signature.data)
        out.reference_names.extend(path.base_name for path in nar.reference_names)
        if nar.deriver is not None:
            out.deriver.name, out.deriver.digest = nar.deriver.name, nar.deriver.digest
        if nar.ca is not None:
            out.ca.type = nar.ca.type.value  # type: ignore[assignment]
            out.ca.digest = nar.ca.digest
    return message


def path_info_from_message(message: PathInfoMessage) -> PathInfo:
    """The path info of a message. Raises ``InvalidPathInfo`` naming the field that breaks a rule."""
    try:
        if isinstance(message, pathinfo_pb2.PathInfo):
            name, node = node_from_message(message.node)
        else:
            name, node = node_from_message(message.entry)
    except InvalidRequest as error:
        raise InvalidPathInfo(f"node: {error}") from error
    store_path = _store_path(name)
    nar = _nar_details(message.narinfo) if message.HasField("narinfo") else None
    return PathInfo(store_path, node, tuple(message.references), nar)


def _store_path(name: bytes) -> StorePath:
    try:
        return StorePath.parse_base_name(name)
    except InvalidRequest as error:
        raise InvalidPathInfo(f"node.name: {error}") from error


def _nar_details(message: NarInfoMessage) -> NarDetails:
    names = []
    for i, text in enumerate(message.reference_names):
        try:
            names.append(StorePath.parse_base_name(text))
        except InvalidRequest as error:
            raise InvalidPathInfo(f"narinfo.reference_names[{i}]: {error}") from error
    signatures = []
    listed: Iterable[pathinfo_pb2.NARInfo.Signature] = message.signatures  # type: ignore[assignment]
    for i, signature in enumerate(listed):
        try:
            signatures.append(Signature(signature.name, signature.data))
        except InvalidRequest as error:
            raise InvalidPathInfo(f"narinfo.signatures[{i}]: {error}") from error
    return NarDetails(
        size=message.nar_size,
        sha256=message.nar_sha256,
        reference_names=tuple(names),
        signatures=tuple(signatures),
        deriver=_deriver(message) if message.HasField("deriver") else None,
        ca=_ca(message.ca.type, message.ca.digest) if message.HasField("ca") else None,
    )


def _deriver(message: NarInfoMessage) -> StorePath:
    digest = message.deriver.digest
    if len(digest) != DIGEST_SIZE:
        raise InvalidPathInfo(f"narinfo.deriver.digest has {len(digest)} bytes, must have {DIGEST_SIZE}")
    try:
        return StorePath(digest, message.deriver.name)
    except InvalidRequest as error:
        raise InvalidPathInfo(f"narinfo.deriver: {error}") from error


def _ca(number: int, digest: bytes) -> CAHash:
    try:
        return CAHash(CAType(number), digest)
    except ValueError as error:
        raise InvalidPathInfo(
            f"narinfo.ca.type {number} is unknown, expected 0 to {max(CAType).value}"
        ) from error
    except InvalidRequest as error:
        hint = ""
        if digest.startswith(_ALGORITHM_PREFIXES):
            hint = "; it holds text, as one old release wrote it, and must be the raw digest"
        raise InvalidPathInfo(f"narinfo.ca.digest: {error}{hint}") from error


def encode_path_info(path_info: PathInfo) -> bytes:
    """The serialized ``tvix.store.v1.PathInfo``."""
    return path_info_to_message(path_info).SerializeToString(deterministic=True)


def decode_path_info(data: bytes) -> PathInfo:
    """Raises ``InvalidPathInfo``."""
    return path_info_from_message(_message(data))


def decode_path_name(data: bytes) -> StorePath:
    """The store path of an encoded path info, about which nothing else is checked: a third of the work.
    Raises ``InvalidPathInfo``."""
    node = _message(data).node
    kind = node.WhichOneof("node")
    return _store_path(getattr(node, kind).name if kind is not None else b"")


def decode_nar_size(data: bytes) -> int:
    """The size of the NAR of an encoded path info, 0 if it does not tell. Raises ``InvalidPathInfo``."""
    return _message(data).narinfo.nar_size


def _message(data: bytes) -> pathinfo_pb2.PathInfo:
    from google.protobuf.message import DecodeError

    try:
        return pathinfo_pb2.PathInfo.FromString(data)
    except DecodeError as error:
        raise InvalidPathInfo(f"{len(data)} bytes are no PathInfo message: {error}") from error


def encode_node(node: Node) -> bytes:
    """The serialized ``tvix.castore.v1.Node`` without a name."""
    return fill_node_message(castore_pb2.Node(), b"", node).SerializeToString(deterministic=True)


def decode_node(data: bytes) -> tuple[bytes, Node]:
    """Name and node. Raises ``InvalidRequest``."""
    from google.protobuf.message import DecodeError

    try:
        return node_from_message(castore_pb2.Node.FromString(data))
    except DecodeError as error:
        raise InvalidPathInfo(f"{len(data)} bytes are no Node message: {error}") from error
