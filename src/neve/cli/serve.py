"""Serving a store over HTTP as a Nix binary cache: ``serve``, and the workers that it starts."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from neve.cli.options import StoreOptions, store_options
from neve.cli.server_options import (
    FILE,
    LimitsCommand,
    chosen_limits,
    chosen_tls,
    opened_services,
    services_of_worker,
    serving_options,
    socket_access,
    told_as_usage,
    worker_command,
    worker_start,
)
from neve.errors import InvalidRequest, Unsupported

if TYPE_CHECKING:
    from starlette.routing import BaseRoute

    from neve.http_cache.run import CacheOptions
    from neve.http_cache.settings import Settings
    from neve.store.services import Services

_WORKER_COMMAND = "serve-worker"

_NEEDED = ("httptools", "jinja2", "prometheus_client", "starlette", "uvicorn")
"""What the extra ``serve`` brings."""

LIMIT_HELP = {
    "max_nar_bytes": "Longest NAR in an upload, packed or not, and longest whose hash is calculated.",
    "max_small_file_bytes": "Longest log, listing, realisation or link to debugging symbols in an upload.",
    "max_held_bytes": "Small files that a process holds in memory at once, to store or to send them.",
    "max_uploads": "NARs that a process takes in at once; others wait for their turn.",
    "max_open_nars": "NARs that a process renders ahead of what is sent, some 8 MiB each.",
    "max_fetches": "Paths that a process fetches from a far cache at once.",
    "max_connections": "Connections of a process; one more is turned away.",
    "idle_seconds": "A connection must move --min-bytes within this time, or end.",
    "min_bytes": "See --idle-seconds.",
}


class _ServeCommand(LimitsCommand):
    limit_help = LIMIT_HELP
    limits_module = "neve.http_cache.limits"


@click.command(cls=_ServeCommand)
@serving_options("[::1]:8080", "requests")
@click.option("--name", default="neve", show_default=True, help="What people call this cache.")
@click.option("--url", metavar="URL", help="Its address as people see it.  [default: as they asked for it]")
@click.option(
    "--priority",
    type=click.IntRange(min=0, max=2**31 - 1),
    default=39,
    show_default=True,
    help="Nix asks caches with lower numbers first; cache.nixos.org has 40.",
)
@click.option(
    "--narinfo-compression",
    type=click.Choice(["none", "zstd"]),
    default="none",
    show_default=True,
    help="How narinfos name NARs; with 'zstd', old versions of Nix get them compressed too.",
)
@click.option("--sign-key", type=FILE, metavar="FILE", help="Secret key that signs what is uploaded.")
@click.option(
    "--trusted-public-key",
    "trusted_keys",
    metavar="KEY",
    multiple=True,
    help="Keep signatures by this key, name:base64, on uploads; others are dropped. May be repeated.",
)
@click.option(
    "--require-signatures",
    is_flag=True,
    help="Refuse uploads without a signature by --sign-key or a --trusted-public-key.",
)
@click.option(
    "--skip-signed-by",
    "upstream_keys",
    metavar="KEY",
    multiple=True,
    help="Do not keep uploads that are signed by this key: clients get them elsewhere. May be repeated.",
)
@click.option("--token-file", type=FILE, metavar="FILE", help="Who may pull and push; see: neve token --help")
@click.option("--private", is_flag=True, help="Let only those pull who have a token.")
@click.option("--insecure-allow-upload", is_flag=True, help="Let everybody push who reaches an address.")
@store_options
@click.pass_context
def serve(context: click.Context, /, store: StoreOptions, **options: Any) -> None:
    """Serve a store over HTTP, as a binary cache of Nix.

    Everybody may pull, unless --private; to push, one needs a token. SIGTERM and Ctrl-C end it once
    requests in flight have ended; a second one at once.

    \b
    Example:
      neve serve -l '[::]:8080' --token-file tokens --sign-key cache.secret
      nix copy --to http://localhost:8080 ./result
    """
    _check_installed()
    from neve.http_cache.run import run_cache

    with told_as_usage():
        chosen = _options(options)
    write = not chosen.settings.read_only
    worker = worker_start(context, store, chosen.workers, _WORKER_COMMAND, write=write)
    run_cache(chosen, os.environ, lambda: opened_services(store, write=write), _pages, worker)


def _serve_as_worker() -> bool:
    from neve.http_cache.process import serve_as_worker

    return serve_as_worker(services_of_worker, _pages)


serve_worker = worker_command(_WORKER_COMMAND, "serve", _serve_as_worker)


def _check_installed() -> None:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise Unsupported(f"this needs {', '.join(missing)}, not installed here: install neve[serve]")


def _pages(services: Services, settings: Settings) -> Sequence[BaseRoute]:
    """The routes of the pages for people."""
    from neve.http_cache.pages import page_routes
    from neve.http_cache.site import Site

    site = Site(
        name=settings.name, public_keys=settings.shown_keys(), url=settings.url, priority=settings.priority
    )
    return page_routes(services, site)


def _options(values: Mapping[str, Any]) -> CacheOptions:
    """What the command line says. Raises ``InvalidRequest`` and others for files that it names."""
    from neve.http_cache.listen import DEFAULT_ADDRESS, ListenOptions
    from neve.http_cache.run import CacheOptions

    listen = ListenOptions(addresses=values["listen"] or (DEFAULT_ADDRESS,), **socket_access(values))
    return CacheOptions(listen=listen, settings=_settings(values), workers=values["workers"])


def _settings(values: Mapping[str, Any]) -> Settings:
    from neve.http_cache.limits import Limits
    from neve.http_cache.settings import Settings

    _check_combinations(values)
    same = ("name", "url", "priority", "narinfo_compression", "require_signatures", "private")
    return Settings(
        **{name: values[name] for name in (*same, "insecure_allow_upload", "read_only")},
        limits=chosen_limits(Limits(), values),
        token_file=_token_file(values["token_file"]),
        secret_key=_secret_key(values["sign_key"]),
        trusted_keys=_public_keys("--trusted-public-key", values["trusted_keys"]),
        upstream_keys=_public_keys("--skip-signed-by", values["upstream_keys"]),
        grace=float(values["grace"]),
        tls=chosen_tls(values),
    )


def _check_combinations(values: Mapping[str, Any]) -> None:
    if values["private"] and values["token_file"] is None:
        raise click.UsageError("--private needs --token-file: nobody could pull")
    if values["read_only"] and values["insecure_allow_upload"]:
        raise click.UsageError("--read-only and --insecure-allow-upload contradict each other")
    if values["require_signatures"] and not values["trusted_keys"] and values["sign_key"] is None:
        raise click.UsageError("--require-signatures needs a --trusted-public-key or --sign-key")


def _token_file(path: str | None) -> str | None:
    """What processes will read again: what is wrong with it is told now, and once."""
    from neve.http_cache.tokens import TokenFile

    if path is None:
        return None
    TokenFile(path)
    return os.path.abspath(path)


def _secret_key(path: str | None) -> str | None:
    """The key in a file, in its text form."""
    from neve.store.signing import read_secret_key

    return None if path is None else read_secret_key(path).render()


def _public_keys(option: str, texts: Sequence[str]) -> tuple[str, ...]:
    """Keys in their text form; an option may have several, as nix.conf has them."""
    from neve.nix.signing import PublicKey

    try:
        return tuple(key.render() for text in texts for key in PublicKey.parse_many(text))
    except InvalidRequest as error:
        raise InvalidRequest(f"{option}: {error}") from error
