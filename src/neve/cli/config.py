"""What options hold, and from where: ``config show``."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import click

from neve.cli import output
from neve.cli.config_file import shown_key
from neve.cli.configuration import (
    COMMON,
    Configuration,
    Section,
    common_options,
    configured_commands,
    current,
    options_of,
    section_values,
)
from neve.cli.logs import one_line, without_secrets
from neve.cli.options import STORE_OPTIONS
from neve.telemetry import LOGGER

_ANY = "import"
"""A command that uses a store, and so has the options for all of those."""


@click.group(no_args_is_help=False)
def config() -> None:
    """Tell what the configuration file and the environment say.

    \b
    Example:
      neve config show
    """


class _Held(NamedTuple):
    """What holds for an option."""

    keys: Section
    value: Any
    """As on the command line; None: nothing."""
    source: str

    def line(self) -> str:
        """It as a line of the file."""
        name = shown_key(self.keys)
        if self.value is None:
            return f"# {name} is not set"
        return f"{name} = {_toml(self.value)}  # {one_line(self.source or 'default')}"


@config.command("show", short_help="Write what holds, and from where.")
@click.argument("sections", metavar="[SECTION]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Also what holds by default, or is not set.")
@click.pass_context
def config_show(context: click.Context, sections: tuple[str, ...], everything: bool) -> None:
    """Write what options hold if the command line does not say it, one per line, and from where.

    SECTION is 'common' or a command, such as 'daemon' or 'nar.import'; without one, all of them. Each line
    would stand in the file as it is; passwords in addresses are left out. What is wrong with the file is told
    in the end, all of it.

    \b
    Example:
      neve config show
      neve config show --all daemon
    """
    configuration = current(context)
    configuration.require()
    root = context.find_root()
    assert isinstance(root.command, click.Group)
    known = {(COMMON,): root.command, **dict(configured_commands(root.command))}
    wanted = _wanted(sections, known)
    failures: list[click.UsageError] = []
    try:
        configuration.check_sections(root.command)
    except click.UsageError as error:
        failures.append(error)
    if configuration.file is not None:
        LOGGER.info("the configuration file is %s", configuration.file.path)
    for section in wanted:
        try:
            held = list(_held(configuration, section, known[section], root))
        except click.UsageError as error:
            failures.append(error)
            continue
        for each in held:
            if everything or each.source:
                output.line(each.line())
    _tell(failures)


def _tell(failures: list[click.UsageError]) -> None:
    *others, last = dict.fromkeys(error.message for error in failures) or [None]
    for message in others:
        LOGGER.error("%s", message)
    if last is not None:
        raise click.UsageError(last)


def _wanted(names: tuple[str, ...], known: Mapping[Section, click.Command]) -> list[Section]:
    by_name = {shown_key(section): section for section in known}
    for name in names:
        if name not in by_name:
            raise click.BadParameter(f"there is no section {name!r}; there are: {', '.join(by_name)}")
    return [by_name[name] for name in names] or list(known)


def _held(
    configuration: Configuration, section: Section, command: click.Command, root: click.Context
) -> Iterator[_Held]:
    """What holds for the options of a section. Raises ``click.UsageError``."""
    if section == (COMMON,):
        assert isinstance(root.command, click.Group)
        command = root.command.commands[_ANY]
    context = click.Context(command, parent=root, info_name=section[-1])
    words = (_ANY,) if section == (COMMON,) else section
    common, own = section_values(configuration, words, command, context)
    options = options_of(command, context)
    if section == (COMMON,):
        options, own = options_of(root.command, root) | common_options(root, options), common
    else:
        # What is said for all is told there.
        options = {key: option for key, option in options.items() if key not in STORE_OPTIONS or key in own}
    for key, option in options.items():
        yield _of_option((*section, key), option, own.get(key), configuration, context)


def _of_option(
    keys: Section, option: click.Option, said: Any, configuration: Configuration, context: click.Context
) -> _Held:
    place = "" if said is None else configuration.place(keys)
    variable = option.envvar if isinstance(option.envvar, str) else None
    if variable and (text := os.environ.get(variable)):
        return _Held(keys, text, f"{variable}, not {place}" if place else variable)
    if said is not None:
        return _Held(keys, configuration.said(keys), place)
    default = option.get_default(context)
    usable = isinstance(default, bool | int | float | str) and default != ""
    return _Held(keys, default if usable else None, "")


def _toml(value: Any) -> str:
    """A value as TOML has it."""
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"{value:g}" if isinstance(value, float) else str(value)
    text = without_secrets(value).replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(_escaped(character) for character in text) + '"'


def _escaped(character: str) -> str:
    if character.isprintable():
        return character
    number = ord(character)
    # What is no UTF-8 cannot be written in TOML: shown, but not as what it was.
    return f"\\u{number:04X}" if number < 0xD800 else f"\\U{number:08X}" if number > 0xDFFF else "\\uFFFD"
