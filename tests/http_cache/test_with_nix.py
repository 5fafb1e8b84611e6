"""The Nix that is installed pushes to a cache, pulls from it, and believes our signatures."""

from __future__ import annotations

import json
import lzma
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx
import pytest

from neve.http_cache.tokens import PULL, PUSH, generate
from neve.nix.signing import SecretKey
from neve.nix.store_path import StorePath
from neve.store.importer import import_nar
from neve.store.services import Services, open_services
from tests.http_cache.samples import Sample, push, sha256
from tests.http_cache.serving import Served, serving
from tests.http_cache.test_pull import TREE
from tests.store.helpers import encoded, memory_services

pytestmark = pytest.mark.nix

KEY = SecretKey.generate("cache-1")
PUBLIC_KEY = KEY.public_key().render()
EXPRESSION = """
let one = builtins.toFile "one" "hello"; two = builtins.toFile "two" "uses ${one}";
in builtins.toFile "three" "uses ${one} and ${two}"
"""


class Nix:
    """Runs Nix, with nothing of its own but what is below ``folder``, and no network but the cache."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self._settings = {
            # Without it, Nix as root complains about its missing build users.
            "build-users-group": "",
            "substituters": "",
            "trusted-public-keys": PUBLIC_KEY,
            "experimental-features": "nix-command",
            "download-attempts": "1",
            "netrc-file": str(folder / "netrc"),
        }

    def run(self, *command: str | Path, settings: Mapping[str, str] = {}) -> subprocess.CompletedProcess[str]:
        lines = [f"{name} = {value}" for name, value in {**self._settings, **settings}.items()]
        environment = {
            **os.environ,
            "NIX_CONFIG": "\n".join(lines),
            "HOME": str(self.folder),
            "XDG_CACHE_HOME": str(self.folder / "cache"),
        }
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            environment.pop(name, None)
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    def __call__(self, *command: str | Path, settings: Mapping[str, str] = {}) -> str:
        done = self.run(*command, settings=settings)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    @property
    def url(self) -> str:
        return f"local?root={self.folder}/root"

    def real(self, path: str) -> Path:
        return Path(f"{self.folder}/root{path}")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[Nix, list[str]]:
    """A Nix store with paths of every kind, some of which refer to others; and the ends of the closure."""
    folder = tmp_path_factory.mktemp("source")
    nix = Nix(folder / "nix")
    tree = folder / "tree-1.0"
    (tree / "bin").mkdir(parents=True)
    (tree / "bin/tool").write_bytes(b"#!/bin/sh\n" * 60_000)
    (tree / "bin/tool").chmod(0o755)
    (tree / "link").symlink_to("bin/tool")
    (tree / "empty").mkdir()
    (tree / "noise").write_bytes(os.urandom(700_000))
    (folder / "flat.txt").write_text("flat\n")
    text = nix("nix-instantiate", "--store", nix.url, "--read-write-mode", "--eval", "--expr", EXPRESSION)
    paths = [text.strip('"')]
    paths.append(nix("nix", "store", "add-path", "--store", nix.url, tree))
    paths.append(nix("nix-store", "--store", nix.url, "--add-fixed", "sha256", folder / "flat.txt"))
    return nix, paths


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Services]:
    opened = open_services(f"local://{tmp_path}/store")
    yield opened
    opened.close()


@pytest.fixture
def nix(tmp_path: Path) -> Nix:
    return Nix(tmp_path / "nix")


def closure(nix: Nix, paths: list[str]) -> dict[str, str]:
    """The NAR hash of each path in the closure."""
    infos = json.loads(nix("nix", "path-info", "--store", nix.url, "--json", "-r", *paths))
    return {info["path"]: info["narHash"] for info in infos}


@pytest.mark.parametrize("compression", ["", "xz", "zstd", "gzip", "bzip2", "none", "br"])
def test_both_ways(services: Services, source: tuple[Nix, list[str]], nix: Nix, compression: str) -> None:
    theirs, paths = source
    with serving(services, secret_key=KEY.render()) as cache:
        options = "write-nar-listing=true" + (f"&compression={compression}" if compression else "")
        theirs("nix", "--store", theirs.url, "copy", "--to", f"{cache.url}?{options}", *paths)
        # All of the closure is there, and signed.
        there = {str(info.store_path): info for info in services.path_infos}
        assert set(there) == set(closure(theirs, paths))
        assert all(
            info.nar and [s.name for s in info.nar.signatures] == ["cache-1"] for info in there.values()
        )
        # And comes back as it was.
        nix("nix", "--store", nix.url, "copy", "--from", cache.url, *paths)
        assert closure(nix, paths) == closure(theirs, paths)
        nix("nix", "--store", nix.url, "store", "verify", "-r", *paths)
        for path in paths:
            assert dumped(nix, path) == dumped(theirs, path)
        # Whoever pushed remembers the narinfos that he made, and asks for the files as he sent them.
        again = f"local?root={theirs.folder}/again-{compression}"
        theirs("nix", "--store", again, "copy", "--no-check-sigs", "--from", cache.url, *paths)


def dumped(nix: Nix, path: str) -> bytes:
    return subprocess.check_output(["nix-store", "--dump", nix.real(path)])


INPUT_ADDRESSED = StorePath(sha256(b"input")[:20], "hello-2.12")
NAR = encoded(TREE)
SIGNED = Sample(INPUT_ADDRESSED, NAR, (INPUT_ADDRESSED,))
"""A path whose hash says nothing of its contents, so that only a signature can: it refers to itself."""


@pytest.fixture
def signed(services: Services) -> Iterator[Served]:
    with serving(services, secret_key=KEY.render()) as cache:
        push(cache.http, SIGNED, "zstd")
        yield cache


def test_nix_believes_our_signature(signed: Served, nix: Nix) -> None:
    path = INPUT_ADDRESSED.absolute
    nix("nix", "--store", nix.url, "copy", "--from", signed.url, path)
    assert dumped(nix, path) == NAR
    info = json.loads(nix("nix", "path-info", "--store", nix.url, "--json", path))[0]
    assert info["references"] == [path]
    assert [signature.partition(":")[0] for signature in info["signatures"]] == ["cache-1"]
    nix("nix", "--store", nix.url, "store", "verify", "-r", path)
    # Nobody else's.
    other = {"trusted-public-keys": SecretKey.generate("cache-1").public_key().render()}
    done = nix.run("nix", "--store", nix.url, "store", "verify", path, settings=other)
    assert done.returncode != 0
    assert "untrusted" in done.stderr


def test_nix_does_not_believe_others(signed: Served, nix: Nix) -> None:
    other = {"trusted-public-keys": SecretKey.generate("cache-1").public_key().render()}
    path = INPUT_ADDRESSED.absolute
    done = nix.run("nix", "--store", nix.url, "copy", "--from", signed.url, path, settings=other)
    assert done.returncode != 0
    assert "signature" in done.stderr
    assert not nix.real(path).exists()


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_a_substituter(services: Services, nix: Nix, compression: str) -> None:
    """Nix realises a path from us, which it does not know how to build."""
    with serving(services, secret_key=KEY.render(), narinfo_compression=compression) as cache:
        push(cache.http, SIGNED)
        path = INPUT_ADDRESSED.absolute
        settings = {"substituters": cache.url}
        done = nix("nix-store", "--store", nix.url, "--realise", path, settings=settings)
        assert done.splitlines()[-1] == path
        assert dumped(nix, path) == NAR
        # What Nix exports of it is what it had been given.
        exported = nix.folder / "exported"
        with exported.open("wb") as file:
            environment = {**os.environ, "NIX_CONFIG": "build-users-group ="}
            command = ["nix-store", "--store", nix.url, "--export", path]
            subprocess.run(command, stdout=file, env=environment, check=True)
        assert NAR in exported.read_bytes()
        # Another store takes over what is asked for by option only.
        second = Nix(nix.folder / "second")
        second("nix-store", "--store", second.url, "-r", path, "--option", "substituters", cache.url)
        assert dumped(second, path) == NAR


def test_what_we_imported_ourselves(nix: Nix) -> None:
    """Content-addressed: Nix needs no signature."""
    services = memory_services()
    with serving(services) as cache:
        path = import_nar(services, [NAR], name="tree-1.0").store_path.absolute
        nix("nix", "--store", nix.url, "copy", "--from", cache.url, path)
        assert dumped(nix, path) == NAR
        assert nix("nix", "store", "ls", "--store", cache.url, "-R", path).splitlines()[0] == "./empty"
        assert nix("nix", "store", "cat", "--store", cache.url, f"{path}/run") == "#!/bin/sh"
    services.close()


def test_a_listing_is_the_one_that_nix_writes(source: tuple[Nix, list[str]], nix: Nix) -> None:
    theirs, paths = source
    plain = nix.folder / "plain"
    theirs("nix", "--store", theirs.url, "copy", "--to", f"file://{plain}?write-nar-listing=true", *paths)
    services = memory_services()
    with serving(services) as cache:
        theirs("nix", "--store", theirs.url, "copy", "--to", cache.url, *paths)
        listings = list(plain.glob("*.ls"))
        assert len(listings) == 5
        for each in listings:
            assert cache.http.get(f"/{each.name}").json() == json.loads(each.read_text())
    services.close()


def test_links_to_debugging_symbols(nix: Nix, tmp_path: Path) -> None:
    """They lead to the very file that was uploaded."""
    symbols = tmp_path / "symbols/lib/debug/.build-id/4f"
    symbols.mkdir(parents=True)
    (symbols / f"{'0ba1e5' * 6}00.debug").write_bytes(b"ELF" * 1000)
    services = memory_services()
    with serving(services) as cache:
        path = nix("nix", "store", "add-path", "--store", nix.url, tmp_path / "symbols")
        command = ("nix", "--store", nix.url, "copy", "--to", f"{cache.url}?index-debug-info=true", path)
        nix(*command)
        build_id = f"4f{'0ba1e5' * 6}00"
        link = cache.http.get(f"/debuginfo/{build_id}").json()
        assert link == cache.http.get(f"/debuginfo/{build_id}.debug").json()
        assert link["member"] == f"lib/debug/.build-id/4f/{build_id[2:]}.debug"
        file = cache.http.get(str(httpx.URL(f"{cache.url}/debuginfo/").join(link["archive"])))
        assert lzma.decompress(file.content) == dumped(nix, path)
    services.close()


def test_tokens_from_a_netrc(source: tuple[Nix, list[str]], nix: Nix, tmp_path: Path) -> None:
    theirs, paths = source
    reader, reader_line = generate("reader", [PULL])
    writer, writer_line = generate("writer", [PUSH])
    (tmp_path / "tokens").write_text(f"{reader_line}\n{writer_line}\n")
    services = memory_services()
    tokens = str(tmp_path / "tokens")
    with serving(services, token_file=tokens, private=True, insecure_allow_upload=False) as cache:
        netrc = theirs.folder / "netrc"
        command = ("nix", "--store", theirs.url, "copy", "--to", cache.url, *paths)
        for secret, complaint in (("wrong", "not appear to be a binary cache"), (reader, "403")):
            netrc.write_text(f"machine 127.0.0.1 login any password {secret}\n")
            done = theirs.run(*command)
            assert done.returncode != 0
            assert complaint in done.stderr
        assert list(services.path_infos) == []
        netrc.write_text(f"machine 127.0.0.1 login any password {writer}\n")
        theirs(*command)
        (nix.folder / "netrc").write_text(f"machine 127.0.0.1 login any password {reader}\n")
        nix("nix", "--store", nix.url, "copy", "--from", cache.url, *paths)
        assert closure(nix, paths) == closure(theirs, paths)
    netrc.unlink()
    services.close()


def test_nix_hears_why(source: tuple[Nix, list[str]]) -> None:
    theirs, paths = source
    services = memory_services()
    with serving(services, secret_key=KEY.render(), require_signatures=True) as cache:
        done = theirs.run("nix", "--store", theirs.url, "copy", "--to", cache.url, *paths)
        assert done.returncode != 0
        assert "403" in done.stderr
        assert "no signature by a key that is trusted here" in done.stderr
        # A key that we trust signs them on the way.
        key = theirs.folder / "key"
        key.write_text(KEY.render())
        theirs("nix", "--store", theirs.url, "copy", "--to", f"{cache.url}?secret-key={key}", *paths)
        assert len(list(services.path_infos)) == 5
    services.close()
