"""What several commands share: which store, and how store paths are given.

The environment is read here and nowhere below.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

import click

from neve.errors import InvalidRequest, NotFound
from neve.registry import parse_address, shown_url
from neve.telemetry import LOGGER

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from neve.library import Store
    from neve.nix.store_path import StorePath

    _StorePathBase = click.ParamType[StorePath]
else:
    _StorePathBase = click.ParamType

Command = TypeVar("Command", bound=Callable[..., Any])

STORE_OPTIONS = ("store", "blob-service-addr", "directory-service-addr", "path-info-service-addr")
"""The options that name the store, which most commands have."""

_WRITTEN = ("store.json", "lock", "index/data.mdb", "index/lock.mdb", "packs", "uses/gate", "tmp")
"""What is written in the folder of an embedded store by whoever may; the first tells that it is one."""

_STORE_VARIABLES = ("NEVE_STORE", "BLOB_SERVICE_ADDR", "DIRECTORY_SERVICE_ADDR", "PATH_INFO_SERVICE_ADDR")
"""Where they come from if the command line says nothing."""


def forget_variables() -> None:
    """Keeps what the environment says of the store, with passwords maybe, from processes that are started."""
    for name in _STORE_VARIABLES:
        os.environ.pop(name, None)


@dataclass(frozen=True)
class StoreOptions:
    """The store that a command line names."""

    url: str
    blob_service: str | None = None
    directory_service: str | None = None
    path_info_service: str | None = None
    if_missing: str = "; name another with --store, or import something first"

    def open(self, *, write: bool = False) -> contextlib.AbstractContextManager[Store]:
        """The opened store. Only with ``write``, an embedded store is made if it is missing; and if path
        infos come from where contents are fetched as they are asked for.

        After an interrupt it is not closed: that would first commit what is pending, and the end of
        the process closes it as well.
        """
        return self._opened(str if write or self._keeps_what_it_fetches() else _read_only)

    @contextlib.contextmanager
    def open_for_use(self) -> Iterator[Store]:
        """The same for who goes on using the paths that are found: a collection learns of that, if this
        process may note it in an embedded store."""
        from neve.packstore.uses import following_paths

        adjusted = str if self._keeps_what_it_fetches() else _read_only_if_it_must
        with following_paths(), self._opened(adjusted) as store:
            yield store

    def _keeps_what_it_fetches(self) -> bool:
        from neve.store.places import keeps_what_it_fetches

        addresses = [self.url, self.blob_service, self.directory_service, self.path_info_service]
        return any(keeps_what_it_fetches(url) for url in addresses if url)

    @contextlib.contextmanager
    def _opened(self, adjusted: Callable[[str], str]) -> Iterator[Store]:
        from neve.library import open_store

        blobs, directories, path_infos = [
            url and adjusted(url)
            for url in (self.blob_service, self.directory_service, self.path_info_service)
        ]
        LOGGER.debug("opening the store %s", shown_url(self.url))
        try:
            store = open_store(
                adjusted(self.url),
                blob_service=blobs,
                directory_service=directories,
                path_info_service=path_infos,
                netrc_file=netrc_file(),
            )
        except NotFound as error:
            raise NotFound(f"{error}{self.if_missing}") from error
        interrupted = False
        try:
            yield store
        except KeyboardInterrupt:
            interrupted = True
            raise
        finally:
            if not interrupted:
                store.close()

    def exists(self) -> bool:
        """Whether there is anything: what cares for a store must not make an empty one, mistyped say."""
        services = (self.blob_service, self.directory_service, self.path_info_service)
        return all(_is_there(self.url if url is None else url) for url in services)

    def whole(self) -> str:
        """The address, for what works on a store as a whole and not on a mix of services."""
        if self.blob_service or self.directory_service or self.path_info_service:
            raise click.UsageError(
                "this works on one whole store: leave out the addresses of single services"
            )
        return self.url


def _is_there(url: str) -> bool:
    """Whether there is a store in the folder that an address names; of other addresses it is not known."""
    address = parse_address(url)
    is_folder = address.scheme == "local" and address.path
    return not is_folder or os.path.exists(os.path.join(address.path, "store.json"))


def _read_only(url: str) -> str:
    """The address for commands that only read: they need no permission to write, and create nothing."""
    address = parse_address(url)
    if address.scheme != "local" or not address.path or "mode" in address.parameters:
        return url
    return f"{url}{'&' if address.parameters else '?'}mode=ro"


def _read_only_if_it_must(url: str) -> str:
    """The address of an embedded store as it is, if it is there and this process may write its files."""
    address = parse_address(url)
    if address.scheme == "local" and address.path:
        may = all(os.access(os.path.join(address.path, name), os.W_OK) for name in _WRITTEN)
        return url if may else _read_only(url)
    return url


def netrc_file() -> str:
    """The user's file of passwords; there may be none."""
    return os.environ.get("NETRC") or os.path.join(os.path.expanduser("~"), ".netrc")


