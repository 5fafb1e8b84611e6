"""What the guide and the example alerts say of figures is what the program has."""

from __future__ import annotations

import re
from pathlib import Path

from neve.http_cache.metrics import LAYOUT as HTTP
from neve.server.figures import LAYOUT as GRPC
from neve.serving.metrics import KINDS
from neve.telemetry.otlp import FLUSH_SECONDS

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "telemetry.md").read_text()
RULES = (ROOT / "contrib" / "prometheus" / "neve.rules.yml").read_text()

FAMILIES = {family.name: family for layout in (GRPC, HTTP) for family in layout.families}


def exposed() -> dict[str, tuple[str, list[str]]]:
    """Kind and labels of every figure, by the name that Prometheus has for it."""
    return {
        f"{name}_total" if family.kind == "counter" else name: (
            family.kind,
            [label for each in family.labels for label in each.names],
        )
        for name, family in FAMILIES.items()
    }


def test_every_figure_is_told_with_its_labels() -> None:
    told = {}
    for names, kind, labels in re.findall(r"^\| (`neve_[^|]+) \| (\w+) \| ([^|]*)\|", TEXT, re.MULTILINE):
        for name in re.findall(r"`(\w+)`", names):
            told[name] = (kind, re.findall(r"`(\w+)`", labels))
    assert told == exposed()


def test_every_kind_of_error_is_told() -> None:
    for kind in KINDS:
        assert f"`{kind}`" in TEXT


def test_the_flush_time_is_told() -> None:
    assert f"default {FLUSH_SECONDS * 1000:g} |" in TEXT
    assert FLUSH_SECONDS == 2
    assert "at most two seconds at the end" in TEXT


def test_alerts_ask_for_figures_that_there_are() -> None:
    known = exposed()
    asked = re.findall(r"\b(neve_[a-z_]+)(?:\{([^}]*)\})?", RULES)
    assert len(asked) >= 8
    for name, selector in asked:
        base = name.removesuffix("_bucket")
        if base == "neve_":  # A pattern of names.
            continue
        assert base in known, name
        for label in re.findall(r"(\w+)=~?\"", selector):
            assert label in known[base][1]
    for kind in re.findall(r'kind="(\w+)"', RULES):
        assert kind in KINDS
    for name in ("neve_grpc_queued_work", "neve_http_queued_work"):
        assert name in known
    assert {"alert", "expr", "labels", "annotations"} <= set(
        re.findall(r"^ +(?:- )?(\w+):", RULES, re.MULTILINE)
    )
    assert "\t" not in RULES
