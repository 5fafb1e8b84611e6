"""narinfo: what a Nix binary cache says about one store path.

A text of lines ``Key: value``. Reading tolerates what caches in use write (a missing ``Compression`` or
``References``, ``unknown-deriver``, unknown keys, references in any order); writing follows Nix to the byte.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from neve.errors import InvalidRequest
from neve.nix import base32
from neve.nix._text import MAX_U64, InvalidText, decode_utf8, parse_u64, quoted, split_line
from neve.nix.hashes import CAHash, HashAlgorithm, NixHash
from neve.nix.signing import Signature
from neve.nix.store_path import StorePath

MAX_NARINFO_BYTES = 2 * 1024 * 1024
"""A path with 30,000 references has a narinfo of about 1.5 MiB; larger input is refused unread."""

DEFAULT_COMPRESSION = "bzip2"
"""What a narinfo without ``Compression`` means, from the time before caches could choose."""

_UNKNOWN_DERIVER = "unknown-deriver"
_SHA256_SIZE = HashAlgorithm.SHA256.digest_size

_T = TypeVar("_T")


class InvalidNarInfo(InvalidRequest):
    """A narinfo is malformed or about another path. The message names the line and the key."""


def fingerprint(
    store_path: StorePath, nar_sha256: bytes, nar_size: int, references: Iterable[StorePath]
) -> bytes:
    """What signatures of a store path cover; the order of ``references`` does not matter."""
    paths = ",".join(sorted({reference.absolute for reference in references}))
    nar_hash = base32.encode(nar_sha256)
    return f"1;{store_path.absolute};sha256:{nar_hash};{nar_size};{paths}".encode("ascii")


@dataclass(frozen=True, slots=True, kw_only=True)
class NarInfo:
    """The fields of a narinfo; an optional one that is missing is ``None``.

    Raises ``InvalidNarInfo`` when a value could not be written: sizes beyond 64 bits or a NAR of no
    bytes, a hash of another length, texts that are empty or hold line breaks.
    """

    store_path: StorePath
    url: str
    """Where the NAR is, relative to the cache."""
    compression: str = "none"
    file_hash: NixHash | None = None
    """Hash of the file at ``url``, compressed as it is."""
    file_size: int | None = None
    """Size of the file at ``url`` in bytes."""
    nar_sha256: bytes
    """sha256 of the uncompressed NAR, 32 bytes."""
    nar_size: int
    """Size of the uncompressed NAR in bytes."""
    references: tuple[StorePath, ...] = ()
    """In the order received; written sorted and without repeats."""
    deriver: StorePath | None = None
    """Its name lacks the ``.drv`` that the text has."""
    system: str | None = None
    signatures: tuple[Signature, ...] = ()
    ca: CAHash | None = None

    def __post_init__(self) -> None:
        _check_line("URL", self.url)
        _check_line("Compression", self.compression)
        if self.system is not None:
            _check_line("System", self.system)
        if len(self.nar_sha256) != _SHA256_SIZE:
            raise InvalidNarInfo(f"NarHash: {len(self.nar_sha256)} bytes, expected {_SHA256_SIZE} (sha256)")
        if not 0 < self.nar_size <= MAX_U64:
            raise InvalidNarInfo(f"NarSize: {self.nar_size}, expected 1 to {MAX_U64}")
        if self.file_size is not None and not 0 <= self.file_size <= MAX_U64:
            raise InvalidNarInfo(f"FileSize: {self.file_size}, expected 0 to {MAX_U64}")

    @classmethod
    def parse(cls, data: str | bytes, *, expected_digest: bytes | None = None) -> NarInfo:
        """Parses a narinfo.

        ``expected_digest`` (20 bytes) is that of the path asked for: a narinfo about another one is
        refused, or a cache could swap paths. Raises ``InvalidNarInfo``, and ``LimitExceeded`` above
        ``MAX_NARINFO_BYTES``.
        """
        fields = _read_fields(data)
        store_path = fields.required("StorePath", StorePath.parse)
        if expected_digest is not None and store_path.digest != expected_digest:
            raise InvalidNarInfo(
                f"StorePath: {store_path} is not the path asked for, "
                f"whose digest is {base32.encode(expected_digest)}"
            )
        return cls(
            store_path=store_path,
            url=fields.required("URL", str),
            compression=fields.optional("Compression", str) or DEFAULT_COMPRESSION,
            file_hash=fields.optional("FileHash", NixHash.parse),
            file_size=fields.optional("FileSize", parse_u64),
            nar_sha256=fields.required("NarHash", _parse_sha256),
            nar_size=fields.required("NarSize", parse_u64),
            references=fields.optional("References", _parse_references) or (),
            deriver=fields.optional("Deriver", _parse_deriver),
            system=fields.optional("System", str) or None,
            signatures=fields.signatures,
            ca=fields.optional("CA", CAHash.parse),
        )

    def render(self) -> str:
        """The text that Nix would write, hashes in nixbase32, ending in a line break.

        Raises ``InvalidStorePath`` if the deriver's name gets too long with ``.drv``.
        """
        references = " ".join(sorted({reference.base_name for reference in self.references}))
        lines = [
            f"StorePath: {self.store_path.absolute}",
            f"URL: {self.url}",
            f"Compression: {self.compression}",
        ]
        if self.file_hash is not None:
            lines.append(f"FileHash: {self.file_hash.render()}")
        if self.file_size is not None:
            lines.append(f"FileSize: {self.file_size}")
        lines.append(f"NarHash: sha256:{base32.encode(self.nar_sha256)}")
        lines.append(f"NarSize: {self.nar_size}")
        lines.append(f"References: {references}")
        if self.deriver is not None:
            lines.append(f"Deriver: {self.deriver.with_drv().base_name}")
        if self.system is not None:
            lines.append(f"System: {self.system}")
        lines += [f"Sig: {signature.render()}" for signature in self.signatures]
        if self.ca is not None:
            lines.append(f"CA: {self.ca.render()}")
        lines.append("")
        return "\n".join(lines)

    def fingerprint(self) -> bytes:
        """What the signatures cover."""
        return fingerprint(self.store_path, self.nar_sha256, self.nar_size, self.references)


_SINGLE_KEYS = frozenset(
    (
        "StorePath",
        "URL",
        "Compression",
        "FileHash",
        "FileSize",
        "NarHash",
        "NarSize",
        "References",
        "Deriver",
        "System",
        "CA",
    )
)


@dataclass
class _Fields:
    """The lines of a narinfo by key; errors of the value parsers get the line and key in front."""

    lines: dict[str, tuple[int, str]] = field(default_factory=dict)
    signatures: tuple[Signature, ...] = ()

    def required(self, key: str, parse: Callable[[str], _T]) -> _T:
        if key not in self.lines:
            raise InvalidNarInfo(f"{key} is missing")
        number, value = self.lines[key]
        return _parse_value(number, key, value, parse)

    def optional(self, key: str, parse: Callable[[str], _T]) -> _T | None:
        return self.required(key, parse) if key in self.lines else None


def _read_fields(data: str | bytes) -> _Fields:
    try:
        text = decode_utf8(data, "narinfo", MAX_NARINFO_BYTES)
    except InvalidText as error:
        raise InvalidNarInfo(str(error)) from error
    # A text that stops within a line was cut: the value could be a shorter, valid one.
    *lines, last = text.split("\n")
    if last:
        raise InvalidNarInfo(f"line {len(lines) + 1}: no line break at the end of {quoted(last)}")
    fields = _Fields()
    signatures: list[Signature] = []
    for number, line in enumerate(lines, 1):
        try:
            key, value = split_line(line)
        except InvalidText as error:
            raise InvalidNarInfo(f"line {number}: {error}") from error
        if key == "Sig":
            signatures.append(_parse_value(number, key, value, Signature.parse))
        elif key in _SINGLE_KEYS:
            if key in fields.lines:
                first = fields.lines[key][0]
                raise InvalidNarInfo(f"line {number}: {key} was given in line {first} already")
            fields.lines[key] = (number, value)
    fields.signatures = tuple(signatures)
    return fields


def _parse_value(number: int, key: str, value: str, parse: Callable[[str], _T]) -> _T:
    try:
        return parse(value)
    except InvalidRequest as error:
        raise InvalidNarInfo(f"line {number}, {key}: {error}") from error


def _parse_sha256(value: str) -> bytes:
    return NixHash.parse(value, HashAlgorithm.SHA256).digest


def _parse_references(value: str) -> tuple[StorePath, ...]:
    # Nix reads them into a set, so that a repeat means nothing.
    names = dict.fromkeys(name for name in value.split(" ") if name)
    return tuple(StorePath.parse_base_name(name) for name in names)


def _parse_deriver(value: str) -> StorePath | None:
    if value == _UNKNOWN_DERIVER:
        return None
    return StorePath.parse_base_name(value).without_drv()


def _check_line(key: str, value: str) -> None:
    # isprintable() is false for line breaks, other control characters and lone surrogates.
    if not value or not value.isprintable():
        raise InvalidNarInfo(f"{key}: expected printable characters, got {quoted(value)}")
