"""One level of a tree: ``Directory``, its canonical encoding, and a builder for bulk work.

The encoding is that of the message ``tvix.castore.v1.Directory`` (``protos/``) in its only canonical
form: fields in ascending number, default values left out, no unknown fields, minimal varints. The
digest of a Directory is the digest of these bytes, so whatever encodes differently is refused.
"""

from __future__ import annotations

import enum
import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping
from operator import itemgetter
from typing import TYPE_CHECKING, Final

from neve.castore.digest import DIGEST_SIZE, Digest, b3_digest
from neve.castore.node import (
    MAX_SIZE,
    DirectoryNode,
    FileNode,
    Node,
    SymlinkNode,
    check_target,
    validate_node,
)
from neve.castore.path import InvalidName, check_name, is_valid_name, show_name
from neve.errors import InvalidRequest

if TYPE_CHECKING:
    from neve.proto.tvix.castore.protos import castore_pb2

__all__ = ["Directory", "DirectoryBuilder", "InvalidDirectory", "SizeRule", "child_digests"]


class InvalidDirectory(InvalidRequest):
    """Entries or bytes that are no valid Directory. The message tells the name and the rule."""


class SizeRule(enum.Enum):
    """How the size of a Directory is counted; the values are those of ``--directory-size-rule``."""

    EXACT = "exact"
    """Every node below counts once: entries + sizes of the child directories."""
    SNIX = "snix"
    """Direct entries count twice: 2 * entries + sizes of the child directories."""


class Directory:
    """An immutable, valid Directory. Equal Directories have equal encodings."""

    __slots__ = ("_child_sizes", "_digest", "_encoded", "_entries")

    def __init__(self, entries: Mapping[bytes, Node] | Iterable[tuple[bytes, Node]] = ()) -> None:
        """Takes entries in any order. Raises ``InvalidDirectory``."""
        pairs = sorted(entries.items() if isinstance(entries, Mapping) else entries, key=itemgetter(0))
        _check_entries("entries", pairs)
        self._fill(dict(pairs))

    def _fill(self, entries: dict[bytes, Node]) -> None:
        """Takes over valid entries in the order of their names."""
        self._entries = entries
        self._child_sizes = sum(node.size for node in entries.values() if isinstance(node, DirectoryNode))
        self._encoded: bytes | None = None
        self._digest: Digest | None = None
        self.size()

    @classmethod
    def decode(cls, data: bytes, *, digest: Digest | None = None, validated: bool = False) -> Directory:
        """Reads a canonical encoding. Raises ``InvalidDirectory``.

        Keeps a reference to ``data``. ``digest`` is the digest of ``data`` if the caller has
        computed it already; it is not checked. ``validated`` spares the checks of each entry: only
        for bytes that were checked when they were stored, and were proven to be those by the digest.
        """
        message = _parse(data)
        pairs: list[tuple[bytes, Node]] = []
        for kind, listed in _lists(message):
            if not validated:
                _check_entries(kind, listed)
            pairs += listed
        pairs.sort(key=itemgetter(0))
        entries = dict(pairs)
        if len(entries) != len(pairs):
            raise _duplicate(pairs)
        if not validated:
            _check_canonical(message, data)
        directory = cls.__new__(cls)
        directory._fill(entries)
        directory._encoded = data
        directory._digest = digest
        return directory

    def encode(self) -> bytes:
        """The canonical encoding."""
        if self._encoded is None:
            builder = DirectoryBuilder()
            for name, node in self._entries.items():
                if isinstance(node, FileNode):
                    builder.add_file(name, *node)
                elif isinstance(node, SymlinkNode):
                    builder.add_symlink(name, node.target)
                else:
                    builder.add_directory(name, *node)
            self._encoded = builder.encode()
        return self._encoded

    @property
    def digest(self) -> Digest:
        """The address of this Directory."""
        if self._digest is None:
            self._digest = b3_digest(self.encode())
        return self._digest

    def size(self, rule: SizeRule = SizeRule.EXACT) -> int:
        """Number of nodes below, by ``rule``. ``InvalidDirectory`` when it does not fit 64 bits.

        The exact size fits always: a Directory without one is refused when it is made.
        """
        return _total_size(rule, len(self._entries), self._child_sizes)

    def get(self, name: bytes) -> Node | None:
        """The node of that name, or None."""
        return self._entries.get(name)

    def directories(self) -> Iterator[tuple[bytes, DirectoryNode]]:
        """The entries that are directories, in the order of their names."""
        for name, node in self._entries.items():
            if isinstance(node, DirectoryNode):
                yield name, node

    def __iter__(self) -> Iterator[tuple[bytes, Node]]:
        """All entries in the order of their names."""
        return iter(self._entries.items())

    def __len__(self) -> int:
        return len(self._entries)

    def __bool__(self) -> bool:
        """Always true, so that ``get_directory(...) or ...`` does not mistake an empty one for none."""
        return True

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Directory):
            return NotImplemented
        return self._entries == other._entries

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"Directory({self._entries!r})"


