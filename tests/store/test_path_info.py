"""The model: what makes a path info valid, and how two of one path are reconciled."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given

from neve.castore.node import DirectoryNode, FileNode, Node, SymlinkNode
from neve.errors import Conflict, InvalidRequest
from neve.nix.signing import SecretKey, verify_any
from neve.nix.store_path import StorePath
from neve.store.path_info import InvalidPathInfo, NarDetails, PathInfo, sorted_references, united
from neve.testing.pathinfos import path_info, signature, store_path

from .strategies import path_infos

PATH = store_path("p")
NODE = FileNode(bytes(32), 5)


def details(**changes: object) -> NarDetails:
    values: dict[str, object] = {"size": 120, "sha256": bytes(32)}
    return NarDetails(**{**values, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (FileNode(bytes(31), 5), "node: digest has 31 bytes, must have 32"),
        (FileNode(bytes(32), -1), "node: size -1 does not fit 64 bits"),
        (FileNode(bytes(32), 2**64), "node: size 18446744073709551616 does not fit 64 bits"),
        (DirectoryNode(b"", 0), "node: digest has 0 bytes, must have 32"),
        (SymlinkNode(b""), "node: symlink target has 0 bytes, must have 1 to 4095"),
        (SymlinkNode(b"a\0"), "node: symlink target has a NUL byte at position 1"),
    ],
)
def test_nodes_are_valid(node: Node, message: str) -> None:
    with pytest.raises(InvalidPathInfo) as refused:
        PathInfo(PATH, node)
    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("references", "nar", "message"),
    [
        ((bytes(20), bytes(19)), None, "references[1] has 19 bytes, must have 20"),
        ((), details(sha256=bytes(20)), "narinfo.nar_sha256 has 20 bytes, must have 32"),
        ((), details(size=-1), "narinfo.nar_size -1 does not fit 64 bits"),
        ((), details(size=2**64), "narinfo.nar_size 18446744073709551616 does not fit 64 bits"),
        ((bytes(20),), details(), "narinfo.reference_names has 0 entries, references has 1"),
        ((), details(reference_names=(PATH,)), "narinfo.reference_names has 1 entries, references has 0"),
        (
            (PATH.digest, bytes(20)),
            details(reference_names=(PATH, PATH)),
            f"narinfo.reference_names[1] is {PATH.base_name}, references[1] is {'0' * 32}",
        ),
    ],
)
def test_parts_fit_together(references: tuple[bytes, ...], nar: NarDetails | None, message: str) -> None:
    with pytest.raises(InvalidPathInfo) as refused:
        PathInfo(PATH, NODE, references, nar)
    assert str(refused.value) == message


def test_path_infos_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        path_info("p").references = ()  # type: ignore[misc]


def test_nothing_to_sign_without_narinfo() -> None:
    bare = path_info("p", with_nar=False)
    with pytest.raises(InvalidRequest, match=r"-p: .*nothing to sign"):
        bare.fingerprint()
    with pytest.raises(InvalidRequest, match=r"-p has no narinfo"):
        bare.with_signatures([signature("key")])


def test_signatures_cover_the_fingerprint() -> None:
    info = path_info("p", references=[store_path("b"), store_path("a")])
    key = SecretKey.generate("key-1")
    signed = info.with_signatures([key.sign(info.fingerprint())])
    assert signed.nar is not None
    assert signed.fingerprint() == info.fingerprint()
    assert verify_any(signed.fingerprint(), signed.nar.signatures, [key.public_key()])
    # The order in which references came does not matter to Nix, and so not to the signature.
    swapped = path_info("p", references=[store_path("a"), store_path("b")])
    assert swapped.fingerprint() == info.fingerprint()
    assert b",".join(sorted(store_path(n).absolute.encode() for n in "ab")) in info.fingerprint()


def test_signatures_come_once_and_in_order() -> None:
    info = path_info("p", signatures=["a", "b"])
    more = info.with_signatures([signature("b"), signature("c"), signature("c")])
    assert more == path_info("p", signatures=["a", "b", "c"])
    assert more.with_signatures([]) is more


def test_references_are_sorted_by_base_name() -> None:
    low, high = StorePath(bytes(20), "z"), StorePath(b"\xff" * 20, "a")
    assert sorted_references([high, low, high]) == (low, high)
    twins = [StorePath(bytes(20), name) for name in ("b", "a", "B")]
    assert [path.name for path in sorted_references(twins)] == ["B", "a", "b"]


def test_what_is_new_is_taken_as_it_is() -> None:
    info = path_info("p")
    assert united(None, info) is info


@given(path_infos())
def test_uniting_with_itself(info: PathInfo) -> None:
    result = united(info, info)
    assert replace(result, nar=None) == replace(info, nar=None)
    if info.nar is not None:
        assert result.nar is not None
        assert result.nar.signatures == tuple(dict.fromkeys(info.nar.signatures))


def test_the_stored_details_win() -> None:
    stored = path_info("p", signatures=["a"])
    assert stored.nar is not None
    new = replace(stored, nar=replace(stored.nar, deriver=store_path("d"), signatures=(signature("b"),)))
    assert united(stored, new) == path_info("p", signatures=["a", "b"])


def test_conflicts_name_the_path() -> None:
    stored = path_info("p")
    with pytest.raises(Conflict, match=rf"{PATH.absolute} is already in the store, with other contents"):
        united(stored, replace(stored, node=SymlinkNode(b"x")))
    with pytest.raises(Conflict, match=rf"{PATH.absolute} is already in the store, with another NAR"):
        united(stored, replace(stored, nar=details()))
