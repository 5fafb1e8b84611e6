"""From addresses to bytes and back.

Names of files are bytes, so an address is read from its undecoded form. Links are relative, and so
right behind a proxy that adds a prefix to the path. Every link of the pages is made here, from a store
path and valid names, never from a text that was found in the store: it cannot lead elsewhere or run
anything.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import parse_qs, quote, quote_from_bytes, unquote_to_bytes, urlencode

from starlette.requests import Request
from starlette.types import Scope

from neve.castore.path import parse_path
from neve.errors import InvalidRequest
from neve.nix import base32
from neve.nix.store_path import STORE_DIR, StorePath

_MAX_FIELDS = 16
"""Fields of a query; the pages know five."""
_HOST = re.compile(r"[A-Za-z0-9._-]+(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]+\](:[0-9]{1,5})?", re.ASCII)
_NUMBER = re.compile(r"[0-9]{1,10}", re.ASCII)
_MAX_NUMBER = 10**9
_MAX_PLACE_BYTES = 4095
"""Of a path below the store directory: PATH_MAX of Linux without the NUL, so Nix unpacks nothing deeper. A
link may be as long as the address of its page, and a page has hundreds."""


@dataclass(frozen=True, slots=True)
class Links:
    """Links from the page at one address. ``to_root`` leads from there to the start page."""

    to_root: str

    def start(self) -> str:
        return self.to_root

    def static(self, name: str) -> str:
        return f"{self.to_root}static/{name}"

    def narinfo(self, store_path: StorePath) -> str:
        return f"{self.to_root}{base32.encode(store_path.digest)}.narinfo"

    def path(self, store_path: StorePath, components: Sequence[bytes] = (), **query: int) -> str:
        """The page of what is at ``components`` below a store path."""
        return self._below("path", store_path, components) + (f"?{urlencode(query)}" if query else "")

    def raw(self, store_path: StorePath, components: Sequence[bytes] = ()) -> str:
        """The file there itself."""
        return self._below("raw", store_path, components)

    def search(self, query: str = "", after: bytes = b"") -> str:
        """What is found behind the store path with the digest ``after``."""
        fields = {"q": query} if query else {}
        if after:
            fields["after"] = base32.encode(after)
        encoded = urlencode(fields, errors="surrogateescape")
        return f"{self.to_root}search" + (f"?{encoded}" if encoded else "")

    def _below(self, route: str, store_path: StorePath, components: Sequence[bytes]) -> str:
        names = [store_path.base_name.encode("ascii"), *components]
        return f"{self.to_root}{route}/" + "/".join(quote_from_bytes(name, safe="") for name in names)


def _segments(scope: Scope) -> list[bytes]:
    """The parts of the path below where the pages are mounted, not decoded."""
    raw: bytes | None = scope.get("raw_path")
    if raw is None:  # The interface of servers does not promise it.
        raw = quote(scope["path"]).encode("ascii")
    segments = raw.partition(b"?")[0].split(b"/")[1:]
    root: str = scope.get("root_path", "").rstrip("/")
    mounted = bool(root) and scope["path"].startswith(root + "/")
    return segments[root.count("/") :] if mounted else segments


def links_from(scope: Scope) -> Links:
    """Links from the page that is asked for."""
    return Links("../" * (len(_segments(scope)) - 1) or "./")


def asked_for(scope: Scope) -> tuple[StorePath, tuple[bytes, ...], bool]:
    """Store path and components of ``/<route>/<base name>/...``, and whether it was written as links
    write it: without slashes too many.

    Raises ``InvalidRequest``.
    """
    segments = _segments(scope)[1:]
    parts = [unquote_to_bytes(segment) for segment in segments if segment]
    if not parts:
        raise InvalidRequest("the address names no store path")
    if (size := len(b"/".join(parts))) > _MAX_PLACE_BYTES:
        raise InvalidRequest(f"the path has {size:,} bytes, at most {_MAX_PLACE_BYTES:,} are shown")
    store_path = StorePath.parse_base_name(parts[0].decode("latin-1"))
    for part in parts[1:]:
        if b"/" in part:
            raise InvalidRequest("a name in the address contains a slash")
    return store_path, parse_path(b"/".join(parts[1:])), len(parts) == len(segments)


def fields_of(scope: Scope) -> dict[str, str]:
    """The query, each field once; bytes that are no UTF-8 become surrogates. Raises ``InvalidRequest``."""
    text = scope["query_string"].decode("latin-1")
    try:
        found = parse_qs(text, errors="surrogateescape", max_num_fields=_MAX_FIELDS)
    except ValueError as error:
        raise InvalidRequest(f"the query in the address cannot be read: {error}") from error
    return {name: values[0] for name, values in found.items()}


def number_of(fields: dict[str, str], name: str) -> int:
    """The number of a page, 1 if the query has none. Raises ``InvalidRequest``."""
    text = fields.get(name, "1")
    if _NUMBER.fullmatch(text) is None or not 1 <= int(text) <= _MAX_NUMBER:
        raise InvalidRequest(f"{name} must be a number from 1 to {_MAX_NUMBER:,}")
    return int(text)


def public_url(request: Request, configured: str | None) -> str:
    """The address of this cache for ``nix.conf``, without a slash at the end."""
    if configured is not None:
        return configured.rstrip("/")
    host = request.headers.get("host", "")
    if _HOST.fullmatch(host) is None:
        # Whoever copies the lines must not get more than an address from a header.
        host = "localhost"
    root = quote(request.scope.get("root_path", "").rstrip("/"))
    return f"{request.url.scheme}://{host}{root}"


def resolved(
    store_path: StorePath, components: Sequence[bytes], target: bytes
) -> tuple[StorePath, tuple[bytes, ...]] | None:
    """Where the symlink at ``components`` leads if it stays in the store, by its text alone.

    None if it leaves the store. A link on the way is not followed, so this may be nowhere.
    """
    folders = [store_path.base_name.encode("ascii"), *components][:-1]
    store_dir = STORE_DIR.encode("ascii")
    joined = posixpath.normpath(posixpath.join(store_dir, *folders, target))
    if joined.startswith(b"//"):
        joined = joined[1:]
    try:
        linked, rest = StorePath.parse_with_rest(joined)
        return linked, parse_path(rest)
    except InvalidRequest:
        return None
