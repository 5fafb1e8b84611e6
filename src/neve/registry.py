"""Addresses of services: parsing them, and the tables from scheme to backend.

Parsing never opens anything. A new backend is one line in a service's table: the scheme and where
its factory is, imported only when an address asks for it.

An address may hold others as parameters, percent-encoded: those of the services that it is made of.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

from neve.errors import InvalidRequest

T = TypeVar("T")

_OTHER_ENGINES = {"sled", "redb", "redb+memory"}

NESTED = ("near", "far", "inner")
"""Parameters whose values are addresses, in every scheme that has them."""

_LEVELS = 4
"""How deep in each other user names are looked for in addresses: each level is encoded once more."""


_SECRETS = (
    "(?:secret|token|password|access_key|account_key|master_key|storage_key|customer_key|sas_key"
    "|service_account)"
)
"""What is in the names of parameters whose values are nobody else's business."""


class _UserInfos(NamedTuple):
    """Find what is between ``://`` and ``@``, encoded so many times; an address may be encoded in part."""

    proper: re.Pattern[str]
    forgotten: re.Pattern[str]
    """For passwords in which somebody forgot to encode a slash or a question mark: whatever follows a colon
    that is not that of a port."""
    breaks: re.Pattern[str]
    """What ends such a password."""
    at: re.Pattern[str]
    secrets: re.Pattern[str]
    """Parameters that are as secret as a password: keys and tokens of object stores."""

    def hidden_in(self, text: str) -> str:
        """``text`` without them."""
        text = self.secrets.sub(r"\1***", text)
        text = self.proper.sub(r"\1***@", text)
        # Up to the last ``@`` of each part only: else each ``://`` behind it would be looked at in vain, and
        # all that follows with it.
        return "".join(map(self._hidden_in_part, self.breaks.split(text)))

    def _hidden_in_part(self, part: str) -> str:
        end = max((found.end() for found in self.at.finditer(part)), default=0)
        return self.forgotten.sub(r"\1***@", part[:end]) + part[end:]


def _user_infos(level: int) -> _UserInfos:

    def encoded(character: str) -> str:
        forms = [f"%{'25' * (n - 1)}{ord(character):02X}" for n in range(1, level + 1)]
        return "|".join([re.escape(character), *forms])

    ends = "|".join(encoded(character) for character in "/?#")
    slash, colon, at, more = encoded("/"), encoded(":"), encoded("@"), encoded("&")
    start = rf"((?:{colon})(?:{slash})(?:{slash}))"
    port = rf"[0-9]+(?:{ends}|{more}|\s|$)"
    user = rf"(?:(?!{ends}|{more}|{colon}|{at}|\[|\s).)+"
    secret = rf"({_SECRETS}[a-z0-9_]{{0,30}}(?:{encoded('=')}))(?:(?!{more}|\s).)+"
    forgotten = rf"{user}(?:{colon})(?!{port})(?:(?!{more}|\s).)*(?:{at})"
    return _UserInfos(
        *(
            re.compile(pattern, re.IGNORECASE)
            for pattern in (
                rf"{start}(?:(?!{ends}|\s).)*(?:{at})",
                start + forgotten,
                rf"((?:{more})|\s)",
                at,
                secret,
            )
        )
    )


_BLANK = re.compile(r"\s")

_USER_INFOS = [_user_infos(level) for level in range(_LEVELS)]


def shown_url(url: str) -> str:
    """An address for a message: without the user names, passwords and keys in it."""
    for user_infos in _USER_INFOS:
        url = user_infos.hidden_in(url)
    return url


def shown_address(url: str) -> str:
    """The same of what is one address and no text: blanks in it do not end a password."""
    joined = _BLANK.sub("%20", url)
    hidden = shown_url(joined)
    return url if hidden == joined else hidden


