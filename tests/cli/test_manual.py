"""The manual page has all that --help has, and is what man(1) takes."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import click
import pytest

from neve.cli.commands import cli
from neve.cli.configuration import all_commands
from neve.cli.manual import escaped, manual
from tests.cli.conftest import Neve

PAGE = Path(__file__).parents[2] / "docs" / "neve.1"


def set_by_groff(page: str, *options: str) -> str:
    """The page as a terminal shows it, without emphasis."""
    done = subprocess.run(
        ["groff", "-man", "-ww", "-Tutf8", "-P-c", "-rLL=200n", *options],
        input=page,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return re.sub(r".\x08", "", done.stdout)


def words(text: str) -> str:
    return " ".join(text.replace("\u2010", "-").replace("\u2212", "-").split())


def test_the_page_that_is_installed(neve: Neve) -> None:
    assert neve("man").out == PAGE.read_bytes(), "run: make man"


def test_it_does_not_depend_on_the_terminal(neve: Neve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("NEVE_STORE", "memory://")
    assert neve("man").out == PAGE.read_bytes()


@pytest.mark.manual
def test_every_command_and_option_is_there() -> None:
    text = words(set_by_groff(PAGE.read_text()))
    root = click.Context(cli, info_name="neve", **cli.context_settings)
    for path, command in [((), cli), *all_commands(cli)]:
        context = click.Context(command, parent=root) if path else root
        assert " ".join(("neve", *path)) in text
        for parameter in command.get_params(context):
            record = parameter.get_help_record(context)
            if isinstance(parameter, click.Option) and record is not None:
                assert words(record[0]) in text
                assert words(record[1]) in text
        for paragraph in (command.help or "").split("\n\n"):
            # The first one is behind the name of the page, without a full stop.
            assert words(paragraph.replace("\b", "")).removesuffix(".") in text
    assert "daemon-worker" not in text


@pytest.mark.manual
def test_narrow_and_wide() -> None:
    for width in ("60n", "80n", "300n"):
        assert "EXIT STATUS" in set_by_groff(PAGE.read_text(), f"-rLL={width}")


def test_its_sections() -> None:
    headings = re.findall(r"^\.SH (.*)$", manual(cli), re.MULTILINE)
    assert headings == [
        *("NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "COMMANDS"),
        *("ENVIRONMENT", "FILES", "EXIT STATUS", "SEE ALSO"),
    ]
    for name in ("NEVE_CONFIG", "NEVE_STORE", "BLOB_SERVICE_ADDR", "NETRC", "OTEL_*"):
        assert rf"\fB{escaped(name)}\fR" in manual(cli)


@pytest.mark.manual
@pytest.mark.parametrize(
    "text",
    [
        "-a--b",
        ".SH",
        "'quoted'",
        'a "b"',
        "a\\b \\fB \\n(.x",
        "`a` ^ ~",
        "ä … €",
        "\\",
        "%s {} @ #",
        ".",
        "a.b",
    ],
)
def test_nothing_of_a_text_is_roff(text: str) -> None:
    shown = set_by_groff(f".TH X 1\n.SH A\n{escaped(text)}\n")
    assert words(text) in words(shown)
