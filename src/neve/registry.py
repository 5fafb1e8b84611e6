"""Addresses of services: parsing them, and the tables from scheme to backend.

Parsing never opens anything. A new backend is one line in a service's table: the scheme and where
its factory is, imported only when an address asks for it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

from neve.errors import InvalidRequest

T = TypeVar("T")

_OTHER_ENGINES = {"sled", "redb", "redb+memory"}


@dataclass(frozen=True)
class Address:
    """A parsed address. ``path`` is decoded; ``parameters`` are those behind the ``?``."""

    url: str
    scheme: str
    host: str
    path: str
    parameters: Mapping[str, str]

    def refuse(self, reason: str) -> InvalidRequest:
        """The error that names this address and what is wrong with it."""
        return InvalidRequest(f"address {self.url!r}: {reason}")

    def check_parameters(self, *allowed: str) -> None:
        """Raises ``InvalidRequest`` if there is a parameter that is not in ``allowed``."""
        for name in self.parameters:
            if name not in allowed:
                known = ", ".join(allowed) if allowed else "none"
                raise self.refuse(f"unknown parameter {name!r} (known: {known})")

    def choice(self, name: str, *values: str) -> str:
        """The parameter ``name``, one of ``values``; the first of them is the default."""
        value = self.parameters.get(name, values[0])
        if value not in values:
            raise self.refuse(f"parameter {name!r} is {value!r}, must be one of: {', '.join(values)}")
        return value


def parse_address(url: str) -> Address:
    """Takes an address apart. Raises ``InvalidRequest`` naming it."""
    scheme, separator, _ = url.partition("://")
    if not separator or not scheme:
        raise InvalidRequest(f"address {url!r} has no scheme; write for example local:///srv/neve")
    try:
        parts = urlsplit(url)
        host = parts.netloc
        pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError as error:
        raise InvalidRequest(f"address {url!r} cannot be read: {error}") from error
    if parts.fragment:
        raise InvalidRequest(f"address {url!r}: a fragment ('#...') has no meaning here; write # as %23")
    parameters = dict(pairs)
    if len(parameters) != len(pairs):
        raise InvalidRequest(f"address {url!r}: a parameter is given twice")
    return Address(url, parts.scheme, host, unquote(parts.path, errors="surrogateescape"), parameters)


class Schemes(Generic[T]):
    """The backends of one service by scheme: ``"module:factory"``, where a factory takes an Address."""

    def __init__(self, service: str, factories: Mapping[str, str]) -> None:
        self._service = service
        self._factories = dict(factories)

    def names(self) -> list[str]:
        return sorted(self._factories)

    def open(self, url: str) -> T:
        """The service at ``url``. Raises ``InvalidRequest`` and what the backend raises."""
        address = parse_address(url)
        target = self._factories.get(address.scheme)
        if target is None:
            hint = ""
            if address.scheme in _OTHER_ENGINES:
                hint = f"; {address.scheme} is an engine of another implementation, neve's own is local"
            known = ", ".join(self.names())
            raise address.refuse(
                f"no {self._service} has the scheme {address.scheme!r}{hint} (known: {known})"
            )
        module, _, name = target.partition(":")
        factory: Callable[[Address], Any] = getattr(importlib.import_module(module), name)
        service: T = factory(address)
        return service
