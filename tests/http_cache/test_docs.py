"""What the guide says of limits, options and figures is what the program has."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from neve.cli.serve import serve
from neve.cli.server_options import shown_size
from neve.http_cache.limits import Limits

TEXT = (Path(__file__).parents[2] / "docs" / "binary-cache.md").read_text()


def test_every_limit_is_told_with_its_default() -> None:
    rows = re.findall(r"^\| `--([a-z-]+)` \| (\S+) \|", TEXT, re.MULTILINE)
    expected = {}
    for field in dataclasses.fields(Limits):
        value = getattr(Limits(), field.name)
        shown = shown_size(value) if field.name.endswith("_bytes") else f"{value:g}"
        expected[field.name.replace("_", "-")] = shown
    assert dict(rows) == expected


def test_every_option_is_told() -> None:
    for parameter in serve.params:
        for option in parameter.opts:
            if option.startswith("--") and option not in ("--store", "--socket-mode", "--socket-group"):
                assert f"{option}" in TEXT or option.endswith("-service-addr"), option
