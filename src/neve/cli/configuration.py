"""What the configuration file says for options: for those that nobody gives, before their defaults.

    [common]                      # of every command that has them
    store = "local:///srv/neve"
    log-level = "warning"

    [daemon]                      # one section for each command
    listen = ["unix:/run/neve/socket"]
    workers = 4

    [nar.import]
    name = "source"

A key is the long name of an option. Its value has the type that TOML has for it, and is then checked by the
very type that checks the option. The command line comes first, then the environment, then this.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from neve.cli import config_file
from neve.cli.config_file import ConfigFile, shown_key
from neve.cli.options import STORE_OPTIONS
from neve.cli.server_options import GroupType, SizeType
from neve.errors import InvalidRequest, NeveError

if TYPE_CHECKING:
    Words = bool | str | tuple[str, ...]
    """A value as click takes it: what would stand on the command line, or whether a flag would."""

COMMON = "common"
UNCONFIGURED = frozenset({"completion", "config", "man"})
"""Commands that work whatever the file says. It says nothing for them."""
_META = "neve.cli.configuration"

_TEXT, _FLAG, _WHOLE, _NUMBER, _WHOLE_OR_TEXT = (str,), (bool,), (int,), (int, float), (int, str)
_TYPE_NAMES = {
    _TEXT: "a string",
    _FLAG: "true or false",
    _WHOLE: "a whole number",
    _NUMBER: "a number",
    _WHOLE_OR_TEXT: "a string or a whole number",
}
_FOUND_NAMES = {
    bool: "true or false",
    str: "a string",
    int: "a whole number",
    float: "a number",
    list: "a list",
    dict: "a table",
}

Section = tuple[str, ...]
"""The words of a command, or ``(COMMON,)``."""


class Configuration:
    """The file of this run, if there is one."""

    def __init__(self, file: ConfigFile | None = None, failure: NeveError | None = None) -> None:
        """``failure`` is why the file cannot be used. Told when a command needs it, and not to who asks for
        help."""
        self.file = file
        self._failure = failure

    def require(self) -> None:
        """Raises why the file cannot be used, if it cannot."""
        if isinstance(self._failure, InvalidRequest):
            raise click.UsageError(str(self._failure)) from self._failure
        if self._failure is not None:
            raise self._failure

    def values(
        self, section: Section, options: Mapping[str, click.Option], context: click.Context
    ) -> dict[str, Words]:
        """What a section says, by the names of ``options``, which are those that it may set. Raises
        ``click.UsageError`` naming the file, the key and, where possible, the line."""
        found: dict[str, Words] = {}
        for key, value in self._table(section).items():
            option = options.get(key)
            if option is not None:
                found[key] = self._checked((*section, key), option, value, context)
        return found

    def check_keys(self, section: Section, known: Sequence[str], home: Callable[[str], str]) -> None:
        """Raises ``click.UsageError`` if a section has a key that is not ``known``. ``home`` says of others
        where they belong, or nothing."""
        for key in self._table(section):
            if key in known:
                continue
            more = home(key) or _similar(key, known)
            where = f"[{shown_key(section)}]"
            raise click.UsageError(
                f"{self.place((*section, key))}: {where} has no key {key!r}{'; ' + more if more else ''}"
            )

    def check_sections(self, root: click.Group) -> None:
        """Raises ``click.UsageError`` if there is a section that belongs to no command."""
        if self.file is None:
            return
        groups: dict[Section, click.Group] = {(): root}
        groups |= {(name,): group for name, group in root.commands.items() if isinstance(group, click.Group)}
        for path, group in groups.items():
            names = [name for name, command in group.commands.items() if not command.hidden]
            known = names if path else [COMMON, *(name for name in names if name not in UNCONFIGURED)]
            for key, value in self._table(path).items():
                place = self.place((*path, key))
                if key not in known:
                    more = _similar(key, known) or f"known: {', '.join(sorted(known))}"
                    raise click.UsageError(
                        f"{place}: there is no section [{shown_key((*path, key))}]; {more}"
                    )
                if not isinstance(value, dict):
                    raise click.UsageError(
                        f"{place}: {shown_key((*path, key))} is {_found(value)}, must be a table"
                    )

    def said(self, keys: Sequence[str]) -> Any:
        """A value as it stands in the file."""
        return self._table(tuple(keys[:-1])).get(keys[-1])

    def place(self, keys: Sequence[str]) -> str:
        """Where a key stands, for messages and listings."""
        assert self.file is not None
        return self.file.place(keys)

    def _table(self, section: Section) -> Mapping[str, Any]:
        table: Any = {} if self.file is None else self.file.tables
        for name in section:
            table = table.get(name, {})
            if not isinstance(table, dict):
                return {}  # Which ``check_sections`` tells.
        found: Mapping[str, Any] = table
        return found

    def _checked(self, keys: Section, option: click.Option, value: Any, context: click.Context) -> Words:
        where = f"{self.place(keys)}: {keys[-1]} in [{shown_key(keys[:-1])}]"
        words = _words(option, value, where)
        try:
            option.process_value(context, words)
        except click.UsageError as error:
            reason = error.message.removesuffix(".") if error.message else "this is missing"
            raise click.UsageError(f"{where}: {reason}", context) from error
        return words


def _words(option: click.Option, value: Any, where: str) -> Words:
    """A value as click takes it. Raises ``click.UsageError`` if TOML has another type for it."""
    kinds = _kinds(option)
    if option.multiple:
        values = value if isinstance(value, list) else [value]
        return tuple(str(_of_kind(kinds, each, where, ", or a list of such")) for each in values)
    word = _of_kind(kinds, value, where, "")
    return word if isinstance(word, bool) else str(word)


def _kinds(option: click.Option) -> tuple[type, ...]:
    if option.is_flag:
        return _FLAG
    # Not whole numbers for modes: 0o660 would be 432 by the time it gets here.
    for of_option, of_toml in (
        (click.types.IntParamType, _WHOLE),
        (click.types.FloatParamType, _NUMBER),
        (SizeType, _WHOLE_OR_TEXT),
        (GroupType, _WHOLE_OR_TEXT),
    ):
        if isinstance(option.type, of_option):
            return of_toml
    return _TEXT


def _of_kind(kinds: tuple[type, ...], value: Any, where: str, or_else: str) -> bool | str | int | float:
    if type(value) not in kinds:
        raise click.UsageError(f"{where} is {_found(value)}, must be {_TYPE_NAMES[kinds]}{or_else}")
    if isinstance(value, str) and "\0" in value:
        raise click.UsageError(f"{where}: a text holds no NUL")
    accepted: bool | str | int | float = value
    return accepted


def _found(value: Any) -> str:
    return _FOUND_NAMES.get(type(value), "a date or a time")


def _similar(key: str, known: Sequence[str]) -> str:
    import difflib

    close = difflib.get_close_matches(key, known, n=1)
    return f"did you mean {close[0]!r}?" if close else ""


# Which options there are.


def key_of(option: click.Option) -> str:
    """The key of an option: its long name."""
    return max(option.opts, key=len).lstrip("-")


def options_of(command: click.Command, context: click.Context) -> dict[str, click.Option]:
    """The options of a command that a file may set, by their keys."""
    return {
        key_of(parameter): parameter
        for parameter in command.get_params(context)
        if isinstance(parameter, click.Option) and not parameter.is_eager and not parameter.hidden
    }


def common_options(root: click.Context, options: Mapping[str, click.Option]) -> dict[str, click.Option]:
    """Those of the section for all commands, as far as they are at hand: those of the program, and what a
    command with these ``options`` shares with others."""
    shared = {key: option for key, option in options.items() if key in STORE_OPTIONS}
    return options_of(root.command, root) | shared


def all_commands(group: click.Group, words: Section = ()) -> Iterator[tuple[Section, click.Command]]:
    """The commands that people run, by their words, in order."""
    for name, command in sorted(group.commands.items()):
        if isinstance(command, click.Group):
            yield from all_commands(command, (*words, name))
        elif not command.hidden:
            yield (*words, name), command


def configured_commands(root: click.Group) -> Iterator[tuple[Section, click.Command]]:
    """The commands that a file has sections for, in order."""
    return ((words, command) for words, command in all_commands(root) if words[0] not in UNCONFIGURED)


def section_of(context: click.Context, name: str) -> Section:
    """The section of the command ``name`` in a context that is that of a group."""
    names: list[str] = [name]
    while context.parent is not None:
        names.append(context.info_name or "")
        context = context.parent
    return tuple(reversed(names))


# How commands get them.


def load(context: click.Context, _parameter: click.Parameter, path: str | None) -> None:
    """The callback of ``--config``: reads the file, and hands out what it says for all commands."""
    configuration = _read(path, named=not context.resilient_parsing)
    context.meta[_META] = configuration
    if configuration.file is not None:
        with contextlib.suppress(click.UsageError):  # Told by ``Configured``.
            values = configuration.values((COMMON,), options_of(context.command, context), context)
            context.default_map = _by_name(values, options_of(context.command, context))


def _read(path: str | None, named: bool) -> Configuration:
    """``named``: whether somebody runs the command, and has not just typed a part of it."""
    if path is None and config_file.VARIABLE in os.environ:
        path = ""  # Which click takes for none at all.
    try:
        if path is None:
            return Configuration(config_file.find(os.environ))
        return Configuration(config_file.read(path, named=named) if path else None)
    except NeveError as error:
        return Configuration(failure=error)


def current(context: click.Context) -> Configuration:
    """The configuration of this run."""
    found: Configuration = context.meta[_META]
    return found


def _by_name(values: Mapping[str, Words], options: Mapping[str, click.Option]) -> dict[str, Any]:
    return {options[key].name or key: value for key, value in values.items()}


def section_values(
    configuration: Configuration, section: Section, command: click.Command, context: click.Context
) -> tuple[dict[str, Words], dict[str, Words]]:
    """What the file says for a command: in the section for all, and in its own. Raises
    ``click.UsageError``."""
    root = context.find_root()
    own = options_of(command, context)
    ours, shared = options_of(root.command, root), common_options(root, own)
    configuration.check_keys((COMMON,), [*ours, *STORE_OPTIONS], lambda key: _homes(root, key))
    configuration.check_keys(
        section, list(own), lambda key: f"it belongs to [{COMMON}]" if key in ours else ""
    )
    return (
        configuration.values((COMMON,), shared, context),
        configuration.values(section, own, context),
    )


def _homes(root: click.Context, key: str) -> str:
    """Which sections have a key."""
    assert isinstance(root.command, click.Group)
    found = [
        f"[{shown_key(words)}]"
        for words, command in configured_commands(root.command)
        if key in options_of(command, click.Context(command, parent=root))
    ]
    return f"it belongs to {' or '.join(found)}" if found else ""


class Configured(click.Group):
    """A group whose commands get from the configuration file what the command line does not say."""

    group_class = type

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        if name is None or command is None or isinstance(command, click.Group) or command.hidden:
            return name, command, rest
        if section_of(ctx, name)[0] in UNCONFIGURED:
            return name, command, rest
        try:
            self._configure(ctx, name, command)
        except (click.UsageError, NeveError):
            if not ctx.resilient_parsing:
                with contextlib.suppress(click.UsageError):
                    command.make_context(
                        name, list(rest), parent=ctx
                    )  # Answers --help, if that is asked for.
                raise
        return name, command, rest

    def _configure(self, ctx: click.Context, name: str, command: click.Command) -> None:
        configuration = current(ctx)
        configuration.require()
        if configuration.file is None:
            return
        root = ctx.find_root()
        assert isinstance(root.command, click.Group)
        own = click.Context(command, parent=ctx, info_name=name)
        try:
            configuration.check_sections(root.command)
            common, section = section_values(configuration, section_of(ctx, name), command, own)
        except click.UsageError as error:
            error.ctx = own  # Whose --help tells what there is.
            raise
        options = options_of(command, own)
        shared = {key: value for key, value in common.items() if key in options and key in STORE_OPTIONS}
        ctx.default_map = {**(ctx.default_map or {}), name: _by_name(shared | section, options)}


config_option = click.option(
    "--config",
    metavar="FILE",
    type=click.Path(readable=False),  # What is the matter with it, reading tells.
    envvar=config_file.VARIABLE,
    show_envvar=True,
    is_eager=True,
    expose_value=False,
    callback=load,
    help="The configuration file; '' for none. Default: ~/.config/neve/neve.toml, else "
    f"{config_file.SYSTEM_FILE}.",
)
