"""What lies in an object store: anybody's who may write there."""

from __future__ import annotations

import zstandard

from neve.castore.closure import ClosureLimits
from neve.castore.digest import DIGEST_SIZE, b3_digest
from neve.castore.objectstore.layout import (
    BLOBS,
    CHUNKS,
    DIRECTORIES,
    digest_in,
    key_of,
    pack_closure,
    pack_list,
    unpack_chunk,
    unpack_closure,
    unpack_list,
)
from neve.errors import Corrupt, LimitExceeded
from tests.fuzz.target import Bound, Target
from tests.fuzz.targets.nix import text_of

_LONGEST = 64 * 1024
_LIMITS = ClosureLimits(max_directory_bytes=2048, max_directories=50)
_PIECE = 1024 * 1024
"""What the library and what reads for it may hold of contents at a time."""


def _key(data: bytes) -> None:
    text = text_of(data)
    found = {table: digest_in(table, text) for table in (CHUNKS, BLOBS, DIRECTORIES)}
    for table, digest in found.items():
        assert digest is None or text.endswith(key_of(table, digest))
    if not any(found.values()):
        raise Corrupt("none of ours")


def _chunk(data: bytes) -> None:
    """The digest, and the object."""
    digest, packed = data[:DIGEST_SIZE], data[DIGEST_SIZE:]
    contents = unpack_chunk(digest, packed, _LONGEST)
    assert b3_digest(contents) == digest
    assert len(contents) <= _LONGEST


def _list(data: bytes) -> None:
    chunks = unpack_list(b3_digest(b""), data, _LONGEST)
    assert all(0 < chunk.size <= _LONGEST for chunk in chunks)
    if len(chunks) > 1:
        assert unpack_list(b3_digest(b""), pack_list(chunks), _LONGEST) == chunks


def _closure(data: bytes) -> None:
    """The digest of the root, and what is compressed in the object: else no variation would get further."""
    root, frames = data[:DIGEST_SIZE], data[DIGEST_SIZE:]
    directories = list(unpack_closure(root, [zstandard.compress(frames)], _LIMITS))
    assert directories[0].digest == root
    assert b"".join(len(one.encode()).to_bytes(4, "big") + one.encode() for one in directories) == frames
    again = unpack_closure(root, pack_closure(one.encode() for one in directories), _LIMITS)
    assert list(again) == directories


TARGETS = (
    Target("object-key", _key, (Corrupt,)),
    Target("stored-chunk", _chunk, (Corrupt, LimitExceeded), memory=Bound(8 * _PIECE, 64)),
    Target("stored-list", _list, (Corrupt, LimitExceeded)),
    Target(
        "stored-closure",
        _closure,
        (Corrupt, LimitExceeded),
        memory=Bound(8 * _PIECE, 64),
        steps=Bound(2000, 60),
    ),
)
