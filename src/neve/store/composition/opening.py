"""Opening what a composition describes: each service once, however often it is named."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

from neve.castore.blobs.urls import BLOB_SERVICES
from neve.castore.directories.urls import DIRECTORY_SERVICES
from neve.castore.directory import SizeRule
from neve.errors import InvalidRequest
from neve.registry import Schemes, parse_address
from neve.store.composition.file import Composition, Entry, InvalidComposition, Reference, without_parameters
from neve.store.composition.types import BLOBS, DIRECTORIES, PATH_INFOS
from neve.store.pathinfos.context import PathInfoContext
from neve.store.pathinfos.urls import PATH_INFO_SERVICES

_SCHEMES: dict[str, Schemes[Any]] = {
    BLOBS: BLOB_SERVICES,
    DIRECTORIES: DIRECTORY_SERVICES,
    PATH_INFOS: PATH_INFO_SERVICES,
}


class Opening:
    """The opened services of one composition, which it owns: closing one of them, or what is made of it, does
    nothing, since others may be made of it too. Belongs to one thread."""

    def __init__(self, composition: Composition, size_rule: Callable[[str], SizeRule]) -> None:
        """``size_rule`` tells that of the Directories at an address."""
        self._composition = composition
        self._size_rule = size_rule
        self._opened: dict[tuple[str, str], Any] = {}
        self._closing = contextlib.ExitStack()

    def root(self, kind: str, context: PathInfoContext | None = None) -> Any:
        """The service of this kind that the store begins with; ``context`` is for path infos. Raises
        ``InvalidComposition`` and what the backends raise."""
        return self._entry(self._composition.root(kind), context)

    def _entry(self, entry: Entry, context: PathInfoContext | None) -> Any:
        key = entry.kind, entry.name
        if key not in self._opened:
            try:
                self._opened[key] = self._own(entry, context)
            except InvalidComposition:
                raise
            except InvalidRequest as error:
                raise InvalidComposition(f"{self._composition.path}: {entry.table}: {error}") from error
        return self._opened[key]

    def _own(self, entry: Entry, context: PathInfoContext | None) -> Any:
        """Opens a service. What it is made of is opened first, and so closed after it."""
        address = parse_address(self._composition.opened_as(entry.url))
        # Parameters of buckets may be secrets, which messages would tell.
        if address.scheme.startswith("objectstore+"):
            address = dataclasses.replace(address, url=without_parameters(address.url))
        parts = {parameter: partial(self._named, reference) for parameter, reference in entry.parts.items()}
        context = self._beside(entry, context)
        return self._lend(_SCHEMES[entry.kind].open(dataclasses.replace(address, parts=parts), context))

    def _beside(self, entry: Entry, context: PathInfoContext | None) -> PathInfoContext | None:
        """The context of an entry: it may name other services than the store's to put things into."""
        if context is None or not entry.beside:
            return context
        fields = {BLOBS: "blobs", DIRECTORIES: "directories"}
        named = {fields[kind]: self._named(reference, None) for kind, reference in entry.beside.items()}
        if (directories := entry.beside.get(DIRECTORIES)) is not None:
            named["size_rule"] = self._size_rule(self._composition.url_of(directories))
        return dataclasses.replace(context, **named)

    def _named(self, reference: Reference, context: PathInfoContext | None) -> Any:
        if not reference.is_address:
            return self._entry(self._composition.entries[reference.target], context)
        url = self._composition.opened_as(reference.text)
        try:
            return self._lend(_SCHEMES[reference.kind].open(url, context))
        except InvalidRequest as error:
            raise type(error)(f"key {reference.key!r}: {error}") from error

    def _lend(self, service: Any) -> Any:
        """The service, which only ``close`` closes. It is not wrapped, since some services are known by their
        class; its method is replaced."""
        self._closing.callback(_end, service, service.close)
        service.close = _nothing
        return service

    def close(self) -> None:
        """Closes all, what was opened last first: each, also when another one fails. Can be called again."""
        self._closing.close()


def _nothing() -> None:
    """Stands in for the ``close`` of what is lent."""


def _end(service: Any, close: Callable[[], None]) -> None:
    vars(service).pop("close", None)
    close()
