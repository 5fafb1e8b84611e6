"""``--store-composition``: a file in place of the address of a store."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from neve.cli import mount_helper
from neve.cli.options import StoreOptions
from neve.library import open_store
from neve.store.composition import parse
from tests.cli.conftest import Neve, Spawn

KINDS = ("blobservices", "directoryservices", "pathinfoservices")


def local(folder: Path) -> str:
    return "".join(f'[{kind}.root]\ntype = "local"\npath = "{folder}"\n' for kind in KINDS)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A composition of one embedded store."""
    file = tmp_path / "store.toml"
    file.write_text(local(tmp_path / "composed"))
    return file


@pytest.fixture(autouse=True)
def _no_other_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NEVE_STORE")


def test_a_store_of_one_folder(neve: Neve, file: Path, tree: Path, tmp_path: Path) -> None:
    failure = neve("ls", "--store-composition", file, "/nix/store/" + "0" * 32 + "-x").failure
    assert "import something first" in failure
    assert not (tmp_path / "composed").exists()
    path = neve("import", "--store-composition", file, tree).line
    assert neve("path-info", "--store", f"local://{tmp_path}/composed").line.startswith(path)
    for command in (["path-info"], ["verify"], ["stats"], ["gc", "--dry-run"], ["pin", "list"]):
        assert neve(*command, "--store-composition", file).code == 0
    assert neve("verify", "--rebuild-index", "--store-composition", file).code == 0
    assert neve("cat", "--store-composition", file, f"{path}/text").out == b"Hello\n"


def test_a_store_of_several(neve: Neve, tree: Path, tmp_path: Path) -> None:
    file = tmp_path / "store.toml"
    folders = [tmp_path / "blobs", tmp_path / "directories", tmp_path / "path infos"]
    file.write_text(
        "".join(
            f'[{kind}.root]\ntype = "local"\npath = "{folder}"\n'
            for kind, folder in zip(KINDS, folders, strict=True)
        )
    )
    path = neve("import", "--store-composition", file, tree).line
    assert all((folder / "store.json").exists() for folder in folders)
    assert neve("cat", "--store-composition", file, f"{path}/text").out == b"Hello\n"
    assert neve("gc", "--store-composition", file).out.startswith(b"paths kept:          1\n")
    for command in (["pin", "list"], ["verify", "--rebuild-index"]):
        result = neve(*command, "--store-composition", file)
        assert result.code == 2
        assert "the composition is of several: name one with --store" in result.err
    # The address of one service wins.
    failure = neve(
        "cat", "--store-composition", file, "--blob-service-addr", "memory://", f"{path}/text"
    ).failure
    assert "is not in the store" in failure


def test_as_an_address(neve: Neve, file: Path, tree: Path, tmp_path: Path) -> None:
    url = f"composition://{file}"
    path = neve("import", "--store", f"local://{tmp_path}/other", tree).line
    assert neve("mirror", f"local://{tmp_path}/other", url).code == 0
    assert neve("path-info", "--store", url).line.startswith(path)
    assert neve("path-info", "--store-composition", file).line.startswith(path)
    assert neve("mirror", url, f"local://{tmp_path}/third").code == 0
    assert neve("verify", "--store", f"local://{tmp_path}/third", "--repair-from", url).code == 0
    assert neve("gc", "--store", url).code == 0
    with open_store(url) as store:
        assert [found.store_path.absolute for found in store.path_infos] == [path]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("composition://store.toml", "name the whole path of the file: composition:///etc/neve/store.toml"),
        ("composition:///", "name the whole path of the file"),
        ("composition:///none?x=y", r"unknown parameter 'x' \(known: none\)"),
        ("composition:///none/x", "cannot read the composition /none/x: No such file or directory"),
    ],
)
def test_addresses_of_no_file(neve: Neve, url: str, message: str) -> None:
    assert re.search(message, neve("path-info", "--store", url).failure)


def test_it_is_no_address_of_one_service(neve: Neve, file: Path) -> None:
    failure = neve(
        "path-info", "--store", "memory://", "--path-info-service-addr", f"composition://{file}"
    ).failure
    assert "no path info service has the scheme 'composition'" in failure


def test_near_and_far(neve: Neve, tree: Path, tmp_path: Path) -> None:
    file = tmp_path / "store.toml"
    file.write_text(
        "".join(
            f'[{kind}.root]\ntype = "cache"\nnear = "near"\nfar = "local://{tmp_path}/far"\n'
            f'[{kind}.near]\ntype = "local"\npath = "{tmp_path}/near"\n'
            for kind in KINDS
        )
    )
    path = neve("import", "--store", f"local://{tmp_path}/far", tree).line
    assert neve("cat", "--store-composition", file, f"{path}/text").out == b"Hello\n"
    assert neve("path-info", "--store", f"local://{tmp_path}/near").line.startswith(path)


