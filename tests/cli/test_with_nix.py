"""Comparisons with what Nix makes of the same trees."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.cli.conftest import Neve, same_trees

pytestmark = pytest.mark.nix


def nix(*command: str | Path, stdin: bytes = b"") -> str:
    # Without the setting, Nix as root complains about its missing build users.
    environment = {**os.environ, "NIX_CONFIG": "build-users-group ="}
    done = subprocess.run(command, check=True, capture_output=True, input=stdin, env=environment)
    return done.stdout.decode().strip()


def store_add(kind: str, root: Path, *arguments: str | Path) -> str:
    experimental = ("nix", "--extra-experimental-features", "nix-command")
    return nix(*experimental, "store", kind, "--store", f"local?root={root}", *arguments)


def test_import(neve: Neve, tree: Path, tmp_path: Path) -> None:
    for source in (tree, tree / "bin" / "run", tree / "bin" / "alias", tree / "empty"):
        assert neve("import", source).line == store_add("add-path", tmp_path / "nix", source)
    options = ("--name", "other-name")
    assert neve("import", *options, tree).line == store_add("add-path", tmp_path / "nix", *options, tree)


def test_flat_import(neve: Neve, tree: Path, tmp_path: Path) -> None:
    for name in ("text", "bin/run", "nothing", "large"):
        path = neve("import", "--flat", tree / name).line
        assert path == store_add("add-file", tmp_path / "nix", tree / name)
        if name == "bin/run":
            continue  # Here Nix keeps the executable bit, which the store path does not cover.
        nar = subprocess.check_output(["nix-store", "--dump", f"{tmp_path}/nix{path}"])
        assert neve("nar", "export", path).out == nar


def test_nar_export(neve: Neve, tree: Path, tmp_path: Path) -> None:
    path = neve("import", tree).line
    nar = neve("nar", "export", path).out
    assert nar == subprocess.check_output(["nix-store", "--dump", tree])
    nix("nix-store", "--restore", tmp_path / "restored", stdin=nar)
    assert same_trees(tmp_path / "restored", tree)
    assert neve("export", path, tmp_path / "exported").code == 0
    assert same_trees(tmp_path / "exported", tmp_path / "restored")


def test_nar_import(neve: Neve, tree: Path) -> None:
    nar = subprocess.check_output(["nix-store", "--dump", tree])
    assert neve("nar", "import", "--name", "tree-1.0", stdin=nar).line == neve("import", tree).line
