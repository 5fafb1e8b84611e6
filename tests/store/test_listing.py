"""Listings of NARs, made from trees."""

from __future__ import annotations

import json
import os
from typing import Any

from hypothesis import given, settings

from neve.castore.node import Node
from neve.store.nar.listing import listing
from neve.store.services import Services
from neve.testing.strategies import trees
from neve.tree import LEAVE_DIRECTORY, EnterDirectory, Event, File, Symlink
from tests.store.helpers import encoded, memory_services, stored


def listed(services: Services, root: Node) -> Any:
    document = json.loads(b"".join(listing(services.directories, root)))
    assert document["version"] == 1
    return document["root"]


def events_of(node: Any, name: bytes, nar: bytes) -> list[Event]:
    """The tree again: contents are where the listing says."""
    if node["type"] == "symlink":
        return [Symlink(name, os.fsencode(node["target"]))]
    if node["type"] == "regular":
        start = node["narOffset"]
        contents = nar[start : start + node["size"]]
        assert len(contents) == node["size"]
        return [File(name, node.get("executable", False), contents)]
    assert list(node) == ["type", "entries"]
    found: list[Event] = [EnterDirectory(name)]
    for child, below in node["entries"].items():
        found += events_of(below, os.fsencode(child), nar)
    return [*found, LEAVE_DIRECTORY]


@settings(deadline=None)
@given(trees())
def test_a_listing_tells_the_whole_tree(events: list[Event]) -> None:
    services = memory_services()
    nar = encoded(events)
    again = events_of(listed(services, stored(services, events)), b"", nar)
    assert encoded(again) == nar


def test_as_nix_writes_it() -> None:
    services = memory_services()
    root = stored(
        services,
        [
            EnterDirectory(b""),
            File(b"a", True, b"run"),
            EnterDirectory(b"b"),
            LEAVE_DIRECTORY,
            Symlink(b"c", b"a"),
            LEAVE_DIRECTORY,
        ],
    )
    assert b"".join(listing(services.directories, root)) == (
        b'{"version":1,"root":{"type":"directory","entries":{'
        b'"a":{"type":"regular","size":3,"executable":true,"narOffset":264},'
        b'"b":{"type":"directory","entries":{}},'
        b'"c":{"type":"symlink","target":"a"}}}}'
    )


def test_names_that_are_no_text() -> None:
    services = memory_services()
    root = stored(services, [EnterDirectory(b""), File(b'\xff"\\\n', False, b""), LEAVE_DIRECTORY])
    assert list(listed(services, root)["entries"]) == ['\udcff"\\\n']


def test_a_listing_comes_in_pieces() -> None:
    services = memory_services()
    files = [File(b"%06d" % i, False, b"") for i in range(20_000)]
    pieces = list(
        listing(services.directories, stored(services, [EnterDirectory(b""), *files, LEAVE_DIRECTORY]))
    )
    assert len(pieces) > 3
    assert max(map(len, pieces)) < 300_000
    assert len(json.loads(b"".join(pieces))["root"]["entries"]) == 20_000
