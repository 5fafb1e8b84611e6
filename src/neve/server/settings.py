"""What every process of a daemon is told, and how it travels to workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from neve.server.limits import Limits
from neve.serving.tls import Tls

DEFAULT_GRACE_SECONDS = 30.0


@dataclass(frozen=True)
class Endpoint:
    """Where a process listens by itself."""

    address: str
    """As gRPC takes it: ``unix:/path`` or ``number:port``."""
    admin: bool = False
    tls: bool = False


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a process serves."""

    limits: Limits = field(default_factory=Limits)
    read_only: bool = False
    grace: float = DEFAULT_GRACE_SECONDS
    """Seconds that calls in flight have when the process is told to stop."""
    tls: Tls | None = None


def to_json(settings: Settings, endpoints: list[Endpoint]) -> dict[str, Any]:
    """Both as what JSON can express."""
    return {"settings": asdict(settings), "endpoints": [asdict(endpoint) for endpoint in endpoints]}


def from_json(document: Mapping[str, Any]) -> tuple[Settings, list[Endpoint]]:
    """The inverse of ``to_json``."""
    values = dict(document["settings"])
    values["limits"] = Limits(**values["limits"])
    values["tls"] = values["tls"] and Tls.from_json(values["tls"])
    return Settings(**values), [Endpoint(**endpoint) for endpoint in document["endpoints"]]
