"""Stores with their contents in one place and the rest in a PostgreSQL database."""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import neve
from neve.errors import NotFound
from neve.library import Store
from neve.nix import base32
from neve.store.check import verify_store
from neve.store.export import export_tree
from neve.store.importer import ImportOptions
from neve.store.nar_nodes import Nar
from neve.store.postgresql import PostgresNarNodes, PostgresSmallFiles
from neve.store.small_files import small_files_beside
from neve.testing.pathinfos import signature
from neve.testing.postgresql import PostgresServer, schema_of
from neve.testing.servers import running_daemon
from tests.http_cache.serving import serving
from tests.s3 import S3Server
from tests.store.gc.helpers import collect, make_tree, paths

pytestmark = pytest.mark.postgresql


@contextlib.contextmanager
def opened(tmp_path: Path, database: str, *, name: str = "one") -> Iterator[Store]:
    """As a process of this name has it."""
    rest = f"{database}&application_name={name}"
    blobs = f"local://{tmp_path / 'blobs'}"
    with neve.open(blob_service=blobs, directory_service=rest, path_info_service=rest) as store:
        yield store


@pytest.fixture
def store(tmp_path: Path, database: str) -> Iterator[Store]:
    with opened(tmp_path, database) as store:
        yield store


def imported(store: Store, tmp_path: Path, number: int) -> neve.PathInfo:
    tree = make_tree(tmp_path / f"tree-{number}", number)
    return store.import_path(tree, ImportOptions(name=f"tree-{number}"))


def test_what_lies_beside_the_path_infos(store: Store, tmp_path: Path) -> None:
    info = imported(store, tmp_path, 1)
    nar_nodes = store.services.nar_nodes
    assert isinstance(nar_nodes, PostgresNarNodes)
    assert info.nar is not None
    assert nar_nodes.nar(info.node) == Nar(info.nar.size, info.nar.sha256)
    files = small_files_beside(nar_nodes)
    assert isinstance(files, PostgresSmallFiles)
    assert files.get("log", "a") is None
    for contents in (b"first", b"second", b"second"):
        files.put("log", "a", contents)
        assert files.get("log", "a") == contents
    files.put("log", "b", b"")
    files.put("realisation", "a", b"x")
    assert files.list() == [("log", "a"), ("log", "b"), ("realisation", "a")]
    assert files.list(("log", "a"), 1) == [("log", "b")]


def test_a_tree_goes_in_and_out(store: Store, tmp_path: Path) -> None:
    info = imported(store, tmp_path, 1)
    assert verify_store(store.services, nar_hashes=True).problems == []
    export_tree(store.services, info.node, bytes(tmp_path / "out"))
    differences = subprocess.run(["diff", "-r", tmp_path / "tree-1", tmp_path / "out"], capture_output=True)
    assert differences.stdout == b""
    assert store.import_path(tmp_path / "tree-1", ImportOptions(name="tree-1")) == info


def test_mirrors_there_and_back(store: Store, tmp_path: Path) -> None:
    with neve.open(f"local://{tmp_path / 'from'}") as source:
        expected = [imported(source, tmp_path, number) for number in (1, 2)]
        assert source.mirror_to(store).failures == {}
    assert paths(store) == {info.store_path for info in expected}
    assert verify_store(store.services).problems == []
    with neve.open(f"local://{tmp_path / 'back'}") as target:
        assert store.mirror_to(target).failures == {}
        assert paths(target) == paths(store)
        assert verify_store(target.services).problems == []


def test_collecting(postgresql: PostgresServer, store: Store, tmp_path: Path, database: str) -> None:
    kept, dropped, fresh = (imported(store, tmp_path, number) for number in (1, 2, 3))
    before = len(store.directories.list())
    for table in ("directories", "path_infos"):
        postgresql.age(database, table, 30 * 3600)
    store.path_infos.get(fresh.digest)
    collect(store, keep=[kept.store_path])
    assert paths(store) == {kept.store_path, fresh.store_path}
    assert len(store.directories.list()) < before
    assert verify_store(store.services).problems == []
    with pytest.raises(NotFound):
        store.path_info(dropped.store_path)


