"""Names, sizes and contents in a form that can be shown.

Nothing here escapes for HTML: the templates do that, for every value.
"""

from __future__ import annotations

import codecs
import re
from urllib.parse import quote

PREVIEW_BYTES = 64 * 1024
"""How much of a file is looked at to tell text from other contents, and shown: some screens full."""

# What no text has: control characters but tab, line ends, backspace, form feed and the escape of terminals.
_BINARY = re.compile("[\x00-\x07\x0e-\x1a\x1c-\x1f\x7f]")

# Characters that would make text look other than it is, above all those that turn its direction.
_DECEPTIVE = re.compile("[\x08\x1b\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]")

# Characters that nothing is drawn for, though they count as printable: fillers, selectors, the empty braille.
_UNDRAWN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)

_UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_NOT_PLAIN = re.compile(r"[^A-Za-z0-9._+-]")


def shown(name: bytes) -> str:
    """``name`` as printable text: what is no UTF-8, and what cannot be seen, is escaped."""
    text = name.decode("utf-8", "backslashreplace")
    if not text.strip(" "):  # Nobody would hit such a link.
        return "\\x20" * len(text)
    return text if _is_visible(text) else "".join(map(_visible, text))


def _is_visible(text: str) -> bool:
    return text.isprintable() and _UNDRAWN.search(text) is None


def _visible(character: str) -> str:
    return character if _is_visible(character) else character.encode("unicode_escape").decode("ascii")


def shown_query(text: str) -> str:
    """What somebody typed, without the surrogates that stand for bytes that are no UTF-8."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def exact_size(size: int) -> str:
    """``1,468,006 bytes``"""
    return "1 byte" if size == 1 else f"{size:,} bytes"


def short_size(size: int) -> str:
    """``1.4 MiB``: what people can compare."""
    if size < 1024:
        return exact_size(size)
    value = size / 1024
    for unit in _UNITS[:-1]:
        if value < 999.95:
            return f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} {_UNITS[-1]}"


def decoded(head: bytes, *, whole: bool) -> str | None:
    """The text that a file begins with, or None if it is no UTF-8 text. ``whole``: nothing follows."""
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head, final=whole)
    except UnicodeDecodeError:
        return None
    return None if _BINARY.search(text) else text


def honest(text: str) -> str:
    """``text`` with those characters made visible that would hide or reorder others."""
    return _DECEPTIVE.sub(lambda match: _visible(match.group()), text)


def disposition(kind: str, name: bytes) -> str:
    """The value of ``Content-Disposition`` (RFC 6266) for a file of that name.

    Where it would turn its direction or break its line, it gets another name.
    """
    text = "".join(c if c.isprintable() else "_" for c in name.decode("utf-8", "replace"))
    plain = _NOT_PLAIN.sub("_", text)
    return f"{kind}; filename=\"{plain}\"; filename*=UTF-8''{quote(text, safe='')}"
