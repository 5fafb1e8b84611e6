"""Stores that files describe, opened: who shares what, what is closed and when, how failures are told."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from neve.castore.blobs.base import BlobService
from neve.castore.blobs.combined import CachedBlobService, CombinedBlobService
from neve.castore.blobs.memory import MemoryBlobService
from neve.castore.directories.base import DirectoryService
from neve.castore.directories.cached import CachedDirectoryService
from neve.castore.directory import Directory, SizeRule
from neve.errors import InvalidRequest, NeveError, NotFound, PermissionDenied
from neve.library import open_store
from neve.nix.signing import SecretKey
from neve.packstore.store import PackStore
from neve.store.composition import BLOBS, Composition, InvalidComposition, Opening, parse
from neve.store.nar_nodes import LocalNarNodes
from neve.store.pathinfos.base import PathInfoService
from neve.store.pathinfos.cached import CachedPathInfoService
from neve.store.services import open_services
from neve.testing.blobs import BlobServiceContract
from neve.testing.directories import DirectoryServiceContract
from neve.testing.pathinfos import PathInfoServiceContract, path_info
from neve.testing.servers import running_daemon
from tests.store.helpers import leaving_nothing_open, put_blob, stored
from tests.store.substitute.caches import Cache
from tests.store.substitute.test_honest import written
from tests.store.test_export import TREE

FILE = "/etc/neve/store.toml"

MEMORY = """
[blobservices.root]
type = "memory"
[directoryservices.root]
type = "memory"
[pathinfoservices.root]
type = "memory"
"""


def composed(text: str) -> Composition:
    return parse(text, FILE)


def local(folder: Path, *kinds: str) -> str:
    """Roots that are in an embedded store."""
    chosen = kinds or ("blobservices", "directoryservices", "pathinfoservices")
    return "".join(f'[{kind}.root]\ntype = "local"\npath = "{folder}"\n' for kind in chosen)


# The contracts, over services that are named.


def cached(kind: str, folder: Path) -> str:
    return f"""
[{kind}.root]
type = "cache"
near = "near"
far = "far"
negative_ttl = 60
[{kind}.near]
type = "memory"
[{kind}.far]
type = "local"
path = "{folder}/far"
"""


def without(kind: str) -> str:
    """The other two kinds, in memory."""
    return "".join(
        f'[{other}.root]\ntype = "memory"\n'
        for other in ("blobservices", "directoryservices", "pathinfoservices")
        if other != kind
    )


class TestBlobs(BlobServiceContract):
    finds_damage = False

    @pytest.fixture
    def service(self, tmp_path: Path) -> Iterator[BlobService]:
        text = cached("blobservices", tmp_path) + without("blobservices")
        services = open_services(composition=composed(text))
        assert isinstance(services.blobs, CachedBlobService)
        yield services.blobs
        services.close()


class TestDirectories(DirectoryServiceContract):
    finds_damage = False

    @pytest.fixture
    def service(self, tmp_path: Path) -> Iterator[DirectoryService]:
        text = cached("directoryservices", tmp_path) + without("directoryservices")
        services = open_services(composition=composed(text))
        assert isinstance(services.directories, CachedDirectoryService)
        yield services.directories
        services.close()


class TestPathInfos(PathInfoServiceContract):
    @pytest.fixture
    def service(self, tmp_path: Path) -> Iterator[PathInfoService]:
        text = cached("pathinfoservices", tmp_path) + without("pathinfoservices")
        services = open_services(composition=composed(text))
        assert isinstance(services.path_infos, CachedPathInfoService)
        yield services.path_infos
        services.close()


# What is shared.

SHARED = """
[blobservices.root]
type = "cache"
near = "one"
far = "both"
[blobservices.both]
type = "combined"
near = "one"
far = "two"
[blobservices.one]
type = "memory"
[blobservices.two]
type = "memory"
[directoryservices.root]
type = "memory"
[pathinfoservices.root]
type = "memory"
"""


def test_what_is_named_twice_is_one_service() -> None:
    services = open_services(composition=composed(SHARED))
    root = services.blobs
    assert isinstance(root, CachedBlobService)
    both = root._far
    assert isinstance(both, CombinedBlobService)
    assert both._near is root._near
    assert both._far is not root._near
    digest = put_blob(services, b"contents")
    assert both._near.has(digest)
    assert not both._far.has(digest)
    services.close()


class Closing:
    """Notes in what order services end."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.order: list[object] = []
        for kind in (MemoryBlobService, CachedBlobService, CombinedBlobService):
            close = kind.close

            def noted(service: Any, close: Any = close) -> None:
                self.order.append(service)
                close(service)

            monkeypatch.setattr(kind, "close", noted)


