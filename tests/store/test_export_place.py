"""The temporary place of an export, by itself."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from neve.errors import Unavailable
from neve.store.export_place import OPEN_DIRECTORY, Temporary


def directory(name: bytes, parent: int) -> int:
    os.mkdir(name, 0o700, dir_fd=parent)
    return os.open(name, OPEN_DIRECTORY, dir_fd=parent)


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, OPEN_DIRECTORY)
    yield fd
    os.close(fd)


def test_what_failed_is_removed(tmp_path: Path, parent: int) -> None:
    with contextlib.suppress(Unavailable), Temporary(parent, b"out") as place:
        os.close(place.make(directory))
        assert os.listdir(tmp_path) == [os.fsdecode(place.name)]
        raise Unavailable("the disk is full")
    assert os.listdir(tmp_path) == []


def test_what_another_one_has_made_since_the_renaming_is_not_removed(tmp_path: Path, parent: int) -> None:
    """A sync may fail after it. The name is free then for the next export to the same destination."""
    with Temporary(parent, b"out") as other:
        with contextlib.suppress(Unavailable), Temporary(parent, b"out") as place:
            os.close(place.make(directory))
            os.rename(place.name, b"out", src_dir_fd=parent, dst_dir_fd=parent)
            os.close(other.make(directory))
            assert other.name == place.name
            raise Unavailable("the disk does not answer")
        assert sorted(os.listdir(tmp_path)) == [os.fsdecode(other.name), "out"]
