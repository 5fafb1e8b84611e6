"""Comparisons with the Nix that is installed here, beyond what it once printed into the vectors."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from neve.nix.hashes import HashAlgorithm, HashForm, NixHash
from neve.nix.narinfo import NarInfo
from neve.nix.signing import SecretKey
from neve.nix.store_path import StorePath, fixed_output_path, source_path

pytestmark = pytest.mark.nix


def run(*command: str, cwd: Path | None = None) -> str:
    # Without the setting, Nix as root complains about its missing build users.
    environment = {**os.environ, "NIX_CONFIG": "build-users-group =", "NIX_REMOTE": "dummy://"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment, cwd=cwd)
    return done.stdout.strip()


@pytest.mark.parametrize("algorithm", HashAlgorithm)
def test_hash_conversions(algorithm: HashAlgorithm) -> None:
    for seed in range(3):
        digest = hashlib.new(algorithm, bytes([seed])).digest()
        value = NixHash(algorithm, digest)
        for option, form in (("--to-base16", HashForm.BASE16), ("--to-base32", HashForm.NIX32)):
            for source in (HashForm.BASE16, HashForm.NIX32, HashForm.BASE64, HashForm.SRI):
                printed = run("nix-hash", option, "--type", algorithm, value.render(source, prefix=False))
                assert printed == value.render(form, prefix=False)
                assert NixHash.parse(printed, algorithm) == value


@pytest.mark.parametrize("algorithm", HashAlgorithm)
@pytest.mark.parametrize("recursive", [False, True])
def test_fixed_output_paths(algorithm: HashAlgorithm, recursive: bool) -> None:
    value = NixHash(algorithm, hashlib.new(algorithm, b"x").digest())
    for name in ("a", ".hidden", "src-1.0+git?=_.tar.gz", "x" * 211):
        options = ["--recursive"] if recursive else []
        printed = run(
            "nix-store",
            "--print-fixed-path",
            *options,
            algorithm,
            value.render(HashForm.BASE16, prefix=False),
            name,
        )
        path = fixed_output_path(name, value, recursive=recursive)
        assert path.absolute == printed
        assert StorePath.parse(printed, strict=True) == path


def test_nix_trusts_what_we_sign(tmp_path: Path) -> None:
    """A cache written by Nix, its narinfo signed and rendered by us: Nix copies from it."""
    source, cache, target = tmp_path / "hello", tmp_path / "cache", tmp_path / "target"
    source.write_text("Hello World!")
    nix = ("nix", "--extra-experimental-features", "nix-command")
    local = f"local?root={tmp_path / 'root'}"
    path = run(*nix, "store", "add-path", "--store", local, "--name", "hello", str(source))
    run(*nix, "copy", "--from", local, "--to", f"file://{cache}?compression=zstd", path)
    (file,) = cache.glob("*.narinfo")
    narinfo = NarInfo.parse(file.read_bytes())
    assert source_path("hello", narinfo.nar_sha256).absolute == path
    key = SecretKey.generate("neve-test-1")
    signature = key.sign(narinfo.fingerprint())
    # Without the content address, only the signature can make Nix trust the path.
    values = {name: getattr(narinfo, name) for name in NarInfo.__dataclass_fields__}
    values.update(signatures=(signature,), ca=None)
    file.write_text(NarInfo(**values).render())
    trusted = ("--option", "trusted-public-keys", str(key.public_key()))
    copy = (*nix, "copy", "--from", f"file://{cache}", "--to", f"local?root={target}", path)
    with pytest.raises(subprocess.CalledProcessError) as refused:
        run(*copy)
    assert "lacks a valid signature" in refused.value.stderr
    run(*copy, *trusted)
    assert (target / path[1:]).read_text() == "Hello World!"