def test_each_is_closed_once_and_after_what_is_made_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    closing = Closing(monkeypatch)
    services = open_services(composition=composed(SHARED))
    root: Any = services.blobs
    expected = [root, root._far, root._far._far, root._near]
    # Nobody closes what belongs to others, too.
    root.close()
    root._far.close()
    assert closing.order == []
    services.close()
    ended = [one for one in closing.order if one in expected]
    assert list(dict.fromkeys(ended)) == expected


def test_opening_that_fails_half_way_closes_what_was_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for table in (
        f'[pathinfoservices.root]\ntype="local"\npath="{tmp_path}/none"\nmode="ro"',
        '[pathinfoservices.root]\ntype="lru"\ncapacity=0',
        '[pathinfoservices.root]\ntype="keyfile-signing"\nkeyfile="/none"\ninner="memory://"',
        f'[pathinfoservices.root]\ntype="cache"\nnear="x"\nfar="nonsense://"\n'
        f'[pathinfoservices.x]\ntype="local"\npath="{tmp_path}/x"',
        f'[pathinfoservices.root]\ntype="cache"\nnear="x"\nfar="y"\n'
        f'[pathinfoservices.x]\ntype="local"\npath="{tmp_path}/x"\n'
        f'[pathinfoservices.y]\ntype="local"\npath="{tmp_path}/x"\ndirectory_size_rule="snix"',
    ):
        text = local(tmp_path / "store", "blobservices", "directoryservices") + table
        with leaving_nothing_open(), pytest.raises(NeveError) as refused:
            open_services(composition=composed(text))
        if isinstance(refused.value, InvalidRequest):
            assert str(refused.value).startswith((f"{FILE}: [pathinfoservices.root]: ", "address"))
        else:
            assert isinstance(refused.value, NotFound)
        assert PackStore._opened == {}


def test_closing_goes_on_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    closing = Closing(monkeypatch)

    def failing(service: object) -> None:
        raise OSError("cannot close")

    monkeypatch.setattr(CombinedBlobService, "close", failing)
    opening = Opening(composed(SHARED), lambda url: SizeRule.EXACT)
    root = opening.root(BLOBS)
    with pytest.raises(OSError, match="cannot close"):
        opening.close()
    assert root._near in closing.order
    opening.close()


# What of it is a whole store, and what goes with what.


def test_one_folder_for_all_is_one_store(tmp_path: Path) -> None:
    with leaving_nothing_open():
        services = open_services(composition=composed(local(tmp_path / "store")))
        assert services.packs is not None
        assert isinstance(services.nar_nodes, LocalNarNodes)
        services.path_infos.put(path_info("p"))
        stored(services, TREE)
        services.close()
        services.close()
    assert PackStore._opened == {}
    with open_store(f"local://{tmp_path}/store") as store:
        assert list(store.path_infos) == [path_info("p")]


def test_one_server_for_all_is_one_store(tmp_path: Path) -> None:
    with running_daemon("memory://", folder=tmp_path) as daemon:
        text = "".join(
            f'[{kind}.root]\ntype = "grpc"\nurl = "{daemon.url}"\n'
            for kind in ("blobservices", "directoryservices", "pathinfoservices")
        )
        services = open_services(composition=composed(text))
        assert services.remote is not None
        services.path_infos.put(path_info("p"))
        services.close()


def test_the_map_of_nars_and_the_rule_of_sizes_are_where_things_end_up(tmp_path: Path) -> None:
    text = f"""
[blobservices.root]
type = "memory"
[directoryservices.root]
type = "cache"
near = "memory://"
far = "far"
[directoryservices.far]
type = "local"
path = "{tmp_path}/directories"
directory_size_rule = "snix"
[pathinfoservices.root]
type = "cache"
near = "lru://"
far = "far"
[pathinfoservices.far]
type = "local"
path = "{tmp_path}/path infos"
"""
    services = open_services(composition=composed(text))
    assert services.size_rule is SizeRule.SNIX
    assert isinstance(services.nar_nodes, LocalNarNodes)
    assert services.nar_nodes.store.path == tmp_path / "path infos"
    services.close()


