"""A kernel source tree goes in and comes out again, through the command line, beside real Nix."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import KERNEL_SOURCE

pytestmark = [pytest.mark.kernel, pytest.mark.nix, pytest.mark.slow, pytest.mark.timeout(1500)]


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "source"
    folder.mkdir()
    subprocess.run(["tar", "-xf", KERNEL_SOURCE, "-C", folder], check=True)
    yield folder / "linux-source-6.1"
    # Gigabytes, some of them read-only: not to be kept like the folders of other tests.
    subprocess.run(["chmod", "-R", "u+w", tmp_path], check=True)
    subprocess.run(["rm", "-rf", tmp_path], check=True)


def output_of(*command: str | Path) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def test_a_kernel_tree(tree: Path, tmp_path: Path) -> None:
    neve = f"{sys.executable} -m neve.cli"
    store = f"--store local://{tmp_path}/store"

    def run(command: str) -> str:
        return output_of("bash", "-c", f"set -euo pipefail; cd {tmp_path}; {command}")

    store_path = run(f"{neve} import {store} {tree}")
    nix = f"nix --extra-experimental-features nix-command --store 'local?root={tmp_path}/nix'"
    assert store_path == run(f"{nix} store add-path --dry-run {tree}")
    hashed = output_of("nix-hash", "--type", "sha256", "--base32", tree)
    _, size, nar_hash = run(f"{neve} path-info {store} {store_path}").split("\t")
    assert nar_hash == f"sha256:{hashed}"

    assert run(f"nix-store --dump {tree} | sha256sum") == run(
        f"{neve} nar export {store} {store_path} | sha256sum"
    )
    run(f"{neve} nar export {store} {store_path} | nix-store --restore restored")
    run(f"diff -r --no-dereference {tree} restored")
    run(f"{neve} export {store} {store_path} exported")
    run(f"diff -r --no-dereference {tree} exported")
    assert int(size) == int(run(f"{neve} nar export {store} {store_path} | wc -c"))

    # All of it is there already: the same tree as a NAR, and as an archive.
    before = run("du -s --block-size=1M store").split()[0]
    assert store_path == run(f"nix-store --dump {tree} | {neve} nar import {store} --name linux-source-6.1")
    assert run("du -s --block-size=1M store").split()[0] == before
    run(f"{neve} verify {store} --nars")
    run(f"{neve} verify {store} --rebuild-index")


def test_a_kernel_tree_through_a_daemon(tree: Path, tmp_path: Path) -> None:
    neve = f"{sys.executable} -m neve.cli"
    served, embedded = f"grpc+unix://{tmp_path}/socket", f"local://{tmp_path}/embedded"
    command = [*neve.split(), "daemon", "-l", f"{tmp_path}/socket", "--workers", "2"]
    with subprocess.Popen([*command, "--store", f"local://{tmp_path}/served"]) as daemon:
        try:
            while not (tmp_path / "socket").exists():
                assert daemon.poll() is None
                time.sleep(0.05)
            path = output_of(*neve.split(), "import", tree, "--store", served)
            assert path == output_of(*neve.split(), "import", tree, "--store", embedded)
            dump = f"set -o pipefail; {neve} nar export {path} --store"
            assert output_of("bash", "-c", f"{dump} {served} | sha256sum") == output_of(
                "bash", "-c", f"{dump} {embedded} | sha256sum"
            )
            output_of(*neve.split(), "export", path, tmp_path / "exported", "--store", served)
            output_of("diff", "-r", "--no-dereference", tree, tmp_path / "exported")
        finally:
            daemon.terminate()
    assert daemon.returncode == 0
    # What was packed by the client lies in the store as if it had been packed there.
    sizes = [
        int(output_of("du", "-s", "--block-size=1M", tmp_path / s).split()[0]) for s in ("served", "embedded")
    ]
    assert sizes[0] < sizes[1] * 1.05
    output_of(*neve.split(), "verify", "--store", f"local://{tmp_path}/served")
