"""How an address configures an object store: ``objectstore+s3://bucket/prefix?region=...``.

Parameters that are not named here are the store's own, under the names that the library has for them.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from neve.castore.blobs.chunks import AVERAGE_CHUNK
from neve.errors import Unsupported
from neve.registry import Address

PREFIX = "objectstore+"

_PARALLEL = 64
"""Requests at once: with 50 ms for each that makes 1,280 in a second, or 320 MiB of chunks."""

_MAX_CHUNK_BYTES = 16 * 1024 * 1024
"""Longest chunk that is read: other stores may be made with larger chunks than ours (512 KiB at most), and
64 of them are held at once."""

_TIMEOUT, _CONNECT_TIMEOUT = 60, 5
"""Seconds for a whole request, and for its connection."""

_MAX_RETRIES, _RETRY_TIMEOUT = 10, 60
"""How often a request is repeated, and the seconds after which it is not repeated any more."""

_FIRST_PAUSE, _LONGEST_PAUSE = timedelta(milliseconds=100), timedelta(seconds=5)

_OWN = ("avg_chunk_size", "max_chunk_bytes", "parallel", "max_retries", "retry_timeout")
_SECONDS = ("timeout", "connect_timeout")
_CLIENT = (
    *("allow_http", "allow_invalid_certificates", "http1_only", "http2_only", "user_agent"),
    *("pool_idle_timeout", "pool_max_idle_per_host", "proxy_url", "proxy_ca_certificate", "proxy_excludes"),
    *("read_timeout", "randomize_addresses", "root_certificate"),
)
_ENDPOINTS = ("endpoint", "endpoint_url", "aws_endpoint", "aws_endpoint_url", "azure_endpoint")
_PLAIN = ("file", "memory")
_ORDERED = ("s3", "gs")
_BUCKETS = ("s3", "gs", "az")


@dataclass(frozen=True)
class Settings:
    """What an address says."""

    kind: str
    """Its scheme, without ``objectstore+``."""
    url: str
    """Without parameters, for messages."""
    average_chunk: int
    """Bytes."""
    max_chunk_bytes: int
    parallel: int
    """Requests at once."""
    library_url: str = field(repr=False)
    options: dict[str, Any] = field(repr=False)
    """What the library's constructor gets."""
    folder: Path | None
    """Of ``file``."""

    @property
    def lists_in_order(self) -> bool:
        """Whether the store lists keys in order, and from a key on."""
        return self.kind in _ORDERED

    @property
    def has_bucket(self) -> bool:
        """Whether there is a bucket or container, without which all objects look absent."""
        return self.kind in _BUCKETS


def settings_of(address: Address) -> Settings:
    """Raises ``InvalidRequest`` naming the address."""
    kind = address.scheme.removeprefix(PREFIX)
    if kind in _PLAIN:
        address.check_parameters("avg_chunk_size", "max_chunk_bytes", "parallel")
    _check_place(address, kind)
    url = address.url.partition("?")[0]
    average = address.number("avg_chunk_size", AVERAGE_CHUNK, least=1024, most=64 * 1024 * 1024)
    return Settings(
        kind,
        url,
        average,
        _longest_read(address, 2 * average),
        address.number("parallel", _PARALLEL, most=1024),
        url.removeprefix(PREFIX),
        {} if kind in _PLAIN else _options(address, kind),
        Path(address.path) if kind == "file" else None,
    )


def _longest_read(address: Address, longest_written: int) -> int:
    default = max(_MAX_CHUNK_BYTES, longest_written)
    longest = address.number("max_chunk_bytes", default, least=1024, most=2**31)
    if longest < longest_written:
        raise address.refuse(
            f"max_chunk_bytes={longest} is less than twice the avg_chunk_size: "
            "what is written must be readable"
        )
    return longest


def _check_place(address: Address, kind: str) -> None:
    if kind == "memory" and (address.host or address.path not in ("", "/")):
        raise address.refuse("objectstore+memory:/// takes neither host nor path")
    if kind == "file":
        if address.host:
            raise address.refuse("there is no host; write objectstore+file:///folder")
        if address.path.strip("/") == "":
            raise address.refuse("the folder is missing, or /; write objectstore+file:///folder")
    if kind not in _PLAIN and not address.host:
        what = "the host" if kind in ("http", "https") else "the bucket or container"
        raise address.refuse(f"{what} is missing; write objectstore+{kind}://NAME")
    if "@" in address.host:
        raise address.refuse("no user or password belongs before the host; use the environment")


def _options(address: Address, kind: str) -> dict[str, Any]:
    given = dict(address.parameters)
    client: dict[str, Any] = {
        "timeout": timedelta(seconds=address.seconds("timeout", _TIMEOUT)),
        "connect_timeout": timedelta(seconds=address.seconds("connect_timeout", _CONNECT_TIMEOUT)),
    }
    client |= {name: given[name] for name in _CLIENT if name in given}
    if kind == "http" or any(given.get(name, "").startswith("http://") for name in _ENDPOINTS):
        client.setdefault("allow_http", "true")  # That is what the address says.
    options: dict[str, Any] = {
        "client_options": client,
        "retry_config": {
            "max_retries": address.number("max_retries", _MAX_RETRIES, least=0, most=1000),
            "retry_timeout": timedelta(seconds=address.seconds("retry_timeout", _RETRY_TIMEOUT)),
            "backoff": {"init_backoff": _FIRST_PAUSE, "max_backoff": _LONGEST_PAUSE, "base": 2},
        },
    }
    profile = given.pop("profile", None) if kind == "s3" else None
    config = {name: value for name, value in given.items() if name not in (*_OWN, *_SECONDS, *_CLIENT)}
    if kind in ("http", "https"):
        for name in config:
            raise address.refuse(f"unknown parameter {name!r}")
        return options
    if kind == "s3" and profile is None and "AWS_ACCESS_KEY_ID" not in os.environ:
        # As the library reads the other variables of that family; it just knows no profiles.
        profile = None if _has_keys(config) else os.environ.get("AWS_PROFILE")
    if profile:
        options["credential_provider"] = _profile(address, profile)
    return options | {"config": config}


def _has_keys(config: dict[str, Any]) -> bool:
    return any("access_key_id" in name or "skip_signature" in name for name in config)


def _profile(address: Address, name: str) -> Any:
    """Credentials of a profile in the files of AWS, which boto3 reads and renews."""
    try:
        import boto3
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError as error:
        raise Unsupported(f"profile {name!r}: that needs boto3; install it: pip install boto3") from error
    try:
        return Boto3CredentialProvider(boto3.Session(profile_name=name))
    except Exception as error:  # boto3 and the library have no common base for what may be wrong here.
        with contextlib.suppress(AttributeError):
            error.__traceback__ = None  # It would hold the session, and so its secrets.
        raise address.refuse(f"profile {name!r}: {type(error).__name__}") from error
