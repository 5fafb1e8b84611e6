"""Nix's formats."""

from __future__ import annotations

from neve.errors import LimitExceeded
from neve.nix import base32, export_graph
from neve.nix.base32 import InvalidBase32
from neve.nix.cache_info import CacheInfo, InvalidCacheInfo
from neve.nix.export_graph import InvalidExportGraph
from neve.nix.hashes import CAHash, HashForm, InvalidHash, NixHash
from neve.nix.nar import NarEncoder, NarError, NarReader
from neve.nix.narinfo import InvalidNarInfo, NarInfo
from neve.nix.references import ReferenceScanner
from neve.nix.signing import InvalidKey, InvalidSignature, PublicKey, SecretKey, Signature
from neve.nix.store_path import DIGEST_SIZE, InvalidStorePath, StorePath
from neve.tree import Data, Event
from tests.fuzz.target import Bound, Target


def text_of(data: bytes) -> str:
    """As arguments of a program and the environment become text."""
    return data.decode("utf-8", "surrogateescape")


def _base32(data: bytes) -> None:
    assert base32.encode(base32.decode(data)).encode() == data


def _hash(data: bytes) -> None:
    parsed = NixHash.parse(text_of(data))
    for form in HashForm:
        assert NixHash.parse(parsed.render(form)) == parsed


def _ca(data: bytes) -> None:
    parsed = CAHash.parse(text_of(data))
    assert CAHash.parse(parsed.render()) == parsed


def _store_path(data: bytes) -> None:
    path, rest = StorePath.parse_with_rest(data)
    assert data == path.absolute.encode() or data.startswith(path.absolute.encode() + b"/")
    assert data.endswith(rest)
    assert not rest.startswith(b"/")
    assert StorePath.parse_base_name(path.base_name) == path
    assert StorePath.parse(text_of(data[: len(path.absolute)])) == path


def _signature(data: bytes) -> None:
    parsed = Signature.parse(text_of(data))
    assert Signature.parse(parsed.render()) == parsed


def _public_keys(data: bytes) -> None:
    keys = PublicKey.parse_many(text_of(data))
    assert PublicKey.parse_many(" ".join(key.render() for key in keys)) == keys


def _secret_key(data: bytes) -> None:
    key = SecretKey.parse(data)
    assert SecretKey.parse(key.render()) == key
    assert key.public_key().verify(b"message", key.sign(b"message"))


def _narinfo(data: bytes) -> None:
    parsed = NarInfo.parse(data)
    again = NarInfo.parse(parsed.render())
    assert again.render() == parsed.render()
    assert again.fingerprint() == parsed.fingerprint()


def _cache_info(data: bytes) -> None:
    parsed = CacheInfo.parse(data)
    assert CacheInfo.parse(parsed.render()) == parsed


def _joined(events: list[Event]) -> list[Event]:
    """Pieces of contents, however they came, as one."""
    joined: list[Event] = []
    for event in events:
        last = joined[-1] if joined else None
        if isinstance(event, Data) and isinstance(last, Data):
            joined[-1] = Data(bytes(last.data) + bytes(event.data))
        else:
            joined.append(event)
    return joined


def _nar(data: bytes) -> None:
    """Whole and in pieces it says the same, and what it takes is what would be written."""
    results: list[list[Event] | NarError] = []
    for step in (len(data) or 1, 7):
        reader = NarReader()
        events: list[Event] = []
        try:
            for at in range(0, len(data), step):
                events += reader.feed(data[at : at + step])
            reader.close()
        except NarError as error:
            results.append(error)
        else:
            assert reader.done
            results.append(_joined(events))
    whole, pieces = results
    if isinstance(whole, NarError):
        assert isinstance(pieces, NarError)
        assert (whole.offset, whole.path) == (pieces.offset, pieces.path)
        raise whole
    assert whole == pieces
    encoder = NarEncoder()
    assert b"".join(encoder.encode(whole)) == data
    encoder.finish()


def _references(data: bytes) -> None:
    """Digests first, then what may hold them. It finds what is there, wherever the pieces end."""
    count = min(data[0] % 4, len(data) // DIGEST_SIZE) if data else 0
    digests = [data[1 + i * DIGEST_SIZE :][:DIGEST_SIZE] for i in range(count)]
    digests = [digest for digest in digests if len(digest) == DIGEST_SIZE]
    contents = data[1 + count * DIGEST_SIZE :] + b"".join(base32.encode(d).encode() for d in digests[:1])
    expected = {digest for digest in digests if base32.encode(digest).encode() in contents}
    for step in (len(contents) or 1, 11):
        scanner = ReferenceScanner(digests)
        for at in range(0, len(contents), step):
            scanner.feed(contents[at : at + step])
        assert scanner.found() == expected


_NAR_WORDS = b"( ) type regular executable contents symlink target directory entry name node nix-archive-1"
_KEY = b"cache.example.org-1:"
_DIGEST = b"0c7c4xjpzmz6bpfpvyjbzqyi3lvzl5zl"

TARGETS = (
    Target("base32", _base32, (InvalidBase32,)),
    Target("hash", _hash, (InvalidHash,), words=(b"sha256:", b"sha512-", b"md5:", b"sha1:")),
    Target(
        "ca", _ca, (InvalidHash,), words=(b"fixed:r:", b"fixed:", b"text:", b"sha256:", b"sha1:", b"md5:")
    ),
    Target("store-path", _store_path, (InvalidStorePath,), words=(b"/nix/store/", _DIGEST, b"-", b"..-")),
    Target("signature", _signature, (InvalidSignature,), words=(_KEY, b"==")),
    Target("public-keys", _public_keys, (InvalidKey,), words=(_KEY, b"=", b" ")),
    Target("secret-key", _secret_key, (InvalidKey,), words=(_KEY, b"==", b"\n")),
    Target(
        "narinfo",
        _narinfo,
        (InvalidNarInfo, LimitExceeded),
        words=(b"References: ", b"Sig: ", b"Deriver: ", b"CA: fixed:", b"FileSize: ", _DIGEST, b".drv\n"),
    ),
    Target(
        "cache-info", _cache_info, (InvalidCacheInfo, LimitExceeded), words=(b"Priority: ", b"StoreDir: ")
    ),
    Target(
        "export-graph",
        export_graph.parse,
        (InvalidExportGraph,),
        words=(b'"closure":', b'"references":[', b'"narSize":', b"null", b"1e9", b'"deriver":', b"{", b"}"),
    ),
    Target(
        "nar",
        _nar,
        (NarError,),
        memory=Bound(128 * 1024, 200),
        longest=8192,
        rounds=300,
        words=tuple(
            len(word).to_bytes(8, "little") + word + bytes(-len(word) % 8) for word in _NAR_WORDS.split()
        ),
    ),
    # What it looks for, it has in a table of its own.
    Target("references", _references, (), memory=Bound(4 * 1024 * 1024, 64)),
)
