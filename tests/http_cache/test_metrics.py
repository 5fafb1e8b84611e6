"""Figures that processes count together."""

from __future__ import annotations

import os
from pathlib import Path

from neve.http_cache.metrics import ACTIVE, LAYOUT, RECEIVED, ROUTES, SENT, Counters
from neve.http_cache.threads import POOLS
from neve.nix import base32
from neve.serving.metrics import BUCKETS, KINDS, SharedRows
from neve.store.importer import import_path
from neve.store.services import open_services
from tests.http_cache.serving import serving


def figures(counters: Counters) -> dict[str, float]:
    lines = (line.rpartition(" ") for line in counters.text().decode().splitlines() if line[0] != "#")
    return {name: float(value) for name, _, value in lines}


def test_rows_are_added_up() -> None:
    rows = SharedRows(LAYOUT, 3)
    one, two = Counters(rows, 0), Counters(rows, 1)
    one.add(RECEIVED, 5)
    one.request(ROUTES.index("nar"), 0, 200, 0.01, 100)
    two.request(ROUTES.index("nar"), 0, 200, 0.2, 50)
    two.request(ROUTES.index("narinfo"), 1, 999, 100.0, 0)
    for counters in (one, two, Counters(rows, 2)):
        found = figures(counters)
        assert found['neve_http_requests_total{method="read",route="nar",status="200"}'] == 2
        assert found['neve_http_requests_total{method="write",route="narinfo",status="other"}'] == 1
        assert found["neve_http_sent_bytes_total"] == 150
        assert found["neve_http_received_bytes_total"] == 5
        name = "neve_http_request_seconds"
        labels = 'method="read",route="nar"'
        bounds = {0.005: 0, 0.025: 1, 0.1: 1, 0.5: 2, 60.0: 2}
        for bound, count in bounds.items():
            assert bound in BUCKETS
            assert found[f'{name}_bucket{{le="{bound}",{labels}}}'] == count
        assert found[f"{name}_count{{{labels}}}"] == 2
        assert abs(found[f"{name}_sum{{{labels}}}"] - 0.21) < 1e-9
        assert found[f'{name}_count{{method="write",route="narinfo"}}'] == 1
    rows.close()


def test_another_process_has_the_same_memory() -> None:
    rows = SharedRows(LAYOUT, 2)
    Counters(rows, 0).add(SENT, 7)
    Counters(rows, 0).add(ACTIVE, 3)
    same = SharedRows(LAYOUT, 2, os.dup(rows.descriptor))
    assert figures(Counters(same, 1))["neve_http_sent_bytes_total"] == 7
    # One that is started in the place of another goes on counting; nothing is under way in it.
    again = Counters(same, 0)
    again.add(SENT, 1)
    found = figures(Counters(rows, 1))
    assert found["neve_http_sent_bytes_total"] == 8
    assert found["neve_http_active_requests"] == 0
    same.close()
    rows.close()


def test_nothing_has_happened() -> None:
    rows = SharedRows(LAYOUT, 1)
    found = figures(Counters(rows, 0))
    rows.close()
    assert found == {
        "neve_http_sent_bytes_total": 0,
        "neve_http_received_bytes_total": 0,
        "neve_http_active_requests": 0,
        "neve_http_active_uploads": 0,
        **{f'neve_http_queued_work{{pool="{pool}"}}': 0 for pool in POOLS},
        **{f'neve_errors_total{{kind="{kind}"}}': 0 for kind in KINDS},
        **{
            f'neve_{what}_total{{state="{state}"}}': 0
            for what in ("blobs", "blob_bytes")
            for state in ("new", "known")
        },
        **{
            f'neve_lookups_total{{result="{result}",what="{what}"}}': 0
            for what in ("blobs", "directories", "path_infos", "narinfos")
            for result in ("hit", "miss")
        },
    }


def test_errors_and_hits_of_a_cache_that_runs(tmp_path: Path) -> None:
    """By the kind of error; narinfos that were made already are told from those that were not."""
    services = open_services(f"local://{tmp_path}/store")
    (tmp_path / "file").write_bytes(b"contents")
    path = import_path(services, tmp_path / "file").store_path
    with serving(services) as served:
        name = f"/{base32.encode(path.digest)}.narinfo"
        for _ in range(3):
            assert served.http.get(name).status_code == 200
        assert served.metric('neve_lookups_total{result="miss",what="narinfos"}') == 1
        assert served.metric('neve_lookups_total{result="hit",what="narinfos"}') == 2
        # A path that is not there is an answer, and no error.
        assert served.http.get(f"/{'0' * 32}.narinfo").status_code == 404
        assert served.metric('neve_errors_total{kind="NotFound"}') == 0
        assert served.http.get("/nar/nonsense").status_code in (400, 404)
        assert served.http.put(f"/{'0' * 32}.narinfo", content=b"nonsense").status_code == 400
        assert served.metric('neve_errors_total{kind="InvalidRequest"}') >= 1
    services.close()
