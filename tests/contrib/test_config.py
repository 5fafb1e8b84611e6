"""The example of a configuration file, and what the guide says of it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import click

from neve.cli import config_file
from neve.cli.commands import cli
from neve.cli.configuration import COMMON, Configuration, all_commands, section_values
from tests.cli.conftest import Neve, neve

__all__ = ["neve"]

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "contrib" / "neve.toml"


def test_the_example_is_taken(neve: Neve) -> None:
    done = neve("--config", EXAMPLE, "config", "show")
    assert done.code == 0, done.err
    held = tomllib.loads(done.out.decode())
    assert held == tomllib.loads(EXAMPLE.read_text())


def test_the_guide_is_right() -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    (block,) = re.findall(r"\n\n((?:    .*\n|\n)*    \[nar\.import\]\n    .*\n)", text)
    sample = "\n".join(line.removeprefix("    ") for line in block.splitlines())
    configuration = Configuration(config_file.ConfigFile("sample", sample, tomllib.loads(sample)))
    configuration.check_sections(cli)
    root = click.Context(cli)
    sections = dict(all_commands(cli))
    for words in (("daemon",), ("nar", "import")):
        common, own = section_values(
            configuration, words, sections[words], click.Context(sections[words], parent=root)
        )
        assert common
        assert own
    assert COMMON in sample
    assert config_file.SYSTEM_FILE in text
    for unit in sorted((ROOT / "contrib" / "systemd").iterdir()):
        assert unit.name in text or unit.suffix == ".sysusers"
