"""What several commands share: which store, and how store paths are given.

The environment is read here and nowhere below.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

import click
from click.core import ParameterSource

from neve.errors import InvalidRequest, NotFound
from neve.registry import nested_addresses, parse_address, shown_address
from neve.telemetry import LOGGER

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from neve.library import Store
    from neve.nix.store_path import StorePath
    from neve.store.composition import Composition

    _StorePathBase = click.ParamType[StorePath]
else:
    _StorePathBase = click.ParamType

Command = TypeVar("Command", bound=Callable[..., Any])

STORE_OPTIONS = (
    *("store", "store-composition"),
    *("blob-service-addr", "directory-service-addr", "path-info-service-addr"),
)
"""The options that name the store, which most commands have."""

_WRITTEN = ("store.json", "lock", "index/data.mdb", "index/lock.mdb", "packs", "uses/gate", "tmp")
"""What is written in the folder of an embedded store by whoever may; the first tells that it is one."""

_STORE_VARIABLES = (
    *("NEVE_STORE", "NEVE_STORE_COMPOSITION"),
    *("BLOB_SERVICE_ADDR", "DIRECTORY_SERVICE_ADDR", "PATH_INFO_SERVICE_ADDR"),
)
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
    composition: Composition | None = None
    """What is there in place of ``url``."""

    @classmethod
    def at(cls, url: str, **others: Any) -> StoreOptions:
        """The store at an address, which may be that of a file that describes it. Raises for such a one what
        reading it raises."""
        if parse_address(url).scheme == "composition":
            from neve.store.composition import of_address

            return cls("", composition=of_address(url), **others)
        return cls(url, **others)

    def open(self, *, write: bool = False) -> contextlib.AbstractContextManager[Store]:
        """The opened store. Only with ``write``, an embedded store is made if it is missing; and if path
        infos come from where contents are fetched as they are asked for.

        After an interrupt it is not closed: that would first commit what is pending, and the end of
        the process closes it as well.
        """
        from neve.store.places import keeps_what_it_fetches, read_only

        writes = write or any(map(keeps_what_it_fetches, self.addresses()))
        return self._opened(_as_it_is if writes else read_only)

    @contextlib.contextmanager
    def open_for_use(self) -> Iterator[Store]:
        """The same for who goes on using the paths that are found: a collection learns of that, if this
        process may note it in an embedded store."""
        from neve.packstore.uses import following_paths
        from neve.store.places import keeps_what_it_fetches, read_only

        addresses = self.addresses()
        writes = any(map(keeps_what_it_fetches, addresses)) or all(map(_may_write, addresses))
        with following_paths(), self._opened(_as_it_is if writes else read_only) as store:
            yield store

    @contextlib.contextmanager
    def _opened(self, adjusted: Callable[[str], str]) -> Iterator[Store]:
        from neve.library import open_store

        composed = self.composition
        if composed is not None and adjusted is not _as_it_is:
            composed = composed.for_reading()
        services = (self.blob_service, self.directory_service, self.path_info_service)
        blobs, directories, path_infos = (url and adjusted(url) for url in services)
        LOGGER.debug("opening the store %s", self.shown())
        try:
            store = open_store(
                adjusted(self.url) if composed is None else None,
                composition=composed,
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

    def addresses(self) -> list[str]:
        """Where blobs, Directories and path infos are."""
        services = (self.blob_service, self.directory_service, self.path_info_service)
        if self.composition is None:
            return [service or self.url for service in services]
        from neve.store.composition import KINDS

        composed = zip(services, KINDS, strict=True)
        return [service or self.composition.url(kind) for service, kind in composed]

    def shown(self) -> str:
        """What names the store, for messages."""
        return shown_address(self.url) if self.composition is None else self.composition.path

    def exists(self) -> bool:
        """Whether there is anything: what cares for a store must not make an empty one, mistyped say."""
        return all(map(_is_there, self.addresses()))

    def whole(self) -> str:
        """The address, for what works on a store as a whole and not on a mix of services."""
        addresses = set(self.addresses()) if self.composition is not None else {self.url}
        if self.blob_service or self.directory_service or self.path_info_service or len(addresses) > 1:
            raise click.UsageError(
                "this works on one whole store: leave out the addresses of single services"
                if self.composition is None
                else "this works on one whole store, and the composition is of several: name one with --store"
            )
        return addresses.pop()

    def for_worker(self) -> dict[str, Any]:
        """All of it, as JSON can have it, for ``of_worker``. The composition goes as it was read: a worker
        that is started again is to have the same."""
        values = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        if self.composition is not None:
            values["composition"] = [self.composition.text, self.composition.path]
        return values

    @classmethod
    def of_worker(cls, values: Mapping[str, Any]) -> StoreOptions:
        if (composition := values.get("composition")) is None:
            return cls(**values)
        from neve.store.composition import parse

        return cls(**{**values, "composition": parse(*composition)})


def _as_it_is(url: str) -> str:
    return url


def _is_there(url: str) -> bool:
    """Whether there is a store in the folder that an address names; of other addresses it is not known."""
    address = parse_address(url)
    is_folder = address.scheme == "local" and address.path
    return not is_folder or os.path.exists(os.path.join(address.path, "store.json"))


def _may_write(url: str) -> bool:
    """Whether embedded stores of an address are there, and this process may write their files."""
    address = parse_address(url)
    if address.scheme == "local" and address.path:
        return all(os.access(os.path.join(address.path, name), os.W_OK) for name in _WRITTEN)
    return all(map(_may_write, nested_addresses(url).values()))


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


def read_composition(
    context: click.Context, _parameter: click.Parameter, value: str | None
) -> Composition | None:
    """The callback of ``--store-composition``: reads the file. What is wrong with it is wrong usage."""
    if not value or context.resilient_parsing:
        return None
    from neve.store.composition import InvalidComposition, read

    try:
        return read(value)
    except InvalidComposition as error:
        raise click.UsageError(str(error), context) from error


_SOURCES = (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT, ParameterSource.DEFAULT_MAP)
"""Where options are said, those first that count more."""


def _chosen(store: str | None, composition: Composition | None) -> tuple[str | None, Composition | None]:
    """Of an address and a composition the one that is said where it counts more. Raises
    ``click.UsageError`` if both are said in one place."""
    if store is None or composition is None:
        return store, composition
    context = click.get_current_context()
    by_address, by_file = map(context.get_parameter_source, ("store", "store_composition"))
    if by_address is by_file:
        raise click.UsageError("name the store with --store or with --store-composition, not with both")
    return (store, None) if _first(by_address, by_file) is by_address else (None, composition)


def _first(*sources: ParameterSource | None) -> ParameterSource:
    return next(source for source in _SOURCES if source in sources)


def store_options(function: Callable[..., None]) -> Callable[..., None]:
    """Adds the options that name the store; the command gets them as ``store: StoreOptions``."""

    @wraps(function)
    def command(
        store: str | None,
        store_composition: Composition | None,
        blob_service_addr: str | None,
        directory_service_addr: str | None,
        path_info_service_addr: str | None,
        **others: Any,
    ) -> None:
        services: dict[str, Any] = {
            "blob_service": blob_service_addr,
            "directory_service": directory_service_addr,
            "path_info_service": path_info_service_addr,
        }
        url, composition = _chosen(store, store_composition)
        if composition is not None:
            store_options = StoreOptions("", **services, composition=composition)
        else:
            store_options = StoreOptions.at(url or default_store(), **services)
        function(store=store_options, **others)

    wrapped: Callable[..., None] = command
    for option in reversed(_store_options()):
        wrapped = option(wrapped)
    return wrapped


def _store_options() -> list[Callable[[Callable[..., None]], Callable[..., None]]]:
    return [
        _address_option(
            "--store",
            "NEVE_STORE",
            "The store, e.g. local:///srv/neve. Default: /var/lib/neve for root, else ~/.local/share/neve.",
        ),
        click.option(
            "--store-composition",
            metavar="FILE",
            envvar="NEVE_STORE_COMPOSITION",
            show_envvar=True,
            callback=read_composition,
            help="A TOML file that describes the services of the store, instead.",
        ),
        _address_option("--blob-service-addr", "BLOB_SERVICE_ADDR", "Where the blobs are, if not there."),
        _address_option(
            "--directory-service-addr", "DIRECTORY_SERVICE_ADDR", "Where the Directories are, if not there."
        ),
        _address_option(
            "--path-info-service-addr", "PATH_INFO_SERVICE_ADDR", "Where the path infos are, if not there."
        ),
    ]


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
