"""The example alerts: Prometheus takes them, and they fire when they should."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from neve.http_cache.metrics import LAYOUT as HTTP
from neve.server.figures import LAYOUT as GRPC
from neve.serving.metrics import Layout, SharedRows

RULES = Path(__file__).parents[2] / "contrib" / "prometheus" / "neve.rules.yml"
CASES = Path(__file__).with_name("alerts.test.yml")


def promtool(*arguments: str | Path, given: str = "") -> str:
    done = subprocess.run(["promtool", *arguments], input=given, text=True, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.prometheus
def test_prometheus_takes_the_rules() -> None:
    assert f"{len(alerts())} rules found" in promtool("check", "rules", RULES)


@pytest.mark.prometheus
def test_alerts_fire_when_they_should(tmp_path: Path) -> None:
    for file in (RULES, CASES):
        shutil.copy(file, tmp_path)
    assert "SUCCESS" in promtool("test", "rules", tmp_path / CASES.name)


@pytest.mark.prometheus
@pytest.mark.parametrize("layout", [GRPC, HTTP], ids=["daemon", "serve"])
def test_prometheus_takes_the_figures(layout: Layout) -> None:
    rows = SharedRows(layout, 1)
    text = rows.text().decode()
    rows.close()
    assert "# TYPE neve_errors_total counter" in text
    assert promtool("check", "metrics", given=text) == ""


def test_each_alert_is_tried() -> None:
    """When all is well, and when it is not."""
    found = re.findall(r"alertname: (\w+)", CASES.read_text())
    assert sorted(found) == sorted(2 * alerts())


def alerts() -> list[str]:
    return re.findall(r"alert: (\w+)", RULES.read_text())
