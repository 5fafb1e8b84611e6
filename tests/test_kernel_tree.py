"""A kernel source tree goes in and comes out again, through the command line, beside real Nix."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import KERNEL_SOURCE

pytestmark = [pytest.mark.kernel, pytest.mark.nix, pytest.mark.slow]


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
