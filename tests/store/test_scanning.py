"""References that are found: in trees and NARs, and in what is registered for them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neve.castore.ingest.statcache import StatCache
from neve.errors import InvalidRequest
from neve.nix.hashes import CAMethod
from neve.nix.nar import NarHasher
from neve.nix.store_path import StorePath, source_path, text_path
from neve.store.importer import ImportOptions, import_nar, import_path
from neve.store.scanning import ReferenceScan
from neve.store.services import Services, open_services
from neve.testing.strategies import trees
from neve.tree import (
    END_FILE,
    LEAVE_DIRECTORY,
    BeginFile,
    Data,
    EnterDirectory,
    Event,
    File,
    Symlink,
)

from .helpers import encoded, memory_services
from .nix_stores import store_path

A, B, C, D = map(store_path, "abcd")
CANDIDATES = [A, B, C, D]


def digest_text(path: StorePath) -> bytes:
    return path.base_name[:32].encode()


def found_in(events: Sequence[Event], candidates: Sequence[StorePath] = CANDIDATES) -> set[StorePath]:
    """What both ways find, which must be the same."""
    scan = ReferenceScan(candidates)
    hasher = NarHasher(scan.feed)
    hasher.feed(events)
    nar = encoded(events)
    assert hasher.result() == (len(nar), hashlib.sha256(nar).digest())
    piecewise = ReferenceScan(candidates)
    assert b"".join(piecewise.passed([nar[i : i + 7] for i in range(0, len(nar), 7)])) == nar
    assert set(scan.found()) == set(piecewise.found())
    return set(scan.found())


def test_wherever_a_nar_has_bytes() -> None:
    text = digest_text(A)
    in_file = File(b"x", False, b"..." + text)
    children: list[Event] = [in_file, Symlink(b"x", b"../" + text + b"-a"), File(text + b"-a", False, b"")]
    for child in children:
        assert found_in([EnterDirectory(b""), child, LEAVE_DIRECTORY]) == {A}
    folders: list[Event] = [EnterDirectory(b""), EnterDirectory(text), LEAVE_DIRECTORY, LEAVE_DIRECTORY]
    assert found_in(folders) == {A}
    assert found_in([File(b"", False, text)]) == {A}
    assert found_in([Symlink(b"", text)]) == {A}


def test_over_the_pieces_of_a_large_file() -> None:
    text = digest_text(A)
    for cut in (1, 16, 31):
        pieces = [b"#" * 600_000 + text[:cut], text[cut:] + b"#" * 100]
        size = sum(map(len, pieces))
        assert found_in([BeginFile(b"", False, size), *map(Data, pieces), END_FILE]) == {A}


def test_not_over_the_edges_of_files() -> None:
    text = digest_text(A)
    events: list[Event] = [
        EnterDirectory(b""),
        File(b"a", False, text[:16]),
        File(b"b", False, text[16:]),
        File(text[:10], False, text[10:]),
        LEAVE_DIRECTORY,
    ]
    assert found_in(events) == set()


@given(trees(), st.lists(st.sampled_from([digest_text(path) for path in CANDIDATES] + [b"", b"x"])))
def test_like_the_nar(events: list[Event], mentions: list[bytes]) -> None:
    for number, (event, mention) in enumerate(zip(events, mentions, strict=False)):
        if isinstance(event, File):
            events[number] = event._replace(contents=event.contents + mention)
        elif isinstance(event, Symlink):
            events[number] = event._replace(target=event.target[:4000] + mention)
    nar = encoded(events)
    assert found_in(events) == {path for path in CANDIDATES if digest_text(path) in nar}


def test_two_candidates_with_one_digest() -> None:
    other = StorePath(A.digest, "other")
    assert found_in([File(b"", False, digest_text(A))], [other, A]) == {other}


@pytest.fixture(params=["memory", "local"])
def services(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Services]:
    services = open_services("memory://" if request.param == "memory" else f"local://{tmp_path / 'store'}")
    yield services
    services.close()


def nar_mentioning(*paths: StorePath) -> bytes:
    return encoded([File(b"", False, b" ".join(path.absolute.encode() for path in paths))])


def test_a_nar_with_a_path_of_its_own(services: Services) -> None:
    info = import_nar(services, [nar_mentioning(A, B, D)], store_path=A, scan_for=[B, C])
    assert info.nar is not None
    assert info.nar.reference_names == tuple(sorted([A, B]))
    assert info.references == tuple(path.digest for path in sorted([A, B]))
    assert services.path_infos.get(A.digest) == info
    if services.packs is not None:
        assert services.path_infos.referrers(A.digest) == [A.digest]


def test_what_is_stated_stays(services: Services) -> None:
    info = import_nar(services, [nar_mentioning(B)], store_path=A, references=[C, B], scan_for=[B])
    assert info.nar is not None
    assert info.nar.reference_names == tuple(sorted([B, C]))


def test_without_candidates_only_itself(services: Services) -> None:
    info = import_nar(services, [nar_mentioning(A, B)], store_path=A, scan_for=[])
    assert info.references == (A.digest,)


def test_the_computed_path_depends_on_references(services: Services) -> None:
    nar = nar_mentioning(A, C)
    info = import_nar(services, [nar], name="x", scan_for=CANDIDATES)
    assert info.nar is not None
    assert info.store_path == source_path("x", info.nar.sha256, [A, C])
    assert info.nar.reference_names == tuple(sorted([A, C]))
    assert import_nar(services, [nar], name="x").store_path == source_path("x", info.nar.sha256)


def test_a_tree_on_disk(services: Services, tmp_path: Path) -> None:
    place = tmp_path / "tree"
    place.mkdir()
    (place / "script").write_text(f"#!{A}/bin/sh\n")
    (place / "link").symlink_to(f"{B}/share")
    (place / "large").write_bytes(os.urandom(3_000_000) + digest_text(D) + os.urandom(10))
    info = import_path(services, place, ImportOptions(scan_for=CANDIDATES))
    assert info.nar is not None
    assert info.nar.reference_names == tuple(sorted([A, B, D]))
    assert info.store_path == source_path("tree", info.nar.sha256, [A, B, D])


def test_a_text(services: Services, tmp_path: Path) -> None:
    place = tmp_path / "text"
    place.write_text(f"{A}")
    options = ImportOptions(method=CAMethod.TEXT, references=[B], scan_for=CANDIDATES)
    info = import_path(services, place, options)
    assert info.store_path == text_path("text", hashlib.sha256(place.read_bytes()).digest(), [A, B])
    assert set(info.references) == {A.digest, B.digest}


def test_flat_files_have_no_references(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    services = memory_services()
    for candidates in (CANDIDATES, ()):
        options = ImportOptions(method=CAMethod.FLAT, scan_for=candidates)
        with pytest.raises(InvalidRequest, match="a flat import has no references to scan for"):
            import_path(services, tmp_path / "x", options)


def test_the_stat_cache_stays_out_of_it(services: Services, tmp_path: Path) -> None:
    place = tmp_path / "tree"
    place.write_text(f"{A}")
    cache = StatCache(tmp_path / "cache")
    plain = import_path(services, place, ImportOptions(stat_cache=cache))
    scanned = import_path(services, place, ImportOptions(stat_cache=cache, scan_for=CANDIDATES))
    assert scanned.references == (A.digest,)
    assert import_path(services, place, ImportOptions(stat_cache=cache)) == plain
