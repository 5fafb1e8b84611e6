"""The vectors printed by Nix as trees of events, and ways to feed and compare them."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from neve.nix.nar import NarError, NarReader
from neve.nix.nar.grammar import encode_str
from neve.tree import LEAVE_DIRECTORY, Data, EnterDirectory, Event, File, Symlink

VECTORS = Path(__file__).parents[2] / "vectors"


class Case(NamedTuple):
    """One tree of ``trees.json``."""

    name: str
    events: list[Event]
    nar: bytes | None
    nar_size: int
    nar_sha256_nix32: str


def load_trees() -> list[Case]:
    return [
        Case(
            item["name"],
            list(events_of(item["tree"], b"")),
            base64.b64decode(item["nar_b64"]) if "nar_b64" in item else None,
            item["nar_size"],
            item["nar_sha256_nix32"],
        )
        for item in json.loads((VECTORS / "trees.json").read_text())
    ]


def load_bad_nars() -> dict[str, bytes]:
    items = json.loads((VECTORS / "bad_nars.json").read_text())
    return {item["name"]: base64.b64decode(item["nar_b64"]) for item in items}


def events_of(tree: dict[str, Any], name: bytes) -> Iterator[Event]:
    if tree["type"] == "file":
        yield File(name, tree["executable"], base64.b64decode(tree["contents_b64"]))
    elif tree["type"] == "symlink":
        yield Symlink(name, tree["target"].encode())
    else:
        yield EnterDirectory(name)
        for child, node in sorted((key.encode(), node) for key, node in tree["entries"].items()):
            yield from events_of(node, child)
        yield LEAVE_DIRECTORY


def nix32(digest: bytes) -> str:
    """nixbase32, slow and independent of the code under test."""
    number = int.from_bytes(digest, "little")
    count = -(-len(digest) * 8 // 5)
    return "".join("0123456789abcdfghijklmnpqrsvwxyz"[number >> 5 * i & 31] for i in reversed(range(count)))


def slices(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def read(pieces: Iterable[bytes]) -> list[Event]:
    """The events of a whole archive, neighbouring Data joined."""
    reader = NarReader()
    events = [event for piece in pieces for event in reader.feed(piece)]
    reader.close()
    assert reader.done
    return join_data(events)


def outcome(pieces: Iterable[bytes]) -> list[Event] | str:
    """The events, or the message of the error."""
    try:
        return read(pieces)
    except NarError as error:
        return str(error)


def join_data(events: Iterable[Event]) -> list[Event]:
    joined: list[Event] = []
    for event in events:
        last = joined[-1] if joined else None
        if isinstance(event, Data) and isinstance(last, Data):
            joined[-1] = Data(last.data + event.data)
        else:
            joined.append(event)
    return joined


def strings(*values: bytes) -> bytes:
    """The NAR strings of these values."""
    return b"".join(map(encode_str, values))
