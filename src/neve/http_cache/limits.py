"""What clients may cost: every limit by name, with its default."""

from __future__ import annotations

from dataclasses import dataclass

_MIB = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of one process. Whatever is refused for one of them names it."""

    max_nar_bytes: int = 64 * 1024 * _MIB
    """Longest NAR in an upload, unpacked and as it is sent, and longest that is rendered for its hash: a
    tree of a few kilobytes can unfold to more than that."""
    max_small_file_bytes: int = 32 * _MIB
    """Longest log, listing, realisation or link to debugging symbols in an upload. It is held in memory."""
    max_held_bytes: int = 256 * _MIB
    """Narinfos, logs and other small files, all together, while they come and are stored, and logs and
    realisations while they are sent; more is answered with 503, after which clients try again."""
    max_uploads: int = 16
    """NARs that are taken in at once; each takes a thread and some 10 MiB. Others wait for their turn."""
    max_open_nars: int = 16
    """NARs that are rendered ahead, some 8 MiB each; those beyond it are rendered as far as is sent."""
    max_fetches: int = 16
    """Paths that are fetched from a far cache at once, each in a thread."""
    max_connections: int = 4096
    """Connections at once, TLS handshakes included; more are answered with 503, or, where that would have to
    be encrypted, not at all."""
    idle_seconds: float = 60.0
    """A connection must move ``min_bytes`` within this time while a request is under way, or end. A new one
    has as long for its first request, and at most so long for a TLS handshake."""
    min_bytes: int = 1024
    """See ``idle_seconds``; far below any line that is of use."""
