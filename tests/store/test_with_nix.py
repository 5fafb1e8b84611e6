"""Against the Nix that is installed: it restores what we render, computes the paths that we compute."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from neve.nix.hashes import CAMethod
from neve.store.export import export_tree
from neve.store.importer import ImportOptions, import_nar, import_path
from neve.testing.strategies import trees
from neve.tree import Event
from tests.nix.nar.cases import nix32

from .helpers import memory_services, stored

pytestmark = pytest.mark.nix


def run(*command: str, data: bytes = b"") -> bytes:
    # Without the setting, Nix as root complains about its missing build users.
    environment = {**os.environ, "NIX_CONFIG": "build-users-group =", "NIX_REMOTE": "dummy://"}
    done = subprocess.run(command, input=data, stdout=subprocess.PIPE, check=True, env=environment)
    return done.stdout


def nix_store(place: Path, *command: str) -> str:
    options = ("--extra-experimental-features", "nix-command", "--store", f"local?root={place}")
    return run("nix", *options, "store", *command).decode().strip()


@settings(max_examples=12, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
@given(trees(large_files=True))
def test_nix_restores_what_we_render(tmp_path_factory: pytest.TempPathFactory, events: list[Event]) -> None:
    folder = tmp_path_factory.mktemp("tree")
    services = memory_services()
    root = stored(services, events)
    nar = services.nar_calculation.calculate_nar(root)
    data = b"".join(services.renderer.stream(root))
    run("nix-store", "--restore", str(folder / "restored"), data=data)
    assert run("nix-store", "--dump", str(folder / "restored")) == data
    hashed = run("nix-hash", "--type", "sha256", "--base32", str(folder / "restored"))
    assert hashed.decode().strip() == nix32(nar.sha256)
    # What we write to disk ourselves is the same tree.
    export_tree(services, root, os.fsencode(folder / "exported"))
    assert run("nix-store", "--dump", str(folder / "exported")) == data
    # And what Nix wrote is taken in as what it was.
    path_info = import_path(services, folder / "restored", ImportOptions(name="x"))
    assert path_info.node == root
    assert import_nar(services, [data], name="x") == path_info


def make_tree(place: Path) -> None:
    (place / "bin").mkdir(parents=True)
    (place / "bin/tool").write_bytes(b"#!/bin/sh\n" * 100_000)
    (place / "bin/tool").chmod(0o755)
    (place / "readme").write_text("hello")
    (place / "empty").mkdir()
    (place / "link").symlink_to("bin/tool")
    (place / os.fsdecode(b"not \xff utf-8")).write_text("x")


def test_paths_of_imports(tmp_path: Path) -> None:
    source, root = tmp_path / "source-1.0", tmp_path / "root"
    make_tree(source)
    services = memory_services()
    for path in (source, source / "readme", source / "bin/tool", source / "link"):
        expected = nix_store(root, "add-path", str(path))
        assert import_path(services, path).store_path.absolute == expected
    named = nix_store(root, "add-path", "--name", "other", str(source))
    assert import_path(services, source, ImportOptions(name="other")).store_path.absolute == named


def test_paths_of_flat_imports(tmp_path: Path) -> None:
    source, root = tmp_path / "source", tmp_path / "root"
    make_tree(source)
    services = memory_services()
    flat = ImportOptions(method=CAMethod.FLAT)
    for path in (source / "readme", source / "bin/tool"):
        expected = nix_store(root, "add-file", str(path))
        assert import_path(services, path, flat).store_path.absolute == expected
