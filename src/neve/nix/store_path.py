"""Store paths: ``/nix/store/<32 characters nixbase32>-<name>``, parsed, rendered, calculated.

Names are 1 to 211 characters of ``A-Z a-z 0-9 + _ ? = . -`` and neither ``.`` nor ``..``. Current Nix also
refuses names that begin with ``.-`` or ``..-``; older Nix and other stores hold such paths. So reading
tolerates them and creating (``strict``) does not.

The calculation follows Nix: a fingerprint of the type, the hash of the contents and the name is
hashed with sha256 and folded to 20 bytes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import overload

from neve.errors import InvalidRequest
from neve.nix import base32
from neve.nix._text import quoted
from neve.nix.hashes import CAHash, CAMethod, HashAlgorithm, NixHash

STORE_DIR = "/nix/store"

DIGEST_SIZE = 20
"""Bytes of a store path digest."""

MAX_NAME_LENGTH = 211
"""Nix's limit: with the digest, and a suffix such as ``.lock``, a base name fits a file name."""

_PREFIX = STORE_DIR + "/"
_DIGEST_CHARACTERS = base32.encoded_length(DIGEST_SIZE)
_DRV = ".drv"
_NAME = re.compile(rf"[A-Za-z0-9+_?=.-]{{1,{MAX_NAME_LENGTH}}}")
_NOT_NAME = re.compile(r"[^A-Za-z0-9+_?=.-]")


class InvalidStorePath(InvalidRequest):
    """A store path, its name or its digest is malformed. The message names the part and position."""


def check_name(name: str, *, strict: bool = False) -> None:
    """Raises ``InvalidStorePath`` unless ``name`` may be the name of a store path.

    ``strict`` holds for names of new paths: it refuses the beginnings ``.-`` and ``..-`` too.
    """
    if _NAME.fullmatch(name) is None:
        if not name:
            raise InvalidStorePath("store path name is empty")
        bad = _NOT_NAME.search(name)
        if bad is not None:
            raise InvalidStorePath(
                f"character {bad.group()!r} at position {bad.start()} "
                f"is not allowed in store path name {quoted(name)}"
            )
        raise InvalidStorePath(
            f"store path name {quoted(name)} of {len(name)} characters, the limit is {MAX_NAME_LENGTH}"
        )
    if name[0] == ".":
        if name in (".", ".."):
            raise InvalidStorePath(f"store path name must not be {name!r}")
        if strict and name.startswith((".-", "..-")):
            raise InvalidStorePath(f"name {quoted(name)} of a new store path begins with '.-' or '..-'")


@dataclass(frozen=True, slots=True)
class StorePath:
    """A store path: ``digest`` (20 bytes) and ``name``. Compares in the order of base names.

    Raises ``InvalidStorePath`` for a digest of another length or a name that even reading refuses.
    """

    digest: bytes
    name: str

    def __post_init__(self) -> None:
        if len(self.digest) != DIGEST_SIZE:
            raise InvalidStorePath(f"store path digest of {len(self.digest)} bytes, expected {DIGEST_SIZE}")
        check_name(self.name)

    @classmethod
    def parse_base_name(cls, text: str | bytes, *, strict: bool = False) -> StorePath:
        """Parses ``<digest>-<name>``, without the store directory. Raises ``InvalidStorePath``."""
        # latin-1 maps each byte to one character, so that positions stay those of the input.
        base_name = text if isinstance(text, str) else text.decode("latin-1")
        if base_name[_DIGEST_CHARACTERS : _DIGEST_CHARACTERS + 1] != "-":
            raise InvalidStorePath(
                f"store path base name {quoted(text)} has no '-' at position {_DIGEST_CHARACTERS}, "
                f"after a digest of {_DIGEST_CHARACTERS} characters"
            )
        name = base_name[_DIGEST_CHARACTERS + 1 :]
        try:
            if strict:
                check_name(name, strict=True)
            return cls(base32.decode(base_name[:_DIGEST_CHARACTERS]), name)
        except InvalidRequest as error:
            raise InvalidStorePath(f"store path base name {quoted(text)}: {error}") from error

    @classmethod
    def parse(cls, text: str | bytes, *, strict: bool = False) -> StorePath:
        """Parses ``/nix/store/<digest>-<name>`` with nothing below it. Raises ``InvalidStorePath``."""
        path = text if isinstance(text, str) else text.decode("latin-1")
        if not path.startswith(_PREFIX):
            raise InvalidStorePath(f"store path {quoted(text)} does not begin with {_PREFIX!r}")
        return cls.parse_base_name(path[len(_PREFIX) :], strict=strict)

    @overload
    @classmethod
    def parse_with_rest(cls, text: str, *, strict: bool = False) -> tuple[StorePath, str]: ...
    @overload
    @classmethod
    def parse_with_rest(cls, text: bytes, *, strict: bool = False) -> tuple[StorePath, bytes]: ...
    @classmethod
    def parse_with_rest(
        cls, text: str | bytes, *, strict: bool = False
    ) -> tuple[StorePath, str] | tuple[StorePath, bytes]:
        """Parses an absolute path at or below a store path into the store path and the rest.

        The rest is relative (slashes before it are dropped, others stay), empty for the store path
        itself, and of the type of ``text``: file names are bytes. Raises ``InvalidStorePath``.
        """
        path = text if isinstance(text, str) else text.decode("latin-1")
        end = path.find("/", len(_PREFIX))
        if end < 0:
            end = len(path)
        store_path = cls.parse(path[:end], strict=strict)
        rest = path[end:].lstrip("/")
        return (store_path, rest) if isinstance(text, str) else (store_path, rest.encode("latin-1"))

    @property
    def base_name(self) -> str:
        """``<digest>-<name>``."""
        return f"{base32.encode(self.digest)}-{self.name}"

    @property
    def absolute(self) -> str:
        """``/nix/store/<digest>-<name>``."""
        return f"{_PREFIX}{base32.encode(self.digest)}-{self.name}"

    def without_drv(self) -> StorePath:
        """This derivation path as the data model holds a deriver: without ``.drv``.

        Raises ``InvalidStorePath`` if the name does not end so, or nothing is left of it.
        """
        if not self.name.endswith(_DRV):
            raise InvalidStorePath(f"deriver {quoted(self.base_name)} does not end in '{_DRV}'")
        return StorePath(self.digest, self.name.removesuffix(_DRV))

    def with_drv(self) -> StorePath:
        """The derivation path of a deriver of the data model. Raises ``InvalidStorePath`` if too long."""
        return StorePath(self.digest, self.name + _DRV)

    def __lt__(self, other: StorePath) -> bool:
        return self.base_name < other.base_name

    def __str__(self) -> str:
        return self.absolute


