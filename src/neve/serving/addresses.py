"""Addresses to listen on, as they are written. Parsing opens and resolves nothing.

=====================  =======================================
``[::1]:8000``         TCP; so is ``localhost:8000``
``unix:/run/neve.sock``  a socket; so is ``/run/neve.sock``
``sd-listen``          the sockets that systemd passed on
``sd-listen:admin``    those of them by this name
=====================  =======================================
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from neve.errors import InvalidRequest

DEFAULT_ADDRESS = "[::1]:8000"

SUN_PATH_BYTES = 107
"""Longest path of a socket: ``sun_path`` has 108 bytes, and a NUL at the end (unix(7))."""

_MAX_PORT = 65535
_INHERITED = "sd-listen"
_SCHEME = "unix:"
# What has no colon needs no brackets, and would be something else without them: "[sd-listen]:8".
_TCP = re.compile(
    r"(?:\[(?P<bracketed>(?:[^\[\]/]*:[^\[\]/]*)?)\]|(?P<plain>[^\[\]/:]*)):(?P<port>[0-9]{1,5})"
)


@dataclass(frozen=True)
class TcpAddress:
    """A host, by name or by number, and a port; port 0 is any that is free."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class UnixAddress:
    """An absolute path."""

    path: str

    def __str__(self) -> str:
        return f"{_SCHEME}{self.path}"


@dataclass(frozen=True)
class InheritedAddress:
    """Sockets that were passed on: those by this name, or (None) all that nobody named."""

    name: str | None = None

    def __str__(self) -> str:
        return _INHERITED if self.name is None else f"{_INHERITED}:{self.name}"


ListenAddress = TcpAddress | UnixAddress | InheritedAddress


def parse_listen_address(text: str) -> ListenAddress:
    """Raises ``InvalidRequest`` naming what is wrong with the address."""
    if text == _INHERITED:
        return InheritedAddress()
    if text.startswith(f"{_INHERITED}:"):
        return InheritedAddress(text.partition(":")[2])
    if text.startswith((_SCHEME, "/")):
        return UnixAddress(_socket_path(text))
    match = _TCP.fullmatch(text)
    if match is None:
        raise InvalidRequest(f"{text!r} is no address to listen on; write {DEFAULT_ADDRESS} or unix:/path")
    host, port = match["bracketed"] or match["plain"], int(match["port"])
    if not host:
        raise InvalidRequest(f"{text!r} has no host; for all of them, write [::]:{port}")
    if port > _MAX_PORT:
        raise InvalidRequest(f"{text!r}: ports go up to {_MAX_PORT}")
    return TcpAddress(host, port)


def _socket_path(text: str) -> str:
    path = text.removeprefix(_SCHEME)
    if not path.startswith("/"):
        raise InvalidRequest(f"{text!r}: the path of a socket must be absolute")
    if "\0" in path:
        raise InvalidRequest(f"{text!r}: a path holds no NUL byte")
    path = "/" + path.lstrip("/")
    if path.endswith(("/", "/.", "/..")):
        raise InvalidRequest(f"{text!r} names a folder, not a socket in it")
    if (size := len(os.fsencode(path))) > SUN_PATH_BYTES:
        raise InvalidRequest(f"{text!r} has {size} bytes, the path of a socket at most {SUN_PATH_BYTES}")
    return path
