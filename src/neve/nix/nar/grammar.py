"""The grammar of the Nix archive (NAR): tokens, limits, legal moves, checks and the error.

A NAR is a sequence of strings, each a 64-bit little-endian length, that many bytes, and zeros up to
the next multiple of 8. Source: figure 5.2 of Eelco Dolstra's thesis "The Purely Functional Software
Deployment Model" and what Nix itself reads and writes::

    archive = "nix-archive-1" node
    node    = "(" "type" ( "symlink" "target" str
                         | "regular" ["executable" ""] "contents" str
                         | "directory" entry* ) ")"
    entry   = "entry" "(" "name" str "node" node ")"

The names of a directory's entries ascend strictly, compared as bytes. Nix up to 2.8 lets unsorted ones pass;
here they are refused, because two archives of one tree would otherwise differ.
"""

from __future__ import annotations

from enum import Enum, auto
from struct import Struct
from typing import Final

from neve.errors import InvalidRequest

MAX_NAME: Final = 255
"""Bytes of an entry's name: NAME_MAX of Linux, and what Nix can restore."""

MAX_TARGET: Final = 4095
"""Bytes of a symlink's target: PATH_MAX of Linux without the final NUL."""

MAX_CONTENTS: Final = 2**63 - 1
"""Bytes of a file: the largest offset that Linux knows. Nothing is ever allocated from a claimed length."""

MAX_DEPTH: Final = 100_000
"""Directories inside each other. A level costs its name (at most 255 bytes), so the deepest archive
costs some 30 MB; real paths end at about 2,000 components (PATH_MAX)."""

SHOWN_BYTES: Final = 200
"""Bytes of a path or token that an error message shows."""

pack_size = Struct("<Q").pack
"""The 8 bytes of a length."""

PADDING: Final = tuple(bytes(-n % 8) for n in range(8))
"""The zeros that follow a string of ``n`` bytes, by ``n & 7``."""


def encode_str(value: bytes) -> bytes:
    """One NAR string: length, bytes, padding."""
    return pack_size(len(value)) + value + PADDING[len(value) & 7]


MAGIC: Final = encode_str(b"nix-archive-1")
REGULAR: Final = encode_str(b"(") + encode_str(b"type") + encode_str(b"regular")
EXECUTABLE: Final = encode_str(b"executable") + encode_str(b"")
CONTENTS: Final = encode_str(b"contents")
SYMLINK: Final = encode_str(b"(") + encode_str(b"type") + encode_str(b"symlink") + encode_str(b"target")
DIRECTORY: Final = encode_str(b"(") + encode_str(b"type") + encode_str(b"directory")
ENTRY: Final = encode_str(b"entry") + encode_str(b"(") + encode_str(b"name")
NODE: Final = encode_str(b"node")
CLOSE: Final = encode_str(b")")


class State(Enum):
    """What a reader has to see next; the value says it for messages."""

    MAGIC = "'nix-archive-1'"
    OPEN = "'(' of a node"
    TYPE = "'type'"
    KIND = "'regular', 'symlink' or 'directory'"
    REGULAR = "'contents' or 'executable'"
    MARK = "the empty string after 'executable'"
    EXECUTABLE = "'contents' after 'executable'"
    CONTENTS = "the contents of a file"
    SYMLINK = "'target'"
    TARGET = f"a target of 1 to {MAX_TARGET} bytes"
    DIRECTORY = "'entry' or ')'"
    ENTRY = "'(' of an entry"
    ENTRY_NAME = "'name'"
    NAME = f"a name of 1 to {MAX_NAME} bytes"
    ENTRY_NODE = "'node'"
    NODE_CLOSE = "')' of a node"
    ENTRY_CLOSE = "')' of an entry"
    END = "the end of the archive"


class Turn(Enum):
    """A move whose next state depends on where the node stands."""

    NODE_ENDED = auto()


