"""All services of one store, made from addresses."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from neve.castore.blobs.base import BlobService
from neve.castore.blobs.urls import BLOB_SERVICES
from neve.castore.directories.base import DirectoryService
from neve.castore.directories.urls import DIRECTORY_SERVICES
from neve.castore.directory import SizeRule
from neve.errors import Corrupt, InvalidRequest
from neve.packstore.address import SIZE_RULE_SETTING, open_address
from neve.packstore.store import PackStore
from neve.registry import Schemes, parse_address
from neve.store.composition import (
    BLOBS,
    DIRECTORIES,
    KINDS,
    PATH_INFOS,
    Composition,
    Opening,
    of_address,
    read,
)
from neve.store.nar.render import NarCalculation, NarRenderer, RenderingNarCalculation
from neve.store.nar_nodes import LocalNarNodes, MemoryNarNodes, NarNodes
from neve.store.pathinfos.base import PathInfoService
from neve.store.pathinfos.context import PathInfoContext
from neve.store.pathinfos.urls import PATH_INFO_SERVICES
from neve.store.places import home, is_local, is_remote, is_source, pin_temporary

if TYPE_CHECKING:
    from neve.store.remote import RemoteAdmin


@dataclass
class Services:
    """What a store consists of. ``close`` closes all of it."""

    blobs: BlobService
    directories: DirectoryService
    path_infos: PathInfoService
    nar_nodes: NarNodes
    size_rule: SizeRule = SizeRule.EXACT
    packs: PackStore | None = None
    """The embedded store behind the services, if all of them lie in one."""
    remote: RemoteAdmin | None = None
    """The administration of the server behind the services, if all of them are on one."""
    opening: Opening | None = None
    """What owns those of them that a composition describes."""
    renderer: NarRenderer = field(init=False)
    nar_calculation: NarCalculation = field(init=False)

    def __post_init__(self) -> None:
        self.renderer = NarRenderer(self.blobs, self.directories)
        self.nar_calculation = RenderingNarCalculation(self.renderer, self.nar_nodes)
        if self.remote is not None:
            from neve.store.remote import GrpcNarCalculation

            self.nar_calculation = GrpcNarCalculation(self.remote.connection, self.nar_calculation)

    def one_commit(self) -> contextlib.AbstractContextManager[None]:
        """What this thread stores within the block is durable and visible at its end, by one commit; or as
        it is stored, if it does not all lie in one embedded store."""
        return contextlib.nullcontext() if self.packs is None else self.packs.one_commit()

    def close(self) -> None:
        with contextlib.ExitStack() as closing:  # Each of them, also when another one fails.
            if self.packs is not None:
                closing.callback(self.packs.close)
                self.packs = None
            if self.remote is not None:
                closing.callback(self.remote.close)
            for service in (self.blobs, self.directories, self.nar_nodes, self.path_infos):
                closing.callback(service.close)
            if self.opening is not None:
                closing.callback(self.opening.close)


def open_services(
    url: str | None = None,
    *,
    composition: Composition | str | os.PathLike[str] | None = None,
    blob_service: str | None = None,
    directory_service: str | None = None,
    path_info_service: str | None = None,
    netrc_file: str | None = None,
) -> Services:
    """Opens the services at ``url``, or which ``composition`` describes (or the file of that name); each of
    the others overrides one service.

    ``netrc_file`` may have passwords for binary caches, and need not exist. Raises ``InvalidRequest`` for
    an address that is none, and what the backends raise.
    """
    if url is not None and composition is not None:
        raise InvalidRequest("a store has an address, or a composition, not both")
    if composition is not None and not isinstance(composition, Composition):
        composition = read(composition)
    if url is not None and (named := of_address(url)) is not None:
        url, composition = None, named
    own = _own_addresses(url, blob_service, directory_service, path_info_service)
    with contextlib.ExitStack() as opened:
        described = _Described(own, composition, opened)
        blobs_url, directories_url, path_infos_url = map(described.url, KINDS)
        blobs: BlobService = described.open(BLOBS, BLOB_SERVICES)
        directories: DirectoryService = described.open(DIRECTORIES, DIRECTORY_SERVICES)
        rule = _size_rule(directories_url)
        nar_nodes = _nar_nodes(home(path_infos_url), home(directories_url))
        opened.callback(nar_nodes.close)
        context = PathInfoContext(blobs, directories, nar_nodes, rule, netrc_file)
        path_infos: PathInfoService = described.open(PATH_INFOS, PATH_INFO_SERVICES, context)
        packs = None
        if blobs_url == directories_url == path_infos_url and is_local(blobs_url):
            packs = open_address(parse_address(blobs_url))
            opened.callback(packs.close)
        remote = _remote(blobs_url, directories_url, path_infos_url)
        opened.pop_all()
        return Services(blobs, directories, path_infos, nar_nodes, rule, packs, remote, described.opening)


def _check_keeps_all(url: str, services: Sequence[str | None]) -> None:
    """Raises ``InvalidRequest`` if what is at ``url`` is for some of the services only, and ``services`` do
    not say where the others are."""
    address = parse_address(url)
    kinds: dict[str, Schemes[Any]] = {
        "blobs (--blob-service-addr)": BLOB_SERVICES,
        "Directories (--directory-service-addr)": DIRECTORY_SERVICES,
        "path infos (--path-info-service-addr)": PATH_INFO_SERVICES,
    }
    knowing = [address.scheme in schemes.names() for schemes in kinds.values()]
    lacking = [
        kind
        for kind, knows, service in zip(kinds, knowing, services, strict=True)
        if not knows and service is None
    ]
    if any(knowing) and lacking:
        raise address.refuse(
            f"{address.scheme} is not for all of a store; an address is missing for: {', '.join(lacking)}"
        )


def _own_addresses(url: str | None, *services: str | None) -> dict[str, str | None]:
    """Where services are that have an address: of their own, or the store's."""
    if url is not None:
        _check_keeps_all(url, services)
    pinned = [None if address is None else pin_temporary(address) for address in (url, *services)]
    return dict(zip(KINDS, (pinned[0] if each is None else each for each in pinned[1:]), strict=True))


