"""The manual page, made of what ``--help`` says: ``man``.

Roff, as man(7) describes it. Nothing in it depends on the machine or the day.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

import click

from neve import __version__
from neve.cli import output
from neve.cli.config_file import SYSTEM_FILE
from neve.cli.configuration import all_commands

_SPECIAL = {
    "\\": r"\e",
    "-": r"\-",
    "'": r"\(aq",
    '"': r"\(dq",
    "`": r"\(ga",
    "^": r"\(ha",
    "~": r"\(ti",
}

_VARIABLES = {
    "NETRC": "The file of passwords for caches of others, instead of ~/.netrc.",
    "NIX_ATTRS_JSON_FILE": "See neve copy.",
    "OTEL_*": "Where traces go and how, as OpenTelemetry says.",
    "STATE_DIRECTORY": "Where the store of a service is by default; set by systemd.",
    "XDG_CACHE_HOME, XDG_CONFIG_HOME, XDG_DATA_HOME": "Instead of ~/.cache, ~/.config and ~/.local/share.",
}
"""Those that no option names."""

_FILES = {
    f"~/.config/neve/neve.toml, {SYSTEM_FILE}": "The configuration: the first of them that is there.",
    "/var/lib/neve, ~/.local/share/neve": "The store, of root and of others, if nothing else is said.",
}


@click.command("man", short_help="Write the manual page.")
@click.pass_context
def man(context: click.Context) -> None:
    """Write the manual page, in the form that man(1) reads.

    \b
    Example:
      neve man | man -l -
    """
    root = context.find_root().command
    assert isinstance(root, click.Group)
    output.write(manual(root).encode())


def manual(root: click.Group) -> str:
    """The manual page of a program."""
    return "\n".join(_lines(root)) + "\n"


def _lines(root: click.Group) -> Iterator[str]:
    context = click.Context(root, info_name="neve", **root.context_settings)
    summary, *more = _paragraphs(root)
    yield r".\" Made of what neve --help says; change that, and run: make man"
    # Neither hyphens nor wide gaps: much of it is meant to be copied.
    yield ".nr HY 0"
    yield f'.TH NEVE 1 "" "neve {__version__}" "User Commands"'
    yield ".ad l"
    yield from (".SH NAME", rf"neve \- {escaped(summary.removesuffix('.'))}")
    yield from (".SH SYNOPSIS", r"\fBneve\fR [\fIOPTIONS\fR] \fICOMMAND\fR [\fIARGS\fR]...")
    yield ".SH DESCRIPTION"
    for paragraph in more:
        yield from _paragraph(paragraph)
    yield from (".SH OPTIONS", *_options(context))
    yield ".SH COMMANDS"
    for words, command in all_commands(root):
        yield from _command(words, command, context)
    yield from (
        ".SH ENVIRONMENT",
        *_definitions(dict(sorted((_option_variables(root) | _VARIABLES).items()))),
    )
    yield from (".SH FILES", *_definitions(_FILES))
    yield from (".SH EXIT STATUS", *_definitions(_exit_codes()))
    yield from (".SH SEE ALSO", r"\fBnix\fR(1), \fBmount\fR(8), \fBsystemd.socket\fR(5)")


def _command(words: tuple[str, ...], command: click.Command, root: click.Context) -> Iterator[str]:
    parent = root
    for name in words[:-1]:
        assert isinstance(parent.command, click.Group)
        parent = click.Context(parent.command.commands[name], info_name=name, parent=parent)
    context = click.Context(command, info_name=words[-1], parent=parent)
    pieces = " ".join(command.collect_usage_pieces(context))
    yield f'.SS "{escaped("neve " + " ".join(words))}"'
    yield rf"\fBneve {escaped(' '.join(words))}\fR {escaped(pieces)}"
    for paragraph in _paragraphs(command):
        yield from _paragraph(paragraph)
    yield from _options(context)


def _paragraphs(command: click.Command) -> list[str]:
    return inspect.cleandoc(command.help or "").split("\n\n")


def _paragraph(text: str) -> Iterator[str]:
    if not text.startswith("\b"):
        yield from (".PP", escaped(" ".join(text.split())))
        return
    yield from (".PP", ".RS 4", ".EX")
    yield from (escaped(line) for line in text.splitlines()[1:])
    yield from (".EE", ".RE")


def _options(context: click.Context) -> Iterator[str]:
    for parameter in context.command.get_params(context):
        if "--help" in parameter.opts and context.parent is not None:
            continue  # Once is enough.
        record = parameter.get_help_record(context)
        if isinstance(parameter, click.Option) and record is not None:
            names, text = record
            yield from (".TP", _option_names(names), escaped(" ".join(text.split())))


def _option_names(text: str) -> str:
    words = [word for word in re.split(r"([ ,/]+)", text) if word]
    return "".join(_option_word(word) for word in words)


def _option_word(word: str) -> str:
    if not word.strip(" ,/"):
        return word
    return rf"\fB{escaped(word)}\fR" if word.startswith("-") else rf"\fI{escaped(word)}\fR"


def _definitions(definitions: dict[str, str]) -> Iterator[str]:
    for name, text in definitions.items():
        yield from (".TP", rf"\fB{escaped(name)}\fR", escaped(text))


def _option_variables(root: click.Group) -> dict[str, str]:
    """The variables that options may come from."""
    found: dict[str, set[str]] = {}
    for command in (root, *(command for _, command in all_commands(root))):
        for parameter in command.get_params(click.Context(command)):
            if isinstance(parameter, click.Option) and isinstance(parameter.envvar, str):
                found.setdefault(parameter.envvar, set()).add(max(parameter.opts, key=len))
    return {variable: f"As {' and '.join(sorted(names))}." for variable, names in found.items()}


def _exit_codes() -> dict[str, str]:
    """As they are described where they are made."""
    from neve.cli import __main__ as program

    found = re.findall(r"^(\d+) +(\S.*)$", program.__doc__ or "", re.MULTILINE)
    return {code: f"{text[0].upper()}{text[1:]}." for code, text in found}


def escaped(text: str) -> str:
    """Text for roff: as it is, whatever is in it."""
    characters = (
        _SPECIAL.get(each) or (each if each.isascii() else f"\\[u{ord(each):04X}]") for each in text
    )
    line = "".join(characters)
    return rf"\&{line}" if line.startswith((".", "'")) else line
