"""What an address of a gRPC server says: where it is, how to speak to it, for how long to wait."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import grpc

from neve.errors import InvalidRequest
from neve.registry import Address

PARAMETERS = ("wait-connect", "flavor", "timeout", "ca", "cert", "key")

DEFAULT_TIMEOUT = 60.0
"""Seconds to wait for an answer, or for the next message of a stream."""

_MAX_SOCKET_PATH = 107
_DEFAULT_PORTS = {"grpc+http": 80, "grpc+https": 443}
_HOST = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+(?:%[\w.-]+)?\]|[\w.-]+)(?::(?P<port>[0-9]{1,5}))?", re.ASCII)


@dataclass(frozen=True)
class Target:
    """A parsed address. Reading it touches neither the network nor a file."""

    url: str
    name: str
    """As gRPC takes it."""
    flavor: str
    """``tvix`` or ``snix``: under which names the server knows its services."""
    wait: bool
    timeout: float
    """Seconds."""
    tls: bool = False
    ca: str | None = None
    cert: str | None = None
    key: str | None = None

    @property
    def identity(self) -> tuple[object, ...]:
        """Equal for addresses that can share a connection."""
        return (os.getpid(), self.name, self.flavor, self.timeout, self.tls, self.ca, self.cert, self.key)

    @property
    def is_socket(self) -> bool:
        return self.name.startswith("unix:")

    def credentials(self) -> grpc.ChannelCredentials | None:
        """For TLS. Raises ``InvalidRequest`` if one of the files cannot be read."""
        if not self.tls:
            return None
        return grpc.ssl_channel_credentials(
            root_certificates=self._read("ca", self.ca),
            private_key=self._read("key", self.key),
            certificate_chain=self._read("cert", self.cert),
        )

    def _read(self, parameter: str, path: str | None) -> bytes | None:
        if path is None:
            return None
        try:
            return Path(path).read_bytes()
        except OSError as error:
            raise InvalidRequest(f"address {self.url!r}: {parameter}={path}: {error.strerror}") from error


def target_of(address: Address) -> Target:
    """Reads an address. Raises ``InvalidRequest`` naming it."""
    address.check_parameters(*PARAMETERS)
    parameters = address.parameters
    tls = address.scheme == "grpc+https"
    for name in ("ca", "cert", "key"):
        if name in parameters and not tls:
            raise address.refuse(f"parameter {name!r} belongs to grpc+https")
    if ("cert" in parameters) != ("key" in parameters):
        raise address.refuse("parameters 'cert' and 'key' belong together")
    return Target(
        url=address.url,
        name=_socket(address) if address.scheme == "grpc+unix" else _host(address),
        flavor=address.choice("flavor", "tvix", "snix"),
        wait=address.choice("wait-connect", "0", "1") == "1",
        timeout=_timeout(address),
        tls=tls,
        ca=parameters.get("ca"),
        cert=parameters.get("cert"),
        key=parameters.get("key"),
    )


def _socket(address: Address) -> str:
    if address.host:
        raise address.refuse("a socket has no host; write grpc+unix:///path")
    if not address.path.strip("/"):
        raise address.refuse("the path of the socket is missing; write grpc+unix:///path")
    raw = os.fsencode(address.path)
    if b"\0" in raw:
        raise address.refuse("a path holds no NUL byte")
    if len(raw) > _MAX_SOCKET_PATH:
        raise address.refuse(f"the path of a socket has at most {_MAX_SOCKET_PATH} bytes, not {len(raw)}")
    return f"unix://{quote(raw)}"


def _host(address: Address) -> str:
    if not address.host:
        raise address.refuse(f"the host is missing; write {address.scheme}://host:port")
    if "@" in address.host:
        raise address.refuse("a user name has no meaning here")
    if address.path.strip("/"):
        raise address.refuse(f"a path has no meaning here; write {address.scheme}://host:port")
    match = _HOST.fullmatch(address.host)
    number = int(match["port"] or _DEFAULT_PORTS[address.scheme]) if match else 0
    if match is None or not 0 < number < 65536:
        raise address.refuse(f"{address.host!r} is no host:port")
    # With the scheme, as a host of the name "unix" would be taken for one.
    return f"dns:///{quote(match['host'].replace('%25', '%'), safe='[]:')}:{number}"


def _timeout(address: Address) -> float:
    text = address.parameters.get("timeout", str(DEFAULT_TIMEOUT))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0
    if not 0 < seconds < 1e6:
        raise address.refuse(f"parameter 'timeout' is {text!r}, must be a number of seconds above 0")
    return seconds