def source_path(
    name: str,
    nar_sha256: bytes,
    references: Iterable[StorePath] = (),
    *,
    self_reference: bool = False,
    strict: bool = True,
) -> StorePath:
    """The path of contents that are addressed by the sha256 (32 bytes) of their NAR.

    With a self reference, ``nar_sha256`` is that of the NAR in which the own digest is blanked out.
    Raises ``InvalidStorePath`` for a bad name, ``InvalidHash`` for a digest of another length.
    """
    inner = NixHash(HashAlgorithm.SHA256, nar_sha256).digest
    path_type = _with_references("source", references)
    if self_reference:
        path_type += ":self"
    return _calculate(path_type, inner, name, strict)


def text_path(
    name: str, text_sha256: bytes, references: Iterable[StorePath] = (), *, strict: bool = True
) -> StorePath:
    """The path of a text file (a derivation, ``builtins.toFile``) by the sha256 of its contents."""
    inner = NixHash(HashAlgorithm.SHA256, text_sha256).digest
    return _calculate(_with_references("text", references), inner, name, strict)


def fixed_output_path(name: str, content_hash: NixHash, *, recursive: bool, strict: bool = True) -> StorePath:
    """The path of a fixed output without references.

    ``content_hash`` is that of the NAR if ``recursive``, else that of the one flat file.
    """
    if recursive and content_hash.algorithm is HashAlgorithm.SHA256:
        return source_path(name, content_hash.digest, strict=strict)
    mode = "r:" if recursive else ""
    description = f"fixed:out:{mode}{content_hash.algorithm.value}:{content_hash.digest.hex()}:"
    return _calculate("output:out", hashlib.sha256(description.encode("ascii")).digest(), name, strict)


def content_addressed_path(
    name: str,
    ca: CAHash,
    references: Iterable[StorePath] = (),
    *,
    self_reference: bool = False,
    strict: bool = True,
) -> StorePath:
    """The path of contents with the content address ``ca``.

    Raises ``InvalidStorePath`` for a bad name and for references that paths of this kind cannot
    have: only NAR sha256 and text may have any, and a text none to itself.
    """
    references = tuple(references)
    if ca.method is CAMethod.NAR and ca.hash.algorithm is HashAlgorithm.SHA256:
        return source_path(name, ca.digest, references, self_reference=self_reference, strict=strict)
    if self_reference:
        raise InvalidStorePath(f"a path addressed by {ca} cannot refer to itself: {quoted(name)}")
    if ca.method is CAMethod.TEXT:
        return text_path(name, ca.digest, references, strict=strict)
    if references:
        raise InvalidStorePath(
            f"a path addressed by {ca} cannot have references: {quoted(name)} refers to {references[0]}"
        )
    return fixed_output_path(name, ca.hash, recursive=ca.method is CAMethod.NAR, strict=strict)


def _with_references(path_type: str, references: Iterable[StorePath]) -> str:
    return ":".join([path_type, *sorted({reference.absolute for reference in references})])


def _calculate(path_type: str, inner_sha256: bytes, name: str, strict: bool) -> StorePath:
    check_name(name, strict=strict)
    fingerprint = f"{path_type}:sha256:{inner_sha256.hex()}:{STORE_DIR}:{name}"
    return StorePath(_fold(hashlib.sha256(fingerprint.encode("ascii")).digest()), name)


def _fold(digest: bytes) -> bytes:
    """Folds 32 bytes to 20: byte i is xored into byte i mod 20."""
    head = int.from_bytes(digest[:DIGEST_SIZE], "little")
    tail = int.from_bytes(digest[DIGEST_SIZE:], "little")
    return (head ^ tail).to_bytes(DIGEST_SIZE, "little")
