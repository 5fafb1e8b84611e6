"""Hashes as Nix writes them, and how content determines a store path.

``NixHash`` is an algorithm and a digest. Its text forms are ``<algorithm>:<digest>`` with the digest in
base16, nixbase32 or base64 (told apart by length), the W3C's SRI ``<algorithm>-<base64>``, and the
bare digest where the algorithm is known otherwise.

``CAHash`` adds the method by which content was hashed: ``fixed:r:`` over the NAR, ``fixed:`` over a
single flat file, ``text:`` over a text file that may have references.
"""

from __future__ import annotations

import binascii
import re
from dataclasses import dataclass
from enum import Enum, IntEnum, StrEnum

from neve.errors import InvalidRequest
from neve.nix import base32
from neve.nix._text import decode_base64, encode_base64, quoted


class InvalidHash(InvalidRequest):
    """A hash is malformed. The message names the algorithm, length, prefix or position at fault."""


class HashAlgorithm(StrEnum):
    """The algorithms that Nix knows, by the names it gives them."""

    MD5 = "md5"
    SHA1 = "sha1"
    SHA256 = "sha256"
    SHA512 = "sha512"

    @property
    def digest_size(self) -> int:
        """Length of a digest in bytes."""
        return _DIGEST_SIZES[self]


_DIGEST_SIZES = {
    HashAlgorithm.MD5: 16,
    HashAlgorithm.SHA1: 20,
    HashAlgorithm.SHA256: 32,
    HashAlgorithm.SHA512: 64,
}


class HashForm(StrEnum):
    """The ways to write a digest."""

    BASE16 = "base16"
    NIX32 = "nix32"
    BASE64 = "base64"
    SRI = "sri"


@dataclass(frozen=True, slots=True)
class NixHash:
    """A digest and the algorithm that made it.

    Raises ``InvalidHash`` unless ``digest`` has as many bytes as ``algorithm`` gives.
    """

    algorithm: HashAlgorithm
    digest: bytes

    def __post_init__(self) -> None:
        _check_size(self.algorithm, self.digest)

    @classmethod
    def parse(cls, text: str, algorithm: HashAlgorithm | None = None) -> NixHash:
        """Parses any text form.

        With ``algorithm``, the text may be a bare digest, and one that names another algorithm is
        refused; without, it has to name one. Upper case base16 is read. Only SRI may lack padding.
        Raises ``InvalidHash``.
        """
        name, colon, body = text.partition(":")
        if colon:
            named = _expect_algorithm(name, text, algorithm)
            return cls(named, _decode_digest(named, body))
        name, hyphen, body = text.partition("-")
        if hyphen:
            named = _expect_algorithm(name, text, algorithm)
            return cls(named, _decode_sri(named, body))
        if algorithm is None:
            raise InvalidHash(f"hash {quoted(text)} does not name its algorithm")
        return cls(algorithm, _decode_digest(algorithm, text))

    def render(self, form: HashForm = HashForm.NIX32, *, prefix: bool = True) -> str:
        """The hash in ``form``, with or without the algorithm's name (SRI always has it)."""
        if form is HashForm.SRI:
            return f"{self.algorithm.value}-{encode_base64(self.digest)}"
        if form is HashForm.BASE16:
            digest = self.digest.hex()
        elif form is HashForm.NIX32:
            digest = base32.encode(self.digest)
        else:
            digest = encode_base64(self.digest)
        return f"{self.algorithm.value}:{digest}" if prefix else digest

    def __str__(self) -> str:
        return self.render()


class CAMethod(Enum):
    """What was hashed, with the prefix that stands for it in text."""

    NAR = "fixed:r:"
    FLAT = "fixed:"
    TEXT = "text:"


class CAType(IntEnum):
    """Method and algorithm as one number: the values of ``NARInfo.CA.Hash`` on the wire."""

    NAR_SHA256 = 0
    NAR_SHA1 = 1
    NAR_SHA512 = 2
    NAR_MD5 = 3
    TEXT_SHA256 = 4
    FLAT_SHA1 = 5
    FLAT_MD5 = 6
    FLAT_SHA256 = 7
    FLAT_SHA512 = 8

    @property
    def method(self) -> CAMethod:
        """What is hashed."""
        return CAMethod[self.name.partition("_")[0]]

    @property
    def algorithm(self) -> HashAlgorithm:
        """What it is hashed with."""
        return HashAlgorithm[self.name.partition("_")[2]]


