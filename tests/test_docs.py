"""What the documents say of options and defaults is what the program has."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from neve.cli.server_options import shown_size
from neve.rpc.target import DEFAULT_TIMEOUT, PARAMETERS
from neve.server.limits import Limits

DOCS = Path(__file__).parents[1] / "docs"


def test_every_limit_of_the_daemon_is_told_with_its_default() -> None:
    rows = re.findall(r"^\| `--([a-z-]+)` \| (\S+) \|", (DOCS / "daemon.md").read_text(), re.MULTILINE)
    limits = Limits()
    expected = {}
    for field in dataclasses.fields(limits):
        value = getattr(limits, field.name)
        shown = shown_size(value) if field.name.endswith("_bytes") else f"{value:g}"
        expected[field.name.replace("_", "-")] = shown if "e" not in shown else str(value)
    assert dict(rows) == expected


def test_every_parameter_of_an_address_is_told() -> None:
    text = (DOCS / "daemon.md").read_text()
    for name in PARAMETERS:
        assert f"{name}=" in text
    assert f"default {DEFAULT_TIMEOUT:g}" in text
