"""What a binary cache tells people and Nix about itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Site:
    """Read-only facts, the same for every request."""

    name: str
    """What people call this cache: the heading of its pages."""
    public_keys: tuple[str, ...] = ()
    """Rendered, ``<name>:<base64>``: what paths from here are signed with."""
    url: str | None = None
    """The address under which people see this cache; None: the one that they asked for."""
    priority: int = 39
    """Where Nix puts it among caches, lower ones are asked first; cache.nixos.org has 40."""