class DirectoryBuilder:
    """Builds the encoding of one Directory from entries in strictly ascending order of their names.

    Keeps the encoding only, no objects per entry, so that a million entries take little more memory
    than their encoding. Every ``add_*`` raises ``InvalidDirectory``; the builder is then as before.
    Not thread-safe.
    """

    __slots__ = ("_child_sizes", "_count", "_directories", "_files", "_last", "_rule", "_symlinks")

    def __init__(self, rule: SizeRule = SizeRule.EXACT) -> None:
        """``rule`` is for the size that ``finish`` answers."""
        self._rule = rule
        self._directories = bytearray()
        self._files = bytearray()
        self._symlinks = bytearray()
        self._last = b""
        self._count = 0
        self._child_sizes = 0

    def add_file(self, name: bytes, digest: Digest, size: int, executable: bool = False) -> None:
        """``size`` in bytes."""
        if name <= self._last or not is_valid_name(name) or len(digest) != DIGEST_SIZE:
            raise self._refusal(name, digest)
        tail = _size_field(name, size) if size else b""
        if executable:
            tail += b"\x20\x01"
        head = _NAME_FIELD[len(name)]
        length = _VARINTS[len(head) + len(name) + 34 + len(tail)]
        self._files += b"\x12%b%b%b\x12 %b%b" % (length, head, name, digest, tail)
        self._last = name
        self._count += 1

    def add_symlink(self, name: bytes, target: bytes) -> None:
        """``target`` is 1 to 4095 bytes without NUL."""
        if name <= self._last or not is_valid_name(name):
            raise _bad_name("entries", name, self._last)
        try:
            check_target(target)
        except InvalidRequest as error:
            raise _bad_entry("entries", name, error) from error
        body = b"%b%b\x12%b%b" % (_NAME_FIELD[len(name)], name, _varint(len(target)), target)
        self._symlinks += b"\x1a%b%b" % (_varint(len(body)), body)
        self._last = name
        self._count += 1

    def add_directory(self, name: bytes, digest: Digest, size: int) -> None:
        """``size`` counts nodes, by the rule of this builder."""
        if name <= self._last or not is_valid_name(name) or len(digest) != DIGEST_SIZE:
            raise self._refusal(name, digest)
        size_field = _size_field(name, size) if size else b""
        body = b"%b%b\x12 %b%b" % (_NAME_FIELD[len(name)], name, digest, size_field)
        self._directories += b"\x0a%b%b" % (_VARINTS[len(body)], body)
        self._last = name
        self._count += 1
        self._child_sizes += size

    def encode(self) -> bytes:
        """The canonical encoding of the entries so far."""
        return b"".join((self._directories, self._files, self._symlinks))

    def finish(self) -> tuple[bytes, Digest, int]:
        """Encoding, digest and size. ``InvalidDirectory`` when the size does not fit 64 bits."""
        size = _total_size(self._rule, self._count, self._child_sizes)
        encoded = self.encode()
        return encoded, b3_digest(encoded), size

    def _refusal(self, name: bytes, digest: Digest) -> InvalidDirectory:
        """Why an entry cannot be added."""
        if name <= self._last or not is_valid_name(name):
            return _bad_name("entries", name, self._last)
        return _bad_entry("entries", name, f"digest has {len(digest)} bytes, must have {DIGEST_SIZE}")


def _total_size(rule: SizeRule, entries: int, child_sizes: int) -> int:
    total = (entries if rule is SizeRule.EXACT else 2 * entries) + child_sizes
    if total > MAX_SIZE:
        raise InvalidDirectory(f"the size of the Directory ({rule.value}: {total}) does not fit 64 bits")
    return total


