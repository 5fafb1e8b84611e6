"""Hypothesis generators for the values of ``neve.nix``."""

from __future__ import annotations

from hypothesis import strategies as st

from neve.nix.hashes import CAHash, CAType, HashAlgorithm, NixHash
from neve.nix.narinfo import NarInfo
from neve.nix.signing import MAX_KEY_NAME, Signature
from neve.nix.store_path import MAX_NAME_LENGTH, StorePath

NAME_CHARACTERS = "ABCXYZabcxyz0189+_?=.-"


def _is_readable(name: str) -> bool:
    return name not in (".", "..")


def names(max_size: int = MAX_NAME_LENGTH) -> st.SearchStrategy[str]:
    return st.text(NAME_CHARACTERS, min_size=1, max_size=max_size).filter(_is_readable)


def store_paths(max_size: int = MAX_NAME_LENGTH) -> st.SearchStrategy[StorePath]:
    return st.builds(StorePath, st.binary(min_size=20, max_size=20), names(max_size))


def digests(algorithm: HashAlgorithm) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=algorithm.digest_size, max_size=algorithm.digest_size)


def nix_hashes() -> st.SearchStrategy[NixHash]:
    return st.sampled_from(HashAlgorithm).flatmap(lambda a: st.builds(NixHash, st.just(a), digests(a)))


def ca_hashes() -> st.SearchStrategy[CAHash]:
    return st.sampled_from(CAType).flatmap(lambda t: st.builds(CAHash, st.just(t), digests(t.algorithm)))


def printable(min_size: int = 1) -> st.SearchStrategy[str]:
    return st.text(min_size=min_size, max_size=20).filter(str.isprintable)


def key_names() -> st.SearchStrategy[str]:
    return printable().filter(lambda name: len(name) <= MAX_KEY_NAME and " " not in name and ":" not in name)


def signatures() -> st.SearchStrategy[Signature]:
    return st.builds(Signature, key_names(), st.binary(min_size=64, max_size=64))


def narinfos() -> st.SearchStrategy[NarInfo]:
    return st.builds(
        NarInfo,
        store_path=store_paths(),
        url=printable(),
        compression=printable(),
        file_hash=st.none() | nix_hashes(),
        file_size=st.none() | st.integers(0, 2**64 - 1),
        nar_sha256=st.binary(min_size=32, max_size=32),
        nar_size=st.integers(1, 2**64 - 1),
        references=st.lists(store_paths(20), unique=True, max_size=5).map(lambda paths: tuple(sorted(paths))),
        deriver=st.none() | store_paths(MAX_NAME_LENGTH - len(".drv")),
        system=st.none() | printable(),
        signatures=st.lists(signatures(), max_size=3).map(tuple),
        ca=st.none() | ca_hashes(),
    )
