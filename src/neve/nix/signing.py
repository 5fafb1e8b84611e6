"""Ed25519 keys and signatures with names, as Nix uses them to say who vouches for a store path.

Text forms: public key ``<name>:<base64 of 32 bytes>``, secret key ``<name>:<base64 of 64 bytes>`` (the
seed, then the public key), signature ``<key name>:<base64 of 64 bytes>``. The name only selects the key;
what counts is that the signature verifies under a trusted key of that name.

``cryptography`` takes long to import compared to everything else here, so the functions that
calculate import it, and reading keys and signatures stays cheap.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from neve.errors import InvalidRequest
from neve.nix._text import decode_base64, encode_base64, quoted

PUBLIC_KEY_SIZE = 32
SEED_SIZE = 32
SIGNATURE_SIZE = 64

MAX_KEY_NAME = 255
"""Characters of a key's name, as of a host's, which it mostly is. A stranger's signature needs no valid
key, only a name, and whoever stores it pays for that."""


class InvalidKey(InvalidRequest):
    """A public or secret key is malformed. The message never contains secret material."""


class InvalidSignature(InvalidRequest):
    """A signature is malformed (not: it does not verify). The message names what is wrong."""


@dataclass(frozen=True, slots=True)
class Signature:
    """A signature: the name of the key and 64 bytes. Raises ``InvalidSignature`` for other shapes."""

    name: str
    data: bytes

    def __post_init__(self) -> None:
        if not _is_key_name(self.name):
            raise InvalidSignature(f"signature has a bad key name: {_describe_name(self.name)}")
        if len(self.data) != SIGNATURE_SIZE:
            raise InvalidSignature(
                f"signature by {quoted(self.name)} of {len(self.data)} bytes, expected {SIGNATURE_SIZE}"
            )

    @classmethod
    def parse(cls, text: str) -> Signature:
        """Parses ``<key name>:<base64 of 64 bytes>``. Raises ``InvalidSignature``."""
        name, colon, body = text.partition(":")
        if not colon:
            raise InvalidSignature(f"signature {quoted(text)} has no '<key name>:'")
        try:
            return cls(name, decode_base64(body, SIGNATURE_SIZE))
        except InvalidRequest as error:
            raise InvalidSignature(f"signature {quoted(text)}: {error}") from error

    def render(self) -> str:
        """The text form."""
        return f"{self.name}:{encode_base64(self.data)}"

    def __str__(self) -> str:
        return self.render()


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A public key: its name and 32 bytes. Raises ``InvalidKey`` for other shapes."""

    name: str
    data: bytes

    def __post_init__(self) -> None:
        if not _is_key_name(self.name):
            raise InvalidKey(f"public key has a bad name: {_describe_name(self.name)}")
        if len(self.data) != PUBLIC_KEY_SIZE:
            raise InvalidKey(
                f"public key {quoted(self.name)} of {len(self.data)} bytes, expected {PUBLIC_KEY_SIZE}"
            )

    @classmethod
    def parse(cls, text: str | bytes) -> PublicKey:
        """Parses ``<name>:<base64 of 32 bytes>``, white space around it dropped. Raises ``InvalidKey``."""
        return cls(*_split_key(text, "public key", PUBLIC_KEY_SIZE))

    @classmethod
    def parse_many(cls, text: str) -> tuple[PublicKey, ...]:
        """Parses keys that white space separates, as in ``trusted-public-keys``. Raises ``InvalidKey``."""
        return tuple(cls.parse(word) for word in text.split())

    def verify(self, message: bytes, signature: Signature) -> bool:
        """Whether ``signature`` is of this key's name and valid for ``message``."""
        if signature.name != self.name:
            return False
        from cryptography.exceptions import InvalidSignature as Mismatch
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        try:
            Ed25519PublicKey.from_public_bytes(self.data).verify(signature.data, message)
        except Mismatch:
            return False
        return True

    def render(self) -> str:
        """The text form."""
        return f"{self.name}:{encode_base64(self.data)}"

    def __str__(self) -> str:
        return self.render()