# The legal moves: in a state, these strings may come, and lead to that state. Three states are absent
# because they take free strings: NAME goes on to ENTRY_NODE, TARGET and CONTENTS to NODE_CLOSE.
# A node that ends (NODE_ENDED) goes on to ENTRY_CLOSE if it is an entry's, to END if it is the root;
# everything else about nesting is the stack of open directories, which DIRECTORY pushes and its ")" pops.
# END takes nothing: bytes after the archive are an error.
MOVES: Final[dict[State, dict[bytes, State | Turn]]] = {
    State.MAGIC: {b"nix-archive-1": State.OPEN},
    State.OPEN: {b"(": State.TYPE},
    State.TYPE: {b"type": State.KIND},
    State.KIND: {b"regular": State.REGULAR, b"symlink": State.SYMLINK, b"directory": State.DIRECTORY},
    State.REGULAR: {b"executable": State.MARK, b"contents": State.CONTENTS},
    State.MARK: {b"": State.EXECUTABLE},
    State.EXECUTABLE: {b"contents": State.CONTENTS},
    State.SYMLINK: {b"target": State.TARGET},
    State.DIRECTORY: {b"entry": State.ENTRY, b")": Turn.NODE_ENDED},
    State.ENTRY: {b"(": State.ENTRY_NAME},
    State.ENTRY_NAME: {b"name": State.NAME},
    State.ENTRY_NODE: {b"node": State.OPEN},
    State.NODE_CLOSE: {b")": Turn.NODE_ENDED},
    State.ENTRY_CLOSE: {b")": State.DIRECTORY},
    State.END: {},
}

LENGTHS: Final[dict[State, range | frozenset[int]]] = {
    **{state: frozenset(map(len, moves)) for state, moves in MOVES.items()},
    State.NAME: range(1, MAX_NAME + 1),
    State.TARGET: range(1, MAX_TARGET + 1),
    State.CONTENTS: range(MAX_CONTENTS + 1),
}
"""The string lengths that a state takes: a wrong one is refused before any byte of the string is kept."""

DOTS: Final = frozenset((b".", b".."))


def name_fault(name: bytes, previous: bytes) -> str | None:
    """What is wrong with an entry's name that follows ``previous`` (``b""`` for the first), else None."""
    if not 0 < len(name) <= MAX_NAME:
        return f"a name of 1 to {MAX_NAME} bytes"
    if b"\0" in name or b"/" in name or name in DOTS:
        return "a name without '/' and NUL that is not '.' or '..'"
    if name <= previous:
        return f"a name greater than '{readable(previous)}', the one before it"
    return None


def target_fault(target: bytes) -> str | None:
    """What is wrong with the target of a symlink, else None."""
    if not 0 < len(target) <= MAX_TARGET:
        return f"a target of 1 to {MAX_TARGET} bytes"
    if b"\0" in target:
        return "a target without NUL"
    return None


def readable(value: bytes) -> str:
    """Bytes for a message: UTF-8 where it is, escapes where not, the end of what is longer than
    ``SHOWN_BYTES``."""
    cut = len(value) > SHOWN_BYTES
    text = value[-SHOWN_BYTES:].decode("utf-8", "backslashreplace")
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return f"...{shown}" if cut else shown


class NarError(InvalidRequest):
    """The bytes are no NAR.

    ``offset`` is the byte of the archive from which on it is wrong, ``path`` the node inside the
    archive (components joined by ``/``, empty for the root), ``expected`` what should stand there and
    ``found`` what does.
    """

    def __init__(self, offset: int, path: bytes, expected: str, found: str) -> None:
        super().__init__(offset, path, expected, found)
        self.offset = offset
        self.path = path
        self.expected = expected
        self.found = found

    def __str__(self) -> str:
        where = f"in '{readable(self.path)}'" if self.path else "at the root"
        return f"invalid NAR at byte {self.offset}, {where}: expected {self.expected}, found {self.found}"