def test_an_address_of_one_service_wins(tmp_path: Path) -> None:
    text = local(tmp_path / "store", "blobservices", "directoryservices")
    with pytest.raises(InvalidComposition, match=rf"{FILE}: there is no table \[pathinfoservices.root\]"):
        open_services(composition=composed(text))
    text += '[pathinfoservices.root]\ntype = "local"\npath = "/proc/none"\n'
    services = open_services(composition=composed(text), path_info_service=f"local://{tmp_path}/other")
    services.path_infos.put(path_info("p"))
    services.close()
    assert (tmp_path / "other/store.json").exists()
    with pytest.raises(InvalidRequest, match="a store has an address, or a composition, not both"):
        open_services("memory://", composition=composed(text))


def test_nothing_is_opened_that_nothing_needs(tmp_path: Path) -> None:
    unused = f'[blobservices.unused]\ntype = "local"\npath = "{tmp_path}/unused"\n'
    open_services(composition=composed(MEMORY + unused)).close()
    assert not (tmp_path / "unused").exists()


def test_a_binary_cache_puts_things_where_it_is_told(tmp_path: Path) -> None:
    cache = Cache()
    path = cache.add("hello").store_path
    written(cache, tmp_path / "cache")
    text = f"""
[blobservices.root]
type = "combined"
near = "own"
far = "fetched"
[blobservices.own]
type = "memory"
[blobservices.fetched]
type = "local"
path = "{tmp_path}/fetched"
[directoryservices.root]
type = "cache"
near = "memory://"
far = "fetched"
[directoryservices.fetched]
type = "local"
path = "{tmp_path}/fetched"
[pathinfoservices.root]
type = "nix"
base_url = "file://{tmp_path}/cache"
blob_service = "fetched"
directory_service = "fetched"
"""
    with leaving_nothing_open():
        with open_store(composition=composed(text)) as store:
            found = store.path_infos.get(path.digest)
            assert found is not None
            assert store.blobs._near.list() == []  # type: ignore[attr-defined]
            assert b"".join(store.nar(path))
        with open_store(f"local://{tmp_path}/fetched?mode=ro") as fetched:
            assert fetched.blobs.list() != []
            assert fetched.directories.list() != []


def test_what_is_put_is_signed(tmp_path: Path) -> None:
    key = SecretKey("team-1", bytes(range(32)))
    (tmp_path / "key").write_text(key.render())
    (tmp_path / "file").write_text("contents")
    text = (
        without("pathinfoservices")
        + f"""
[pathinfoservices.root]
type = "keyfile-signing"
inner = "own"
keyfile = "{tmp_path}/key"
[pathinfoservices.own]
type = "memory"
"""
    )
    with open_store(composition=composed(text)) as store:
        info = store.import_path(tmp_path / "file")
        assert info.nar is not None
        assert [one.name for one in info.nar.signatures] == ["team-1"]


def test_secrets_of_a_bucket_are_not_told() -> None:
    text = MEMORY.replace(
        '[blobservices.root]\ntype = "memory"',
        '[blobservices.root]\ntype = "objectstore"\nobject_store_url = "odd://bucket"\n'
        'object_store_options = { aws_secret_access_key = "s3cret" }',
    )
    with pytest.raises(InvalidComposition, match=r"root\]: .*objectstore\+odd://bucket") as refused:
        open_services(composition=composed(text))
    assert "s3cret" not in str(refused.value)


def test_for_reading(tmp_path: Path) -> None:
    text = local(tmp_path / "store")
    with leaving_nothing_open():
        with pytest.raises(NotFound):
            open_services(composition=composed(text).for_reading())
        assert not (tmp_path / "store").exists()
        open_services(composition=composed(text)).close()
        services = open_services(composition=composed(text).for_reading())
        with pytest.raises(PermissionDenied, match="read-only"):
            services.directories.put(Directory())
        services.close()


def test_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "store.toml"
    file.write_text(MEMORY)
    with open_store(composition=file) as store:
        assert store.blobs.put_many([b"x"])
    again = pickle.loads(pickle.dumps(parse(MEMORY, FILE)))
    open_services(composition=again).close()
