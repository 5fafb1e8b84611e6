"""Serving a store over gRPC: ``daemon``, and the workers that it starts."""

from __future__ import annotations

import contextlib
import dataclasses
import grp
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from neve.cli.options import StoreOptions, store_options
from neve.errors import InvalidRequest
from neve.telemetry import LOGGER

if TYPE_CHECKING:
    from neve.server.daemon import DaemonOptions
    from neve.server.limits import Limits
    from neve.store.services import Services

    _SizeBase = click.ParamType[int]
    _ModeBase = click.ParamType[int]
    _GroupBase = click.ParamType[int]
else:
    _SizeBase = _ModeBase = _GroupBase = click.ParamType

_WORKER_COMMAND = "daemon-worker"
_OWNER_ONLY, _OWNER_AND_GROUP = 0o600, 0o660

_UNITS = {"": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) *([a-z]*)", re.IGNORECASE)
_MAX_MESSAGE_BYTES = (1 << 31) - 1
"""gRPC counts in 32 bits."""
_MIN_MESSAGE_BYTES = 4 << 20
"""Contents travel in messages of a megabyte and more, and all clients take so much."""

LIMIT_HELP = {
    "max_message_bytes": "Longest message taken or sent; other implementations take 4MiB.",
    "max_request_bytes": "Longest message that carries neither contents nor Directories.",
    "max_blob_bytes": "Longest blob in an upload.",
    "max_directory_bytes": "Longest encoding of one Directory.",
    "max_directories": "Most Directories in one closure.",
    "max_nar_bytes": "Longest NAR that is calculated for somebody.",
    "max_concurrent_calls": "Calls at once, open streams included, in each process.",
    "max_held_bytes": "Contents of uploads that a process holds in memory; who sends more waits.",
    "stream_idle_seconds": "A stream must move --min-stream-bytes within this time, or end.",
    "min_stream_bytes": "See --stream-idle-seconds.",
}


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


def _limit_options() -> list[click.Parameter]:
    """An option for each limit, with its default from where that is used."""
    from neve.server.limits import Limits

    return [_limit_option(field.name, getattr(Limits(), field.name)) for field in dataclasses.fields(Limits)]


def _limit_option(name: str, default: float) -> click.Option:
    kind: click.ParamType[Any] = click.IntRange(min=1)
    metavar, shown = "NUMBER", f"{default:g}" if isinstance(default, float) else str(default)
    if name.endswith("_bytes"):
        kind, metavar, shown = SizeType(), "SIZE", shown_size(int(default))
    elif isinstance(default, float):
        kind, metavar = click.FloatRange(min=0, min_open=True), "SECONDS"
    text = f"{LIMIT_HELP.get(name, 'A limit.')}  [default: {shown}]"
    return click.Option([f"--{name.replace('_', '-')}"], type=kind, metavar=metavar, help=text)


class _DaemonCommand(click.Command):
    """Has the options of the limits too; what they are is looked up when somebody asks."""

    _complete = False

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        if not self._complete:
            self._complete = True
            self.params += _limit_options()
        return super().get_params(ctx)


def _check_listen(
    _context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]
) -> tuple[str, ...]:
    from neve.server.addresses import parse_listen_address

    for value in values:
        try:
            parse_listen_address(value)
        except InvalidRequest as error:
            raise click.BadParameter(str(error)) from error
    return values


_FILE = click.Path(dir_okay=False)