def test_in_the_environment_and_the_configuration(
    neve: Neve, file: Path, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command line counts more than the environment, and that more than the configuration, whether one
    names an address and the other a file or not."""
    path = neve("import", "--store-composition", file, tree).line
    config = tmp_path / "neve.toml"
    config.write_text(f'[common]\nstore-composition = "{file}"\n')
    assert neve("--config", config, "path-info").line.startswith(path)
    assert neve("--config", config, "path-info", "--store", "memory://").out == b""
    shown = neve("--config", config, "config", "show").out.decode()
    assert f'common.store-composition = "{file}"  # {config}, line 2' in shown
    monkeypatch.setenv("NEVE_STORE", "memory://")
    assert neve("--config", config, "path-info").out == b""
    assert neve("path-info", "--store-composition", file).line.startswith(path)
    monkeypatch.setenv("NEVE_STORE_COMPOSITION", str(file))
    assert "name the store with --store or with --store-composition, not" in neve("path-info").err
    monkeypatch.delenv("NEVE_STORE")
    assert neve("path-info").line.startswith(path)
    assert neve("path-info", "--store", "memory://").out == b""
    monkeypatch.setenv("NEVE_STORE_COMPOSITION", "")
    assert neve("path-info", "--store", "memory://").out == b""


def test_both_are_one_too_many(neve: Neve, file: Path) -> None:
    result = neve("path-info", "--store", "memory://", "--store-composition", file)
    assert result.code == 2
    assert "not with both" in result.err


def test_what_is_wrong_with_the_file(neve: Neve, tmp_path: Path) -> None:
    result = neve("path-info", "--store-composition", tmp_path / "none")
    assert (result.code, result.failure) == (
        1,
        f"cannot read the composition {tmp_path}/none: No such file or directory",
    )
    file = tmp_path / "store.toml"
    file.write_text('[blobservices.root]\ntype = "cache"\nnear = "x"\nfar = "memory://"\n')
    result = neve("path-info", "--store-composition", file)
    assert result.code == 2
    assert f"{file}: [blobservices.root]: key 'near' names 'x'" in result.err
    file.write_text('[blobservices.root]\ntype = "memory"\n')
    result = neve("path-info", "--store-composition", file)
    assert result.failure == f"{file}: there is no table [directoryservices.root]"
    config = tmp_path / "neve.toml"
    config.write_text(f'[common]\nstore-composition = "{tmp_path}/none"\n')
    assert f"{tmp_path}/none" in neve("--config", config, "path-info").err


def test_a_file_of_one_process_is_not_for_workers(neve: Neve, tmp_path: Path) -> None:
    file = tmp_path / "store.toml"
    file.write_text("".join(f'[{kind}.root]\ntype = "memory"\n' for kind in KINDS))
    failure = neve("daemon", "--workers", "2", "--store-composition", file, "-l", tmp_path / "s").failure
    assert "memory:// exists in one process only and cannot be shared by several workers" in failure


def test_what_workers_are_told(file: Path) -> None:
    """As JSON; and it is the same when they have it."""
    composition = parse(file.read_text(), str(file))
    options = StoreOptions("", path_info_service="memory://", composition=composition)
    assert StoreOptions.of_worker(json.loads(json.dumps(options.for_worker()))) == options
    plain = StoreOptions("memory://")
    assert StoreOptions.of_worker(json.loads(json.dumps(plain.for_worker()))) == plain


def test_workers_serve_what_the_file_said(
    neve: Neve, spawn: Spawn, file: Path, tree: Path, tmp_path: Path
) -> None:
    path = neve("import", "--store-composition", file, tree).line
    socket = tmp_path / "s"
    arguments = ["--workers", "2", "--store-composition", file, "-l", f"unix:{socket}"]
    with spawn("daemon", *arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as daemon:
        try:
            assert daemon.stderr is not None
            while b"listening" not in (line := daemon.stderr.readline()):
                assert line, "the daemon has ended"
            file.unlink()
            found = neve("cat", "--store", f"grpc+unix://{socket}?wait-connect=1", f"{path}/text")
            assert found.out == b"Hello\n"
        finally:
            daemon.send_signal(signal.SIGTERM)
            daemon.communicate(timeout=60)


def test_a_line_of_fstab(file: Path) -> None:
    call = mount_helper.parse(["local:///s", "/mnt", "-o", f"store_composition={os.fspath(file)}"])
    assert ["--store-composition", str(file)] == mount_helper.command_line(call)[6:8]