def test_collecting_from_a_bucket(each_s3: S3Server, tmp_path: Path, database: str) -> None:
    """Nothing is on this machine: all contents in a bucket, all else in the database."""
    url = each_s3.url(each_s3.bucket())

    def opened() -> Store:
        return neve.open(blob_service=url, directory_service=database, path_info_service=database)

    with opened() as store:
        kept, dropped = (imported(store, tmp_path, number) for number in (1, 2))
        blobs, directories = len(store.blobs.list()), len(store.directories.list())
    with opened() as store:
        told = collect(store, keep=[kept.store_path], grace=0, dry_run=True)
        assert len(store.blobs.list()) == blobs
        report = collect(store, keep=[kept.store_path], grace=0)
        assert report.paths_dropped == 1
        assert told.blobs_dropped == report.blobs_dropped == blobs - len(store.blobs.list()) > 0
        assert report.directories_dropped == directories - len(store.directories.list()) > 0
        assert paths(store) == {kept.store_path}
        assert verify_store(store.services, nar_hashes=True).problems == []
    with opened() as store:
        assert store.import_path(tmp_path / "tree-2", ImportOptions(name="tree-2")) == dropped
        assert verify_store(store.services, nar_hashes=True).problems == []


def test_two_daemons_over_one_database(tmp_path: Path, database: str) -> None:
    """What one registers the other serves at once, and goes on with when that is gone."""
    with contextlib.ExitStack() as stack:
        daemons = []
        for name in ("one", "two"):
            services = stack.enter_context(opened(tmp_path, database, name=name)).services
            daemons.append(stack.enter_context(running_daemon(services, folder=tmp_path)))
        first, second = (stack.enter_context(neve.open(daemon.url)) for daemon in daemons)
        assert paths(second) == set()
        info = imported(first, tmp_path, 1)
        assert second.path_info(info.store_path) == info
        assert verify_store(second.services, nar_hashes=True).problems == []
        signed = second.path_infos.put(info.with_signatures([signature("key")]))
        assert first.path_info(info.store_path) == signed
        daemons[0].stop()
        other = imported(second, tmp_path, 2)
        assert paths(second) == {info.store_path, other.store_path}


def test_narinfos_are_never_old(store: Store, tmp_path: Path, database: str) -> None:
    info = imported(store, tmp_path, 1)
    name = f"/{base32.encode(info.digest)}.narinfo"
    with serving(store.services) as served, opened(tmp_path, database, name="two") as other:
        assert "key:" not in served.http.get(name).text
        other.path_infos.put(info.with_signatures([signature("key")]))
        assert "Sig: key:" in served.http.get(name).text
        other.path_infos.delete_many([info.digest])
        assert served.http.get(name).status_code == 404


def test_damage_to_what_is_known_of_nars_is_in_nobodys_way(
    store: Store, tmp_path: Path, postgresql: PostgresServer, database: str
) -> None:
    """It can be found out again, by the daemon and the binary cache, and is remembered then."""
    info = imported(store, tmp_path, 1)
    assert info.nar is not None
    nar = Nar(info.nar.size, info.nar.sha256)

    def damage() -> None:
        postgresql.execute(f"update {schema_of(database)}.nar_nodes set data = '\\x00'")

    with running_daemon(store.services, folder=tmp_path) as daemon, neve.open(daemon.url) as client:
        damage()
        assert client.services.nar_calculation.calculate_nar(info.node) == nar
        assert store.services.nar_nodes.nar(info.node) == nar
        damage()
        other = client.import_path(tmp_path / "tree-1", ImportOptions(name="other"))
        assert other.nar is not None
        assert other.nar.sha256 == nar.sha256
    with serving(store.services) as served:
        damage()
        name = f"/{base32.encode(info.digest)}.narinfo"
        lines = dict(line.split(": ", 1) for line in served.http.get(name).text.splitlines())
        damage()
        answer = served.http.get(f"/{lines['URL']}")
        assert (answer.status_code, hashlib.sha256(answer.content).digest()) == (200, nar.sha256)


def test_a_cache_is_ready_if_its_database_is(
    tmp_path: Path, postgresql: PostgresServer, database: str
) -> None:
    with opened(tmp_path, database) as store, serving(store.services) as served:
        assert served.http.get("/healthz").status_code == 200
    with opened(tmp_path, postgresql.url(database="nowhere")) as store, serving(store.services) as served:
        assert served.http.get("/healthz").status_code == 503
