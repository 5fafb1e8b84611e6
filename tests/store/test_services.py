"""Addresses to services: what each gives, what is refused and how, and what closing leaves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from neve.castore.directory import SizeRule
from neve.errors import Corrupt, InvalidRequest, NeveError, NotFound, PermissionDenied
from neve.packstore.store import PackStore
from neve.store.nar_nodes import LocalNarNodes, MemoryNarNodes
from neve.store.services import open_services
from neve.testing.pathinfos import path_info

from .helpers import leaving_nothing_open, stored
from .test_export import TREE

SCHEMES = r"\(known: cache, combined, grpc\+http, grpc\+https, grpc\+unix, local, memory, objectstore\+az, "


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "has no scheme; write for example local:///srv/neve"),
        ("/srv/neve", "'/srv/neve' has no scheme"),
        ("local:/srv/neve", "'local:/srv/neve' has no scheme"),
        ("://x", "'://x' has no scheme"),
        ("nonsense://x", f"no blob service has the scheme 'nonsense' {SCHEMES}"),
        ("sled:///x", f"sled is an engine of another implementation, neve's own is local {SCHEMES}"),
        ("redb:///x", "redb is an engine of another implementation"),
        ("memory://host", "memory:// takes neither host nor path"),
        ("memory:///path", "memory:// takes neither host nor path"),
        ("memory://?x=1", r"unknown parameter 'x' \(known: none\)"),
        ("local://host/srv", r"a local store has no host \('host'\); write local:///folder"),
        ("local:///", "the file system's root cannot be a store; name a folder"),
        ("local:///./", "the file system's root cannot be a store"),
        ("local:///srv?mod=ro", r"unknown parameter 'mod' \(known: mode, directory-size-rule\)"),
        ("local:///srv?mode=rx", "parameter 'mode' is 'rx', must be one of: rw, ro"),
        ("local:///srv?mode=", "parameter 'mode' is '', must be one of: rw, ro"),
        ("local:///srv?directory-size-rule=tvix", "is 'tvix', must be one of: exact, snix"),
        ("local:///srv?mode", "cannot be read: bad query field"),
        ("local:///srv?mode=ro&mode=ro", "a parameter is given twice"),
        ("local:///srv#1", r"a fragment \('#...'\) has no meaning here; write # as %23"),
        ("local://[::1", "cannot be read"),
        ("local://?mode=ro", "a temporary store cannot be read-only"),
    ],
)
def test_bad_addresses(url: str, message: str) -> None:
    with leaving_nothing_open(), pytest.raises(InvalidRequest, match=message) as refused:
        open_services(url)
    assert f"address {url!r}" in str(refused.value) or "local://" in url


@pytest.mark.parametrize(
    ("url", "others", "lacking"),
    [
        (
            "postgresql://u:secret@h/db",
            {},
            r"postgresql is not for all of a store; .*: blobs \(--blob-service-addr\)$",
        ),
        ("bigtable://project/instance/table", {}, r": blobs \(--blob-service-addr\)$"),
        ("objectstore+memory://", {}, r": path infos \(--path-info-service-addr\)$"),
        ("nix+https://h", {"blob_service": "memory://"}, r": Directories \(--directory-service-addr\)$"),
    ],
)
def test_what_is_no_whole_store(url: str, others: dict[str, str], lacking: str) -> None:
    with leaving_nothing_open(), pytest.raises(InvalidRequest, match=lacking) as refused:
        open_services(url, **others)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("which", ["blob_service", "directory_service", "path_info_service"])
def test_a_bad_address_of_one_service(tmp_path: Path, which: str) -> None:
    """Those that were opened before it are closed again."""
    names = {"blob_service": "blob", "directory_service": "directory", "path_info_service": "path info"}
    with leaving_nothing_open(), pytest.raises(InvalidRequest, match=f"no {names[which]} service has"):
        open_services(f"local://{tmp_path / 'store'}", **{which: "nonsense://"})
    assert PackStore._opened == {}


@pytest.mark.parametrize("given", [{}, {"blob_service": "memory://", "path_info_service": "memory://"}])
def test_every_service_needs_an_address(given: dict[str, str]) -> None:
    with pytest.raises(InvalidRequest, match="name a store, or the address of each of the three services"):
        open_services(**given)


def test_three_addresses_are_enough(tmp_path: Path) -> None:
    with leaving_nothing_open():
        services = open_services(
            blob_service="memory://",
            directory_service=f"local://{tmp_path / 'directories'}",
            path_info_service=f"local://{tmp_path / 'path infos'}",
        )
        services.path_infos.put(path_info("p"))
        stored(services, TREE)
        services.close()
    assert (tmp_path / "path infos/store.json").exists()
    assert services.packs is None


def test_one_service_can_be_overridden(tmp_path: Path) -> None:
    services = open_services(f"local://{tmp_path / 'store'}", path_info_service="memory://")
    services.path_infos.put(path_info("p"))
    assert isinstance(services.nar_nodes, MemoryNarNodes)
    assert services.packs is None
    services.close()
    services = open_services(f"local://{tmp_path / 'store'}")
    assert list(services.path_infos) == []
    assert isinstance(services.nar_nodes, LocalNarNodes)
    assert services.packs is not None
    services.close()


def test_what_is_in_memory_is_gone() -> None:
    one, two = open_services("memory://"), open_services("memory://")
    one.path_infos.put(path_info("p"))
    assert list(two.path_infos) == []


@pytest.mark.parametrize("name", ["with space", "per%cent", "ä", "q?mark", "h#ash"])
def test_folders_of_any_name(tmp_path: Path, name: str) -> None:
    quoted = name.replace("%", "%25").replace("?", "%3F").replace("#", "%23").replace(" ", "%20")
    services = open_services(f"local://{tmp_path}/{quoted}")
    services.close()
    assert (tmp_path / name / "store.json").exists()


def test_closing_twice_and_everything(tmp_path: Path) -> None:
    with leaving_nothing_open():
        services = open_services(f"local://{tmp_path / 'store'}")
        stored(services, TREE)
        services.close()
        services.close()
    assert PackStore._opened == {}


def test_closing_goes_on_after_a_failure(tmp_path: Path) -> None:
    services = open_services(f"local://{tmp_path / 'store'}")
    real = services.path_infos.close

    def failing() -> None:
        real()
        raise OSError("cannot close")

    services.path_infos.close = failing  # type: ignore[method-assign]
    with pytest.raises(OSError, match="cannot close"):
        services.close()
    assert PackStore._opened == {}


# Stores on disk


def test_what_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/stranger").write_bytes(b"")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged/store.json").write_bytes(b"{")
    (tmp_path / "newer").mkdir()
    (tmp_path / "newer/store.json").write_text('{"format": "neve-store", "version": 99, "settings": {}}')
    cases: list[tuple[str, type[NeveError], str]] = [
        ("file", NeveError, "file"),
        ("full", InvalidRequest, "not empty"),
        ("damaged", Corrupt, "cannot be read as a store description"),
        ("newer", InvalidRequest, "version 99, this neve knows version 1: use a newer neve"),
        ("absent?mode=ro", NotFound, "is not a neve store|cannot open the store"),
    ]
    for name, error, message in cases:
        with leaving_nothing_open(), pytest.raises(error, match=message):
            open_services(f"local://{tmp_path}/{name}")
    assert not (tmp_path / "absent").exists()


def test_settings_that_nobody_understands(tmp_path: Path) -> None:
    place = tmp_path / "store"
    PackStore.open(place, settings={"directory-size-rule": "odd"}).close()
    with (
        leaving_nothing_open(),
        pytest.raises(Corrupt, match=f"settings of the store in {place} are damaged"),
    ):
        open_services(f"local://{place}")


def test_read_only(tmp_path: Path) -> None:
    services = open_services(f"local://{tmp_path / 'store'}")
    root = stored(services, TREE)
    info = services.path_infos.put(path_info("p"))
    services.close()
    with leaving_nothing_open():
        services = open_services(f"local://{tmp_path / 'store'}?mode=ro")
        assert list(services.path_infos) == [info]
        assert len(b"".join(services.renderer.stream(root))) == services.renderer.size(root)
        with pytest.raises(PermissionDenied, match="read-only"):
            services.path_infos.put(path_info("q"))
        with pytest.raises(PermissionDenied, match="read-only"):
            stored(services, TREE)
        services.close()


def test_the_size_rule_is_that_of_the_directories(tmp_path: Path) -> None:
    """Wherever the path infos are."""
    snix = f"local://{tmp_path / 'snix'}?directory-size-rule=snix"
    for services in (
        open_services(snix),
        open_services(f"local://{tmp_path / 'snix'}"),
        open_services("memory://", directory_service=f"local://{tmp_path / 'snix'}"),
    ):
        assert services.size_rule is SizeRule.SNIX
        services.close()
    for services in (
        open_services("memory://"),
        open_services(f"local://{tmp_path / 'snix'}", directory_service="memory://"),
        open_services(f"local://{tmp_path / 'exact'}?directory-size-rule=exact"),
    ):
        assert services.size_rule is SizeRule.EXACT
        services.close()
    with leaving_nothing_open(), pytest.raises(InvalidRequest, match="cannot be changed to 'snix'"):
        open_services(f"local://{tmp_path / 'exact'}?directory-size-rule=snix")


# Temporary stores

TEMPORARY = """
import os, sys
from neve.library import open_store
with open_store("local://") as store:
    folder = store.services.packs.path
    path_info = store.import_path(sys.argv[1])
    # All three services, and the map of NARs, share one folder: it holds what each of them has.
    assert store.services.nar_nodes.nar(path_info.node) is not None
    assert sorted(os.listdir(folder.parent)).count(folder.name) == 1
    print(folder)
    assert folder.exists()
assert folder.exists()
with open_store("local://") as other:
    assert other.services.packs.path != folder
    assert list(other.path_infos) == []
"""


@pytest.mark.parametrize("name", ["plain", "odd %41#?x"])
def test_a_temporary_store_is_one_folder_and_goes_away(tmp_path: Path, name: str) -> None:
    place = tmp_path / name
    place.mkdir()
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_bytes(b"x")
    done = subprocess.run(
        [sys.executable, "-c", TEMPORARY, source],
        env={**os.environ, "TMPDIR": str(place)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(place))
    assert list(place.iterdir()) == []
