"""``mirror``: what it prints, and how it ends."""

from __future__ import annotations

import json
import re
import signal
import tempfile
import time
from pathlib import Path

import pytest

import neve as library
from neve.testing.servers import running_daemon
from tests.server.serve import served

from .conftest import Neve, Spawn, same_trees


@pytest.fixture
def path(neve: Neve, tree: Path) -> str:
    return neve("import", tree).line


@pytest.fixture
def urls(tmp_path: Path) -> tuple[str, str]:
    return f"local://{tmp_path}/store", f"local://{tmp_path}/backup"


def stored(neve: Neve, url: str) -> list[str]:
    return [line.split("\t")[0] for line in neve("path-info", "--store", url).out.decode().splitlines()]


def test_a_mirror_and_one_of_the_same(
    neve: Neve, path: str, tree: Path, tmp_path: Path, urls: tuple[str, str]
) -> None:
    done = neve("mirror", *urls)
    assert (done.code, done.out) == (0, b"")
    expected = r"neve: copied 1 store paths, [1-9][0-9]* blobs of .* MiB\), 0 were there\n"
    assert re.fullmatch(expected, done.err)
    again = neve("mirror", *urls)
    assert again.err == "neve: copied 0 store paths, 0 blobs of 0 bytes, 1 were there\n"
    assert neve("export", "--store", urls[1], path, tmp_path / "out").code == 0
    assert same_trees(tree, tmp_path / "out")


def test_a_dry_run(neve: Neve, path: str, tmp_path: Path, urls: tuple[str, str]) -> None:
    done = neve("mirror", "--dry-run", *urls)
    assert done.line == path
    assert done.err == "neve: to be copied 1 store paths, 0 were there\n"
    assert not (tmp_path / "backup").exists()
    assert neve("mirror", *urls).code == 0
    assert neve("mirror", "--dry-run", *urls).out == b""


def test_a_report_in_json(neve: Neve, path: str, urls: tuple[str, str]) -> None:
    tried = json.loads(neve("mirror", "--dry-run", "--json", *urls).line)
    assert (tried["copied"], tried["blobs"], tried["present"]) == (1, 0, 0)
    report = json.loads(neve("mirror", "--json", *urls).line)
    assert report.pop("blobs") > 0
    assert report.pop("blobBytes") > 0
    assert report == {
        "copied": 1,
        "signatures": 0,
        "present": 0,
        "vanished": 0,
        "danglingReferences": 0,
        "directories": 0,
        "failures": {},
        "leftOut": [],
    }


def test_some_paths(neve: Neve, path: str, tmp_path: Path, urls: tuple[str, str]) -> None:
    (tmp_path / "other").write_text("another")
    other = neve("import", tmp_path / "other").line
    assert neve("mirror", *urls, "--path", other).code == 0
    assert stored(neve, urls[1]) == [other]
    missing = "/nix/store/" + "0" * 32 + "-missing"
    failed = neve("mirror", *urls, "--path", missing, "--path", path)
    assert failed.code == 1
    assert failed.err.splitlines()[-1].startswith(f"neve: /nix/store/{'0' * 32}-")
    assert "the source does not have it" in failed.err
    assert sorted(stored(neve, urls[1])) == sorted([other, path])


def test_a_damaged_source(neve: Neve, path: str, tmp_path: Path, urls: tuple[str, str]) -> None:
    (tmp_path / "other").write_text("another")
    other = neve("import", tmp_path / "other").line
    pack = max((tmp_path / "store" / "packs").iterdir(), key=lambda file: file.stat().st_size)
    data = bytearray(pack.read_bytes())
    data[len(data) // 2] ^= 1
    pack.write_bytes(data)
    done = neve("mirror", "--json", *urls)
    assert done.code == 1
    assert path in done.err.splitlines()[-1]
    report = json.loads(done.out)
    assert (list(report["failures"]), report["copied"]) == ([path], 1)
    assert stored(neve, urls[1]) == [other]
    assert neve("verify", "--nars", "--store", urls[1]).code == 0


def test_several_failures(neve: Neve, tmp_path: Path, urls: tuple[str, str]) -> None:
    for name in ("one", "two"):
        for url, contents in zip(urls, (b"a", b"b"), strict=True):
            with library.open(url) as store:
                (tmp_path / name).write_bytes(contents)
                path_info = store.import_path(tmp_path / name)
                place = library.StorePath(name.encode().ljust(20), name)
                store.path_infos.put(type(path_info)(place, path_info.node))
    done = neve("mirror", *urls)
    assert done.code == 1
    lines = done.err.splitlines()
    assert len([line for line in lines if "is already in the store, with other contents" in line]) == 2
    assert lines[-1] == "neve: 2 objects could not be mirrored"


def test_over_a_daemon(neve: Neve, path: str, tmp_path: Path, urls: tuple[str, str]) -> None:
    with running_daemon(f"local://{tmp_path}/served", folder=tmp_path) as daemon:
        assert neve("mirror", urls[0], daemon.url).code == 0
        assert neve("mirror", daemon.url, urls[1]).code == 0
    assert stored(neve, urls[1]) == [path]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("local:///a",), "missing argument"),
        (("nonsense", "local:///b"), "has no scheme"),
        (("local:///a", "local:///b", "--path", "nonsense"), "invalid value for '--path'"),
        (
            ("local:///a", "local:///b", "--everything", "--path", "/nix/store/" + "0" * 32 + "-x"),
            "leave out",
        ),
    ],
)
def test_wrong_usage(neve: Neve, arguments: tuple[str, ...], said: str) -> None:
    done = neve("mirror", *arguments)
    assert done.code == 2
    assert said in done.err


def test_what_cannot_be_mirrored(neve: Neve, path: str, tmp_path: Path, urls: tuple[str, str]) -> None:
    (tmp_path / "cache").mkdir()
    failure = neve("mirror", f"nix+file://{tmp_path}/cache", urls[1]).failure
    assert "which cannot be listed" in failure
    assert "--path" in failure
    assert not (tmp_path / "backup").exists()
    assert "scheme" in neve("mirror", "gopher://x", urls[1]).failure
    missing = neve("mirror", f"local://{tmp_path}", urls[1]).failure
    assert missing.endswith("is not a neve store (it has no store.json)")
    assert not (tmp_path / "backup").exists()
    assert "the same store" in neve("mirror", urls[0], urls[0]).failure


def test_interrupted_and_started_again(
    neve: Neve, spawn: Spawn, path: str, tmp_path: Path, urls: tuple[str, str]
) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="neve-") as sockets,
        served(urls[0], Path(sockets) / "socket") as daemon,
    ):
        with daemon.paused():
            process = spawn("mirror", daemon.url, urls[1])
            while not (tmp_path / "backup" / "store.json").exists():
                assert process.poll() is None
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
            assert process.returncode == 130
            assert b"Traceback" not in errors
        assert neve("mirror", daemon.url, urls[1]).code == 0
    assert stored(neve, urls[1]) == [path]
