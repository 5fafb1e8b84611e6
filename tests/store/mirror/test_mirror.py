"""Mirrors between stores of all kinds."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

import pytest

import neve
from neve.castore.blobs.local_write import BLOBS
from neve.castore.digest import b3_digest
from neve.castore.directory import Directory
from neve.castore.node import DirectoryNode, FileNode, Node, SymlinkNode
from neve.errors import Conflict, Corrupt, InvalidRequest, NotFound, Unsupported
from neve.nix.signing import SecretKey
from neve.nix.store_path import StorePath
from neve.store.mirror import MirrorOptions, mirror
from neve.store.nar_nodes import Nar
from neve.store.path_info import PathInfo
from neve.store.services import Services, services_of_cache
from neve.store.small_files import small_files_beside
from neve.testing.pathinfos import store_path as cached_path
from neve.tree import File
from tests.castore.damage import damage_blob
from tests.logged import logged
from tests.store.substitute.caches import Cache

from .stores import (
    KEY,
    KINDS,
    OTHER_KEY,
    WatchedPathInfos,
    add,
    check_consistent,
    check_whole,
    fill,
    path_of,
    store,
    tree,
)


def names(paths: Sequence[StorePath]) -> list[str]:
    return [path.name for path in paths]


@pytest.mark.parametrize("target_kind", KINDS)
@pytest.mark.parametrize("source_kind", KINDS)
def test_from_any_store_to_any(source_kind: str, target_kind: str, tmp_path: Path) -> None:
    with store(source_kind, tmp_path / "a") as source, store(target_kind, tmp_path / "b") as target:
        expected = fill(source)
        order: list[StorePath] = []
        report = mirror(source, target, copied=order.append)
        assert not report.failures
        assert (report.copied, report.present, report.dangling) == (len(expected), 0, 0)
        check_whole(target, expected)
        seen: set[bytes] = set()
        by_digest = {path_info.digest: path_info for path_info in expected}
        for path in order:
            seen.add(path.digest)
            assert set(by_digest[path.digest].references) <= seen
        again = mirror(source, target)
        assert (again.copied, again.present, again.blobs) == (0, len(expected), 0)


@pytest.mark.parametrize("target_kind", KINDS)
def test_only_what_is_missing(target_kind: str, tmp_path: Path) -> None:
    with store("local", tmp_path / "a") as source, store(target_kind, tmp_path / "b") as target:
        fill(source)
        mirror(source, target)
        add(source, "late", ["package-3"], tree("package-3", large=True))
        report = mirror(source, target)
        # Its contents are those of another path.
        assert (report.copied, report.blobs, report.blob_bytes) == (1, 0, 0)
        changed = [*tree("package-3", large=True)[:-1], File(b"zz", False, b"new"), tree("x")[-1]]
        add(source, "later", ["late"], changed)
        report = mirror(source, target)
        assert (report.copied, report.blobs, report.blob_bytes) == (1, 1, 3)
        check_whole(target, list(source.path_infos))


def test_contents_pass_as_they_are_packed(tmp_path: Path) -> None:
    """The frames of one store are those of the other: nothing was compressed anew."""
    with store("local", tmp_path / "a") as source, store("local", tmp_path / "b") as target:
        some = tree("one")
        more = [File(b"z%04d" % i, False, b"%d" % i * 999) for i in range(400)]
        add(source, "one", events=[*some[:-1], *more, some[-1]])
        mirror(source, target)
        ours, theirs = [
            {bytes(services.packs.stored(location))
             for digest in services.blobs.list(limit=10_000)
             for location in services.packs.find(BLOBS, [digest]).values()}
            for services in (source, target)
            if services.packs is not None
        ]  # fmt: skip
        assert len(ours & theirs) >= len(ours) - 2


def test_signatures_are_united(tmp_path: Path) -> None:
    with store("local", tmp_path / "a") as source, store("local", tmp_path / "b") as target:
        fill(source, 3)
        mirror(source, target)
        one, two, three = list(source.path_infos)

        def sign(services: Services, path_info: PathInfo, *keys: SecretKey) -> None:
            signatures = [key.sign(path_info.fingerprint()) for key in keys]
            services.path_infos.add_signatures(path_info.digest, signatures)

        sign(source, one, KEY)
        sign(target, one, OTHER_KEY)
        sign(target, two, OTHER_KEY)
        sign(source, three, KEY, OTHER_KEY)
        report = mirror(source, target)
        # What only the target has signed is not worth anything to it.
        assert (report.copied, report.united, report.present, report.blobs) == (0, 2, 1, 0)
        signed = {}
        for path_info in target.path_infos:
            assert path_info.nar is not None
            signed[path_info.digest] = {signature.name for signature in path_info.nar.signatures}
        both = {KEY.name, OTHER_KEY.name}
        assert signed == {one.digest: both, two.digest: {OTHER_KEY.name}, three.digest: both}
        assert mirror(source, target).present == 3


def test_another_path_by_the_same_name_is_told_and_kept(tmp_path: Path) -> None:
    with store("local", tmp_path / "a") as source, store("local", tmp_path / "b") as target:
        expected = fill(source, 4)
        ours = add(target, "package-0", events=tree("another"))
        report = mirror(source, target)
        assert list(report.failures) == [path_of("package-0").absolute]
        assert isinstance(report.failures[path_of("package-0").absolute], Conflict)
        assert report.left_out == []
        assert report.copied == 3
        check_whole(target, [ours, *expected[1:]])
        # Also if it is found on the way.
        add(source, "above", ["package-0"])
        report = mirror(source, target, MirrorOptions(paths=[path_of("above")]))
        assert report.copied == 1
        assert [type(error) for error in report.failures.values()] == [Conflict]


def test_closures_of_some_paths(tmp_path: Path) -> None:
    with store("local", tmp_path / "a") as source, store("local", tmp_path / "b") as target:
        add(source, "lib")
        add(source, "tool", ["lib", "tool"])
        add(source, "other", ["lib"])
        order: list[StorePath] = []
        options = MirrorOptions(paths=[path_of("tool")])
        dry = mirror(source, target, dataclasses.replace(options, dry_run=True), copied=order.append)
        assert (dry.copied, names(order)) == (2, ["lib", "tool"])
        assert not list(target.path_infos)
        assert mirror(source, target, options).copied == 2
        assert check_consistent(target) == {path_of("lib").digest, path_of("tool").digest}
        again = mirror(source, target, options)
        # What it refers to was complete when it came, and is not looked at.
        assert (again.copied, again.present) == (0, 1)
        report = mirror(source, target, MirrorOptions(paths=[path_of("nowhere"), path_of("other")]))
        assert report.copied == 1
        assert [str(error) for error in report.failures.values()] == ["the source does not have it"]


def test_an_incomplete_closure_is_not_copied(tmp_path: Path) -> None:
    with store("local", tmp_path / "a") as source, store("local", tmp_path / "b") as target:
        add(source, "tool", ["nowhere"])
        add(source, "above", ["tool"])
        report = mirror(source, target, MirrorOptions(paths=[path_of("above")]))
        assert [type(error) for error in report.failures.values()] == [NotFound]
        assert report.left_out == [path_of("tool").absolute, path_of("above").absolute]
        assert not list(target.path_infos)
        # As a whole, a store is copied as it is.
        report = mirror(source, target)
        assert (report.copied, report.dangling) == (2, 1)


def test_contents_that_are_gone_are_found_by_a_check(tmp_path: Path) -> None:
    with store("local", tmp_path / "a") as source, store("local", tmp_path / "b") as target:
        expected = fill(source, 4)
        mirror(source, target)
        lost = target.blobs.list(limit=3)
        target.blobs.delete_many(lost)
        assert mirror(source, target).blobs == 0
        for options in (MirrorOptions(check=True), MirrorOptions(check=True, paths=[path_of("package-3")])):
            report = mirror(source, target, options)
            assert report.copied == 0
            assert not report.failures
        check_whole(target, expected)
        assert not target.blobs.missing(lost)


def test_nar_hashes_are_compared(tmp_path: Path) -> None:
    with store("local", tmp_path / "a") as source, store("local", tmp_path / "b") as target:
        liar = add(source, "liar")
        add(source, "honest")
        add(source, "above", ["liar"])
        assert liar.nar is not None
        wrong = dataclasses.replace(liar, nar=dataclasses.replace(liar.nar, sha256=bytes(32)))
        source.path_infos.put(wrong, replace=True)
        report = mirror(source, target, MirrorOptions(nars=True))
        assert list(report.failures) == [liar.store_path.absolute]
        assert report.left_out == [path_of("above").absolute]
        assert [path_info.store_path.name for path_info in target.path_infos] == ["honest"]
        honest = next(iter(target.path_infos))
        assert target.nar_nodes.nar(honest.node) == source.nar_nodes.nar(honest.node)


def test_what_a_server_says_of_nars_is_not_taken_for_ours(tmp_path: Path) -> None:
    with store("admin", tmp_path / "a") as source, store("local", tmp_path / "b") as target:
        path_info = add(source, "one")
        mirror(source, target)
        assert target.nar_nodes.nar(path_info.node) is None
    with store("local", tmp_path / "a") as source, store("local", tmp_path / "c") as target:
        mirror(source, target)
        assert target.nar_nodes.nar(path_info.node) == source.nar_nodes.nar(path_info.node)


def test_everything(tmp_path: Path) -> None:
    with store("local", tmp_path / "a") as source, store("local", tmp_path / "b") as target:
        path_info = add(source, "one")
        large = b"large" * 300_000
        source.blobs.put_many([b"stray", large])
        leaf = Directory({b"stray": FileNode(b3_digest(b"stray"), 5, False)})
        source.directories.put(leaf)
        files, others = small_files_beside(source.nar_nodes), small_files_beside(target.nar_nodes)
        assert files is not None
        assert others is not None
        files.put("log", "one", b"built")
        nar = source.nar_nodes.nar(path_info.node)
        assert nar is not None
        source.nar_nodes.put(path_info.node, nar, file_sha256=b"f" * 32)
        mirror(source, target)
        assert target.blobs.missing([b3_digest(b"stray")])
        report = mirror(source, target, MirrorOptions(everything=True))
        assert (report.present, report.blobs, report.directories) == (1, 2, 1)
        assert target.blobs.read(b3_digest(b"stray")) == b"stray"
        assert target.blobs.read(b3_digest(large)) == large
        assert target.directories.get(leaf.digest) == leaf
        assert others.get("log", "one") == b"built"
        assert target.nar_nodes.node(b"f" * 32) == source.nar_nodes.node(b"f" * 32)
        again = mirror(source, target, MirrorOptions(everything=True))
        assert (again.blobs, again.directories) == (0, 0)


def test_everything_but_what_is_damaged(tmp_path: Path) -> None:
    """No Directory comes without its blobs, and nothing is known of a NAR that could not be made."""
    with store("local", tmp_path / "a") as source, store("local", tmp_path / "b") as target:
        damaged, absent = b3_digest(b"damaged"), b3_digest(b"absent")
        source.blobs.put_many([b"damaged"])
        damage_blob(source.blobs, damaged)
        nodes: list[Node] = []
        for digest, name in ((damaged, b"damaged"), (absent, b"absent")):
            directory = Directory({name: FileNode(digest, len(name), False)})
            source.directories.put(directory)
            nodes += [DirectoryNode(directory.digest, directory.size()), FileNode(digest, len(name), False)]
        for number, node in enumerate(nodes):
            source.nar_nodes.put(node, Nar(200, bytes([number]) * 32))
        link = SymlinkNode(b"anywhere")
        source.nar_nodes.put(link, Nar(136, b"l" * 32))
        report = mirror(source, target, MirrorOptions(everything=True))
        assert {type(error) for error in report.failures.values()} == {Corrupt, NotFound}
        assert len(report.failures) == 3
        assert not target.directories.list()
        assert list(target.nar_nodes.list_hashes()) == [b"l" * 32]


def test_everything_over_a_server(tmp_path: Path) -> None:
    with store("admin", tmp_path / "a") as source, store("admin", tmp_path / "b") as target:
        fill(source, 3)
        source.blobs.put_many([b"stray"])
        with logged(logging.INFO) as messages:
            report = mirror(source, target, MirrorOptions(everything=True))
        assert not report.failures
        assert target.blobs.read(b3_digest(b"stray")) == b"stray"
        assert [line.partition(":")[0] for line in messages] == [
            "what the source knows of NARs is not copied",
            "logs and realisations are not copied",
        ]


def test_a_store_is_no_mirror_of_itself(tmp_path: Path) -> None:
    with store("local", tmp_path / "a") as source, store("local", tmp_path / "a") as target:
        add(source, "one")
        with pytest.raises(InvalidRequest, match="the same store"):
            mirror(source, target)


def test_paths_that_refer_to_each_other_in_a_circle(tmp_path: Path) -> None:
    with store("local", tmp_path / "a") as source, store("local", tmp_path / "b") as target:
        add(source, "hen", ["egg"])
        add(source, "egg", ["hen"])
        add(source, "other")
        report = mirror(source, target)
        assert len(report.failures) == len(report.left_out) == 1
        assert "in a circle" in str(next(iter(report.failures.values())))
        assert [path_info.store_path.name for path_info in target.path_infos] == ["other"]


def test_a_binary_cache(tmp_path: Path) -> None:
    cache = Cache()
    cache.add("dependency", references=())
    cache.add("tool", compression="xz")
    cache.add("broken", nar=b"no nar")
    for name, data in cache.files.items():
        (tmp_path / "cache" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cache" / name).write_bytes(data)
    url = f"nix+file://{tmp_path}/cache"
    with store("local", tmp_path / "b") as target:
        source = services_of_cache(url, target)
        with pytest.raises(Unsupported, match="cannot list its path infos"):
            mirror(source, target)
        wanted = [cached_path("broken"), cached_path("tool")]
        report = mirror(source, target, MirrorOptions(paths=wanted))
        assert list(report.failures) == [wanted[0].absolute]
        assert report.copied == 2
        assert len(check_consistent(target)) == 2
        again = mirror(source, target, MirrorOptions(paths=[cached_path("tool")]))
        assert (again.copied, again.present) == (0, 1)
        source.path_infos.close()


def test_paths_that_come_while_the_source_is_listed(tmp_path: Path) -> None:
    """What a path refers to may have been registered behind the place where the listing is."""
    first, middle, last = sorted(("one", "two", "three"), key=lambda name: path_of(name).digest)
    with store("local", tmp_path / "a") as inner, store("local", tmp_path / "b") as target:
        add(inner, middle)

        def grow() -> None:
            add(inner, first)
            add(inner, last, [first])

        path_infos = WatchedPathInfos(inner.path_infos, grow)
        source = Services(inner.blobs, inner.directories, path_infos, inner.nar_nodes)
        order: list[StorePath] = []
        mirror(source, target, copied=order.append)
        assert names(order) == [middle, first, last]
        check_consistent(target)


def test_the_library(tmp_path: Path) -> None:
    with neve.open("memory://") as source, neve.open(f"local://{tmp_path}/b") as target:
        (tmp_path / "file").write_bytes(b"contents")
        path = source.import_path(tmp_path / "file").store_path
        assert source.mirror_to(target).copied == 1
        assert target.open(path).read() == b"contents"
