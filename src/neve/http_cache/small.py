"""Listings, logs, realisations and links to debugging symbols: small files beside the store paths.

All but listings are kept as they come and given back as they are; nobody here looks into them. A listing is
made from the tree whenever it is asked for, so that one that is uploaded is not needed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

from neve.castore.node import Node
from neve.errors import InvalidRequest, NotFound, Unsupported
from neve.http_cache.contents import received
from neve.http_cache.exchange import TEXT, Exchange
from neve.http_cache.nar import Reading
from neve.http_cache.statuses import Header, far_errors
from neve.http_cache.threads import Threads
from neve.nix import base32
from neve.nix.store_path import StorePath
from neve.store.nar.listing import listing
from neve.store.path_info import PathInfo
from neve.store.services import Services
from neve.store.small_files import SmallFiles

_JSON: Header = (b"content-type", b"application/json")
_GUARDS: list[Header] = [
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; sandbox"),
]
"""Strangers wrote these files: a browser must not run them as pages of this host."""

_REALISATION = re.compile(r"[a-z0-9]{1,20}:[0-9a-f]{32,128}![A-Za-z0-9+_?=.-]{1,100}\.doi")

_BUILD_ID = re.compile(r"([0-9a-f]{16,128})(?:\.debug)?")
"""40 digits mostly, which is a SHA-1; linkers make others when they are told to."""


class ListingBody:
    """A listing that is being made."""

    is_ahead = False

    def __init__(self, services: Services, node: Node) -> None:
        self._pieces: Iterator[bytes] = listing(services.directories, node)

    def read(self) -> bytes:
        return next(self._pieces, b"")

    def close(self) -> None:
        return


class Listings:
    """``/<digest>.ls``."""

    def __init__(self, services: Services, threads: Threads, limit: int) -> None:
        self._services = services
        self._threads = threads
        self._limit = limit

    async def get(self, exchange: Exchange, name: str) -> None:
        """Raises ``NotFound``, also if the contents of the path are not here yet."""
        with exchange.working(), far_errors():
            found = await self._threads.ask(self._services.path_infos.describe, base32.decode(name))
        if not isinstance(found, PathInfo):
            raise NotFound("there is no listing of such a path")
        if exchange.is_head:
            await exchange.answer_head(200, [_JSON])
            return
        reading = Reading(self._threads, exchange, ListingBody(self._services, found.node))
        try:
            data = await reading.next()
            await exchange.start(200, [_JSON])
            while data:
                await exchange.send(data, more=True)
                data = await reading.next()
        finally:
            await reading.close()
        await exchange.send(b"", more=False)

    async def put(self, exchange: Exchange, name: str) -> None:
        """Takes one, and does not need it. Raises ``InvalidRequest``, ``LimitExceeded``."""
        base32.decode(name)
        await received(exchange, self._threads, self._limit, "a listing (max_small_file_bytes)")
        await exchange.answer_line(200, "not needed")


class Kind(NamedTuple):
    """A kind of files that are kept."""

    name: str
    known_by: Callable[[str], str]
    """The name to keep it by; raises ``InvalidRequest`` for what is no name of such a file."""
    header: Header
    """The type."""


def _log(name: str) -> str:
    """A log is named by the base name of its derivation."""
    StorePath.parse_base_name(name)
    return name


def _realisation(name: str) -> str:
    """A realisation is named by the hash of its derivation and its output."""
    if _REALISATION.fullmatch(name) is None:
        raise InvalidRequest("a realisation is named <algorithm>:<hash>!<output>.doi")
    return name


def _debug_info(name: str) -> str:
    """A link to debugging symbols (which NAR they are in, and where) is named by the build ID of a program:
    Nix, with ``index-debug-info``, adds ``.debug`` to that, and others do not."""
    match = _BUILD_ID.fullmatch(name)
    if match is None:
        raise InvalidRequest("a link to debugging symbols is named <build ID in hex>.debug")
    return match[1]


LOG = Kind("log", _log, TEXT)
REALISATION = Kind("realisation", _realisation, _JSON)
DEBUG_INFO = Kind("debuginfo", _debug_info, _JSON)


class KeptFiles:
    """``/log/<derivation>``, ``/realisations/<id>.doi`` and ``/debuginfo/<build ID>.debug``."""

    def __init__(self, kind: Kind, files: SmallFiles | None, threads: Threads, limit: int) -> None:
        self._kind = kind.name
        self._known_by = kind.known_by
        self._headers = [kind.header, *_GUARDS]
        self._files = files
        self._threads = threads
        self._limit = limit

    async def get(self, exchange: Exchange, name: str) -> None:
        """Raises ``NotFound``, and ``Unavailable`` if too much is being sent already."""
        data = None
        try:
            name = self._known_by(name)
            if self._files is not None:
                with exchange.working():
                    data = await self._threads.work(self._files.get, self._kind, name)
        except InvalidRequest as error:
            raise NotFound(str(error)) from error
        if data is None:
            raise NotFound(f"there is no such {self._kind}")
        exchange.hold(len(data))  # For as long as it takes to send it.
        await exchange.answer(200, data, self._headers)

    async def put(self, exchange: Exchange, name: str) -> None:
        """Raises ``InvalidRequest``, ``LimitExceeded``, and ``Unsupported`` if they cannot be kept."""
        name = self._known_by(name)
        if self._files is None:
            raise Unsupported(f"this store cannot keep a {self._kind}")
        data = await received(exchange, self._threads, self._limit, f"a {self._kind} (max_small_file_bytes)")
        with exchange.working():
            await self._threads.commit(partial(self._files.put, self._kind, name, data))
        await exchange.answer_line(201, "stored")
