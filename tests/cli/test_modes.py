"""Who may read and write what commands make, whatever the umask."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Neve, Spawn
from tests.serving.listening_manager import ListeningManager

OTHERS_WRITE = 0o022
NOBODY_ELSE = 0o077


@pytest.fixture(params=[0o000, 0o077], ids=["umask-000", "umask-077"])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes_below(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder.parent)): stat.S_IMODE(path.lstat().st_mode)
        for path in [folder, *folder.rglob("*")]
        if not path.is_symlink()
    }


def test_a_store(neve: Neve, tree: Path, tmp_path: Path, umask: int) -> None:
    """With a generous umask others may read what they could import; nobody else may ever write."""
    neve("import", tree)
    neve("verify")
    (tmp_path / "store" / "index" / "data.mdb").unlink()
    assert neve("verify", "--rebuild-index").code == 0
    neve("import", tree / "text")
    found = modes_below(tmp_path / "store")
    assert len(found) > 6
    forbidden = NOBODY_ELSE if umask else OTHERS_WRITE
    assert {path: oct(mode) for path, mode in found.items() if mode & forbidden} == {}


def test_the_stat_cache_is_believed(neve: Neve, tree: Path, tmp_path: Path, umask: int) -> None:
    neve("import", "--stat-cache", tree)
    found = modes_below(tmp_path / "cache")
    assert any(path.endswith(".json") for path in found)
    assert {path: oct(mode) for path, mode in found.items() if mode & NOBODY_ELSE} == {}


def test_keys_and_tokens(neve: Neve, tmp_path: Path, umask: int) -> None:
    neve("key", "generate", "k", "--output", tmp_path / "key")
    neve("token", "ci", "--file", tmp_path / "tokens")
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "tokens").stat().st_mode) == 0o644 & ~umask


@pytest.mark.parametrize(
    ("server", "options", "mode"),
    [
        ("daemon", [], 0o600),
        ("daemon", ["--socket-group", "0"], 0o660),
        ("daemon", ["--socket-mode", "0666", "--workers", "2"], 0o666),
        ("serve", [], 0o600),
        ("serve", ["--socket-mode", "0640"], 0o640),
        ("virtiofs", [], 0o600),
    ],
)
def test_sockets(
    neve: Neve,
    tree: Path,
    spawn: Spawn,
    tmp_path: Path,
    umask: int,
    server: str,
    options: list[str],
    mode: int,
) -> None:
    neve("import", tree)
    where = tmp_path / "socket"
    listen = [str(where)] if server == "virtiofs" else ["-l", str(where)]
    with (
        ListeningManager(tmp_path) as manager,
        spawn(server, *listen, *options, env=manager.inherited(), stderr=subprocess.DEVNULL) as process,
    ):
        try:
            manager.until("READY=1")
            assert stat.S_IMODE(where.stat().st_mode) == mode
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(where))
            leftovers = [path.name for path in tmp_path.iterdir() if path.name.startswith(".neve")]
            assert leftovers == []
        finally:
            process.terminate()
    assert process.returncode == 0


def test_the_administration_is_for_its_owner(spawn: Spawn, tmp_path: Path, umask: int) -> None:
    where = tmp_path / "admin"
    with (
        ListeningManager(tmp_path) as manager,
        spawn(
            *("daemon", "-l", str(tmp_path / "use"), "--admin-listen", str(where)),
            *("--socket-mode", "0666", "--metrics-listen", str(tmp_path / "metrics")),
            env=manager.inherited(),
            stderr=subprocess.DEVNULL,
        ) as process,
    ):
        try:
            manager.until("READY=1")
            assert stat.S_IMODE(where.stat().st_mode) == 0o600
            assert stat.S_IMODE((tmp_path / "use").stat().st_mode) == 0o666
        finally:
            process.terminate()
    assert process.returncode == 0


def test_what_is_exported_is_for_everybody_to_read(
    neve: Neve, tree: Path, tmp_path: Path, umask: int
) -> None:
    """As in the Nix store, whose modes they are."""
    path = neve("import", tree).line
    assert neve("export", path, tmp_path / "out").code == 0
    assert set(modes_below(tmp_path / "out").values()) == {0o555, 0o444}


@pytest.mark.parametrize("from_file", [True, False], ids=["file", "environment"])
def test_nothing_secret_is_in_the_list_of_processes(
    neve: Neve, spawn: Spawn, tmp_path: Path, from_file: bool
) -> None:
    """Keys, tokens and passwords of addresses: not in the arguments nor the environment of workers."""
    key = tmp_path / "key"
    neve("key", "generate", "k", "--output", key)
    secret = key.read_text().strip().partition(":")[2]
    token = neve("token", "ci", "--file", tmp_path / "tokens").line
    config = tmp_path / "neve.toml"
    far = "nix%2Bhttp%3A%2F%2Fme%3Apass-word%40127.0.0.1%3A9%2F%3Ftrusted-public-keys%3D"
    public = neve("key", "public", key).line.replace(":", "%253A").replace("+", "%252B").replace("/", "%252F")
    url = f"cache://?near=local%3A%2F%2F{tmp_path}%2Fnear&far={far}{public.replace('=', '%253D')}"
    config.write_text(
        (f'[common]\npath-info-service-addr = "{url}"\n' if from_file else "[common]\n")
        + 'log-level = "debug"\n'
        f'[serve]\nsign-key = "{key}"\ntoken-file = "{tmp_path}/tokens"\nworkers = 2\n'
    )
    with ListeningManager(tmp_path) as manager:
        environment = manager.inherited() | {"NEVE_CONFIG": str(config)}
        if not from_file:
            environment["PATH_INFO_SERVICE_ADDR"] = url
        with spawn("serve", "-l", str(tmp_path / "socket"), env=environment) as process:
            try:
                manager.until("READY=1")
                children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
                assert len(children) == 2
                shown = b"".join(
                    Path(f"/proc/{pid}/{name}").read_bytes()
                    for pid in [str(process.pid), *children]
                    for name in ("cmdline", "environ")
                    # What it was given is not ours to hide; what it hands on is.
                    if from_file or (pid, name) != (str(process.pid), "environ")
                )
            finally:
                process.terminate()
            _, log = process.communicate()
        assert process.returncode == 0
        manager.rest()
    for text in (secret.encode(), token.encode(), b"pass-word"):
        assert text not in shown
        assert text not in log
        assert text not in "\n".join(manager.told).encode()
    assert b"serve-worker" in shown