def default_store() -> str:
    """Where the store is if nobody says it: for a service, in the folder that systemd made for it."""
    if state := os.environ.get("STATE_DIRECTORY", "").partition(":")[0]:
        return f"local://{quote(os.fsencode(os.path.abspath(state)))}"
    if os.geteuid() == 0:
        return "local:///var/lib/neve"
    return f"local://{quote(os.fsencode(_xdg_folder('XDG_DATA_HOME', '.local/share')))}"


def stat_cache_folder() -> str:
    """Where ``--stat-cache`` remembers what it has seen."""
    return os.path.join(_xdg_folder("XDG_CACHE_HOME", ".cache"), "stat")


def _xdg_folder(variable: str, below_home: str) -> str:
    """Our folder in one of those of the XDG Base Directory Specification; a relative one is ignored."""
    base = os.environ.get(variable, "")
    if not os.path.isabs(base):
        base = os.path.join(os.path.expanduser("~"), below_home)
    if not os.path.isabs(base):
        raise click.UsageError(
            f"no home folder is known; set HOME or {variable}, or name a store with --store"
        )
    return os.path.join(base, "neve")


def check_address(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    """A callback of what is an address: one that is none is wrong usage."""
    if value is not None:
        try:
            parse_address(value)
        except InvalidRequest as error:
            raise click.BadParameter(str(error)) from error
    return value


def _address_option(name: str, variable: str, what: str) -> Callable[[Command], Command]:
    return click.option(
        name, metavar="URL", envvar=variable, show_envvar=True, callback=check_address, help=what
    )


def store_options(function: Callable[..., None]) -> Callable[..., None]:
    """Adds the options that name the store; the command gets them as ``store: StoreOptions``."""

    @wraps(function)
    def command(
        store: str | None,
        blob_service_addr: str | None,
        directory_service_addr: str | None,
        path_info_service_addr: str | None,
        **others: Any,
    ) -> None:
        services = (blob_service_addr, directory_service_addr, path_info_service_addr)
        function(store=StoreOptions(store or default_store(), *services), **others)

    options = [
        _address_option(
            "--store",
            "NEVE_STORE",
            "The store, e.g. local:///srv/neve. Default: /var/lib/neve for root, else ~/.local/share/neve.",
        ),
        _address_option("--blob-service-addr", "BLOB_SERVICE_ADDR", "Where the blobs are, if not there."),
        _address_option(
            "--directory-service-addr", "DIRECTORY_SERVICE_ADDR", "Where the Directories are, if not there."
        ),
        _address_option(
            "--path-info-service-addr", "PATH_INFO_SERVICE_ADDR", "Where the path infos are, if not there."
        ),
    ]
    wrapped: Callable[..., None] = command
    for option in reversed(options):
        wrapped = option(wrapped)
    return wrapped


class StorePathType(_StorePathBase):
    """A store path, absolute or as base name."""

    name = "store_path"

    def convert(
        self, value: Any, parameter: click.Parameter | None, context: click.Context | None
    ) -> StorePath:
        from neve.nix.store_path import STORE_DIR, StorePath

        if isinstance(value, StorePath):
            return value
        try:
            return StorePath.parse(value if value.startswith("/") else f"{STORE_DIR}/{value}")
        except InvalidRequest as error:
            self.fail(str(error), parameter, context)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        from neve.cli.completion import store_paths

        return store_paths(ctx, incomplete)


STORE_PATH = StorePathType()

size_rule_option = click.option(
    "--directory-size-rule",
    "size_rule",
    type=click.Choice(["exact", "snix"]),
    help="How sizes of Directories are counted (default: as in this store so far).",
)
