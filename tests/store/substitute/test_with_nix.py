"""Caches that the installed Nix has written, in all its compressions: from a folder and from a server."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from neve.nix.signing import SecretKey
from neve.nix.store_path import StorePath
from neve.store.export import export_tree
from neve.store.pathinfos.nix_cache import Untrusted
from neve.store.services import Services, open_services
from tests.store.substitute.nix_caches import KEY, NixCache, nix
from tests.store.substitute.server import plain, running_server
from tests.store.test_with_nix import make_tree

pytestmark = pytest.mark.nix

COMPRESSIONS = ["xz", "zstd", "gzip", "bzip2", "none"]
OTHER = SecretKey("nix-other-1", bytes(32))
KEYS = f"{OTHER.public_key().render()} {KEY.public_key().render()}"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    make_tree(tmp_path / "tree-1.0")
    return tmp_path / "tree-1.0"


@pytest.fixture(params=COMPRESSIONS)
def cache(request: pytest.FixtureRequest, tmp_path: Path, tree: Path) -> NixCache:
    cache = NixCache(tmp_path / "nix", request.param, tree, tree / "bin" / "tool")
    assert {cache.narinfo(path).compression for path in cache.sources} == {request.param}
    return cache


def check(cache: NixCache, services: Services, folder: Path) -> None:
    """Takes everything out of the cache, and compares it with what went in."""
    for number, (path, source) in enumerate(cache.sources.items()):
        narinfo = cache.narinfo(path)
        found = services.path_infos.get(StorePath.parse(path).digest)
        assert found is not None
        assert found.nar is not None
        assert found.store_path.absolute == path
        assert (found.nar.size, found.nar.sha256) == (narinfo.nar_size, narinfo.nar_sha256)
        assert (found.nar.ca, found.nar.signatures) == (narinfo.ca, narinfo.signatures)
        nar = b"".join(services.renderer.stream(found.node))
        assert nar == subprocess.check_output(["nix-store", "--dump", source])
        assert services.nar_nodes.nar(found.node) == (narinfo.nar_size, narinfo.nar_sha256)
        export_tree(services, found.node, os.fsencode(folder / str(number)))
        assert subprocess.check_output(["nix-store", "--dump", folder / str(number)]) == nar


def test_from_a_folder(cache: NixCache, tmp_path: Path) -> None:
    services = open_services(
        f"local://{tmp_path / 'store'}", path_info_service=f"{cache.url}?trusted-public-keys={KEYS}"
    )
    check(cache, services, tmp_path)
    services.close()


def test_from_a_server(cache: NixCache, tmp_path: Path) -> None:
    with running_server() as server:
        for file in cache.folder.rglob("*"):
            if file.is_file():
                server.routes[f"/{file.relative_to(cache.folder)}"] = [plain(file.read_bytes())]
        source = f"nix+{server.url}?trusted-public-keys={KEYS}"
        services = open_services("memory://", path_info_service=source)
        check(cache, services, tmp_path)
        services.close()


def test_a_key_that_signed_nothing(tmp_path: Path, tree: Path) -> None:
    cache = NixCache(tmp_path / "nix", "none", tree)
    source = f"{cache.url}?trusted-public-keys={OTHER.public_key()}"
    services = open_services("memory://", path_info_service=source)
    for path in cache.sources:
        with pytest.raises(Untrusted, match=r"\(nix-other-1\); it is signed by nix-test-1"):
            services.path_infos.get(StorePath.parse(path).digest)
    services.close()


def test_a_signature_that_was_added_later(tmp_path: Path, tree: Path) -> None:
    """By ``nix store sign``."""
    key = tmp_path / "other-key"
    key.write_text(OTHER.render())
    root = tmp_path / "root"
    path = nix("store", "add-path", tree, store=root)
    nix("store", "sign", "--key-file", key, path, store=root)
    nix("copy", "--to", f"file://{tmp_path / 'cache'}", path, store=root)
    source = f"nix+file://{tmp_path / 'cache'}?trusted-public-keys={OTHER.public_key()}"
    services = open_services("memory://", path_info_service=source)
    found = services.path_infos.get(StorePath.parse(path).digest)
    assert found is not None
    assert found.nar is not None
    [signature] = found.nar.signatures
    assert OTHER.public_key().verify(found.fingerprint(), signature)
    services.close()
