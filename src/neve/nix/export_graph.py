"""The JSON by which Nix describes a closure of store paths.

Three shapes hold the same entries: an object whose ``closure`` is a list (``exportReferencesGraph`` of a
derivation with structured attributes), the bare list (``nix path-info --json --closure-size -r``), and an
object keyed by store path (``nix path-info --json`` of newer Nix).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from neve.errors import InvalidRequest
from neve.nix._text import MAX_U64, quoted
from neve.nix.hashes import CAHash, HashAlgorithm, NixHash
from neve.nix.signing import Signature
from neve.nix.store_path import StorePath

_T = TypeVar("_T")


class InvalidExportGraph(InvalidRequest):
    """A description of a closure is malformed. The message names the entry and the key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedPath:
    """One store path of the closure. What an entry does not say is ``None`` or empty."""

    path: StorePath
    nar_sha256: bytes
    """sha256 of the NAR, 32 bytes."""
    nar_size: int
    """Size of the NAR in bytes."""
    references: tuple[StorePath, ...] = ()
    """As listed; a path may refer to itself."""
    closure_size: int | None = None
    """Sum of the NAR sizes of the closure of this path, in bytes."""
    deriver: StorePath | None = None
    """Its name lacks the ``.drv`` that the text has."""
    signatures: tuple[Signature, ...] = ()
    ca: CAHash | None = None
    registration_time: int | None = None
    """Seconds since 1970."""


def parse(data: str | bytes) -> list[ExportedPath]:
    """Parses any of the three shapes into entries, in the order given.

    Whether the references are among the entries is not checked. Raises ``InvalidExportGraph``, also
    for a path that is listed twice or that the describing store did not have.
    """
    entries: list[ExportedPath] = []
    seen: set[StorePath] = set()
    for where, path, entry in _find_entries(_load(data)):
        exported = _parse_entry(_Entry(where, entry), path)
        if exported.path in seen:
            raise InvalidExportGraph(f"{where}: {exported.path} is listed twice")
        seen.add(exported.path)
        entries.append(exported)
    return entries


def _load(data: str | bytes) -> object:
    try:
        value: object = json.loads(data)
    except (ValueError, RecursionError) as error:
        # ValueError: no JSON, no Unicode, or a number of thousands of digits.
        raise InvalidExportGraph(f"description of a closure is no JSON: {error}") from error
    return value


def _find_entries(value: object) -> Iterable[tuple[str, str | None, object]]:
    """Where each entry is, its path if the shape has it outside of the entry, and the entry."""
    if isinstance(value, dict) and "closure" in value:
        value = value["closure"]
        if not isinstance(value, list):
            raise InvalidExportGraph(f"'closure' is {_kind(value)}, expected a list")
    if isinstance(value, list):
        return ((f"entry {position}", None, entry) for position, entry in enumerate(value))
    if isinstance(value, dict):
        return ((f"entry {quoted(path)}", path, entry) for path, entry in value.items())
    raise InvalidExportGraph(f"description of a closure is {_kind(value)}, expected an object or a list")


class _Entry:
    """The values of one entry by key and kind; errors name the entry and the key.

    A ``null`` counts as missing: newer Nix writes every key.
    """

    def __init__(self, where: str, value: object) -> None:
        self.where = where
        if not isinstance(value, dict):
            raise InvalidExportGraph(f"{where} is {_kind(value)}, expected an object")
        self._values: dict[str, Any] = value

    def text(self, key: str, parse_text: Callable[[str], _T]) -> _T | None:
        value = self._values.get(key)
        return None if value is None else self._parse_text(key, value, parse_text)

    def texts(self, key: str, parse_text: Callable[[str], _T]) -> tuple[_T, ...] | None:
        values = self._values.get(key)
        if values is None:
            return None
        if not isinstance(values, list):
            raise self.error(key, f"is {_kind(values)}, expected a list")
        return tuple(
            self._parse_text(f"{key}[{position}]", value, parse_text) for position, value in enumerate(values)
        )

    def number(self, key: str) -> int | None:
        value = self._values.get(key)
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.error(key, f"is {_kind(value)}, expected a whole number")
        if not 0 <= value <= MAX_U64:
            raise self.error(key, f"is {quoted(str(value))}, expected 0 to {MAX_U64}")
        return value

    def says_invalid(self) -> bool:
        return self._values.get("valid") is False

    def require(self, key: str, value: _T | None) -> _T:
        if value is None:
            raise self.error(key, "is missing")
        return value

    def error(self, key: str, problem: str) -> InvalidExportGraph:
        return InvalidExportGraph(f"{self.where}: {key} {problem}")

    def _parse_text(self, key: str, value: object, parse_text: Callable[[str], _T]) -> _T:
        if not isinstance(value, str):
            raise self.error(key, f"is {_kind(value)}, expected a string")
        try:
            return parse_text(value)
        except InvalidRequest as error:
            raise InvalidExportGraph(f"{self.where}: {key}: {error}") from error


def _parse_entry(entry: _Entry, key: str | None) -> ExportedPath:
    path = entry.text("path", StorePath.parse)
    if key is not None:
        outer = _Entry(entry.where, {"path": key}).text("path", StorePath.parse)
        if path not in (None, outer):
            raise entry.error("path", f"is {path}, which differs from the key")
        path = outer
    path = entry.require("path", path)
    if entry.says_invalid():
        raise entry.error("valid", f"is false: {path} was not in the store that wrote this")
    return ExportedPath(
        path=path,
        nar_sha256=entry.require("narHash", entry.text("narHash", _parse_sha256)),
        nar_size=entry.require("narSize", entry.number("narSize")),
        references=entry.require("references", entry.texts("references", StorePath.parse)),
        closure_size=entry.number("closureSize"),
        deriver=entry.text("deriver", _parse_deriver),
        signatures=entry.texts("signatures", Signature.parse) or (),
        ca=entry.text("ca", CAHash.parse),
        registration_time=entry.number("registrationTime"),
    )


def _parse_sha256(text: str) -> bytes:
    return NixHash.parse(text, HashAlgorithm.SHA256).digest


def _parse_deriver(text: str) -> StorePath:
    return StorePath.parse(text).without_drv()


def _kind(value: object) -> str:
    """What JSON calls the type of ``value``."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case dict():
            return "an object"
        case list():
            return "a list"
        case str():
            return "a string"
        case _:
            return "a number"
