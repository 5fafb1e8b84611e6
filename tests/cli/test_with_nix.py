"""Comparisons with what Nix makes of the same trees."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from neve.nix.hashes import NixHash
from neve.nix.narinfo import NarInfo
from neve.nix.signing import Signature
from neve.nix.store_path import StorePath
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


VECTORS = Path(__file__).parents[1] / "vectors"
COMMAND = ("nix", "--extra-experimental-features", "nix-command")


def fetched_closure(root: Path) -> str:
    """The address of a Nix store below ``root`` with all paths of a cache that Nix has made."""
    store = f"local?root={root}"
    infos = (VECTORS / "cache-none").glob("*.narinfo")
    paths = [info.read_text().partition("\n")[0].removeprefix("StorePath: ") for info in infos]
    cache = f"file://{VECTORS}/cache-none"
    nix(*COMMAND, "copy", "--no-check-sigs", "--from", cache, "--to", store, *paths)
    return store


@pytest.mark.parametrize("select", [("--all",), ("-r", "--closure-size")])
def test_copy(neve: Neve, tmp_path: Path, select: tuple[str, ...]) -> None:
    root = tmp_path / "nix"
    store = fetched_closure(root)
    known = {
        path["path"]: path
        for path in json.loads(nix(*COMMAND, "path-info", "--store", store, "--json", "--all"))
    }
    selected = select if "--all" in select else (*select, *known)
    description = nix(*COMMAND, "path-info", "--store", store, "--json", *selected)
    result = neve("copy", "--store-dir-root", root, "-", stdin=description.encode())
    assert sorted(result.out.decode().split()) == sorted(known)
    assert any(path["references"] for path in known.values())
    assert neve("verify", "--nars").code == 0
    for path, stated in known.items():
        assert neve("nar", "export", path).out == subprocess.check_output(
            ["nix-store", "--dump", f"{root}{path}"]
        )
        info = json.loads(neve("path-info", "--json", path).line)
        for key in ("narSize", "references", "signatures", "ca", "deriver"):
            assert info[key] == stated.get(key, [] if key == "signatures" else None)


def test_keys_are_the_same(neve: Neve, tmp_path: Path) -> None:
    convert = (*COMMAND, "key", "convert-secret-to-public")
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    assert neve("key", "generate", "ours-1", "--output", ours).code == 0
    public = neve("key", "public", ours).line
    assert nix(*convert, stdin=ours.read_bytes()) == public
    assert nix(*convert, stdin=neve("key", "generate", "x").out).startswith("x:")
    nix("nix-store", "--generate-binary-cache-key", "theirs-1", theirs, tmp_path / "public")
    assert neve("key", "public", theirs).line == (tmp_path / "public").read_text()
    assert oct(theirs.stat().st_mode) == oct(ours.stat().st_mode)
    assert len(theirs.read_bytes()) == len(ours.read_bytes()) + len("theirs-1") - len("ours-1")
    other = nix(*COMMAND, "key", "generate-secret", "--key-name", "other-1")
    assert neve("key", "public", stdin=other.encode()).line == nix(*convert, stdin=other.encode())


def cache_of(neve: Neve, folder: Path) -> str:
    """A binary cache in ``folder`` with everything that our store has; its address."""
    (folder / "nar").mkdir(parents=True)
    (folder / "nix-cache-info").write_text("StoreDir: /nix/store\n")
    for line in neve("path-info", "--json").out.splitlines():
        info = json.loads(line)
        base_name = info["path"].removeprefix("/nix/store/")
        nar = neve("nar", "export", info["path"]).out
        (folder / "nar" / f"{base_name}.nar").write_bytes(nar)
        narinfo = NarInfo(
            store_path=StorePath.parse(info["path"]),
            url=f"nar/{base_name}.nar",
            nar_sha256=NixHash.parse(info["narHash"]).digest,
            nar_size=info["narSize"],
            references=tuple(map(StorePath.parse, info["references"])),
            signatures=tuple(map(Signature.parse, info["signatures"])),
        )
        (folder / f"{base_name[:32]}.narinfo").write_text(narinfo.render())
    return f"file://{folder}"


def test_nix_verifies_what_we_sign(neve: Neve, tree: Path, tmp_path: Path) -> None:
    """With keys of either side; one that was not signed is found by the same means."""
    dependency = neve("import", tree).line
    (tmp_path / "user").write_text(f"needs {dependency}")
    path = neve(
        "nar",
        "import",
        "--scan-references",
        "--store-path",
        f"/nix/store/{'0' * 32}-user-1",
        stdin=subprocess.check_output(["nix-store", "--dump", tmp_path / "user"]),
    ).line
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    assert neve("key", "generate", "ours-1", "--output", ours).code == 0
    nix("nix-store", "--generate-binary-cache-key", "theirs-1", theirs, tmp_path / "public")
    assert neve("sign", "--key", ours, "--key", theirs, path).line == path
    cache = cache_of(neve, tmp_path / "cache")
    verify = (*COMMAND, "store", "verify", "--store", cache, "--sigs-needed")
    for key in (ours, theirs):
        public = neve("key", "public", key).line
        nix(*verify, "1", "--trusted-public-keys", public, path)
        with pytest.raises(subprocess.CalledProcessError):
            nix(*verify, "2", "--trusted-public-keys", public, path)
    both = " ".join(neve("key", "public", key).line for key in (ours, theirs))
    nix(*verify, "2", "--trusted-public-keys", both, path)
    stranger = neve("key", "public", stdin=neve("key", "generate", "ours-1").out).line
    with pytest.raises(subprocess.CalledProcessError):
        nix(*verify, "1", "--trusted-public-keys", stranger, path)
    # And a whole closure goes into a store that insists on signatures.
    assert neve("sign", "--key", ours, "--recursive", path).code == 0
    cache = cache_of(neve, tmp_path / "cache-2")
    public = neve("key", "public", ours).line
    store = f"local?root={tmp_path}/nix"
    nix(*COMMAND, "copy", "--from", cache, "--to", store, "--trusted-public-keys", public, path)
    assert same_trees(tree, Path(f"{tmp_path}/nix{dependency}"))
    assert nix("nix-store", "--store", store, "--query", "--references", path) == dependency


def test_paths_that_refer_to_themselves(neve: Neve, tree: Path, tmp_path: Path) -> None:
    """There (as an input-addressed path, and rewritten to one addressed by its contents) and back."""
    own = f"/nix/store/{'1' * 32}-selfish-1"
    dependency = neve("import", tree).line
    (tmp_path / "selfish").write_text(f"{own} needs {dependency}")
    nar = subprocess.check_output(["nix-store", "--dump", tmp_path / "selfish"])
    assert neve("nar", "import", "--scan-references", "--store-path", own, stdin=nar).line == own
    store = f"local?root={tmp_path}/nix"
    cache = cache_of(neve, tmp_path / "cache")
    nix(*COMMAND, "copy", "--no-check-sigs", "--from", cache, "--to", store, own)
    rewritten = json.loads(nix(*COMMAND, "store", "make-content-addressed", "--store", store, "--json", own))[
        "rewrites"
    ][own]
    description = nix(*COMMAND, "path-info", "--store", store, "--json", "-r", own, rewritten)
    other = ("--store", f"local://{tmp_path}/other")
    result = neve("copy", "--store-dir-root", tmp_path / "nix", "-", *other, stdin=description.encode())
    assert result.code == 0, result.err
    assert {own, rewritten, dependency} <= set(result.out.decode().split())
    for path in (own, rewritten):
        info = json.loads(neve("path-info", "--json", path, *other).line)
        assert path in info["references"]
        assert len(info["references"]) == 2
        assert (info["ca"] is None) == (path == own)
    assert neve("verify", "--nars", *other).code == 0


def test_we_verify_what_nix_signs(neve: Neve, tree: Path, tmp_path: Path) -> None:
    """And sign likewise, to the byte."""
    root, key = tmp_path / "nix", tmp_path / "key"
    path = store_add("add-path", root, tree)
    assert neve("key", "generate", "ours-1", "--output", key).code == 0
    store = f"local?root={root}"
    nix(*COMMAND, "store", "sign", "--store", store, "--key-file", key, path)
    description = nix(*COMMAND, "path-info", "--store", store, "--json", path)
    (signature,) = json.loads(description)[0]["signatures"]
    assert neve("import", tree).line == path
    assert neve("sign", "--key", key, path).line == path
    assert json.loads(neve("path-info", "--json", path).line)["signatures"] == [signature]
    assert neve("copy", "--store-dir-root", root, "-", stdin=description.encode()).line == path
    assert neve("sign", "--key", key, path).line == path
    assert json.loads(neve("path-info", "--json", path).line)["signatures"] == [signature]
