"""Sources that are damaged, and stores that go away: what can be copied is, and the rest is told."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from neve.castore.digest import Digest
from neve.castore.node import DirectoryNode, FileNode
from neve.errors import Corrupt, DiskFull, LimitExceeded, NotFound, Unavailable, Unsupported
from neve.packstore.layout import PACKS_DIR, pack_name
from neve.packstore.location import offset_of, pack_of
from neve.store.mirror import MirrorOptions, mirror
from neve.store.path_info import NarDetails, PathInfo
from neve.store.pathinfos.local import PATH_INFOS
from neve.store.services import Services, open_services
from neve.testing.servers import running_daemon
from neve.tree import LEAVE_DIRECTORY, EnterDirectory, Event, File
from tests.castore.damage import damage_blob, damage_directory
from tests.disks import small_disk
from tests.server.foreign import foreign_server
from tests.server.serve import served

from .stores import WatchedPathInfos, add, check_consistent, check_whole, fill, path_of, store

SOURCES = ("local", "daemon")


def file_of(services: Services, path_info: PathInfo, name: bytes) -> Digest:
    assert isinstance(path_info.node, DirectoryNode)
    root = services.directories.get(path_info.node.digest)
    assert root is not None
    node = root.get(name)
    assert isinstance(node, FileNode)
    return node.digest


@contextlib.contextmanager
def over(kind: str, local: Services, folder: Path) -> Iterator[Services]:
    """A view of an embedded store: itself, or through a daemon."""
    if kind == "local":
        yield local
        return
    with running_daemon(local, folder=folder) as daemon:
        services = open_services(daemon.url)
        yield services
        services.close()


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("size", [3_000, 2_000_000])
def test_a_damaged_blob(kind: str, size: int, tmp_path: Path) -> None:
    with store("local", tmp_path / "a") as local, store("local", tmp_path / "b") as target:
        add(local, "before")
        contents = random.Random(1).randbytes(size)
        bad: list[Event] = [EnterDirectory(b""), File(b"bad", False, contents), LEAVE_DIRECTORY]
        broken = add(local, "broken", events=bad)
        add(local, "above", ["broken"])
        add(local, "beside", ["before"])
        digest = file_of(local, broken, b"bad")
        chunks = local.blobs.chunks(digest)
        assert chunks
        damage_blob(local.blobs, chunks[-1].digest)
        with over(kind, local, tmp_path) as source:
            report = mirror(source, target)
        assert list(report.failures) == [broken.store_path.absolute]
        error = report.failures[broken.store_path.absolute]
        assert isinstance(error, Corrupt)
        assert "b3:" in str(error)
        assert report.left_out == [path_of("above").absolute]
        assert check_consistent(target) == {path_of("before").digest, path_of("beside").digest}


@pytest.mark.parametrize("kind", SOURCES)
def test_a_damaged_directory(kind: str, tmp_path: Path) -> None:
    with store("local", tmp_path / "a") as local, store("local", tmp_path / "b") as target:
        broken = add(local, "broken")
        fine = add(local, "fine", events=[File(b"", False, b"alone")])
        assert isinstance(broken.node, DirectoryNode)
        damage_directory(local.directories, broken.node.digest)
        with over(kind, local, tmp_path) as source:
            report = mirror(source, target)
        assert [type(error) for error in report.failures.values()] == [Corrupt]
        assert check_consistent(target) == {fine.digest}


def test_what_is_missing_at_the_source(tmp_path: Path) -> None:
    with store("local", tmp_path / "a") as source, store("local", tmp_path / "b") as target:
        whole = add(source, "whole")
        without_root = add(source, "without-root", events=[EnterDirectory(b""), LEAVE_DIRECTORY])
        only = add(
            source, "x", events=[EnterDirectory(b""), File(b"f", False, b"only here"), LEAVE_DIRECTORY]
        )
        source.blobs.delete_many([file_of(source, only, b"f")])
        assert isinstance(without_root.node, DirectoryNode)
        source.directories.delete_many([without_root.node.digest])
        report = mirror(source, target)
        assert set(report.failures) == {path_of("without-root").absolute, path_of("x").absolute}
        assert {type(error) for error in report.failures.values()} == {NotFound}
        assert check_consistent(target) == {whole.digest}


@pytest.mark.parametrize("which", ["source", "target"])
def test_a_damaged_path_info(which: str, tmp_path: Path) -> None:
    with store("local", tmp_path / "a") as source, store("local", tmp_path / "b") as target:
        add(source, "one")
        add(source, "two", ["one"])
        if which == "target":
            mirror(source, target)
        add(source, "three")
        packs = (source if which == "source" else target).packs
        assert packs is not None
        digest = path_of("one").digest
        location = packs.find(PATH_INFOS, [digest])[digest]
        with (packs.path / PACKS_DIR / pack_name(pack_of(location.place))).open("r+b") as file:
            file.seek(offset_of(location.place) + location.stored_len // 2)
            file.write(os.urandom(8))
        report = mirror(source, target)
        assert [type(error) for error in report.failures.values()] == [Corrupt]
        assert report.left_out == ([path_of("two").absolute] if which == "source" else [])
        assert target.path_infos.get(path_of("three").digest) is not None


def test_a_path_that_is_deleted_meanwhile_is_no_failure(tmp_path: Path) -> None:
    with store("local", tmp_path / "a") as inner, store("local", tmp_path / "b") as target:
        gone, kept = sorted((add(inner, "one"), add(inner, "two")), key=lambda path_info: path_info.digest)
        root = gone.node
        assert isinstance(root, DirectoryNode)

        def delete() -> None:
            inner.path_infos.delete_many([gone.digest])
            inner.directories.delete_many([root.digest])

        path_infos = WatchedPathInfos(inner.path_infos, delete)
        report = mirror(Services(inner.blobs, inner.directories, path_infos, inner.nar_nodes), target)
        assert (report.copied, report.vanished, report.failures) == (1, 1, {})
        assert check_consistent(target) == {kept.digest}


def test_a_closure_that_is_deleted_meanwhile_is_not_registered_in_part(tmp_path: Path) -> None:
    """The one that refers to the other has been listed, the other has not; its contents are still there."""
    names = sorted(("one", "two", "three"), key=lambda name: path_of(name).digest)
    referrer, highest, referred = names
    with store("local", tmp_path / "a") as inner, store("local", tmp_path / "b") as target:
        gone = [add(inner, referred), add(inner, referrer, [referred])]
        above = add(inner, highest, [referrer])

        def delete() -> None:
            inner.path_infos.delete_many([path_info.digest for path_info in gone])

        path_infos = WatchedPathInfos(inner.path_infos, delete)
        report = mirror(Services(inner.blobs, inner.directories, path_infos, inner.nar_nodes), target)
        assert (report.copied, report.vanished, report.dangling, report.failures) == (0, 1, 0, {})
        assert report.left_out == [above.store_path.absolute]
        assert not list(target.path_infos)


def test_nodes_that_lie_about_a_size(tmp_path: Path) -> None:
    with store("local", tmp_path / "a") as source, store("local", tmp_path / "b") as target:
        honest = add(source, "honest", events=[File(b"", False, b"contents")])
        assert isinstance(honest.node, FileNode)
        sizes = {"empty": 0, "short": 3, "long": 600_000}
        for name, size in sizes.items():
            node = FileNode(honest.node.digest, size, False)
            source.path_infos.put(PathInfo(path_of(name), node))
            report = mirror(source, target, MirrorOptions(paths=[path_of(name)]))
            assert [type(error) for error in report.failures.values()] == [Corrupt]
            assert not list(target.path_infos)
        # In one group with those that lie.
        report = mirror(source, target, MirrorOptions(paths=[*map(path_of, sizes), path_of("honest")]))
        assert honest.store_path.absolute not in report.failures
        assert target.path_infos.get(honest.digest) == honest


@pytest.mark.root
def test_a_full_disk(tmp_path: Path) -> None:
    with store("local", tmp_path / "a") as source, small_disk(tmp_path / "disk", 6_000_000) as disk:
        expected = fill(source, 16)
        target = open_services(f"local://{disk}/store")
        with pytest.raises(DiskFull, match="disk full"):
            mirror(source, target)
        registered = check_consistent(target)
        assert registered < {path_info.digest for path_info in expected}
        subprocess.run(["mount", "-o", "remount,size=100m", disk], check=True)
        assert not mirror(source, target).failures
        assert check_consistent(target) == {path_info.digest for path_info in expected}
        target.close()


MIRROR = """
import sys
from neve.store.mirror import mirror
from neve.store.services import open_services
source, target = map(open_services, sys.argv[1:])
print("begun", flush=True)
mirror(source, target, copied=lambda path: print(path, flush=True))
print("done", flush=True)
"""


def test_a_mirror_that_is_killed_goes_on(tmp_path: Path) -> None:
    numbers = random.Random(7)
    with store("local", tmp_path / "a") as source:
        expected = fill(source, 30)
    digests = {path_info.store_path.absolute: path_info.digest for path_info in expected}
    urls = [f"local://{tmp_path}/a/store", f"local://{tmp_path}/b/store"]
    (tmp_path / "b").mkdir()
    rounds = 0
    while True:
        rounds += 1
        assert rounds < 100
        command = [sys.executable, "-c", MIRROR, *urls]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "begun\n"
            time.sleep(numbers.uniform(0, 0.02 * rounds))
            process.send_signal(signal.SIGKILL)
            told = [line.strip() for line in process.stdout if line.endswith("\n")]
        with store("local", tmp_path / "b") as target:
            found = check_consistent(target)
        assert {digests[line] for line in told if line != "done"} <= found
        if "done" in told:
            break
    assert found == {path_info.digest for path_info in expected}


@pytest.mark.parametrize("which", ["source", "target"])
def test_a_daemon_that_is_killed(which: str, tmp_path: Path) -> None:
    urls = {"source": f"local://{tmp_path}/a/store", "target": f"local://{tmp_path}/b/store"}
    with store("local", tmp_path / "a") as local:
        expected = fill(local, 30)
    (tmp_path / "b").mkdir()
    for delay in (0.0, 0.1):
        with (
            tempfile.TemporaryDirectory(prefix="neve-") as sockets,
            served(urls[which], Path(sockets) / "s") as daemon,
        ):
            over_daemon = open_services(f"{daemon.url}?timeout=5")
            other = open_services(urls["target" if which == "source" else "source"])
            source, target = (over_daemon, other) if which == "source" else (other, over_daemon)
            killer = threading.Timer(delay, daemon.kill)
            killer.start()
            # It may also have been quick enough.
            with contextlib.suppress(Unavailable):
                mirror(source, target)
            killer.join()
            over_daemon.close()
            other.close()
        with store("local", tmp_path / "b") as local:
            assert check_consistent(local) <= {path_info.digest for path_info in expected}
    with store("local", tmp_path / "a") as source, store("local", tmp_path / "b") as target:
        assert not mirror(source, target).failures
        assert check_consistent(target) == {path_info.digest for path_info in expected}


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    with store("local", tmp_path / "a") as source:
        target = open_services(f"grpc+unix://{tmp_path}/nowhere?timeout=0.2")
        with pytest.raises(Unavailable, match="nowhere"):
            mirror(source, target)
        target.close()


def test_a_path_info_that_is_too_long_to_be_stored(tmp_path: Path) -> None:
    """A source of somebody else's may have one; what refers to it is left out, also in the same group."""
    long = path_of("long")
    references = [path_of(f"{number}-{'o' * 200}") for number in range(4_000)]
    with foreign_server() as url, store("local", tmp_path / "b") as target:
        source = open_services(url)
        [digest] = source.blobs.put_many([b"contents"])
        node = FileNode(digest, 8, False)
        for path, refers_to in ((long, references), (path_of("above"), [long]), (path_of("fine"), [])):
            nar = NarDetails(size=8, sha256=bytes(32), reference_names=tuple(refers_to))
            source.path_infos.put(PathInfo(path, node, tuple(one.digest for one in refers_to), nar))
        report = mirror(source, target)
        assert {what: type(error) for what, error in report.failures.items()} == {
            long.absolute: LimitExceeded
        }
        assert report.left_out == [path_of("above").absolute]
        assert [path_info.store_path.name for path_info in target.path_infos] == ["fine"]
        source.close()


def test_a_foreign_server(tmp_path: Path) -> None:
    """Without batches and administration: it lists in any order, and only all at once."""
    with foreign_server() as url, foreign_server() as other, store("local", tmp_path / "b") as target:
        source, copy = open_services(url), open_services(other)
        expected = fill(target, 10)
        assert mirror(target, source).copied == 10
        assert mirror(source, copy).copied == 10
        again = mirror(source, copy)
        assert (again.present, again.copied, again.blobs) == (10, 0, 0)
        check_whole(copy, expected)
        with pytest.raises(Unsupported, match="cannot list blobs"):
            mirror(source, target, MirrorOptions(everything=True))
        source.close()
        copy.close()
