"""The file of a composition: reading and checking it. Nothing is opened here but the file itself.

Whatever is wrong is told with the file, the table and the key, also in tables that nothing refers to.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple
from urllib.parse import quote

from neve.errors import InvalidRequest, LimitExceeded, NeveError, NotFound, PermissionDenied, Unavailable
from neve.registry import parse_address
from neve.store.composition.types import KINDS, TYPES, Type, WrongValue
from neve.store.places import read_only

MAX_FILE_BYTES = 256 * 1024
"""As of the configuration file: thousands of services."""

MAX_LEVELS = 8
"""How deep services may be made of others. A cache before a cache before a signing one has four; and
addresses that hold each other grow with each level."""

MAX_ADDRESS = 8 * 1024
"""Characters of the longest address of one service, with room for credentials of every kind. The address of a
whole store holds it up to 128 times, and what is quoted there grows with each level."""

SCHEME = "composition"
"""Of addresses that stand for a whole store that a file describes."""

ROOTS = ("root", "default")
"""The names that a store begins with: the first of them that there is."""

_BARE = re.compile(r"[A-Za-z0-9_-]+")


class InvalidComposition(InvalidRequest):
    """A composition cannot be used. The message names the file, the table and the key."""


class Reference(NamedTuple):
    """What stands where a service is wanted: a name, or an address."""

    kind: str
    text: str
    key: str
    """The key that says it."""

    @property
    def is_address(self) -> bool:
        return "://" in self.text

    @property
    def target(self) -> tuple[str, str]:
        """The entry that is named."""
        return self.kind, self.text


@dataclass(frozen=True)
class Entry:
    """A service of the file."""

    kind: str
    name: str
    url: str
    """Its address, but for its parts."""
    parts: Mapping[str, Reference]
    """What it is made of, by the parameters of its address."""
    beside: Mapping[str, Reference]
    """What it puts things into, by their kinds."""

    @property
    def table(self) -> str:
        """The head of its table, as it would be written."""
        return shown_table(self.kind, self.name)


@dataclass(frozen=True)
class Composition:
    """A checked file. ``text`` is what it held: for who is to have the same, and may not find it again."""

    path: str
    text: str
    entries: Mapping[tuple[str, str], Entry]
    reads_only: bool = False

    def root(self, kind: str) -> Entry:
        """The service that a store has of this kind. Raises ``InvalidComposition`` if there is none."""
        for name in ROOTS:
            if (entry := self.entries.get((kind, name))) is not None:
                return entry
        raise InvalidComposition(f"{self.path}: there is no table [{kind}.{ROOTS[0]}]")

    def has_root(self, kind: str) -> bool:
        return any((kind, name) in self.entries for name in ROOTS)

    def url(self, kind: str) -> str:
        """The address of the root, as one that holds those of all its parts: what it tells of where things
        lie holds here, too. Services that are named twice are in it twice."""
        return self._url_of_entry(self.root(kind))

    def url_of(self, reference: Reference) -> str:
        """The address of what is referred to, in the same way."""
        if reference.is_address:
            return self.opened_as(reference.text)
        return self._url_of_entry(self.entries[reference.target])

    def _url_of_entry(self, entry: Entry) -> str:
        url = self.opened_as(entry.url)
        for parameter, part in entry.parts.items():
            url += f"{'&' if '?' in url else '?'}{parameter}={quote(self.url_of(part), safe='')}"
        return url

    def opened_as(self, url: str) -> str:
        """An address of the file, as it is to be opened."""
        return read_only(url) if self.reads_only else url

    def for_reading(self) -> Composition:
        """The same, with embedded stores opened for reading only."""
        return replace(self, reads_only=True)


def shown_table(*keys: str) -> str:
    """The head of a table, as it would be written."""
    return f"[{'.'.join(key if _BARE.fullmatch(key) else repr(key) for key in keys)}]"


def of_address(url: str) -> Composition | None:
    """The composition that an address names, ``composition:///path/of/file``; None for any other address.
    Raises as ``read`` does."""
    address = parse_address(url)
    if address.scheme != SCHEME:
        return None
    address.check_parameters()
    if address.host or not address.path.strip("/"):
        raise address.refuse(f"name the whole path of the file: {SCHEME}:///etc/neve/store.toml")
    return read(address.path)


def read(path: str | os.PathLike[str]) -> Composition:
    """Reads a file. Raises ``NotFound``, ``PermissionDenied``, ``Unavailable``, ``LimitExceeded`` and
    ``InvalidComposition``."""
    shown = os.fspath(path)
    content = b""
    try:
        with open(path, "rb") as file:
            # A pipe gives what there is.
            while len(content) <= MAX_FILE_BYTES and (part := file.read(MAX_FILE_BYTES + 1 - len(content))):
                content += part
    except (OSError, ValueError) as error:
        raise _translated(shown, error) from error
    if len(content) > MAX_FILE_BYTES:
        raise LimitExceeded(f"{shown} has more than {MAX_FILE_BYTES} bytes, the limit of a composition")
    try:
        return parse(content.decode(), shown)
    except UnicodeDecodeError as error:
        raise InvalidComposition(f"{shown} is no UTF-8") from error


def _translated(path: str, error: OSError | ValueError) -> NeveError:
    if not isinstance(error, OSError):
        return InvalidComposition(f"{path!r} cannot be the name of a file: {error}")
    text = f"cannot read the composition {path}: {error.strerror}"
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return NotFound(text)
    return PermissionDenied(text) if isinstance(error, PermissionError) else Unavailable(text)


def parse(text: str, path: str) -> Composition:
    """The composition that ``text`` describes; ``path`` is for messages. Raises ``InvalidComposition``."""
    import tomllib  # Most have no composition.

    try:
        tables = tomllib.loads(text)
    except ValueError as error:  # Also numbers with more digits than Python converts.
        raise InvalidComposition(f"{path} is no TOML: {error}") from error
    except RecursionError as error:
        raise InvalidComposition(f"{path}: this is nested too deep") from error
    try:
        entries = {(entry.kind, entry.name): entry for entry in _entries(tables)}
        _check_names(entries)
        _check_levels(entries)
    except InvalidRequest as error:
        raise InvalidComposition(f"{path}: {error}") from error
    return Composition(path, text, entries)


def _entries(tables: Mapping[str, Any]) -> Iterator[Entry]:
    for kind, services in tables.items():
        if kind not in KINDS:
            raise InvalidRequest(f"there is no table {shown_table(kind)} (known: {', '.join(KINDS)})")
        for name, table in _table(services, kind).items():
            if not name or "://" in name:
                raise InvalidRequest(
                    f"{shown_table(kind, name)}: nothing can refer to a service of this name"
                )
            yield _entry(kind, name, _table(table, kind, name))


def _table(value: Any, *keys: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise InvalidRequest(f"{shown_table(*keys)} must be a table")
    return value


def _entry(kind: str, name: str, table: Mapping[str, Any]) -> Entry:
    where = shown_table(kind, name)
    described = _type(kind, table, where)
    values: dict[str, Any] = {}
    parts: dict[str, Reference] = {}
    beside: dict[str, Reference] = {}
    for key, value in table.items():
        try:
            if key in described.keys:
                values[key] = described.keys[key](value)
            elif (parameter := described.parts.get(key)) is not None:
                if parameter in parts:
                    raise WrongValue(f"is another name of {parameter}, which is there too")
                parts[parameter] = _reference(kind, value, key)
            elif (other := described.beside.get(key)) is not None:
                beside[other] = _reference(other, value, key)
            elif key != "type":
                raise WrongValue(
                    f"is unknown for type {table['type']} (known: {', '.join(described.known())})"
                )
        except InvalidRequest as error:
            raise InvalidRequest(f"{where}: key {key!r} {error}") from error
    missing = sorted((described.required - {*values}) | ({*described.parts.values()} - {*parts}))
    if missing:
        raise InvalidRequest(f"{where}: key {missing[0]!r} is missing")
    return Entry(kind, name, _checked_url(described.address(values), where), parts, beside)


def _type(kind: str, table: Mapping[str, Any], where: str) -> Type:
    known = ", ".join(TYPES[kind])
    if "type" not in table:
        raise InvalidRequest(f"{where}: key 'type' is missing (known: {known})")
    name = table["type"]
    if not isinstance(name, str):
        raise InvalidRequest(f"{where}: key 'type' must be a string")
    if name not in TYPES[kind]:
        raise InvalidRequest(f"{where}: key 'type' is {name!r}, which {kind} do not have (known: {known})")
    return TYPES[kind][name]


def _reference(kind: str, value: Any, key: str) -> Reference:
    if not isinstance(value, str) or not value:
        raise WrongValue("must be the name of a service, or an address")
    if len(value) > MAX_ADDRESS:
        raise WrongValue(f"has {len(value)} characters, over the limit of {MAX_ADDRESS}")
    reference = Reference(kind, value, key)
    if reference.is_address:
        try:
            parse_address(value)
        except InvalidRequest as error:
            raise WrongValue(f"cannot be used: {error}") from error
    return reference


def _checked_url(url: str, where: str) -> str:
    if len(url) > MAX_ADDRESS:
        raise InvalidRequest(f"{where}: its address has more than {MAX_ADDRESS} characters")
    try:
        parse_address(without_parameters(url))  # First, as those may be secrets, which messages would tell.
        parse_address(url)
    except InvalidRequest as error:
        raise InvalidRequest(f"{where}: {error}") from error
    return url


def without_parameters(url: str) -> str:
    return url.partition("?")[0]


def _named(references: Iterable[Reference]) -> list[Reference]:
    return [reference for reference in references if not reference.is_address]


def _check_names(entries: Mapping[tuple[str, str], Entry]) -> None:
    for entry in entries.values():
        for reference in _named((*entry.parts.values(), *entry.beside.values())):
            if reference.target not in entries:
                there = ", ".join(name for kind, name in entries if kind == reference.kind) or "none"
                raise InvalidRequest(
                    f"{entry.table}: key {reference.key!r} names {reference.text!r}, and there is no table "
                    f"{shown_table(*reference.target)} (there are: {there})"
                )


def _check_levels(entries: Mapping[tuple[str, str], Entry]) -> None:
    """Raises ``InvalidRequest`` for cycles, and for what is made of others in too many levels. What is beside
    is of another kind, that never refers back. Without recursion, which a long chain would end."""
    levels: dict[tuple[str, str], int] = {}
    for first in entries:
        way = [first]
        while way:
            parts = _named(entries[way[-1]].parts.values())
            waiting = [part for part in parts if part.target not in levels]
            for part in waiting:
                if part.target in way:
                    raise InvalidRequest(_cycle(way, part))
            level = 1 + max((levels.get(part.target, 0) for part in parts), default=0)
            if level > MAX_LEVELS or (waiting and len(way) >= MAX_LEVELS):
                raise InvalidRequest(
                    f"{entries[way[0]].table}: services are made of others in more than {MAX_LEVELS} levels"
                )
            if waiting:
                way.append(waiting[0].target)
            else:
                levels[way.pop()] = level


def _cycle(way: Sequence[tuple[str, str]], part: Reference) -> str:
    names = [name for _, name in way[way.index(part.target) :]]
    return (
        f"{shown_table(*way[-1])}: key {part.key!r} leads back to where it comes from: "
        f"{' -> '.join([*names, part.text])}"
    )