_TYPES = {(ca_type.method, ca_type.algorithm): ca_type for ca_type in CAType}


@dataclass(frozen=True, slots=True)
class CAHash:
    """The content address of a store path: its type and the raw digest.

    Raises ``InvalidHash`` unless ``digest`` has as many bytes as the type's algorithm gives.
    """

    type: CAType
    digest: bytes

    def __post_init__(self) -> None:
        _check_size(self.type.algorithm, self.digest)

    @classmethod
    def of(cls, method: CAMethod, content_hash: NixHash) -> CAHash:
        """The content address by ``method``; a text has to be hashed with sha256."""
        ca_type = _TYPES.get((method, content_hash.algorithm))
        if ca_type is None:
            raise InvalidHash(f"a text is addressed by sha256, not by {content_hash.algorithm}")
        return cls(ca_type, content_hash.digest)

    @classmethod
    def parse(cls, text: str) -> CAHash:
        """Parses ``fixed:r:<algorithm>:<digest>``, ``fixed:<algorithm>:<digest>``, ``text:sha256:<digest>``.

        The digest may be nixbase32, base16 or base64. Raises ``InvalidHash``.
        """
        # The prefix "fixed:" begins "fixed:r:" too; members are in the order in which they can be tried.
        for method in CAMethod:
            if text.startswith(method.value):
                break
        else:
            raise InvalidHash(f"content address {quoted(text)} begins with neither 'fixed:' nor 'text:'")
        name, colon, body = text[len(method.value) :].partition(":")
        if not colon:
            raise InvalidHash(f"content address {quoted(text)} has no '<algorithm>:' before its digest")
        algorithm = _expect_algorithm(name, text, None)
        try:
            return cls.of(method, NixHash(algorithm, _decode_digest(algorithm, body)))
        except InvalidHash as error:
            raise InvalidHash(f"content address {quoted(text)}: {error}") from error

    @property
    def method(self) -> CAMethod:
        """What was hashed."""
        return self.type.method

    @property
    def hash(self) -> NixHash:
        """The digest with its algorithm."""
        return NixHash(self.type.algorithm, self.digest)

    def render(self) -> str:
        """The text form with the digest in nixbase32, as Nix writes it."""
        return self.method.value + self.hash.render()

    def __str__(self) -> str:
        return self.render()


_NOT_BASE16 = re.compile(r"[^0-9A-Fa-f]")


def _check_size(algorithm: HashAlgorithm, digest: bytes) -> None:
    if len(digest) != algorithm.digest_size:
        raise InvalidHash(f"{algorithm} digest of {len(digest)} bytes, expected {algorithm.digest_size}")


def _expect_algorithm(name: str, text: str, expected: HashAlgorithm | None) -> HashAlgorithm:
    try:
        algorithm = HashAlgorithm(name)
    except ValueError as error:
        known = ", ".join(HashAlgorithm)
        raise InvalidHash(f"algorithm {quoted(name)} of {quoted(text)} is none of {known}") from error
    if expected not in (None, algorithm):
        raise InvalidHash(f"hash {quoted(text)} is {algorithm}, expected {expected}")
    return algorithm


def _decode_digest(algorithm: HashAlgorithm, body: str) -> bytes:
    size = algorithm.digest_size
    base16, nix32, base64 = size * 2, base32.encoded_length(size), (size + 2) // 3 * 4
    try:
        if len(body) == base16:
            return _decode_base16(body)
        if len(body) == nix32:
            return base32.decode(body)
        if len(body) == base64:
            return decode_base64(body, size)
    except InvalidRequest as error:
        raise InvalidHash(f"{algorithm} digest {quoted(body)}: {error}") from error
    raise InvalidHash(
        f"{algorithm} digest {quoted(body)} of {len(body)} characters, "
        f"expected {base16} (base16), {nix32} (nix32) or {base64} (base64)"
    )


def _decode_sri(algorithm: HashAlgorithm, body: str) -> bytes:
    try:
        return decode_base64(body, algorithm.digest_size, padding_optional=True)
    except InvalidRequest as error:
        raise InvalidHash(f"{algorithm} SRI digest {quoted(body)}: {error}") from error


def _decode_base16(body: str) -> bytes:
    bad = _NOT_BASE16.search(body)
    if bad is not None:
        raise InvalidHash(f"character {bad.group()!r} at position {bad.start()} is not base16")
    return binascii.unhexlify(body)
