"""Hypothesis strategies of the store layer."""

from __future__ import annotations

from hypothesis import strategies as st

from neve.nix.hashes import CAHash, CAType
from neve.nix.signing import Signature
from neve.nix.store_path import StorePath
from neve.store.path_info import NarDetails, PathInfo
from neve.testing.strategies import nodes

NAME_CHARACTERS = "abcXYZ019+_?=.-"


def store_paths() -> st.SearchStrategy[StorePath]:
    names = st.text(NAME_CHARACTERS, min_size=1, max_size=20) | st.just("n" * 211)
    return st.builds(
        StorePath, st.binary(min_size=20, max_size=20), names.filter(lambda name: name not in (".", ".."))
    )


def content_addresses() -> st.SearchStrategy[CAHash]:
    def of(ca_type: CAType) -> st.SearchStrategy[CAHash]:
        size = ca_type.algorithm.digest_size
        return st.binary(min_size=size, max_size=size).map(lambda digest: CAHash(ca_type, digest))

    return st.sampled_from(CAType).flatmap(of)


def path_infos() -> st.SearchStrategy[PathInfo]:
    """Valid path infos, with and without narinfo, references in any order."""

    def of(references: list[StorePath]) -> st.SearchStrategy[PathInfo]:
        signature_names = st.text("abc-.1", min_size=1, max_size=8)
        signatures = st.builds(Signature, signature_names, st.binary(min_size=64, max_size=64))
        details = st.builds(
            NarDetails,
            size=st.integers(0, 2**64 - 1),
            sha256=st.binary(min_size=32, max_size=32),
            reference_names=st.just(tuple(references)),
            signatures=st.lists(signatures, max_size=3).map(tuple),
            deriver=st.none() | store_paths(),
            ca=st.none() | content_addresses(),
        )
        digests = tuple(path.digest for path in references)
        return st.builds(PathInfo, store_paths(), nodes(), st.just(digests), st.none() | details)

    return st.lists(store_paths(), max_size=4).flatmap(of)
