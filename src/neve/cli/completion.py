"""Completion of command lines in shells: ``completion``, and what the shells call behind it.

click knows the shells, and what of a command line is to be completed. What it cannot know are store paths.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem, get_completion_class, shell_complete

from neve.cli import output
from neve.errors import NeveError

if TYPE_CHECKING:
    from neve.cli.options import StoreOptions
    from neve.nix.store_path import StorePath

_PROGRAM = "neve"
_VARIABLE = "_NEVE_COMPLETE"
"""Says that a shell asks, and how it wants to be answered."""

SHELLS = ("bash", "zsh", "fish")

_MAX_LOOKED_AT = 50_000
"""Store paths among which those are looked for that begin as what was typed: nobody waits for long."""
_MAX_OFFERED = 500
_PAGE = 5_000


@click.command(short_help="Write what makes a shell complete command lines.")
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Write a script that makes SHELL complete the command lines of neve: commands, options, and the store
    paths of a store on this machine.

    \b
    Example:
      neve completion bash > /etc/bash_completion.d/neve
      neve completion zsh > "${fpath[1]}/_neve"
      neve completion fish > ~/.config/fish/completions/neve.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    script = kind(context.find_root().command, {}, _PROGRAM, _VARIABLE)
    # Not its ``source``, which for bash looks what version is there: it may be for another machine.
    output.line((script.source_template % script.source_vars()).strip())


def asked() -> bool:
    """Whether this process was started by a shell, to complete a command line."""
    return _VARIABLE in os.environ


def answer(root: click.Command) -> int:
    """Tells a shell what it asked for; the exit code."""
    return shell_complete(root, {}, _PROGRAM, _VARIABLE, os.environ[_VARIABLE])


def store_paths(context: click.Context, incomplete: str) -> list[CompletionItem]:
    """Store paths that begin like this, if the store is on this machine. Nobody waits for others, and what is
    the matter with it is not for here."""
    from neve.cli.options import StoreOptions, default_store
    from neve.registry import parse_address

    as_base_name = bool(incomplete) and not incomplete.startswith("/")
    found: list[str] = []
    try:
        params = context.params
        url = params.get("path_info_service_addr") or params.get("store")
        if url is None and context.get_parameter_source("store_composition") is not ParameterSource.DEFAULT:
            return []  # What that file says is not looked into.
        url = url or default_store()
        if parse_address(url).scheme == "local":
            for path in _names(StoreOptions(url)):
                text = path.base_name if as_base_name else path.absolute
                if text.startswith(incomplete):
                    found.append(text)
    except (NeveError, click.ClickException, OSError):
        return []
    return [CompletionItem(text) for text in sorted(found)[:_MAX_OFFERED]]


def _names(store: StoreOptions) -> Iterator[StorePath]:
    after, looked_at = b"", 0
    with store.open() as opened:
        while looked_at < _MAX_LOOKED_AT and (page := opened.path_infos.names(after, _PAGE)):
            yield from page
            looked_at += len(page)
            after = page[-1].digest
