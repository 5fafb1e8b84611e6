"""The list of commands, and the options that come before them."""

from __future__ import annotations

import click

from neve import __version__
from neve.cli import (
    collecting,
    copying,
    daemon,
    ingest,
    inspect,
    keys,
    logs,
    maintain,
    mount,
    serve,
    token,
    tracing,
    virtiofs,
)


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    invoke_without_command=True,
)
@click.option(
    "--log-level",
    type=click.Choice(list(logs.LEVELS), case_sensitive=False),
    default="info",
    show_default=True,
    help="What to log. With 'debug', failures come with a traceback.",
)
@click.option("--json", "as_json", is_flag=True, help="Log lines as JSON.")
@click.option(
    "--otlp/--no-otlp",
    default=None,
    help="Send traces to an OpenTelemetry collector.  [default: if OTEL_EXPORTER_OTLP_ENDPOINT is set]",
)
@click.version_option(__version__, prog_name="neve", message="%(prog)s %(version)s")
@click.pass_context
def cli(context: click.Context, log_level: str, as_json: bool, otlp: bool | None) -> None:
    """A content-addressed, deduplicating store for Nix.

    Results go to stdout, one per line; logs and progress go to stderr.

    \b
    Example:
      neve import ./src
      neve ls /nix/store/...-src
    """
    logs.configure(logs.LEVELS[log_level.lower()], as_json=as_json)
    if context.invoked_subcommand is None:
        click.echo(context.get_help(), err=True)
        context.exit(2)
    if context.invoked_subcommand not in tracing.BY_THEMSELVES:
        context.with_resource(tracing.traced(otlp, context.invoked_subcommand))


@cli.group(no_args_is_help=False)
def nar() -> None:
    """Take NARs out of the store and into it.

    \b
    Example:
      neve nar export /nix/store/...-hello | nix-store --restore hello
    """


@cli.group(no_args_is_help=False)
def archive() -> None:
    """Take archives into the store.

    \b
    Example:
      neve archive import source.tar.gz
    """


@cli.group(no_args_is_help=False)
def key() -> None:
    """Make keys to sign store paths with.

    \b
    Example:
      neve key generate cache.example.org-1 --output secret.key
    """


cli.add_command(ingest.import_command)
cli.add_command(copying.copy)
nar.add_command(inspect.nar_export)
nar.add_command(ingest.nar_import)
archive.add_command(ingest.archive_import)
key.add_command(keys.key_generate)
key.add_command(keys.key_public)
for command in (inspect.ls, inspect.cat, inspect.export, inspect.path_info, inspect.stats, maintain.verify):
    cli.add_command(command)
cli.add_command(collecting.gc)
cli.add_command(collecting.pin)
cli.add_command(keys.sign)
cli.add_command(daemon.daemon)
cli.add_command(daemon.daemon_worker)
cli.add_command(serve.serve)
cli.add_command(serve.serve_worker)
cli.add_command(token.token)
cli.add_command(mount.mount)
cli.add_command(virtiofs.virtiofs)
