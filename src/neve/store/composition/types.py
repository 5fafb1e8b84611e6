"""The types of services in a composition, their keys, and the addresses that these stand for.

What the values mean, the backends know: here it is only checked that they are of the right type of TOML,
and written as the parameters of an address.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias
from urllib.parse import quote, urlencode

from neve.errors import InvalidRequest

BLOBS, DIRECTORIES, PATH_INFOS = "blobservices", "directoryservices", "pathinfoservices"
KINDS = (BLOBS, DIRECTORIES, PATH_INFOS)

Values: TypeAlias = Mapping[str, Any]
"""Checked values by their keys, without references."""


class WrongValue(InvalidRequest):
    """A value of a type that its key does not take. Says what it must be, and nothing of what it is: it may
    be a secret."""


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise WrongValue("must be a string, and not empty")
    if "\0" in value:
        raise WrongValue("holds a NUL")
    return value


def _beginning(*starts: str) -> Callable[[Any], str]:
    def text(value: Any) -> str:
        if not _text(value).startswith(starts):
            raise WrongValue(f"must begin with {' or '.join(starts)}")
        return _text(value)

    return text


def _whole(value: Any) -> str:
    if type(value) is not int or value < 0:
        raise WrongValue("must be a whole number, not below 0")
    return str(value)


def _seconds(value: Any) -> str:
    if isinstance(value, str) and value:
        return value
    if type(value) not in (int, float) or not 0 < value < 1e9:
        raise WrongValue("must be a number of seconds above 0")
    return repr(value)


def _flag(value: Any) -> str:
    if not isinstance(value, bool):
        raise WrongValue("must be true or false")
    return "true" if value else "false"


def _texts(value: Any) -> str:
    """Those that an address separates by blanks."""
    if not isinstance(value, list):
        return _text(value)
    if not value:
        raise WrongValue("must not be an empty list")
    return " ".join(map(_text, value))


def _folder(value: Any) -> str:
    if not os.path.isabs(_text(value)):
        raise WrongValue("must be an absolute path")
    return _text(value)


def _bare_url(*starts: str) -> Callable[[Any], str]:
    """An address to which parameters are added."""

    def text(value: Any) -> str:
        found = _beginning(*starts)(value) if starts else _text(value)
        if "://" not in found or "?" in found or "#" in found:
            raise WrongValue("must be an address without parameters")
        return found

    return text


def _options(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise WrongValue("must be a table")
    return {name: _option(name, each) for name, each in value.items()}


def _option(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return _flag(value)
    if type(value) is int:
        return str(value)
    if not isinstance(value, str) or "\0" in value or not name or "\0" in name:
        raise WrongValue("must be a table of strings, whole numbers, true and false")
    return value


@dataclass(frozen=True)
class Type:
    """A type of service."""

    address: Callable[[Values], str]
    """The address for the values of its keys, without the services that it refers to."""
    keys: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)
    """What checks a value, and makes of it what ``address`` takes. Raises ``WrongValue``."""
    required: frozenset[str] = frozenset()
    parts: Mapping[str, str] = field(default_factory=dict)
    """Which parameter of the address a service is, that a key refers to: of the same kind, and required."""
    beside: Mapping[str, str] = field(default_factory=dict)
    """The kinds of services that are not parts of it, but that it puts things into; not required."""

    def known(self) -> list[str]:
        return ["type", *self.keys, *self.parts, *self.beside]


def _query(values: Values, names: Mapping[str, str]) -> str:
    """The part of an address behind its ``?``: ``names`` gives the parameter for each key."""
    return _parameters({name: values[key] for key, name in names.items() if key in values})


def _parameters(parameters: Mapping[str, str]) -> str:
    return "?" + urlencode(parameters, quote_via=quote, safe="") if parameters else ""


def _same(*keys: str) -> dict[str, str]:
    return {key: key for key in keys}


_MEMORY = Type(lambda values: "memory://")
_LOCAL_PARAMETERS = {"mode": "mode", "directory_size_rule": "directory-size-rule"}
_LOCAL = Type(
    lambda values: f"local://{quote(values['path'])}{_query(values, _LOCAL_PARAMETERS)}",
    {"path": _folder, **dict.fromkeys(_LOCAL_PARAMETERS, _text)},
    frozenset({"path"}),
)


def _as_it_is(*starts: str) -> Type:
    """A type that has an address for its key."""
    return Type(lambda values: str(values["url"]), {"url": _beginning(*starts)}, frozenset({"url"}))


_GRPC = _as_it_is("grpc+")
_POSTGRESQL = _as_it_is("postgresql://")

_NEAR_FAR = _same("near", "far")
_CACHE_PARAMETERS = {"negative_ttl": "negative-ttl"}
_CACHE = Type(
    lambda values: f"cache://{_query(values, _CACHE_PARAMETERS)}", {"negative_ttl": _seconds}, parts=_NEAR_FAR
)
# Its other names are those that other software gives them.
_COMBINED = Type(lambda values: "combined://", parts={**_NEAR_FAR, "local": "near", "remote": "far"})

_LRU = Type(lambda values: f"lru://{_query(values, _same('capacity'))}", {"capacity": _whole})
_SIGNING = Type(
    lambda values: f"keyfile-signing://{_query(values, _same('keyfile'))}",
    {"keyfile": _folder},
    frozenset({"keyfile"}),
    parts=_same("inner"),
)

_NIX_PARAMETERS = {
    "public_keys": "trusted-public-keys",
    "netrc_file": "netrc-file",
    "token_file": "token-file",
    **_same("ca", "timeout", "attempts"),
}
_NIX = Type(
    lambda values: f"nix+{values['base_url']}{_query(values, _NIX_PARAMETERS)}",
    {
        "base_url": _bare_url("http://", "https://", "file://"),
        "public_keys": _texts,
        "netrc_file": _folder,
        "token_file": _folder,
        "ca": _folder,
        "timeout": _seconds,
        "attempts": _whole,
    },
    frozenset({"base_url"}),
    beside={"blob_service": BLOBS, "directory_service": DIRECTORIES},
)

_BIGTABLE_PARAMETERS = _same(
    *("project_id", "table_name", "family_name", "is_read_only", "channel_size", "timeout", "app_profile_id"),
    "nar_family_name",
)
_BIGTABLE_REQUIRED = ("instance_name", "project_id", "table_name", "family_name")
_BIGTABLE = Type(
    lambda values: (
        f"bigtable://{quote(values['instance_name'], safe='')}{_query(values, _BIGTABLE_PARAMETERS)}"
    ),
    {
        **dict.fromkeys(_BIGTABLE_REQUIRED, _text),
        "is_read_only": _flag,
        "channel_size": _whole,
        "timeout": _seconds,
        "app_profile_id": _text,
    },
    frozenset(_BIGTABLE_REQUIRED),
)
# The map of NARs lies beside the path infos.
_BIGTABLE_BESIDE = dataclasses.replace(_BIGTABLE, keys={**_BIGTABLE.keys, "nar_family_name": _text})


def _objects_address(values: Values) -> str:
    parameters = dict(values.get("object_store_options", {}))
    if "avg_chunk_size" in values:
        parameters["avg_chunk_size"] = values["avg_chunk_size"]
    return f"objectstore+{values['object_store_url']}{_parameters(parameters)}"


_OBJECTS_KEYS = {"object_store_url": _bare_url(), "object_store_options": _options}
_OBJECTS = Type(_objects_address, _OBJECTS_KEYS, frozenset({"object_store_url"}))
_CHUNKED_OBJECTS = Type(
    _objects_address, {**_OBJECTS_KEYS, "avg_chunk_size": _whole}, frozenset({"object_store_url"})
)

_ANYWHERE = {"memory": _MEMORY, "local": _LOCAL, "grpc": _GRPC, "cache": _CACHE}
_METADATA = {"bigtable": _BIGTABLE, "postgresql": _POSTGRESQL}

TYPES: Mapping[str, Mapping[str, Type]] = {
    BLOBS: {**_ANYWHERE, "combined": _COMBINED, "objectstore": _CHUNKED_OBJECTS},
    DIRECTORIES: {**_ANYWHERE, **_METADATA, "objectstore": _OBJECTS},
    PATH_INFOS: {
        **_ANYWHERE,
        **_METADATA,
        "bigtable": _BIGTABLE_BESIDE,
        "lru": _LRU,
        "nix": _NIX,
        "keyfile-signing": _SIGNING,
    },
}
"""The types of each kind of service, by their names."""
