"""The bytes around names, targets and contents in a NAR, and their sizes: pure functions.

An archive is ``MAGIC`` and then its root node. The bytes of a node are

- of a file: ``file_head(size, executable)``, the contents, ``file_tail(size)``;
- of a symlink: ``symlink(target)``;
- of a directory: ``DIRECTORY_OPEN``, for each entry ``entry_open(name)``, the entry's node and
  ``ENTRY_CLOSE``, and at last ``DIRECTORY_CLOSE``.

So the size of an archive follows from its tree without any contents: ``MAGIC_SIZE``, and per node
``file_size``, ``symlink_size`` or ``DIRECTORY_SIZE`` plus, for each entry, ``entry_overhead`` and its node.
Nothing here checks names, targets or order; see ``grammar``.
"""

from __future__ import annotations

from typing import Final

from neve.nix.nar.grammar import (
    CLOSE,
    CONTENTS,
    DIRECTORY,
    ENTRY,
    EXECUTABLE,
    MAGIC,
    MAX_NAME,
    NODE,
    PADDING,
    REGULAR,
    SYMLINK,
    encode_str,
    pack_size,
)

MAGIC_SIZE: Final = len(MAGIC)
DIRECTORY_OPEN: Final = DIRECTORY
DIRECTORY_CLOSE: Final = CLOSE
ENTRY_CLOSE: Final = CLOSE
DIRECTORY_SIZE: Final = len(DIRECTORY_OPEN + DIRECTORY_CLOSE)
"""Bytes of a directory's node without its entries."""

_ENTRY_OPEN: Final = tuple(ENTRY + pack_size(n) for n in range(MAX_NAME + 1))
_AFTER_NAME: Final = tuple(zeros + NODE for zeros in PADDING)
_FILE_HEAD: Final = (REGULAR + CONTENTS, REGULAR + EXECUTABLE + CONTENTS)
_FILE_TAIL: Final = tuple(zeros + CLOSE for zeros in PADDING)
_FILE_OVERHEAD: Final = tuple(len(head + CLOSE) for head in _FILE_HEAD)
_SYMLINK_OVERHEAD: Final = len(SYMLINK + CLOSE)
_ENTRY_OVERHEAD: Final = len(ENTRY + NODE + ENTRY_CLOSE)


def str_size(size: int) -> int:
    """Bytes that a string of ``size`` bytes takes in a NAR."""
    return 8 + size + -size % 8


def entry_open(name: bytes) -> bytes:
    """The bytes between the entry before and the node of this one. ``name`` is at most 255 bytes."""
    return _ENTRY_OPEN[len(name)] + name + _AFTER_NAME[len(name) & 7]


def entry_overhead(name_size: int) -> int:
    """Bytes that an entry takes beside its node, given the bytes of its name."""
    return _ENTRY_OVERHEAD + str_size(name_size)


def file_head(size: int, executable: bool) -> bytes:
    """The bytes of a file's node before its ``size`` bytes of contents."""
    return _FILE_HEAD[executable] + pack_size(size)


def file_tail(size: int) -> bytes:
    """The bytes of a file's node after its ``size`` bytes of contents."""
    return _FILE_TAIL[size & 7]


def file_size(size: int, executable: bool) -> int:
    """Bytes of the node of a file with ``size`` bytes of contents."""
    return _FILE_OVERHEAD[executable] + str_size(size)


def symlink(target: bytes) -> bytes:
    """The bytes of a symlink's node."""
    return SYMLINK + encode_str(target) + CLOSE


def symlink_size(target_size: int) -> int:
    """Bytes of the node of a symlink, given the bytes of its target."""
    return _SYMLINK_OVERHEAD + str_size(target_size)
