"""What the commands that serve have in common: types of options, limits as options, workers."""

from __future__ import annotations

import contextlib
import dataclasses
import grp
import importlib
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import click

from neve.cli.tracing import options_for_worker
from neve.errors import InvalidRequest, LimitExceeded, NotFound, PermissionDenied
from neve.telemetry import LOGGER

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from neve.cli.options import StoreOptions
    from neve.serving.main import WorkerStart
    from neve.serving.tls import Tls
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
_SIZE = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,18})?) *([a-z]*)", re.IGNORECASE)


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


class SecondsType(click.FloatRange):
    """A number of seconds, which has an end."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        seconds = super().convert(value, param, ctx)
        if not math.isfinite(seconds):  # To which no bound applies.
            self.fail(f"{value!r} is no number of seconds", param, ctx)
        return seconds


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
        if re.fullmatch("[0-9]{1,10}", value):
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

    limits_module: ClassVar[str]
    """Where ``Limits`` are: a dataclass of numbers, with their defaults."""
    limit_help: ClassVar[Mapping[str, str]] = {}
    _complete = False

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        if not self._complete:
            self._complete = True
            limits = importlib.import_module(self.limits_module).Limits()
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
        kind, metavar = SecondsType(min=0, min_open=True), "SECONDS"
    text = f"{texts.get(name, 'A limit.')}  [default: {shown}]"
    return click.Option([f"--{name.replace('_', '-')}"], type=kind, metavar=metavar, help=text)


def chosen_limits(defaults: Limits, values: Mapping[str, Any]) -> Limits:
    """The limits that a command line names; the others as they are by default."""
    names = [field.name for field in dataclasses.fields(defaults)]
    return dataclasses.replace(defaults, **{name: values[name] for name in names if values[name] is not None})


def _check_listen(
    _context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]
) -> tuple[str, ...]:
    from neve.serving.addresses import parse_listen_address

    for value in values:
        try:
            parse_listen_address(value)
        except InvalidRequest as error:
            raise click.BadParameter(str(error)) from error
    return values


def listen_option(*names: str, text: str) -> Callable[[Command], Command]:
    """An option that takes addresses to listen on."""
    return click.option(*names, metavar="ADDR", multiple=True, callback=_check_listen, help=text)


_TLS_OPTIONS = (
    click.option(
        "--tls-cert", type=FILE, metavar="FILE", help="Certificate, with its chain. TLS on all of TCP."
    ),
    click.option("--tls-key", type=FILE, metavar="FILE", help="Its key, not encrypted."),
    click.option(
        "--tls-client-ca",
        type=FILE,
        metavar="FILE",
        help="Who signs the certificates that clients must show.",
    ),
)


def serving_options(default_address: str, in_flight: str) -> Callable[[Command], Command]:
    """Adds what every server has: where to listen, with how many processes, and how long those whose
    requests (``in_flight``) are under way have in the end."""
    where = (
        "Where to listen: host:port, unix:/path or /path, sd-listen (sockets from systemd; sd-listen:NAME "
        f"for those of one name). May be repeated.  [default: {default_address}]"
    )
    return _all_of(
        listen_option("-l", "--listen", text=where),
        click.option(
            "--workers",
            type=click.IntRange(min=1, max=1000),
            default=1,
            show_default=True,
            help="Processes to serve with.",
        ),
        click.option(
            "--socket-mode",
            type=ModeType(),
            help="Permission bits of sockets.  [default: 0600, with --socket-group 0660]",
        ),
        click.option("--socket-group", type=GroupType(), metavar="GROUP", help="Group of sockets."),
        click.option(
            "--grace",
            type=SecondsType(min=0, max=86400),
            metavar="SECONDS",
            default=30,
            show_default=True,
            help=f"How long {in_flight} in flight may take when it is told to stop.",
        ),
        click.option("--read-only", is_flag=True, help="Take nothing in."),
        *_TLS_OPTIONS,
    )


def _all_of(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def add(function: Command) -> Command:
        for option in reversed(options):
            function = option(function)
        return function

    return add


def socket_access(values: Mapping[str, Any]) -> dict[str, Any]:
    """The permissions of sockets that a command line asks for, as options to listen know them."""
    mode, group = values["socket_mode"], values["socket_group"]
    default_mode = OWNER_ONLY if group is None else OWNER_AND_GROUP
    return {"socket_mode": default_mode if mode is None else mode, "socket_group": group}


@contextlib.contextmanager
def told_as_usage() -> Iterator[None]:
    """For what options say, and the files that they name: what is wrong with that is wrong usage, and stays
    wrong however often a service manager tries. What may pass (I/O errors) is a failure as elsewhere."""
    try:
        yield
    except (InvalidRequest, LimitExceeded, NotFound, PermissionDenied) as error:
        raise click.UsageError(str(error), click.get_current_context(silent=True)) from error


def chosen_tls(values: Mapping[str, Any]) -> Tls | None:
    """The certificates that a command line names, read and checked."""
    from neve.serving.tls import TlsFiles, read_tls

    return read_tls(
        TlsFiles(
            certificate=values["tls_cert"],
            key=values["tls_key"],
            client_ca=values["tls_client_ca"],
            admin_ca=values.get("tls_admin_ca"),
        )
    )


def worker_start(
    context: click.Context, store: StoreOptions, workers: int, name: str, *, write: bool
) -> WorkerStart:
    """How ``workers`` processes are started: by the command ``name``, after the options of this process,
    which say what it tells. Raises ``InvalidRequest`` if they cannot share ``store``."""
    from neve.cli.options import forget_variables
    from neve.serving.main import WorkerStart
    from neve.store.places import check_shareable, home

    if workers > 1:
        addresses = store.addresses()
        # Of what is composed, the addresses are not what anybody has written.
        check_shareable(list(map(home, addresses)) if store.composition is not None else addresses)
        forget_variables()  # Workers are told through a pipe.
    ours = context.find_root().params
    # Without a configuration file: what it said here counts, also when a worker is started again.
    log = ["--config=", "--log-level", ours["log_level"], *(["--json"] if ours["as_json"] else [])]
    log += options_for_worker(ours["otlp"])
    return WorkerStart(
        # -P: what lies in the current folder is not ours.
        command=[sys.executable, "-P", "-m", "neve.cli", *log, name],
        store={**store.for_worker(), "write": write},
    )


def worker_command(name: str, server: str, serve: Callable[[], bool]) -> click.Command:
    """The hidden command that runs a worker of ``server``; ``serve`` returns whether it came to serve."""

    def run() -> None:
        LOGGER.debug("worker %d starts", os.getpid())
        if not serve():
            raise click.exceptions.Exit(1)

    text = f"""Serve as one of several processes; started by `neve {server}`, which says what to do.

    \b
    Example:
      neve {server} --workers 4
    """
    return click.Command(name, callback=run, help=text, hidden=True)


@contextlib.contextmanager
def opened_services(store: StoreOptions, *, write: bool) -> Iterator[Services]:
    """The services of a store that a command line names."""
    from neve.packstore.uses import lasting_uses

    # Clients go on after this process has ended, and count on what it has told them.
    with lasting_uses(), store.open(write=write) as opened:
        yield opened.services


def services_of_worker(values: Mapping[str, Any]) -> contextlib.AbstractContextManager[Services]:
    """The same in a worker, which was told the options of the store and whether to ``write``."""
    from neve.cli.options import StoreOptions

    options = dict(values)
    write = options.pop("write")
    return opened_services(StoreOptions.of_worker(options), write=write)
