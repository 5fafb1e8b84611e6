"""Commands that substitute on demand from binary caches."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from neve.nix.narinfo import NarInfo
from neve.store.substitute import address
from tests.cli.conftest import Neve, same_trees
from tests.store.substitute.caches import KEY, Cache
from tests.store.substitute.nix_caches import KEY as NIX_KEY
from tests.store.substitute.nix_caches import NixCache
from tests.store.substitute.server import Server, running_server, status


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("NETRC", raising=False)
    monkeypatch.setattr(address, "NIX_NETRC", str(tmp_path / "etc-netrc"))


@pytest.fixture
def server() -> Iterator[Server]:
    with running_server() as server:
        yield server


@pytest.fixture
def narinfo(server: Server) -> NarInfo:
    cache = Cache()
    narinfo = cache.add("tool", compression="xz")
    server.serve(cache.files)
    return narinfo


def source(server: Server, more: str = "") -> tuple[str, str]:
    keys = quote(KEY.public_key().render())
    return "--path-info-service-addr", f"nix+{server.url}?trusted-public-keys={keys}&attempts=1{more}"


def test_what_is_asked_for_comes(neve: Neve, server: Server, narinfo: NarInfo, tmp_path: Path) -> None:
    path = narinfo.store_path.absolute
    # The store need not exist before: it is made for what comes.
    assert neve("ls", *source(server), path).out == b"bin\ndata\nlink\n"
    assert (tmp_path / "store").exists()
    assert neve("cat", *source(server), f"{path}/bin/tool").out == b"#!/bin/sh\ntool"
    info = json.loads(neve("path-info", "--json", *source(server), path).line)
    assert info["narSize"] == narinfo.nar_size
    assert len(info["references"]) == 2
    nar = neve("nar", "export", *source(server), path).out
    assert len(nar) == narinfo.nar_size
    # The NAR came once: the store remembers.
    assert server.paths().count(f"/{narinfo.url}") == 1


def test_through_a_near_store_it_stays(neve: Neve, server: Server, narinfo: NarInfo, tmp_path: Path) -> None:
    path = narinfo.store_path.absolute
    far = source(server)[1]
    near = f"local://{tmp_path}/store"
    url = f"cache://?near={quote(near, safe='')}&far={quote(far, safe='')}"
    assert neve("export", "--path-info-service-addr", url, path, tmp_path / "out").code == 0
    assert (tmp_path / "out" / "bin" / "tool").read_bytes() == b"#!/bin/sh\ntool"
    asked = len(server.requests)
    assert neve("path-info").line.startswith(path)
    assert neve("path-info", "--path-info-service-addr", url).line.startswith(path)
    assert neve("verify").code == 0
    assert len(server.requests) == asked


def test_what_is_not_there(neve: Neve, server: Server, narinfo: NarInfo) -> None:
    absent = "/nix/store/" + "0" * 32 + "-absent"
    assert neve("ls", *source(server), absent).failure == f"{absent} is not in the store"


def test_failures_are_one_line(neve: Neve, server: Server, narinfo: NarInfo) -> None:
    path = narinfo.store_path.absolute
    server.routes[f"/{narinfo.url}"] = [status(500)]
    failure = neve("ls", *source(server), path).failure
    assert failure == f"{server.url}/{narinfo.url}: the server answers with status 500 (tried once)"
    failure = neve("path-info", *source(server)).failure
    assert failure == f"{server.url} is a binary cache that is only read: it cannot list its path infos"
    failure = neve("ls", "--path-info-service-addr", f"nix+{server.url}?key=x", path).failure
    assert "unknown parameter 'key'" in failure


def authorization(server: Server) -> str | None:
    return server.requests[-1].headers.get("authorization")


def test_the_netrc_of_the_user(
    neve: Neve, server: Server, narinfo: NarInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def basic(text: str) -> str:
        return f"Basic {base64.b64encode(text.encode()).decode()}"

    path = narinfo.store_path.absolute
    assert neve("ls", *source(server), path).code == 0
    assert authorization(server) is None
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / ".netrc").write_text("machine 127.0.0.1 login me password at-home")
    assert neve("ls", *source(server), path).code == 0
    assert authorization(server) == basic("me:at-home")
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password elsewhere")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert neve("ls", *source(server), path).code == 0
    assert authorization(server) == basic("me:elsewhere")
    (tmp_path / "third").write_text("machine 127.0.0.1 login me password third")
    assert neve("ls", *source(server, f"&netrc-file={tmp_path / 'third'}"), path).code == 0
    assert authorization(server) == basic("me:third")


@pytest.mark.nix
def test_from_a_cache_of_nix(neve: Neve, tree: Path, tmp_path: Path) -> None:
    cache = NixCache(tmp_path / "nix", "zstd", tree)
    [path] = cache.sources
    options = ("--path-info-service-addr", f"{cache.url}?trusted-public-keys={NIX_KEY.public_key()}")
    assert neve("ls", *options, path).out.split(b"\n")[:2] == [b"bin", b"empty"]
    assert neve("cat", *options, f"{path}/text").out == b"Hello\n"
    narinfo = cache.narinfo(path)
    assert neve("path-info", *options, path).line.split("\t")[:2] == [path, str(narinfo.nar_size)]
    assert neve("export", *options, path, tmp_path / "exported").code == 0
    assert same_trees(tmp_path / "exported", tree)
    assert neve("nar", "export", *options, path).out == subprocess.check_output(["nix-store", "--dump", tree])
