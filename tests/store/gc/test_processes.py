"""Collections beside processes that go on: imports, a daemon and its clients; and ones that are killed."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import neve
from neve.castore.node import DirectoryNode, FileNode
from neve.errors import NeveError
from neve.nix.store_path import StorePath
from neve.packstore import moving
from neve.packstore.compaction import MIN_DEAD_SHARE
from neve.packstore.survey import survey
from neve.store.check import rebuild_index
from neve.store.gc import sweep
from neve.store.importer import ImportOptions
from neve.store.path_info import NarDetails, PathInfo
from tests.packstore.steps import Steps, die_at, in_a_child
from tests.store.gc.helpers import check, collect, counts, imported, make_tree, opened, paths


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "neve.cli", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def printed(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


# Killed.


def collect_all_but(folder: Path, kept: StorePath, act: Callable[[int], None]) -> None:
    with pytest.MonkeyPatch.context() as patch, opened(folder) as store:
        patch.setattr(moving, "_BATCH_RECORDS", 40)
        patch.setattr(sweep, "_BATCH", 20)
        Steps(patch, act, index_too=True)
        collect(store, keep=[kept])


@pytest.mark.slow
def test_killed_at_every_step(folder: Path, tmp_path: Path) -> None:
    """What is kept is whole, and so is whatever else still shows. The next collection ends it."""
    infos = imported(folder, tmp_path / "trees", [0, 1, 2])
    copy = tmp_path / "copy"
    step, status = 0, -9
    while status:
        step += 1
        shutil.copytree(folder, copy)
        status = in_a_child(lambda: collect_all_but(copy, infos[1].store_path, die_at(step)))  # noqa: B023
        assert status in (0, -9)
        if step % 6 == 0:
            rebuild_index(f"local://{copy}")
        with opened(copy) as store:
            assert infos[1].store_path in paths(store), step
            check(store)
            closed = every_directory_is_whole(store)
            assert closed, step
            assert collect(store, keep=[infos[1].store_path]).problems == []
            check(store)
        with opened(copy) as store:
            collect(store, keep=[infos[1].store_path])
            assert paths(store) == {infos[1].store_path}
            assert counts(store)[1] == len(
                {d.digest for d in store.directories.get_recursive(root(infos[1]))}
            )
            packs = store.services.packs
            assert packs is not None
            lengths = packs.index.pack_lengths()
            dead = sum(survey(packs.index).dead(lengths).values())
            assert dead < MIN_DEAD_SHARE * sum(lengths.values()), step
        shutil.rmtree(copy)
    assert step > 25


def root(info: PathInfo) -> bytes:
    assert isinstance(info.node, DirectoryNode)
    return info.node.digest


def every_directory_is_whole(store: neve.Store) -> bool:
    """Whether what any Directory that shows refers to is there, registered or not."""
    for digest in list(store.directories.list(limit=100_000)):
        directory = store.directories.get(digest)
        assert directory is not None
        for _, node in directory:
            if isinstance(node, DirectoryNode):
                if store.directories.get(node.digest) is None:
                    return False
            elif isinstance(node, FileNode) and not store.blobs.has(node.digest):
                return False
    return True


@pytest.mark.slow
def test_collections_and_imports_that_are_killed(folder: Path, tmp_path: Path) -> None:
    """At random, several at a time, in processes of their own. What was printed and is kept is there."""
    noise = random.Random(6)
    trees = [make_tree(tmp_path / f"tree-{n}", n) for n in range(5)]
    with opened(folder) as store:
        pinned = store.import_path(trees[0]).store_path
    printed(start("pin", "add", "--store", f"local://{folder}", "keep", str(pinned)))
    url = f"local://{folder}"
    for turn in range(10):
        running = [start("import", "--store", url, *noise.sample(trees, 3)) for _ in range(2)]
        running.append(start("gc", "--store", url, "--only-pinned", "--grace", "0s"))
        time.sleep(noise.uniform(0.05, 0.9))
        for process in running:
            if turn % 3:
                process.send_signal(signal.SIGKILL)
            process.communicate(timeout=120)
        with opened(folder) as store:
            assert pinned in paths(store)
            assert every_directory_is_whole(store)
            check(store)
    printed(start("gc", "--store", url, "--only-pinned", "--grace", "0s"))
    with opened(folder) as store:
        assert paths(store) == {pinned}
        check(store)
    rebuild_index(url)
    with opened(folder) as store:
        check(store)


# Others that go on.


def test_imports_and_collections_at_once(folder: Path, tmp_path: Path) -> None:
    """Imports never find gone what they were told to be there, though every path is dropped right away."""
    trees = [make_tree(tmp_path / f"tree-{n}", n) for n in range(3)]
    imported(folder, tmp_path / "more", [7])
    url = f"local://{folder}"
    running = [start("import", "--store", url, *trees, *trees) for _ in range(2)]
    rounds = 0
    while any(process.poll() is None for process in running):
        with opened(folder) as store:
            report = collect(store, only_pinned=True, grace=0)
            assert report.problems == []
            assert every_directory_is_whole(store)
            check(store)
        rounds += 1
    for process in running:
        printed(process)
    assert rounds


def test_imports_and_collections_of_several_places_at_once(tmp_path: Path) -> None:
    """The same where blobs, Directories and path infos lie in folders of their own."""
    trees = [make_tree(tmp_path / f"tree-{n}", n) for n in range(3)]
    (tmp_path / "kept").write_text("kept")
    addresses = {
        f"{kind}_service": f"local://{tmp_path}/stores/{kind}" for kind in ("blob", "directory", "path_info")
    }
    options = [part for name, url in addresses.items() for part in (f"--{name.replace('_', '-')}-addr", url)]
    kept = StorePath.parse(printed(start("import", *options, tmp_path / "kept")).strip())
    running = [start("import", *options, *trees, *trees) for _ in range(2)]
    rounds = 0
    while any(process.poll() is None for process in running):
        with neve.open(**addresses) as store:
            report = collect(store, keep=[kept], grace=0)
            assert report.problems == []
            check(store)
        rounds += 1
    for process in running:
        printed(process)
    assert rounds
    with neve.open(**addresses) as store:
        collect(store, keep=[kept], grace=0)
        assert paths(store) == {kept}
        assert len(store.blobs.list(limit=10_000)) == 1
        assert store.directories.list() == []


@contextlib.contextmanager
def daemon_of(folder: Path, tmp_path: Path) -> Iterator[str]:
    socket = tmp_path / "socket"
    process = start("daemon", "--store", f"local://{folder}", "-l", f"unix:{socket}")
    try:
        deadline = time.monotonic() + 120
        while not socket.exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield f"grpc+unix://{socket}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=120)


def test_beside_a_daemon(folder: Path, tmp_path: Path) -> None:
    """What its clients were told, and what they have stored and not registered, stays, also when it ends."""
    (old,) = imported(folder, tmp_path / "old", [0])
    tree = make_tree(tmp_path / "tree", 1)
    with daemon_of(folder, tmp_path) as url, neve.open(url) as client:
        assert client.directories.get(root(old)) is not None
        node = client.import_path(tree, ImportOptions(name="new")).node
        with opened(folder) as store:
            # A path that has gone, of which a client was told that its tree is there.
            assert collect(store, keep=[StorePath.parse_base_name(p.base_name) for p in paths(store)])
            store.path_infos.delete_many([old.digest])
    with opened(folder) as store:
        assert collect(store).fresh > 0
        assert store.directories.get(root(old)) is not None
    with daemon_of(folder, tmp_path) as url, neve.open(url) as client:
        again = StorePath.parse_base_name("4" * 32 + "-again")
        assert old.nar is not None
        details = NarDetails(size=old.nar.size, sha256=old.nar.sha256)
        client.path_infos.put(PathInfo(again, old.node, (), details))
        assert b"".join(client.nar(again))
        # The idle daemon lets a collection have its pack; it goes on with another one.
        with opened(folder) as store:
            report = collect(store, keep=[again], grace=0)
            assert report.problems == []
        client.import_path(make_tree(tmp_path / "third", 2), ImportOptions(name="third"))
        assert len(b"".join(client.nar(again))) == old.nar.size
    with opened(folder) as store:
        assert isinstance(node, DirectoryNode)
        check(store)


def test_ctrl_c(folder: Path, tmp_path: Path) -> None:
    infos = imported(folder, tmp_path / "trees", [0, 1])
    process = start("gc", "--store", f"local://{folder}", "--keep", str(infos[0].store_path))
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    with opened(folder) as store:
        assert infos[0].store_path in paths(store)
        assert every_directory_is_whole(store)
        check(store)


@pytest.mark.parametrize("number", [5, 28])
def test_failing_while_it_drops(folder: Path, tmp_path: Path, number: int) -> None:
    """A few of the steps, with all kinds of calls among them; the same process goes on."""
    infos = imported(folder, tmp_path / "trees", [0, 1, 2])
    copy = tmp_path / "copy"
    for step in range(1, 30, 2):
        shutil.copytree(folder, copy)

        def fail(now: int, step: int = step) -> None:
            if now == step:
                raise OSError(number, os.strerror(number))

        with opened(copy) as store:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(sweep, "_BATCH", 20)
                Steps(patch, fail)
                with contextlib.suppress(NeveError):
                    collect(store, keep=[infos[1].store_path])
            assert infos[1].store_path in paths(store)
            assert every_directory_is_whole(store)
            collect(store, keep=[infos[1].store_path])
            check(store)
        shutil.rmtree(copy)
