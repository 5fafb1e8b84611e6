"""Blobs, Directories and path infos as they travel, and what trees come out of."""

from __future__ import annotations

import contextlib
import functools
import io

from google.protobuf.message import DecodeError

from neve.castore.blobs.bundle import InvalidBundle, answer_from_message, bundle_from_message, split_digests
from neve.castore.blobs.chunks import decode_chunk_list, encode_chunk_list
from neve.castore.closure import ClosureLimits, InvalidClosure, LeavesToRoot, RootToLeaves
from neve.castore.digest import InvalidDigest, format_digest, parse_digest
from neve.castore.directory import Directory, InvalidDirectory, SizeRule, child_digests
from neve.castore.ingest.archive import ArchiveError, archive_events
from neve.castore.node import InvalidNode
from neve.castore.path import InvalidName, parse_path
from neve.castore.wire import node_from_message, node_to_message
from neve.errors import InvalidRequest, LimitExceeded, NotFound
from neve.nix.nar import NarEncoder, NarError
from neve.proto.neve.castore.protos import rpc_batch_pb2
from neve.proto.snix.castore.protos import castore_pb2 as snix_pb2
from neve.proto.tvix.castore.protos import castore_pb2
from neve.server.batches import _put_request, _Session
from neve.server.messages import check_parts
from neve.store.nar.ingest import ingest_nar
from neve.store.path_info import InvalidPathInfo
from neve.store.services import Services
from neve.store.wire import decode_path_info, decode_path_name, encode_path_info
from tests.fuzz.target import Bound, Target
from tests.store.helpers import memory_services

_LIMITS = ClosureLimits(max_directory_bytes=2048, max_directories=50)


def _digest(data: bytes) -> None:
    text = data.decode("latin-1")
    assert text.removeprefix("blake3-").removeprefix("b3:") == format_digest(parse_digest(text))[3:]


def _path(data: bytes) -> None:
    components = parse_path(data)
    assert b"/".join(components) == b"/".join(part for part in data.split(b"/") if part)
    assert parse_path(b"/".join(components)) == components


def _directory(data: bytes) -> None:
    directory = Directory.decode(data)
    entries = dict(directory)
    assert list(entries) == sorted(entries)
    assert Directory(entries).encode() == data
    assert child_digests(data) == [child.digest for _, child in directory.directories()]
    directory.size(SizeRule.SNIX)


def _node(data: bytes) -> None:
    """Under both names; what is taken is the same when it has been sent on."""
    try:
        message, snix_message = castore_pb2.Node.FromString(data), snix_pb2.Entry.FromString(data)
    except DecodeError:
        raise InvalidNode("no message") from None
    name, node = node_from_message(message)
    assert node_from_message(snix_message) == (name, node)
    assert node_from_message(node_to_message(name, node)) == (name, node)


def _closure(data: bytes) -> None:
    """Directories one behind the other, each with its length before it in two bytes."""
    stream = io.BytesIO(data)
    encoded = []
    while head := stream.read(2):
        encoded.append(stream.read(int.from_bytes(head, "big")))
    upward = LeavesToRoot(_LIMITS)
    for each in encoded:
        upward.add(Directory.decode(each))
    root = upward.close()
    downward = RootToLeaves(root, _LIMITS)
    seen = set()
    for each in reversed(encoded):
        if each not in seen:
            downward.add(each)
            seen.add(each)
    downward.close()


def _path_info(data: bytes) -> None:
    path_info = decode_path_info(data)
    assert decode_path_info(encode_path_info(path_info)) == path_info
    assert decode_path_name(data) == path_info.store_path


def _chunk_list(data: bytes) -> None:
    chunks = decode_chunk_list(data)
    assert decode_chunk_list(encode_chunk_list(chunks)) == chunks


def _bundles(data: bytes) -> None:
    """What a client sends."""
    check_parts(data)
    try:
        request = rpc_batch_pb2.PutRequest.FromString(data)
    except DecodeError:
        raise InvalidBundle("no message") from None
    for message in request.blobs:
        bundle = bundle_from_message(message)
        assert [len(blob) for blob in bundle.contents()] == bundle.sizes