def _check_entries(kind: str, pairs: Iterable[tuple[bytes, Node]]) -> None:
    """Raises ``InvalidDirectory`` unless names and nodes are valid and the names strictly ascend."""
    last = b""
    for name, node in pairs:
        if name <= last or not is_valid_name(name):
            raise _bad_name(kind, name, last)
        try:
            validate_node(node)
        except InvalidRequest as error:
            raise _bad_entry(kind, name, error) from error
        last = name


def _bad_name(kind: str, name: bytes, last: bytes) -> InvalidDirectory:
    try:
        check_name(name)
    except InvalidName as error:
        return InvalidDirectory(f"{kind}: {error}")
    if name == last:
        return _bad_entry(kind, name, "occurs twice")
    return _bad_entry(kind, name, f"comes after {show_name(last)}, names must ascend")


def _bad_entry(kind: str, name: bytes, reason: object) -> InvalidDirectory:
    return InvalidDirectory(f"{kind}: {show_name(name)}: {reason}")


def _duplicate(pairs: list[tuple[bytes, Node]]) -> InvalidDirectory:
    names = (name for (name, _), (following, _) in itertools.pairwise(pairs) if name == following)
    return _bad_entry("entries", next(names), "occurs twice, in different lists")


# Decoding.


@functools.cache
def _protobuf() -> tuple[type[castore_pb2.Directory], type[Exception]]:
    """The message class and its error, imported late: they cost more than the rest of this module."""
    from google.protobuf.message import DecodeError

    from neve.proto.tvix.castore.protos import castore_pb2

    return castore_pb2.Directory, DecodeError


def _parse(data: bytes) -> castore_pb2.Directory:
    message_class, decode_error = _protobuf()
    try:
        return message_class.FromString(data)
    except decode_error as error:
        raise InvalidDirectory(f"{len(data)} bytes are no Directory message: {error}") from error


def child_digests(data: bytes) -> list[Digest]:
    """The digests of the directories in the encoding of a Directory that was validated before."""
    return [directory.digest for directory in _parse(data).directories]


def referred_digests(data: bytes) -> tuple[list[Digest], list[Digest]]:
    """Those of the directories and those of the files, of a Directory that was validated before."""
    message = _parse(data)
    return [node.digest for node in message.directories], [node.digest for node in message.files]


def _lists(message: castore_pb2.Directory) -> Iterator[tuple[str, list[tuple[bytes, Node]]]]:
    yield "directories", [(d.name, DirectoryNode(d.digest, d.size)) for d in message.directories]
    yield "files", [(f.name, FileNode(f.digest, f.size, f.executable)) for f in message.files]
    yield "symlinks", [(s.name, SymlinkNode(s.target)) for s in message.symlinks]


def _check_canonical(message: castore_pb2.Directory, data: bytes) -> None:
    """Raises ``InvalidDirectory`` unless ``data`` is how the message is encoded. Drops unknown fields.

    The library encodes canonically once unknown fields are gone; the tests hold it to that.
    """
    with_unknown = message.ByteSize()
    message.DiscardUnknownFields()
    encoded = message.SerializeToString()
    if encoded == data:
        return
    if message.ByteSize() != with_unknown:
        raise InvalidDirectory("the encoding is not canonical: it has unknown fields")
    same = next((i for i, (a, b) in enumerate(zip(data, encoded, strict=False)) if a != b), len(encoded))
    raise InvalidDirectory(
        f"the encoding is not canonical: {len(data)} bytes instead of {len(encoded)}, "
        f"the first difference is at byte {same}"
    )


# Encoding.


def _varint(value: int) -> bytes:
    """``value`` in groups of seven bits, the lowest first; unrolled for what is common."""
    if value < 0x80:
        return bytes((value,))
    if value < 0x4000:
        return bytes((value & 0x7F | 0x80, value >> 7))
    if value < 0x200000:
        return bytes((value & 0x7F | 0x80, value >> 7 & 0x7F | 0x80, value >> 14))
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)


def _size_field(name: bytes, size: int) -> bytes:
    """Field 3 of files and directories; never called for 0, which is left out."""
    if not 0 < size <= MAX_SIZE:
        raise _bad_entry("entries", name, f"size {size} does not fit 64 bits")
    return b"\x18" + _varint(size)


# By value and by length: enough for the body of any file or directory entry, and for any name.
_VARINTS: Final = tuple(map(_varint, range(512)))
_NAME_FIELD: Final = tuple(b"\x0a" + length for length in _VARINTS[:256])
