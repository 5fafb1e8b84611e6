"""What the commands that serve have in common: types of options, limits as options, workers."""

from __future__ import annotations

import contextlib
import dataclasses
import grp
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import click

from neve.errors import InvalidRequest

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from neve.cli.options import StoreOptions
    from neve.store.services import Services

    _SizeBase = click.ParamType[int]
    _ModeBase = click.ParamType[int]
    _GroupBase = click.ParamType[int]
else:
    _SizeBase = _ModeBase = _GroupBase = click.ParamType

Command = TypeVar("Command", bound=Callable[..., Any])
Limits = TypeVar("Limits", bound="DataclassInstance")

OWNER_ONLY, OWNER_AND_GROUP = 0o600, 0o660

FILE = click.Path(dir_okay=False)

_UNITS = {"": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) *([a-z]*)", re.IGNORECASE)


class SizeType(_SizeBase):
    """A number of bytes, as ``65536`` or ``64KiB``."""

    name = "size"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = _SIZE.fullmatch(value.strip())
        unit = _UNITS.get(match[2].lower()) if match else None
        if match is None or unit is None:
            self.fail(f"{value!r} is no size; write for example 65536 or 64MiB", parameter, context)
        size = float(match[1]) * unit if "." in match[1] else int(match[1]) * unit
        if size < 1 or size != int(size):
            self.fail(f"{value!r} is no whole number of bytes, or none at all", parameter, context)
        return int(size)


class ModeType(_ModeBase):
    """Permission bits, in octal."""

    name = "mode"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        if not re.fullmatch(r"0?[0-7]{3}", value):
            self.fail(f"{value!r} are no permission bits; write for example 0660", parameter, context)
        return int(value, 8)


class GroupType(_GroupBase):
    """A group, by name or number."""

    name = "group"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        if value.isdecimal():
            return int(value)
        try:
            return grp.getgrnam(value).gr_gid
        except KeyError:
            self.fail(f"there is no group {value!r}", parameter, context)


def shown_size(size: int) -> str:
    """A number of bytes as it would be typed."""
    for name, unit in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= unit and size % unit == 0:
            return f"{size // unit}{name}"
    return str(size)


class LimitsCommand(click.Command):
    """Has the options of limits too; what they are is looked up when somebody asks."""

    limit_help: ClassVar[Mapping[str, str]] = {}
    _complete = False

    def limits(self) -> DataclassInstance:
        """The limits, with their defaults: a dataclass of numbers."""
        raise NotImplementedError

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        if not self._complete:
            self._complete = True
            limits = self.limits()
            self.params += [
                _limit_option(field.name, getattr(limits, field.name), self.limit_help)
                for field in dataclasses.fields(limits)
            ]
        return super().get_params(ctx)


def _limit_option(name: str, default: float, texts: Mapping[str, str]) -> click.Option:
    kind: click.ParamType[Any] = click.IntRange(min=1)
    metavar, shown = "NUMBER", f"{default:g}" if isinstance(default, float) else str(default)
    if name.endswith("_bytes"):
        kind, metavar, shown = SizeType(), "SIZE", shown_size(int(default))
    elif isinstance(default, float):
        kind, metavar = click.FloatRange(min=0, min_open=True), "SECONDS"
    text = f"{texts.get(name, 'A limit.')}  [default: {shown}]"
    return click.Option([f"--{name.replace('_', '-')}"], type=kind, metavar=metavar, help=text)


def chosen_limits(defaults: Limits, values: Mapping[str, Any]) -> Limits:
    """The limits that a command line names; the others as they are by default."""
    names = [field.name for field in dataclasses.fields(defaults)]
    return dataclasses.replace(defaults, **{name: values[name] for name in names if values[name] is not None})


def check_listen(
    _context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]
) -> tuple[str, ...]:
    """The callback of an option that takes addresses to listen on."""
    from neve.serving.addresses import parse_listen_address

    for value in values:
        try:
            parse_listen_address(value)
        except InvalidRequest as error:
            raise click.BadParameter(str(error)) from error
    return values


def workers_option(function: Command) -> Command:
    """Adds ``--workers``."""
    option = click.option(
        "--workers",
        type=click.IntRange(min=1, max=1000),
        default=1,
        show_default=True,
        help="Processes to serve with.",
    )
    return option(function)


def worker_command(options: Mapping[str, Any], name: str) -> Sequence[str]:
    """The command line of a worker: ``name``, after the ``options`` of this process, which say how it logs.
    -P: what lies in the current folder is not ours."""
    log = ["--log-level", options["log_level"], *(["--json"] if options["as_json"] else [])]
    return [sys.executable, "-P", "-m", "neve.cli", *log, name]


@contextlib.contextmanager
def opened_services(store: StoreOptions, *, write: bool) -> Iterator[Services]:
    """The services of a store that a command line names."""
    with store.open(write=write) as opened:
        yield opened.services


def services_of_worker(values: Mapping[str, Any]) -> contextlib.AbstractContextManager[Services]:
    """The same in a worker, which was told the options of the store and whether to ``write``."""
    from neve.cli.options import StoreOptions

    options = dict(values)
    write = options.pop("write")
    return opened_services(StoreOptions(**options), write=write)
