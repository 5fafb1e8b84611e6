"""Every command, against a daemon instead of a folder: the same results, and a store that is as good."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from neve.testing.servers import RunningDaemon, running_daemon
from tests.castore.damage import damage_blob
from tests.cli.conftest import Neve, Result, Spawn, same_trees
from tests.server.foreign import foreign_server
from tests.store.nix_stores import NixStore, store_path


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[RunningDaemon]:
    with running_daemon(f"local://{tmp_path}/served", folder=tmp_path) as daemon:
        yield daemon


@pytest.fixture(params=["a daemon", "its administration", "a foreign server"])
def remote(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server, which all commands use."""
    if request.param == "a foreign server":
        with foreign_server() as url:
            monkeypatch.setenv("NEVE_STORE", url)
            yield url
        return
    with running_daemon(f"local://{tmp_path}/served", folder=tmp_path) as daemon:
        url = daemon.url if request.param == "a daemon" else str(daemon.admin_url)
        monkeypatch.setenv("NEVE_STORE", url)
        yield url


def locally(neve: Neve, tmp_path: Path, *arguments: str | bytes | Path) -> Result:
    return neve(*arguments, "--store", f"local://{tmp_path}/store")


@pytest.mark.usefixtures("remote")
def test_a_tree_goes_in_and_out(neve: Neve, tree: Path, tmp_path: Path) -> None:
    path = neve("import", tree).line
    assert path == locally(neve, tmp_path, "import", tree).line
    assert neve("import", tree).line == path
    for command in (
        ["ls", "-l", path],
        ["ls", "-R", path],
        ["cat", f"{path}/large"],
        ["cat", f"{path}/text"],
        ["cat", path.encode() + b"/na\xffme"],
        ["nar", "export", path],
        ["path-info", path],
        ["path-info", "--json", path],
        ["path-info"],
    ):
        result = neve(*command)
        assert result.code == 0, result.err
        assert result.out == locally(neve, tmp_path, *command).out
    assert neve("export", path, tmp_path / "out").code == 0
    assert same_trees(tree, tmp_path / "out")
    assert neve("verify").code == 0


@pytest.mark.usefixtures("remote")
def test_the_other_ways_in(neve: Neve, tree: Path, tmp_path: Path) -> None:
    nar = locally(neve, tmp_path, "nar", "export", locally(neve, tmp_path, "import", tree).line).out
    assert neve("nar", "import", "--name", "tree-1.0", stdin=nar).line == neve("import", tree).line
    archive = tmp_path / "tree-1.0.tar"
    subprocess.run(["tar", "-C", tree, "-cf", archive, "."], check=True)
    assert neve("archive", "import", archive).line == neve("import", tree).line
    assert neve("import", "--flat", tree / "large").line.endswith("-large")
    assert neve("import", "--text", tree / "text").line.endswith("-text")
    assert neve("import", "--stat-cache", tree).line == neve("import", "--stat-cache", tree).line


@pytest.mark.usefixtures("remote")
def test_a_closure_is_copied(neve: Neve, tmp_path: Path) -> None:
    nix_store = NixStore(tmp_path / "nix-root")
    names = nix_store.add_many(20)
    command = ("copy", "--store-dir-root", nix_store.root, "-")
    half = json.dumps([nix_store.entries[name] for name in names[:10]]).encode()
    assert neve(*command, stdin=half).code == 0
    description = json.dumps(nix_store.closure).encode()
    result = neve(*command, stdin=description)
    assert result.err == "neve: copied 10 store paths, 10 were in the store\n"
    assert sorted(result.out.decode().split()) == sorted(store_path(name).absolute for name in names)
    assert neve("verify", "--nars").code == 0
    for name in names:
        info = json.loads(neve("path-info", "--json", store_path(name).absolute).line)
        assert info["narHash"] == nix_store.entries[name]["narHash"]
        assert sorted(info["references"]) == sorted(nix_store.entries[name]["references"])


@pytest.mark.usefixtures("remote")
def test_references_are_found_and_paths_signed(neve: Neve, tree: Path, tmp_path: Path) -> None:
    path = neve("import", tree).line
    (tmp_path / "user").write_text(path)
    user = neve("import", "--scan-references", tmp_path / "user").line
    key = tmp_path / "key"
    assert neve("key", "generate", "cache-1", "--output", key).code == 0
    result = neve("sign", "--key", key, "--recursive", user)
    assert sorted(result.out.decode().split()) == sorted([path, user]), result.err
    for signed in (path, user):
        info = json.loads(neve("path-info", "--json", signed).line)
        assert info["signatures"][0].startswith("cache-1:")
        assert info["references"] == ([path] if signed == user else [])
    assert neve("sign", "--key", key, "--all").out.count(b"\n") == 2


def test_a_copy_whose_server_goes_away_says_so(neve: Neve, tmp_path: Path) -> None:
    nix_store = NixStore(tmp_path / "nix-root")
    nix_store.add_many(5)
    url = f"grpc+unix://{tmp_path}/nobody?timeout=0.3"
    description = json.dumps(nix_store.closure).encode()
    failure = neve("copy", "--store-dir-root", nix_store.root, "-", "--store", url, stdin=description).failure
    assert str(tmp_path / "nobody") in failure


def test_stats_need_the_administration(neve: Neve, daemon: RunningDaemon, tree: Path) -> None:
    assert neve("import", tree, "--store", daemon.url).code == 0
    there = neve("stats", "--store", str(daemon.admin_url))
    assert there.code == 0
    here = neve("stats", "--store", f"local://{daemon.services.packs.path}")  # type: ignore[union-attr]
    assert there.out == here.out
    assert "--admin-listen" in neve("stats", "--store", daemon.url).failure
    with foreign_server() as url:
        failure = neve("stats", "--store", url).failure
        assert url in failure


def test_verify_finds_damage_through_a_daemon(neve: Neve, daemon: RunningDaemon, tree: Path) -> None:
    path = neve("import", tree, "--store", daemon.url).line
    large = daemon.services.blobs.list()[0]
    damage_blob(daemon.services.blobs, large)
    result = neve("verify", "--store", str(daemon.admin_url))
    assert result.code == 1
    assert path in result.out.decode()


def test_nobody_listens(neve: Neve, tree: Path, tmp_path: Path) -> None:
    url = f"grpc+unix://{tmp_path}/nobody"
    for command in (["ls", "/nix/store/s66mzxpvicwk07gjbjfw9izjfa797vsw-hello"], ["import", str(tree)]):
        failure = neve(*command, "--store", url).failure
        assert url in failure
    failure = neve("path-info", "--store", f"{url}?wait-connect=1&timeout=0.3").failure
    assert "cannot be reached within 0.3 s" in failure


def test_an_interrupted_import_leaves_the_daemon_well(
    neve: Neve, spawn: Spawn, daemon: RunningDaemon, tree: Path
) -> None:
    import signal

    (tree / "huge").write_bytes(b"\0" * (1 << 30))
    process = spawn("import", tree, "--store", daemon.url)
    assert process.stderr is not None
    while not any(daemon.services.packs.temporary_folder().parent.glob("packs/*")):  # type: ignore[union-attr]
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert errors == b"neve: interrupted\n"
    assert neve("path-info", "--store", daemon.url).out == b""
    (tree / "huge").unlink()
    assert neve("import", tree, "--store", daemon.url).code == 0