@dataclass(frozen=True, slots=True)
class SecretKey:
    """A secret key: its name and the seed of 32 bytes. ``repr`` does not show the seed."""

    name: str
    seed: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if not _is_key_name(self.name):
            raise InvalidKey(f"secret key has a bad name: {_describe_name(self.name)}")
        if len(self.seed) != SEED_SIZE:
            raise InvalidKey(
                f"secret key {quoted(self.name)} with a seed of {len(self.seed)} bytes, expected {SEED_SIZE}"
            )

    @classmethod
    def generate(cls, name: str) -> SecretKey:
        """A new random key. Raises ``InvalidKey`` for a bad name."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        return cls(name, Ed25519PrivateKey.generate().private_bytes_raw())

    @classmethod
    def parse(cls, text: str | bytes) -> SecretKey:
        """Parses ``<name>:<base64 of seed and public key>``, white space around it dropped.

        Raises ``InvalidKey``, also when the public half does not belong to the seed: signatures by
        such a key would verify nowhere.
        """
        name, data = _split_key(text, "secret key", SEED_SIZE + PUBLIC_KEY_SIZE)
        key = cls(name, data[:SEED_SIZE])
        if key.public_key().data != data[SEED_SIZE:]:
            raise InvalidKey(f"secret key {quoted(name)}: the public half does not belong to the seed")
        return key

    def public_key(self) -> PublicKey:
        """The public key of the same name."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        public = Ed25519PrivateKey.from_private_bytes(self.seed).public_key()
        return PublicKey(self.name, public.public_bytes_raw())

    def sign(self, message: bytes) -> Signature:
        """Signs ``message``; the same key and message always give the same signature."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        return Signature(self.name, Ed25519PrivateKey.from_private_bytes(self.seed).sign(message))

    def render(self) -> str:
        """The text form, which is secret."""
        return f"{self.name}:{encode_base64(self.seed + self.public_key().data)}"


def verified(
    message: bytes, signatures: Iterable[Signature], keys: Iterable[PublicKey]
) -> tuple[Signature, ...]:
    """The ``signatures``, in their order, that verify for ``message`` under one of ``keys``.

    Several keys may have one name; each of them is tried.
    """
    by_name = _by_name(keys)
    return tuple(
        signature
        for signature in signatures
        if any(key.verify(message, signature) for key in by_name.get(signature.name, ()))
    )


def verify_any(message: bytes, signatures: Iterable[Signature], keys: Iterable[PublicKey]) -> bool:
    """Whether at least one of ``signatures`` verifies for ``message`` under one of ``keys``."""
    by_name = _by_name(keys)
    return any(
        key.verify(message, signature) for signature in signatures for key in by_name.get(signature.name, ())
    )


def _by_name(keys: Iterable[PublicKey]) -> dict[str, list[PublicKey]]:
    by_name: dict[str, list[PublicKey]] = {}
    for key in keys:
        by_name.setdefault(key.name, []).append(key)
    return by_name


def _is_key_name(name: str) -> bool:
    # A name ends up in lines of narinfos and in lists that white space separates.
    return name.isprintable() and 0 < len(name) <= MAX_KEY_NAME and " " not in name and ":" not in name


def _describe_name(name: str) -> str:
    return f"{quoted(name)}, expected 1 to {MAX_KEY_NAME} printable characters without ':' and white space"


def _split_key(text: str | bytes, what: str, size: int) -> tuple[str, bytes]:
    """Name and ``size`` bytes of a key; messages hold at most the name."""
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8")
        except UnicodeDecodeError as error:
            # Not chained: the cause carries the whole input, which may be secret.
            raise InvalidKey(f"{what} is no UTF-8 at byte {error.start}") from None
    name, colon, body = text.strip().partition(":")
    if not colon:
        raise InvalidKey(f"{what} of {len(text)} characters has no '<name>:'")
    try:
        return name, decode_base64(body, size)
    except InvalidRequest as error:
        raise InvalidKey(f"{what} {quoted(name)}: {error}") from error
