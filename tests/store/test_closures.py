from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neve.castore.node import SymlinkNode
from neve.errors import InvalidRequest, NotFound
from neve.nix.export_graph import ExportedPath
from neve.nix.hashes import CAHash
from neve.nix.narinfo import NarInfo
from neve.nix.store_path import StorePath, content_addressed_path
from neve.store.closures import (
    check_content_address,
    closure_of,
    dependencies,
    inverted,
    path_info_of,
    sorted_paths,
)
from neve.store.path_info import PathInfo
from neve.store.pathinfos.memory import MemoryPathInfoService
from tests.nix import vectors

from .nix_stores import store_path

A, B, C, D = map(store_path, "abcd")


def entry(path: StorePath, *references: StorePath, ca: CAHash | None = None) -> ExportedPath:
    return ExportedPath(path=path, nar_sha256=bytes(32), nar_size=1, references=references, ca=ca)


def test_dependencies_are_what_is_listed_beside_itself() -> None:
    assert dependencies([entry(A, A, B, C), entry(B)]) == {A: [B], B: []}
    assert inverted({A: [B, C], B: [C], C: []}) == {B: [A], C: [A, B]}


@given(st.lists(st.lists(st.integers(0, 30), max_size=5), max_size=30), st.randoms(use_true_random=False))
def test_everything_comes_after_what_it_refers_to(references: list[list[int]], random: object) -> None:
    paths = [store_path(str(number)) for number in range(len(references))]
    entries = [
        entry(path, *(paths[reference % number] for reference in of_one if number))
        for number, (path, of_one) in enumerate(zip(paths, references, strict=True))
    ]
    random.shuffle(entries)  # type: ignore[attr-defined]
    order = sorted_paths(dependencies(entries))
    assert sorted(order) == sorted(paths)
    for exported in entries:
        for reference in exported.references:
            assert order.index(reference) < order.index(exported.path)


def test_a_circle_is_told() -> None:
    with pytest.raises(InvalidRequest, match="in a circle") as caught:
        sorted_paths(dependencies([entry(A, B), entry(B, C), entry(C, A), entry(D, A)]))
    shown = str(caught.value).partition(": ")[2].split(" -> ")
    assert shown[0] == shown[-1]
    assert set(shown) == {A.base_name, B.base_name, C.base_name}
    assert shown[shown.index(A.base_name) + 1] == B.base_name


def real_entries() -> list[ExportedPath]:
    """Those of Nix's own paths that are addressed by their contents."""
    infos = [NarInfo.parse(file.read_bytes()) for file in vectors.narinfo_files()]
    return [
        ExportedPath(
            path=info.store_path,
            nar_sha256=info.nar_sha256,
            nar_size=info.nar_size,
            references=info.references,
            ca=info.ca,
        )
        for info in infos
    ]


def test_content_addresses_of_nix_are_right() -> None:
    entries = real_entries()
    assert any(exported.ca is not None and exported.references for exported in entries)
    for exported in entries:
        check_content_address(exported)


def test_content_addresses_that_are_not_those_of_the_path() -> None:
    check_content_address(entry(A))
    nar = CAHash.parse(f"fixed:r:sha256:{'0' * 52}")
    for ca in (nar, CAHash.parse(f"text:sha256:{'0' * 52}"), CAHash.parse(f"fixed:sha256:{'0' * 52}")):
        with pytest.raises(InvalidRequest, match=r"its content address .* belongs to"):
            check_content_address(entry(A, ca=ca))
    with pytest.raises(InvalidRequest, match="cannot have references"):
        check_content_address(entry(A, B, ca=CAHash.parse(f"fixed:sha256:{'0' * 52}")))
    other = CAHash.parse(f"fixed:r:sha256:{'1' * 52}")
    with pytest.raises(InvalidRequest, match="is not the hash of its NAR"):
        check_content_address(entry(content_addressed_path("x", other, [B]), B, ca=other))
    # With a self reference it is the hash of a NAR in which that is blanked out.
    selfish = content_addressed_path("x", other, [B], self_reference=True)
    check_content_address(entry(selfish, B, selfish, ca=other))


def test_what_is_registered() -> None:
    exported = ExportedPath(
        path=A, nar_sha256=bytes(range(32)), nar_size=5, references=(C, A, C, B), deriver=D, ca=None
    )
    info = path_info_of(exported, SymlinkNode(b"x"))
    assert info.nar is not None
    assert info.nar.reference_names == tuple(sorted([A, B, C]))
    assert (info.nar.size, info.nar.sha256, info.nar.deriver) == (5, bytes(range(32)), D)


def stored(*entries: ExportedPath) -> MemoryPathInfoService:
    service = MemoryPathInfoService()
    for exported in entries:
        service.put(path_info_of(exported, SymlinkNode(b"x")))
    return service


def test_closure_of_stored_paths() -> None:
    service = stored(entry(A, A, B), entry(B, C), entry(C), entry(D, B))
    assert set(closure_of(service, [A.digest])) == {A.digest, B.digest, C.digest}
    found = closure_of(service, [D.digest, A.digest])
    assert sorted(found) == sorted(path.digest for path in (A, B, C, D))
    assert closure_of(service, []) == []
    # Also where only digests are known.
    service.put(PathInfo(store_path("e"), SymlinkNode(b"x"), (C.digest,)))
    assert set(closure_of(service, [store_path("e").digest])) == {store_path("e").digest, C.digest}


def test_closure_with_a_gap() -> None:
    service = stored(entry(A, B), entry(B, C))
    with pytest.raises(NotFound, match=f"no path with the digest .*, to which {B} refers"):
        closure_of(service, [A.digest])
    with pytest.raises(NotFound, match=r"no path with the digest [0-9a-z]{32}$"):
        closure_of(service, [D.digest])
