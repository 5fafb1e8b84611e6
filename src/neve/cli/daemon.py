"""Serving a store over gRPC: ``daemon``, and the workers that it starts."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from neve.cli.options import StoreOptions, store_options
from neve.cli.server_options import (
    FILE,
    OWNER_ONLY,
    LimitsCommand,
    ModeType,
    chosen_limits,
    chosen_tls,
    listen_option,
    opened_services,
    services_of_worker,
    serving_options,
    shown_size,
    socket_access,
    told_as_usage,
    worker_command,
    worker_start,
)
from neve.errors import Unsupported

if TYPE_CHECKING:
    from neve.server.daemon import DaemonOptions
    from neve.server.limits import Limits

_WORKER_COMMAND = "daemon-worker"
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


class _DaemonCommand(LimitsCommand):
    limit_help = LIMIT_HELP
    limits_module = "neve.server.limits"


@click.command(cls=_DaemonCommand)
@serving_options("[::1]:8000", "calls")
@listen_option(
    "--admin-listen", text="The same for those who may also administer: list, delete, verify, count."
)
@click.option(
    "--admin-socket-mode",
    type=ModeType(),
    help="Permission bits of sockets of --admin-listen.  [default: 0600]",
)
@click.option(
    "--insecure", is_flag=True, help="Let everybody in who reaches an address; not on --admin-listen."
)
@click.option(
    "--tls-admin-ca",
    type=FILE,
    metavar="FILE",
    help="--tls-client-ca of --admin-listen, needed there over TCP.",
)
@listen_option("--metrics-listen", text="The same for figures: GET /metrics over HTTP, for Prometheus.")
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
    if options["metrics_listen"] and importlib.util.find_spec("prometheus_client") is None:
        raise Unsupported(
            "--metrics-listen needs prometheus_client, not installed here: install neve[metrics]"
        )
    from neve.server.daemon import run_daemon

    with told_as_usage():
        chosen = _options(options)
    write = not chosen.settings.read_only
    worker = worker_start(context, store, chosen.workers, _WORKER_COMMAND, write=write)
    run_daemon(chosen, os.environ, lambda: opened_services(store, write=write), worker)


def _options(values: Mapping[str, Any]) -> DaemonOptions:
    """What the command line says. Raises ``InvalidRequest`` and others for certificates."""
    from neve.server.daemon import DaemonOptions
    from neve.server.listen import ListenOptions
    from neve.server.settings import Settings
    from neve.serving.addresses import DEFAULT_ADDRESS

    tls = chosen_tls(values)
    listen = ListenOptions(
        addresses=values["listen"] or (DEFAULT_ADDRESS,),
        admin_addresses=values["admin_listen"],
        metrics_addresses=values["metrics_listen"],
        admin_socket_mode=OWNER_ONLY if values["admin_socket_mode"] is None else values["admin_socket_mode"],
        insecure=values["insecure"],
        tls=tls,
        **socket_access(values),
    )
    settings = Settings(
        limits=_limits(values), read_only=values["read_only"], grace=float(values["grace"]), tls=tls
    )
    return DaemonOptions(listen=listen, settings=settings, workers=values["workers"])


def _limits(values: Mapping[str, Any]) -> Limits:
    from neve.server.limits import Limits

    limits = chosen_limits(Limits(), values)
    if limits.max_message_bytes > _MAX_MESSAGE_BYTES:
        raise click.UsageError(f"--max-message-bytes: gRPC takes at most {_MAX_MESSAGE_BYTES} bytes")
    if limits.max_message_bytes < _MIN_MESSAGE_BYTES:
        least = shown_size(_MIN_MESSAGE_BYTES)
        raise click.UsageError(f"--max-message-bytes: with less than {least} contents could not be read")
    return limits


def _serve_as_worker() -> bool:
    from neve.server.process import serve_as_worker

    return serve_as_worker(services_of_worker)


daemon_worker = worker_command(_WORKER_COMMAND, "daemon", _serve_as_worker)
