"""``key generate``, ``key public``, ``sign``."""

from __future__ import annotations

import json
import stat
from dataclasses import replace
from pathlib import Path

import pytest

import neve as library
from neve.nix.signing import PublicKey, SecretKey, Signature
from tests.cli.conftest import Neve
from tests.nix import vectors

CACHE = vectors.load("cache.json")


@pytest.fixture
def key(tmp_path: Path) -> Path:
    file = tmp_path / "secret.key"
    file.write_text(CACHE["secret_key"])
    return file


def signatures(neve: Neve, path: str) -> list[str]:
    found: list[str] = json.loads(neve("path-info", "--json", path).line)["signatures"]
    return found


def test_a_new_key(neve: Neve, tmp_path: Path) -> None:
    printed = neve("key", "generate", "cache-1").line
    key = SecretKey.parse(printed)
    assert key.name == "cache-1"
    assert key.render() == printed
    assert neve("key", "generate", "cache-1").line != printed
    file = tmp_path / "new.key"
    result = neve("key", "generate", "--output", file, "cache-1")
    assert (result.code, result.out, result.err) == (0, b"", "")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert SecretKey.parse(file.read_text()).name == "cache-1"


def test_a_key_is_never_overwritten(neve: Neve, key: Path) -> None:
    failure = neve("key", "generate", "cache-1", "--output", key).failure
    assert failure == f"{key} exists; a key is never overwritten"
    assert key.read_text() == CACHE["secret_key"]


@pytest.mark.parametrize("name", ["", "with space", "with:colon", "with\nbreak"])
def test_names_that_no_key_can_have(neve: Neve, name: str) -> None:
    assert "bad name" in neve("key", "generate", "--", name).failure


def test_the_public_key(neve: Neve, key: Path) -> None:
    assert neve("key", "public", key).line == CACHE["public_key"]
    assert neve("key", "public", stdin=key.read_bytes() + b"\n").line == CACHE["public_key"]
    assert neve("key", "public", "-", stdin=key.read_bytes()).line == CACHE["public_key"]


def test_what_is_no_key(neve: Neve, tmp_path: Path, tree: Path) -> None:
    assert "has no '<name>:'" in neve("key", "public", stdin=b"nonsense").failure
    assert "has no '<name>:'" in neve("key", "public", stdin=b"").failure
    assert "at most 65536 bytes" in neve("key", "public", "/dev/zero").failure
    assert "at most 65536 bytes" in neve("key", "public", stdin=bytes(100_000)).failure
    assert "No such file" in neve("key", "public", tmp_path / "none").failure
    public = tmp_path / "public"
    public.write_text(CACHE["public_key"])
    assert str(public) in neve("key", "public", public).failure
    path = neve("import", tree).line
    assert str(public) in neve("sign", "--key", public, path).failure
    assert signatures(neve, path) == []


def test_signing(neve: Neve, key: Path, tree: Path) -> None:
    path = neve("import", tree).line
    assert neve("sign", "--key", key, path).line == path
    (signature,) = signatures(neve, path)
    with library.open(f"local://{tree.parent}/store") as store:
        info = store.path_info(path)
    public = PublicKey.parse(CACHE["public_key"])
    assert public.verify(info.fingerprint(), Signature.parse(signature))
    assert neve("sign", "--key", key, path.rpartition("/")[2], path).line == path
    assert signatures(neve, path) == [signature]


def test_several_keys(neve: Neve, key: Path, tree: Path, tmp_path: Path) -> None:
    path = neve("import", tree).line
    assert neve("key", "generate", "other", "--output", tmp_path / "other").code == 0
    assert neve("sign", "--key", key, "--key", tmp_path / "other", path).line == path
    names = [Signature.parse(text).name for text in signatures(neve, path)]
    assert names == ["test-1.example-1", "other"]


def test_with_what_it_refers_to(neve: Neve, key: Path, tree: Path) -> None:
    base = neve("import", tree).line
    text = tree / "text"
    middle = neve("import", "--text", "--reference", base, text).line
    top = neve("import", "--text", "--name", "top", "--reference", middle, text).line
    other = neve("import", text).line
    assert neve("sign", "--key", key, top).line == top
    assert [len(signatures(neve, path)) for path in (top, middle, base, other)] == [1, 0, 0, 0]
    result = neve("sign", "--key", key, "--recursive", top)
    assert result.code == 0
    assert sorted(result.out.decode().split()) == sorted([top, middle, base])
    assert [len(signatures(neve, path)) for path in (top, middle, base, other)] == [1, 1, 1, 0]
    everything = neve("sign", "--key", key, "--all")
    assert sorted(everything.out.decode().split()) == sorted([top, middle, base, other])
    assert len(signatures(neve, other)) == 1


def test_a_gap_in_the_closure(neve: Neve, key: Path, tree: Path) -> None:
    gone = "/nix/store/s66mzxpvicwk07gjbjfw9izjfa797vsw-hello"
    path = neve("import", "--text", "--reference", gone, tree / "text").line
    failure = neve("sign", "--key", key, "--recursive", path).failure
    assert path in failure
    assert gone[11:43] in failure
    assert signatures(neve, path) == []
    assert neve("sign", "--key", key, path).line == path


def test_what_is_not_there(neve: Neve, key: Path, tree: Path, tmp_path: Path) -> None:
    path = "/nix/store/s66mzxpvicwk07gjbjfw9izjfa797vsw-hello"
    assert "name another with --store" in neve("sign", "--key", key, path).failure
    assert not (tmp_path / "store").exists()
    neve("import", tree)
    assert neve("sign", "--key", key, path).failure == f"{path} is not in the store"
    assert neve("sign", "--key", tmp_path / "none", path).failure.startswith("cannot read the key in ")


@pytest.mark.parametrize("arguments", [[], ["--recursive"], ["--all", "/nix/store/" + "0" * 32 + "-x"]])
def test_wrong_usage(neve: Neve, key: Path, arguments: list[str]) -> None:
    result = neve("sign", "--key", key, *arguments)
    assert result.code == 2
    assert "give the store paths to sign, or --all" in result.err


def test_signing_without_a_key(neve: Neve) -> None:
    result = neve("sign", "--all")
    assert result.code == 2
    assert "--key" in result.err


def test_what_is_stated_wrongly_is_not_signed(neve: Neve, key: Path, tree: Path) -> None:
    paths = [neve("import", "--name", name, tree).line for name in ("a", "b", "c")]
    with library.open(f"local://{tree.parent}/store") as store:
        for path in paths[:2]:
            info = store.path_info(path)
            assert info.nar is not None
            lying = replace(info, nar=replace(info.nar, sha256=bytes(32)))
            store.path_infos.put(lying, replace=True)
    failure = neve("sign", "--key", key, paths[0]).failure
    assert failure.startswith(f"{paths[0]} is not signed: the contents of ")
    result = neve("sign", "--key", key, "--all")
    assert result.code == 1
    assert result.out.decode() == f"{paths[2]}\n"
    lines = result.err.splitlines()
    assert len(lines) == 3
    assert sorted(line.split()[1] for line in lines[:2]) == sorted(paths[:2])
    assert lines[2] == "neve: 2 of 3 store paths were not signed"
    assert [len(signatures(neve, path)) for path in paths] == [0, 0, 1]
