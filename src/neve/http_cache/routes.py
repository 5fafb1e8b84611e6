"""The addresses of a binary cache, taken apart. No I/O.

What they do not know belongs to the pages for people.
"""

from __future__ import annotations

import base64
import re
from typing import NamedTuple

from neve.castore.node import Node
from neve.errors import InvalidRequest
from neve.nix import base32
from neve.nix.compression import SUFFIXES
from neve.store.wire import decode_node, encode_node

MAX_NODE_BYTES = 4352
"""Of an encoded node in an address: the longest symlink target has 4095 bytes."""

_NARINFO, _LISTING = ".narinfo", ".ls"
_NIX32 = r"[0-9a-df-np-sv-z]"
_PATH_FILE = re.compile(rf"/({_NIX32}{{32}})(\.narinfo|\.ls)")
_NODE_FILE = re.compile(r"/nar/(?:tvix|snix)-castore/([^/]*)")
_NAR_FILE = re.compile(r"/nar/([^/]*)")
_NAR_NAME = re.compile(rf"({_NIX32}{{52}})\.nar(\.[a-z0-9]+)?")
_BASE64 = re.compile(r"[A-Za-z0-9_-]*")

_COMPRESSIONS = {suffix: name for name, suffix in SUFFIXES.items()}


class Route(NamedTuple):
    """What an address names: the kind of thing, and which."""

    kind: str
    name: str = ""


CACHE_INFO, NARINFO, LISTING, NODE, NAR, LOG, REALISATION, DEBUG_INFO, METRICS, READY, ALIVE = (
    *("cache-info", "narinfo", "listing", "node", "nar", "log", "realisation", "debuginfo"),
    *("metrics", "ready", "alive"),
)

_FIXED = {
    "/nix-cache-info": Route(CACHE_INFO),
    "/metrics": Route(METRICS),
    "/healthz": Route(READY),
    "/healthz/live": Route(ALIVE),
}

_KEPT = (("/log/", LOG), ("/realisations/", REALISATION), ("/debuginfo/", DEBUG_INFO))


def route_of(path: str) -> Route | None:
    """What ``path`` (decoded) names; None: nothing of a binary cache. The name is not checked yet."""
    if (fixed := _FIXED.get(path)) is not None:
        return fixed
    if (match := _PATH_FILE.fullmatch(path)) is not None:
        return Route(NARINFO if match[2] == _NARINFO else LISTING, match[1])
    if (match := _NODE_FILE.fullmatch(path)) is not None:
        return Route(NODE, match[1])
    if (match := _NAR_FILE.fullmatch(path)) is not None:
        return Route(NAR, match[1])
    for prefix, kind in _KEPT:
        if path.startswith(prefix):
            return Route(kind, path.removeprefix(prefix))
    return None


def encoded_node(data: bytes) -> str:
    """An encoded node as addresses have it."""
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def parse_node(text: str) -> Node:
    """The node of ``/nar/tvix-castore/<node>``. Raises ``InvalidRequest``."""
    size = len(text) * 3 // 4
    if size > MAX_NODE_BYTES:
        raise InvalidRequest(f"the node in the address has {size} bytes, at most {MAX_NODE_BYTES} can be one")
    data = b""
    if _BASE64.fullmatch(text) is not None and len(text) % 4 != 1:
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if encoded_node(data) != text:
        raise InvalidRequest("the node in the address is no unpadded URL-safe base64")
    name, node = decode_node(data)
    if name:
        raise InvalidRequest("the node in the address has a name, and must have none")
    if encode_node(node) != data:
        raise InvalidRequest("the node in the address is not encoded as it must be")
    return node


class NarName(NamedTuple):
    """The name of a NAR below ``/nar/``."""

    sha256: bytes
    """Of the file, 32 bytes."""
    compression: str
    """As narinfos name it. A file that was compressed with gzip may have the name of one that was not."""


def parse_nar_name(name: str) -> NarName | None:
    """Takes ``<nix32>.nar[.xz...]`` apart; None if it is no such name."""
    match = _NAR_NAME.fullmatch(name)
    compression = None if match is None else _COMPRESSIONS.get(match[2] or "")
    if match is None or compression is None:
        return None
    try:
        return NarName(base32.decode(match[1]), compression)
    except InvalidRequest:
        return None  # Spare bits that are set.