@click.command(cls=_DaemonCommand)
@click.option(
    "-l",
    "--listen",
    metavar="ADDR",
    multiple=True,
    callback=_check_listen,
    help="Where to listen: host:port, unix:/path or /path, sd-listen (sockets from systemd; sd-listen:NAME "
    "for those of one name). May be repeated.  [default: [::1]:8000]",
)
@click.option(
    "--admin-listen",
    metavar="ADDR",
    multiple=True,
    callback=_check_listen,
    help="The same for those who may also administer: list, delete, verify, count.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1, max=1000),
    default=1,
    show_default=True,
    help="Processes to serve with.",
)
@click.option(
    "--socket-mode",
    type=ModeType(),
    help="Permission bits of sockets.  [default: 0600, with --socket-group 0660]",
)
@click.option("--socket-group", type=GroupType(), metavar="GROUP", help="Group of sockets.")
@click.option(
    "--admin-socket-mode",
    type=ModeType(),
    help="Permission bits of sockets of --admin-listen.  [default: 0600]",
)
@click.option("--read-only", is_flag=True, help="Take nothing in.")
@click.option(
    "--insecure", is_flag=True, help="Let everybody in who reaches an address; not on --admin-listen."
)
@click.option(
    "--tls-cert", type=_FILE, metavar="FILE", help="Certificate, with its chain. TLS on all of TCP."
)
@click.option("--tls-key", type=_FILE, metavar="FILE", help="Its key, not encrypted.")
@click.option("--tls-client-ca", type=_FILE, metavar="FILE", help="Who signs the certificates of clients.")
@click.option(
    "--tls-admin-ca", type=_FILE, metavar="FILE", help="The same for --admin-listen, needed there over TCP."
)
@click.option(
    "--grace",
    type=click.FloatRange(min=0, max=86400),
    metavar="SECONDS",
    default=30,
    show_default=True,
    help="How long calls in flight may take when the daemon is told to stop.",
)
@store_options
@click.pass_context
def daemon(context: click.Context, /, store: StoreOptions, **options: Any) -> None:
    """Serve a store over gRPC.

    SIGTERM and Ctrl-C end it once calls in flight have ended; a second one at once. A TCP address that
    other machines can reach needs certificates, or --insecure.

    \b
    Example:
      neve daemon -l unix:/run/neve.sock --socket-group nixbld
      neve daemon --workers 4 -l '[::]:8000' --tls-cert cert.pem --tls-key key.pem --tls-client-ca ca.pem
    """
    from neve.server.daemon import WorkerStart, run_daemon
    from neve.server.workers import check_shareable

    chosen = _options(options)
    write = not chosen.settings.read_only
    if chosen.workers > 1:
        services = (store.blob_service, store.directory_service, store.path_info_service)
        check_shareable([service or store.url for service in services])
    worker = WorkerStart(
        command=_worker_command(context.find_root().params),
        store={**dataclasses.asdict(store), "write": write},
    )
    run_daemon(chosen, os.environ, lambda: _services(store, write=write), worker)


def _options(values: Mapping[str, Any]) -> DaemonOptions:
    """What the command line says. Raises ``InvalidRequest`` and others for certificates."""
    from neve.server.addresses import DEFAULT_ADDRESS
    from neve.server.daemon import DaemonOptions
    from neve.server.listen import ListenOptions
    from neve.server.settings import Settings
    from neve.server.tls import TlsFiles, read_tls

    files = TlsFiles(
        certificate=values["tls_cert"],
        key=values["tls_key"],
        client_ca=values["tls_client_ca"],
        admin_ca=values["tls_admin_ca"],
    )
    tls = read_tls(files)
    group = values["socket_group"]
    default_mode = _OWNER_ONLY if group is None else _OWNER_AND_GROUP
    listen = ListenOptions(
        addresses=values["listen"] or (DEFAULT_ADDRESS,),
        admin_addresses=values["admin_listen"],
        socket_mode=default_mode if values["socket_mode"] is None else values["socket_mode"],
        admin_socket_mode=_OWNER_ONLY if values["admin_socket_mode"] is None else values["admin_socket_mode"],
        socket_group=group,
        insecure=values["insecure"],
        tls=tls,
    )
    settings = Settings(
        limits=_limits(values), read_only=values["read_only"], grace=float(values["grace"]), tls=tls
    )
    return DaemonOptions(listen=listen, settings=settings, workers=values["workers"])


def _limits(values: Mapping[str, Any]) -> Limits:
    from neve.server.limits import Limits

    names = [field.name for field in dataclasses.fields(Limits)]
    limits = Limits(**{name: values[name] for name in names if values[name] is not None})
    if limits.max_message_bytes > _MAX_MESSAGE_BYTES:
        raise click.UsageError(f"--max-message-bytes: gRPC takes at most {_MAX_MESSAGE_BYTES} bytes")
    if limits.max_message_bytes < _MIN_MESSAGE_BYTES:
        least = shown_size(_MIN_MESSAGE_BYTES)
        raise click.UsageError(f"--max-message-bytes: with less than {least} contents could not be read")
    return limits


def _worker_command(options: Mapping[str, Any]) -> Sequence[str]:
    """A worker logs as this process does. -P: what lies in the current folder is not ours."""
    log = ["--log-level", options["log_level"], *(["--json"] if options["as_json"] else [])]
    return [sys.executable, "-P", "-m", "neve.cli", *log, _WORKER_COMMAND]


@contextlib.contextmanager
def _services(store: StoreOptions, *, write: bool) -> Iterator[Services]:
    with store.open(write=write) as opened:
        yield opened.services


@click.command(_WORKER_COMMAND, hidden=True)
def daemon_worker() -> None:
    """Serve as one of several processes; started by `neve daemon`, which says over a pipe what to do.

    \b
    Example:
      neve daemon --workers 4
    """
    from neve.server.process import serve_as_worker

    def open_store(values: Mapping[str, Any]) -> contextlib.AbstractContextManager[Services]:
        options = dict(values)
        write = options.pop("write")
        return _services(StoreOptions(**options), write=write)

    LOGGER.debug("worker %d starts", os.getpid())
    if not serve_as_worker(open_store):
        raise click.exceptions.Exit(1)
