"""Tokens: who may pull, who may push.

A file holds a line for each token::

    # name    rights     hash
    ci        pull,push  sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824
    laptops   pull       sha256:...

The hash is the SHA-256 of the token, in hex: tokens are 32 random bytes, which need no slow hash. Who may
push may pull, for a client asks what is there before it uploads. Empty lines and what follows a ``#``
mean nothing. ``neve token`` makes a token and its line.

A token comes with a request as ``Authorization: Bearer TOKEN`` or as the password of ``Basic``, which is
what clients make of a netrc file; the user's name means nothing there.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass

from neve.errors import InvalidRequest, NotFound, PermissionDenied, Unavailable
from neve.serving.renewed import Renewed
from neve.telemetry import LOGGER

PULL, PUSH = "pull", "push"
RIGHTS = (PULL, PUSH)

MAX_FILE_BYTES = 4 * 1024 * 1024
"""Some 40,000 tokens."""

_TOKEN_BYTES = 32
_PREFIX = "sha256:"
_HASH = re.compile(r"sha256:([0-9a-f]{64})")
_NAME = re.compile(r"[A-Za-z0-9._@+-]{1,100}")


class InvalidTokens(InvalidRequest):
    """A file of tokens that cannot be read. The message names the line, and no hash."""


@dataclass(frozen=True)
class Token:
    """What is known of a token: not the token itself."""

    name: str
    rights: frozenset[str]
    sha256: bytes

    def may(self, right: str) -> bool:
        """Whether it has a right."""
        return right in self.rights or PUSH in self.rights


def generate(name: str, rights: Iterable[str]) -> tuple[str, str]:
    """A new token, and its line for the file. Raises ``InvalidRequest`` for a bad name or right."""
    chosen = _rights(",".join(rights))
    _check_name(name)
    token = secrets.token_urlsafe(_TOKEN_BYTES)
    words = ",".join(right for right in RIGHTS if right in chosen)
    return token, f"{name} {words} {_PREFIX}{hashlib.sha256(token.encode()).hexdigest()}"


def parse_tokens(text: str) -> tuple[Token, ...]:
    """The tokens of a file. Raises ``InvalidTokens``."""
    tokens: list[Token] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            tokens.append(_token(words))
        except InvalidRequest as error:
            raise InvalidTokens(f"line {number}: {error}") from error
    return tuple(tokens)


def _token(words: list[str]) -> Token:
    if len(words) != 3:
        raise InvalidTokens(f"{len(words)} words, expected three: a name, rights, sha256:<hex>")
    name, rights, sha256 = words
    _check_name(name)
    match = _HASH.fullmatch(sha256)
    if match is None:
        raise InvalidTokens("the last word is not sha256: and 64 digits of lower-case hex")
    return Token(name, _rights(rights), bytes.fromhex(match[1]))


def _check_name(name: str) -> None:
    if _NAME.fullmatch(name) is None:
        raise InvalidTokens("a name is 1 to 100 characters of A-Z a-z 0-9 . _ @ + -")


def _rights(words: str) -> frozenset[str]:
    chosen = frozenset(words.split(","))
    if unknown := sorted(chosen - set(RIGHTS)):
        raise InvalidTokens(f"there is no right {unknown[0][:40]!r}, only: {', '.join(RIGHTS)}")
    return chosen


def presented(authorization: str | None) -> str | None:
    """The token that a header ``Authorization`` carries, or None if there is none that can be read."""
    scheme, _, value = (authorization or "").strip().partition(" ")
    if scheme.lower() == "bearer":
        return value.strip() or None
    if scheme.lower() != "basic":
        return None
    try:
        decoded = base64.b64decode(value.strip(), validate=True).decode()
    except ValueError:
        return None
    return decoded.partition(":")[2] or None


class TokenFile:
    """The tokens of a file, read again when it changes. Thread-safe.

    A file that is gone has no tokens. One that cannot be read leaves those that were known before: a slip
    while it is edited must not lock everybody out.
    """

    def __init__(self, path: str) -> None:
        """Raises ``NotFound``, ``PermissionDenied``, ``Unavailable`` and ``InvalidTokens``."""
        self._path = path
        self._tokens = Renewed([path], lambda: _by_hash(read_tokens(path)), self._again)

    @property
    def is_current(self) -> bool:
        """Whether ``find`` has no file to read."""
        return self._tokens.is_current

    def find(self, secret: str) -> Token | None:
        """What is known of a token that somebody presents."""
        # The time that a look-up takes tells something of hashes at most, and those lead to no token.
        return self._tokens.get().get(hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest())

    def _again(self) -> dict[bytes, Token]:
        try:
            tokens = _by_hash(read_tokens(self._path))
        except NotFound as error:
            LOGGER.error("%s; nobody has a token any more", error)
            return {}
        LOGGER.info("read %d tokens from %s", len(tokens), self._path)
        return tokens


def _by_hash(tokens: Iterable[Token]) -> dict[bytes, Token]:
    return {token.sha256: token for token in tokens}


def read_tokens(path: str) -> tuple[Token, ...]:
    """The tokens of the file at ``path``. Raises ``NotFound``, ``PermissionDenied``, ``Unavailable`` and
    ``InvalidTokens``."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(MAX_FILE_BYTES + 1)
    except UnicodeDecodeError as error:
        raise InvalidTokens(f"token file {path}: is no UTF-8") from error
    except OSError as error:
        kind = {FileNotFoundError: NotFound, PermissionError: PermissionDenied}.get(type(error), Unavailable)
        raise kind(f"token file {path}: {error.strerror}") from error
    if len(text) > MAX_FILE_BYTES:
        raise InvalidTokens(f"token file {path}: more than {MAX_FILE_BYTES} bytes")
    try:
        return parse_tokens(text)
    except InvalidTokens as error:
        raise InvalidTokens(f"token file {path}, {error}") from error