@dataclass(frozen=True)
class Address:
    """A parsed address. ``path`` is decoded; ``parameters`` are those behind the ``?``."""

    url: str
    scheme: str
    host: str
    path: str
    parameters: Mapping[str, str]
    parts: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict, compare=False)
    """What opens services that belong here like those at the addresses in ``parameters``, but are described
    otherwise, and are their describer's to close. Gets the context."""

    def refuse(self, reason: str) -> InvalidRequest:
        """The error that names this address and what is wrong with it."""
        return InvalidRequest(f"address {shown_address(self.url)!r}: {reason}")

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

    def required(self, name: str, example: str) -> str:
        """The parameter ``name``, which must be there."""
        value = self.parameters.get(name)
        if not value:
            raise self.refuse(f"parameter {name!r} is missing; write {name}={example}")
        return value

    def number(self, name: str, default: int, least: int = 1, most: int = 10**9) -> int:
        """The parameter ``name``, a whole number from ``least`` to ``most``."""
        text = self.parameters.get(name, str(default))
        if not (text.isascii() and text.isdecimal() and len(text) < 20 and least <= int(text) <= most):
            raise self.refuse(
                f"parameter {name!r} is {text!r}, must be a whole number from {least} to {most}"
            )
        return int(text)

    def seconds(self, name: str, default: float) -> float:
        """The parameter ``name``, a number of seconds above 0."""
        text = self.parameters.get(name, f"{default:g}")
        try:
            seconds = float(text)
        except ValueError:
            seconds = 0
        if not 0 < seconds < 1e9:
            raise self.refuse(f"parameter {name!r} is {text!r}, must be a number of seconds above 0")
        return seconds


def parse_address(url: str) -> Address:
    """Takes an address apart. Raises ``InvalidRequest`` naming it."""
    scheme, separator, _ = url.partition("://")
    shown = shown_address(url)
    if not separator or not scheme:
        raise InvalidRequest(f"address {shown!r} has no scheme; write for example local:///srv/neve")
    try:
        parts = urlsplit(url)
        host = parts.netloc
        pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError as error:
        # The reason may repeat what is not to be shown.
        reason = str(error) if shown == url else "malformed"
        raise InvalidRequest(f"address {shown!r} cannot be read: {reason}") from error
    if parts.fragment:
        raise InvalidRequest(f"address {shown!r}: a fragment ('#...') has no meaning here; write # as %23")
    path = unquote(parts.path, errors="surrogateescape")
    if "\0" in path:
        raise InvalidRequest(f"address {shown!r}: a path holds no NUL byte")
    parameters = dict(pairs)
    if len(parameters) != len(pairs):
        raise InvalidRequest(f"address {shown!r}: a parameter is given twice")
    for name, value in pairs:
        if "\0" in value:
            raise InvalidRequest(f"address {shown!r}: parameter {name!r} holds a NUL byte")
    return Address(url, parts.scheme, host, path, parameters)


def nested_addresses(url: str) -> dict[str, str]:
    """The addresses that are parameters of this one, by name."""
    return {name: value for name, value in parse_address(url).parameters.items() if name in NESTED}


class Schemes(Generic[T]):
    """The backends of one service by scheme: ``"module:factory"``, where a factory takes an Address.

    A factory of ``with_context`` takes the context of ``open`` too. What that is, is between who opens
    and the factories.
    """

    def __init__(
        self,
        service: str,
        factories: Mapping[str, str],
        with_context: Mapping[str, str] | None = None,
        *,
        opened: Callable[[T, str], T] = lambda service, scheme: service,
    ) -> None:
        """``opened`` gets every service that was opened, and its scheme; what it returns is given out."""
        self._opened = opened
        self._service = service
        self._factories = dict(factories)
        self._with_context = dict(with_context or {})

    def names(self) -> list[str]:
        return sorted([*self._factories, *self._with_context])

    def open(self, url: str | Address, context: Any = None) -> T:
        """The service at ``url``. Raises ``InvalidRequest`` and what the backend raises."""
        address = parse_address(url) if isinstance(url, str) else url
        service: T
        if (target := self._with_context.get(address.scheme)) is not None:
            service = _imported(target)(address, context)
        elif (target := self._factories.get(address.scheme)) is not None:
            service = _imported(target)(address)
        else:
            raise self._unknown(address)
        return self._opened(service, address.scheme)

    def open_nested(self, address: Address, name: str, context: Any = None) -> T:
        """The service at the address that is the parameter ``name`` of ``address``, or which is that part."""
        if (part := address.parts.get(name)) is not None:
            described: T = part(context)
            return described
        nested = address.required(name, "URL, percent-encoded")
        try:
            return self.open(nested, context)
        except InvalidRequest as error:
            raise type(error)(f"{name} of address {shown_address(address.url)!r}: {error}") from error

    def _unknown(self, address: Address) -> InvalidRequest:
        hint = ""
        if address.scheme in _OTHER_ENGINES:
            hint = f"; {address.scheme} is an engine of another implementation, neve's own is local"
        known = ", ".join(self.names())
        return address.refuse(f"no {self._service} has the scheme {address.scheme!r}{hint} (known: {known})")


def _imported(target: str) -> Callable[..., Any]:
    module, _, name = target.partition(":")
    factory: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return factory
