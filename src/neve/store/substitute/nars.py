"""NARs of a cache into blobs and Directories: hashed, counted and compared on the way.

Nothing of one that is not what its narinfo says becomes visible as a Directory, and no more of it is
taken than it says there is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from neve.castore.node import Node
from neve.errors import InvalidRequest
from neve.nix.compression import COMPRESSIONS, decompressed
from neve.nix.hashes import HashAlgorithm, NixHash
from neve.nix.narinfo import NarInfo
from neve.store.nar.ingest import ingest_nar
from neve.store.nar_nodes import Nar
from neve.store.one_commit import one_commit
from neve.store.pathinfos.context import PathInfoContext
from neve.store.substitute.files import (
    CacheFile,
    CacheFiles,
    InvalidAnswer,
    Transient,
    checked_name,
    naming,
    quoted,
)
from neve.telemetry import span

_SLACK_SHARE = 8
_SLACK_BYTES = 1024 * 1024
"""No compression makes a NAR longer by more than an eighth and this. It bounds what is read of a file that
never amounts to anything."""

_GROUP_BYTES = 512 * 1024


def check_nar_file(narinfo: NarInfo, cache: str) -> str:
    """The name of the file that holds the NAR, if we could take it in. Raises ``InvalidRequest``.

    ``cache`` is the address of the cache, for narinfos that repeat it.
    """
    if narinfo.compression not in COMPRESSIONS:
        known = ", ".join(COMPRESSIONS)
        raise InvalidRequest(f"Compression {quoted(narinfo.compression)} is not known (known: {known})")
    limit = _longest(narinfo)
    if narinfo.file_size is not None and narinfo.file_size > limit:
        raise InvalidRequest(
            f"FileSize {narinfo.file_size} is not that of a compressed NAR of {narinfo.nar_size} bytes"
        )
    return checked_name(narinfo.url, cache)


def fetch_nar(files: CacheFiles, name: str, narinfo: NarInfo, target: PathInfoContext) -> Node:
    """The root node of the NAR in the file ``name``, once it is stored; the map of NARs knows it then.

    Raises ``InvalidAnswer`` (another NAR or file than the narinfo says), ``Unavailable``, and what the
    services raise.
    """
    return files.repeating(lambda: _fetch(files, name, narinfo, target))


def _fetch(files: CacheFiles, name: str, narinfo: NarInfo, target: PathInfoContext) -> Node:
    with span("substitute.fetch", {"neve.path": narinfo.store_path.base_name}):
        return _fetched(files, name, narinfo, target)


def _fetched(files: CacheFiles, name: str, narinfo: NarInfo, target: PathInfoContext) -> Node:
    where = files.where(name)
    with one_commit(target.blobs, target.directories, target.nar_nodes), files.open(name) as file:
        if file is None:
            raise InvalidAnswer(f"{where} is not there, though the cache has a narinfo for it")
        with naming(where):
            contents = decompressed(_checked_pieces(file, narinfo, where), narinfo.compression)
            node, nar = ingest_nar(
                _gathered(contents),
                target.blobs,
                target.directories,
                expected=Nar(narinfo.nar_size, narinfo.nar_sha256),
                size_rule=target.size_rule,
            )
        target.nar_nodes.put(node, nar, file_sha256=_sha256(narinfo.file_hash))
    return node


def _gathered(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The same in larger pieces: each one costs some handing over."""
    group: list[bytes] = []
    size = 0
    for piece in pieces:
        group.append(piece)
        size += len(piece)
        if size >= _GROUP_BYTES:
            yield b"".join(group)
            group, size = [], 0
    if group:
        yield b"".join(group)


def _sha256(hashed: NixHash | None) -> bytes | None:
    return hashed.digest if hashed is not None and hashed.algorithm is HashAlgorithm.SHA256 else None


def _longest(narinfo: NarInfo) -> int:
    return narinfo.nar_size + narinfo.nar_size // _SLACK_SHARE + _SLACK_BYTES


def _checked_pieces(file: CacheFile, narinfo: NarInfo, where: str) -> Iterator[bytes]:
    """The file as it comes. Its end is only told once size and hash are the ones stated."""
    limit = narinfo.file_size or _longest(narinfo)  # Some caches write 0 when they do not know.
    stated = narinfo.file_hash
    if stated is not None and narinfo.compression == "none" and stated.digest == narinfo.nar_sha256:
        stated = None  # It is compared as the hash of the NAR.
    hasher = None if stated is None else hashlib.new(stated.algorithm.value, usedforsecurity=False)
    size = 0
    for piece in file.pieces:
        size += len(piece)
        if size > limit:
            raise InvalidRequest(f"longer than the {limit} bytes that it should have at most")
        if hasher is not None:
            hasher.update(piece)
        yield piece
    if narinfo.file_size and size < narinfo.file_size:
        message = f"{size} bytes long, FileSize is {narinfo.file_size}"
        raise InvalidRequest(message) if file.ends_by_itself else Transient(f"{where}: {message}")
    if stated is not None and hasher is not None and hasher.digest() != stated.digest:
        actual = NixHash(stated.algorithm, hasher.digest())
        raise InvalidRequest(f"hash {actual}, FileHash is {stated}")
