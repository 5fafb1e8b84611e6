"""What a request says about the form of the answer: encodings it takes, what it has already. No I/O.

RFC 9110, sections 12.5.3 (``Accept-Encoding``), 13.1.1 (``If-Match``), 13.1.2 (``If-None-Match``) and 13.1.5
(``If-Range``).
"""

from __future__ import annotations

import re

IDENTITY, ZSTD, GZIP = "identity", "zstd", "gzip"

_PREFERRED = (ZSTD, GZIP)
"""Of those that a client takes, the first one is sent. zstd is a fifth of the work of gzip, or none."""

_CODING = re.compile(r"\s*([A-Za-z0-9*!#$%&'+.^_`|~-]+)\s*(?:;\s*[qQ]\s*=\s*([01](?:\.[0-9]{0,3})?)\s*)?")
_ENTITY_TAG = re.compile(r'(W/)?("[\x21\x23-\x7e\x80-\xff]*")')


def chosen_encoding(accept_encoding: str | None) -> str:
    """The encoding to send. What cannot be read, or is not known, does not count; no answer is refused
    because of it: then it goes as it is."""
    accepted: dict[str, bool] = {}
    for item in (accept_encoding or "").split(","):
        match = _CODING.fullmatch(item)
        if match is not None:
            accepted[match[1].lower()] = match[2] is None or float(match[2]) > 0
    # "*" alone says only that anything may come; what costs work is sent to those who ask for it.
    return next((coding for coding in _PREFERRED if accepted.get(coding)), IDENTITY)


def is_known(if_none_match: str | None, entity_tag: str) -> bool:
    """Whether the client has it already, by the comparison that tells strong from weak tags not apart."""
    if if_none_match is None:
        return False
    if if_none_match.strip() == "*":
        return True
    wanted = entity_tag.removeprefix("W/")
    return any(match[2] == wanted for match in _ENTITY_TAG.finditer(if_none_match))


def is_wanted(if_match: str | None, entity_tag: str) -> bool:
    """Whether this is what the client wants and nothing else: weak tags are never sure enough."""
    if if_match is None or if_match.strip() == "*":
        return True
    return any(match[0] == entity_tag and not match[1] for match in _ENTITY_TAG.finditer(if_match))


def range_applies(if_range: str | None, entity_tag: str) -> bool:
    """Whether ranges may be sent: not if what the client has a part of is something else. A date is
    something else, for nothing here has one."""
    return if_range is None or (if_range.strip() == entity_tag and not entity_tag.startswith("W/"))
