"""What every process of a cache is told, and how it travels to workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from neve.http_cache.limits import Limits
from neve.nix.signing import PublicKey, SecretKey
from neve.serving.tls import Tls

DEFAULT_GRACE_SECONDS = 30.0
DEFAULT_PRIORITY = 39
"""Just before cache.nixos.org, which says 40: what is near is asked first."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a process serves. Keys are in their text form, so that all of it can be written as JSON."""

    limits: Limits = field(default_factory=Limits)
    name: str = "neve"
    """For people."""
    url: str | None = None
    """The address as people see it; None: as they asked for it."""
    priority: int = DEFAULT_PRIORITY
    narinfo_compression: str = "none"
    """``none``, or ``zstd``: then narinfos name NARs that are compressed whoever asks."""
    secret_key: str | None = field(default=None, repr=False)
    """Signs what is uploaded."""
    trusted_keys: tuple[str, ...] = ()
    """Whose signatures on uploads are kept, beside our own."""
    require_signatures: bool = False
    """Whether an upload must have a signature by one of ``trusted_keys``, or ours."""
    upstream_keys: tuple[str, ...] = ()
    """Uploads that are signed by one of these are not kept."""
    token_file: str | None = None
    private: bool = False
    """Whether reading needs a token too."""
    insecure_allow_upload: bool = False
    """Whether everybody may upload."""
    read_only: bool = False
    grace: float = DEFAULT_GRACE_SECONDS
    """Seconds that requests in flight have when the process is told to stop."""
    tls: Tls | None = None
    """For all of TCP."""

    def signing_key(self) -> SecretKey | None:
        """The key that signs."""
        return None if self.secret_key is None else SecretKey.parse(self.secret_key)

    def verifying_keys(self) -> tuple[PublicKey, ...]:
        """Those whose signatures count: the trusted ones and our own."""
        own = self.signing_key()
        keys = tuple(map(PublicKey.parse, self.trusted_keys))
        return keys if own is None else (*keys, own.public_key())

    def shown_keys(self) -> tuple[str, ...]:
        """The public keys that clients have to trust, in their text form."""
        own = self.signing_key()
        ours = () if own is None else (own.public_key().render(),)
        return tuple(dict.fromkeys((*ours, *self.trusted_keys)))


def to_json(settings: Settings) -> dict[str, Any]:
    """The settings as what JSON can express."""
    return asdict(settings)


def from_json(document: Mapping[str, Any]) -> Settings:
    """The inverse of ``to_json``."""
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in document.items()
    }
    values["limits"] = Limits(**values["limits"])
    values["tls"] = values["tls"] and Tls.from_json(values["tls"])
    return Settings(**values)
