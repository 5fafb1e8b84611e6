"""What clients may cost: every limit by name, with its default."""

from __future__ import annotations

from dataclasses import dataclass

from neve.castore.closure import DEFAULT_LIMITS, ClosureLimits

_MIB = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of one process. Whatever is refused for one of them names it."""

    max_message_bytes: int = 64 * _MIB
    """Longest message taken or sent; other implementations take 4 MiB."""
    max_request_bytes: int = 4 * _MIB
    """Longest message that carries neither contents nor Directories."""
    max_blob_bytes: int = 256 * 1024 * _MIB
    """Longest blob in an upload."""
    max_directory_bytes: int = DEFAULT_LIMITS.max_directory_bytes
    """Longest encoding of one Directory."""
    max_directories: int = DEFAULT_LIMITS.max_directories
    """Most Directories in one closure; each takes some 250 bytes while it is received."""
    max_nar_bytes: int = 1024 * 1024 * _MIB
    """Longest NAR that is rendered for its hash: a DAG of a few kilobytes can unfold to more than that."""
    max_concurrent_calls: int = 4096
    """Calls at once, open streams included."""
    max_held_bytes: int = 64 * _MIB
    """Contents of uploads that wait for a thread or for the disk, all together; who sends more waits."""
    stream_idle_seconds: float = 300.0
    """A stream must move at least ``min_stream_bytes`` within this time, or end."""
    min_stream_bytes: int = 16 * 1024
    """See ``stream_idle_seconds``; far below any line that is of use."""

    def closure(self) -> ClosureLimits:
        """Those of them that bound a closure."""
        return ClosureLimits(self.max_directory_bytes, self.max_directories)
