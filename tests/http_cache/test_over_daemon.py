"""A cache over a store that a daemon serves."""

from __future__ import annotations

from pathlib import Path

import pytest

from neve.nix.narinfo import NarInfo
from neve.nix.signing import SecretKey
from neve.store.nar_nodes import Nar
from neve.store.services import open_services
from neve.testing.servers import running_daemon
from tests.http_cache.samples import Sample, nar_url, push, put_narinfo, sample, sha256, stored
from tests.http_cache.serving import Served, serving
from tests.store.helpers import memory_services

KEY = SecretKey.generate("cache-1")


def narinfo_of(cache: Served, what: Sample) -> NarInfo:
    return NarInfo.parse(cache.http.get(what.narinfo_url).content, expected_digest=what.path.digest)


@pytest.mark.parametrize("admin", [True, False])
def test_both_ways(tmp_path: Path, admin: bool) -> None:
    """The map of NARs belongs to the daemon's administration. Who may not use that can push to one process,
    which remembers as long as it lives."""
    with running_daemon(memory_services(), folder=tmp_path) as daemon:
        services = open_services(daemon.admin_url if admin else daemon.url)
        with serving(services, secret_key=KEY.render()) as cache:
            assert cache.is_fine()
            whats = [sample("first"), sample("second", references=[sample("first").path])]
            for what in whats:
                push(cache.http, what, "zstd")
                narinfo = narinfo_of(cache, what)
                assert [signature.name for signature in narinfo.signatures] == ["cache-1"]
                answer = cache.http.get(f"/{narinfo.url}")
                assert answer.content == what.nar
            assert cache.http.put(f"/log/{whats[0].digest}-x.drv", content=b"").status_code == 501
            known = stored(daemon.services, sample("known"))
            assert narinfo_of(cache, sample("known")).store_path == known.store_path
            daemon.stop()
            answer = cache.http.get(whats[0].narinfo_url)
            assert answer.status_code == 503
            assert answer.text.count("\n") == 1
            assert cache.http.get("/healthz").status_code == 503
            assert cache.http.get("/healthz/live").status_code == 200
        services.close()
        daemon.services.close()


def test_nothing_is_signed_that_a_server_says(tmp_path: Path) -> None:
    """It remembers a NAR that was never one of this tree."""
    what, other = sample("honest"), sample("other")
    with running_daemon(memory_services(), folder=tmp_path) as daemon:
        node = stored(daemon.services, other).node
        daemon.services.nar_nodes = type(daemon.services.nar_nodes)()
        daemon.services.nar_nodes.put(node, Nar(len(what.nar), sha256(what.nar)))
        assert daemon.admin_url is not None
        services = open_services(daemon.admin_url)
        with serving(services, secret_key=KEY.render()) as cache:
            assert cache.http.head(nar_url(what.nar)).status_code == 200
            answer = put_narinfo(cache.http, what)
            assert answer.status_code == 409
            assert "its path info states" in answer.text
            assert cache.http.get(what.narinfo_url).status_code == 404
        services.close()
        daemon.services.close()
