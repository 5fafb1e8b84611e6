"""What addresses tell of where things lie, without opening anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from urllib.parse import quote, urlencode

from neve.errors import InvalidRequest
from neve.packstore.address import temporary_folder
from neve.registry import nested_addresses, parse_address, shown_address

_IN_MEMORY = ("memory", "lru", "objectstore+memory")


def is_local(url: str) -> bool:
    """Whether this is an embedded store."""
    return parse_address(url).scheme == "local"


def is_remote(url: str) -> bool:
    """Whether this is a gRPC server."""
    return parse_address(url).scheme.startswith("grpc+")


def is_source(url: str) -> bool:
    """Whether this is a binary cache, from which contents are fetched."""
    return parse_address(url).scheme.startswith("nix+")


def keeps_what_it_fetches(url: str) -> bool:
    """Whether reading from this address may write somewhere."""
    return is_source(url) or parse_address(url).scheme in ("cache", "combined") or _any_nested(url)


def _any_nested(url: str) -> bool:
    return any(keeps_what_it_fetches(nested) for nested in nested_addresses(url).values())


def home(url: str) -> str:
    """Where what is put to this address ends up, if that is made of others."""
    nested = nested_addresses(url)
    scheme = parse_address(url).scheme
    following = None
    if scheme == "keyfile-signing":
        following = nested.get("inner")
    elif scheme == "combined":
        following = nested.get("near")
    elif scheme == "cache":
        far = nested.get("far")
        following = nested.get("near") if far is not None and is_source(home(far)) else far
    return url if following is None else home(following)


def read_only(url: str) -> str:
    """The address for who only reads: needs no permission to write in embedded stores, and makes none."""
    address = parse_address(url)
    if address.scheme == "local" and address.path and "mode" not in address.parameters:
        return f"{url}{'&' if address.parameters else '?'}mode=ro"
    return _with_nested(url, {name: read_only(nested) for name, nested in nested_addresses(url).items()})


def _with_nested(url: str, changed: Mapping[str, str]) -> str:
    """The address with others in it."""
    parameters = parse_address(url).parameters
    if all(parameters[name] == nested for name, nested in changed.items()):
        return url
    return f"{url.partition('?')[0]}?{urlencode({**parameters, **changed}, quote_via=quote, safe='')}"


def check_shareable(urls: Sequence[str]) -> None:
    """Raises ``InvalidRequest`` if what is put to one of these stores is there in one process only.

    What is only kept near may be: each process has its own then.
    """
    for url in urls:
        place = parse_address(home(url))
        if place.scheme in _IN_MEMORY or (place.scheme == "local" and not place.path):
            whose = "" if place.url == url else f" of {shown_address(url)}"
            raise InvalidRequest(
                f"{shown_address(place.url)}{whose} exists in one process only and cannot be shared by "
                "several workers; name a folder, local:///srv/neve"
            )


def pin_temporary(url: str) -> str:
    """``local://`` names a new folder each time: all services of one store must get the same."""
    address = parse_address(url)
    # One that is read-only is refused when it is opened, and so needs no folder.
    writable = address.parameters.get("mode") != "ro"
    if address.scheme == "local" and not address.host and not address.path and writable:
        query = url.partition("?")[2]
        return f"local://{quote(str(temporary_folder()))}" + (f"?{query}" if query else "")
    return _with_nested(url, {name: _pinned_nested(nested) for name, nested in nested_addresses(url).items()})


def _pinned_nested(url: str) -> str:
    try:
        return pin_temporary(url)
    except InvalidRequest:
        return url  # Who opens it tells what is wrong, and where.