class _Described:
    """The services of a store, each at an address of its ``own``, or as composed."""

    def __init__(
        self, own: Mapping[str, str | None], composition: Composition | None, opened: contextlib.ExitStack
    ) -> None:
        """``opened`` gets what closes them."""
        if composition is None and None in own.values():
            raise InvalidRequest("name a store, or the address of each of the three services")
        self._own = own
        self._composition = composition
        self._opened = opened
        self.opening: Opening | None = None
        if composition is not None:
            self.opening = Opening(composition, _size_rule)
            opened.callback(self.opening.close)

    def url(self, kind: str) -> str:
        """Where the service of this kind is."""
        address = self._own[kind]
        if address is None:
            assert self._composition is not None
            return self._composition.url(kind)
        return address

    def open(self, kind: str, schemes: Schemes[Any], context: PathInfoContext | None = None) -> Any:
        address = self._own[kind]
        if address is None:
            assert self.opening is not None
            return self.opening.root(kind, context)
        service = schemes.open(address, context)
        self._opened.callback(service.close)
        return service


def services_of_cache(url: str, keeping: Services, *, netrc_file: str | None = None) -> Services:
    """The path infos of a binary cache; what is fetched for them comes into ``keeping``. Only the path infos
    are to be closed."""
    blobs, directories, nar_nodes, rule = (
        keeping.blobs,
        keeping.directories,
        keeping.nar_nodes,
        keeping.size_rule,
    )
    context = PathInfoContext(blobs, directories, nar_nodes, rule, netrc_file)
    return Services(blobs, directories, PATH_INFO_SERVICES.open(url, context), nar_nodes, rule)


def _remote(*urls: str) -> RemoteAdmin | None:
    """The administration of the server that all of the addresses name, if it is one."""
    if not all(map(is_remote, urls)):
        return None
    # Imported for those who need it only: gRPC takes a tenth of a second.
    from neve.rpc.target import target_of
    from neve.store.remote import open_admin

    addresses = [parse_address(url) for url in urls]
    if len({target_of(address).name for address in addresses}) > 1:
        return None
    return open_admin(addresses[-1])


def _nar_nodes(path_infos_url: str, directories_url: str) -> NarNodes:
    """The map of NARs lies beside the path infos; where those are kept nowhere, beside the contents."""
    kept_nowhere = is_source(path_infos_url) or parse_address(path_infos_url).scheme == "lru"
    url = directories_url if kept_nowhere else path_infos_url
    if is_remote(url):
        from neve.store.remote import GrpcNarNodes, open_admin

        return GrpcNarNodes(open_admin(parse_address(url)))
    if parse_address(url).scheme == "postgresql":
        from neve.store.postgresql import open_nar_nodes

        return open_nar_nodes(parse_address(url))
    if parse_address(url).scheme == "bigtable" and url == path_infos_url:
        from neve.store.bigtable import open_nar_nodes

        return open_nar_nodes(parse_address(url))
    if not is_local(url):
        return MemoryNarNodes()
    return LocalNarNodes(open_address(parse_address(url)))


def _size_rule(directories_url: str) -> SizeRule:
    """How the sizes of Directories that are made for this service are counted."""
    directories_url = home(directories_url)
    if is_remote(directories_url):
        # Those who know their services by these names refuse Directories of the other rule.
        snix = parse_address(directories_url).parameters.get("flavor") == "snix"
        return SizeRule.SNIX if snix else SizeRule.EXACT
    if not is_local(directories_url):
        return SizeRule.EXACT
    store = open_address(parse_address(directories_url))
    try:
        return SizeRule(store.settings.get(SIZE_RULE_SETTING, SizeRule.EXACT.value))
    except ValueError as error:
        raise Corrupt(f"the settings of the store in {store.path} are damaged: {error}") from error
    finally:
        store.close()