def _upload(data: bytes) -> None:
    """A stream of them: messages, each with its length before it in two bytes. What is taken is there."""
    services = _services()
    stream = io.BytesIO(data)
    kept: list[bytes] = []
    with contextlib.closing(_Session(services.blobs, 4096)) as session:
        while head := stream.read(2):
            request = _put_request(stream.read(int.from_bytes(head, "big")))
            session.take(request)
            kept += [digest for blobs in request.blobs for digest in split_digests(blobs.digests)]
            kept += [part.end for part in request.parts if part.WhichOneof("what") == "end"]
        session.commit()
    assert services.blobs.missing(kept) == []


def _answer(data: bytes) -> None:
    """What a server sends."""
    try:
        answer = answer_from_message(rpc_batch_pb2.ReadResponse.FromString(data))
    except DecodeError:
        raise InvalidBundle("no message") from None
    assert len(answer.contents()) == answer.raw_size


def _digests(data: bytes) -> None:
    assert b"".join(split_digests(data)) == data


def _archive(data: bytes) -> None:
    """What comes of it is a tree that a NAR can hold."""
    encoder = NarEncoder()
    for batch in archive_events(io.BytesIO(data)):
        encoder.encode(batch)
    encoder.finish()


@functools.cache
def _services() -> Services:
    return memory_services()


def _ingested(data: bytes) -> None:
    """What is stored of a NAR makes the same one."""
    services = _services()
    node, nar = ingest_nar([data[:100], data[100:]], services.blobs, services.directories)
    assert nar.size == len(data)
    assert b"".join(services.renderer.stream(node)) == data


_DIGEST = bytes(range(32))

TARGETS = (
    Target("digest", _digest, (InvalidDigest,), words=(b"b3:", b"blake3-", b"=")),
    Target("path", _path, (InvalidName,), words=(b"..", b".", b"/", b"x" * 256)),
    Target("directory", _directory, (InvalidDirectory,), memory=Bound(64 * 1024, 200), rounds=300),
    Target("node", _node, (InvalidNode, InvalidDigest, InvalidName), words=(_DIGEST,)),
    Target(
        "closure",
        _closure,
        (InvalidClosure, InvalidDirectory, LimitExceeded),
        memory=Bound(64 * 1024, 200),
        steps=Bound(500, 100),
    ),
    Target("path-info", _path_info, (InvalidPathInfo,), memory=Bound(64 * 1024, 200), rounds=300),
    Target("chunk-list", _chunk_list, (InvalidRequest,), memory=Bound(64 * 1024, 100), words=(_DIGEST,)),
    # A compressed bundle may be as long as it says, and it says no more than MAX_BUNDLE_BYTES.
    Target("bundles", _bundles, (InvalidRequest, LimitExceeded), memory=Bound(20 * 1024 * 1024, 64)),
    Target(
        "upload",
        _upload,
        (InvalidRequest, LimitExceeded, NotFound),
        memory=Bound(20 * 1024 * 1024, 64),
        steps=Bound(4000, 200),
    ),
    Target("answer", _answer, (InvalidBundle, LimitExceeded), memory=Bound(20 * 1024 * 1024, 64)),
    Target("digests", _digests, (InvalidRequest,)),
    # A spool file, and pieces of what is unpacked.
    Target(
        "archive",
        _archive,
        (ArchiveError, LimitExceeded),
        memory=Bound(12 * 1024 * 1024, 64),
        steps=Bound(4000, 100),
        longest=16384,
        rounds=100,
        words=(b"ustar\0" + b"00", b"ustar  \0", b"./@LongLink", b"path=", b"size=", b"hdrcharset=BINARY\n"),
    ),
    Target(
        "ingested-nar",
        _ingested,
        (NarError,),
        memory=Bound(2 * 1024 * 1024, 200),
        steps=Bound(4000, 100),
        rounds=60,
    ),
)
