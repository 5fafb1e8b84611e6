"""Against the Nix that is installed: it restores what we write and we read what it dumps."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from neve.nix.nar import NarEncoder, NarHasher
from neve.testing.strategies import trees
from neve.tree import LEAVE_DIRECTORY, EnterDirectory, Event, File, Symlink

from .cases import join_data, nix32, read, slices

pytestmark = pytest.mark.nix

ODD: list[Event] = [
    EnterDirectory(b""),
    File(b"\x01\n", True, b"#!/bin/sh\n"),
    File(b"A", False, b""),
    EnterDirectory(b"a"),
    EnterDirectory(b"empty"),
    LEAVE_DIRECTORY,
    File(b"x" * 255, False, b"1234567"),
    LEAVE_DIRECTORY,
    File(b"a.b", True, b"12345678"),
    Symlink(b"link", b"../\xff/" + b"t" * 4000),
    File(b"\xff\xfe", False, b"123456789" * 50_000),
    LEAVE_DIRECTORY,
]


def walk(path: bytes, name: bytes = b"") -> Iterator[Event]:
    if os.path.islink(path):
        yield Symlink(name, os.readlink(path))
    elif os.path.isdir(path):
        yield EnterDirectory(name)
        for child in sorted(os.listdir(path)):
            yield from walk(path + b"/" + child, child)
        yield LEAVE_DIRECTORY
    else:
        yield File(name, os.access(path, os.X_OK), Path(os.fsdecode(path)).read_bytes())


def run(*command: str, data: bytes = b"") -> bytes:
    return subprocess.run(command, input=data, stdout=subprocess.PIPE, check=True).stdout


def check(events: list[Event], place: Path) -> None:
    encoder = NarEncoder()
    nar = b"".join(encoder.encode(events))
    encoder.finish()
    run("nix-store", "--restore", str(place), data=nar)
    hasher = NarHasher()
    hasher.feed(events)
    size, digest = hasher.result()
    assert run("nix-hash", "--type", "sha256", "--base32", str(place)).decode().strip() == nix32(digest)
    dumped = run("nix-store", "--dump", str(place))
    assert (dumped, len(dumped)) == (nar, size)
    assert read(slices(dumped, 65536)) == join_data(read([nar]))
    assert [event for event in walk(os.fsencode(place)) if not_large(event)] == list(
        filter(not_large, events)
    )


def not_large(event: Event) -> bool:
    return isinstance(event, Symlink | EnterDirectory | type(LEAVE_DIRECTORY) | File)


def test_odd_tree(tmp_path: Path) -> None:
    check(ODD, tmp_path / "odd")


@settings(max_examples=15, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
@given(trees())
def test_any_tree(tmp_path_factory: pytest.TempPathFactory, events: list[Event]) -> None:
    check(events, tmp_path_factory.mktemp("tree") / "root")
