"""Names of entries, and paths inside a root. Both are bytes, not text."""

from __future__ import annotations

import re
from typing import Final

from neve.errors import InvalidRequest

__all__ = ["MAX_NAME_BYTES", "InvalidName", "check_name", "is_valid_name", "parse_path", "show_name"]

MAX_NAME_BYTES: Final = 255
"""The longest name that Linux file systems take (NAME_MAX)."""

_SHOWN_BYTES: Final = 80

is_valid_name: Final = re.compile(rb"(?!\.\.?\Z)[^/\0]{1,%d}" % MAX_NAME_BYTES).fullmatch
"""A match if these bytes may name an entry of a Directory, else None: ``check_name`` for hot loops."""


class InvalidName(InvalidRequest):
    """Bytes that cannot name an entry of a Directory."""


def show_name(name: bytes) -> str:
    """``name`` for a message: always printable, and cut when it is very long."""
    if len(name) > _SHOWN_BYTES:
        return f"{name[:_SHOWN_BYTES]!r}... ({len(name)} bytes)"
    return repr(name)


def check_name(name: bytes) -> None:
    """Raises ``InvalidName`` with the name and the rule it breaks unless it can name an entry.

    A name has 1 to 255 bytes, any but ``/`` and NUL, and is neither ``.`` nor ``..``.
    """
    if is_valid_name(name):
        return
    if not name:
        raise InvalidName("a name is empty")
    if name in (b".", b".."):
        raise InvalidName(f"name {show_name(name)} is reserved")
    if len(name) > MAX_NAME_BYTES:
        raise InvalidName(f"name {show_name(name)} is longer than {MAX_NAME_BYTES} bytes")
    raise InvalidName(f"name {show_name(name)} contains {'a slash' if b'/' in name else 'a NUL byte'}")


def parse_path(path: bytes) -> tuple[bytes, ...]:
    """The components of a path inside a root; the root itself has none.

    Slashes at the beginning, at the end and repeated ones do not count. ``InvalidName`` for a
    component that cannot name an entry, ``.`` and ``..`` included.
    """
    components = tuple(component for component in path.split(b"/") if component)
    for component in components:
        try:
            check_name(component)
        except InvalidName as error:
            raise InvalidName(f"path {show_name(path)}: {error}") from error
    return components
