"""Values that are made of files, and made again when those change."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from neve.errors import InvalidRequest, NeveError
from neve.serving.renewed import Renewed
from tests.logged import logged


class Numbers:
    """A file with a number, and how often it was read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reads = 0

    def read(self) -> list[int]:
        self.reads += 1
        try:
            return [int(self.path.read_text())]
        except (OSError, ValueError) as error:
            raise InvalidRequest(f"no number in {self.path.name}") from error


@pytest.fixture
def numbers(tmp_path: Path) -> Numbers:
    (tmp_path / "file").write_text("1")
    return Numbers(tmp_path / "file")


def test_it_is_read_when_it_changes(numbers: Numbers) -> None:
    renewed = Renewed([str(numbers.path)], numbers.read)
    first = renewed.get()
    assert renewed.get() is first
    assert (first, numbers.reads) == ([1], 1)
    numbers.path.write_text("22")
    assert not renewed.is_current
    assert renewed.get() == [22]
    assert renewed.get() == [22]
    assert numbers.reads == 2


def test_a_change_that_only_the_inode_shows(numbers: Numbers) -> None:
    renewed = Renewed([str(numbers.path)], numbers.read)
    status = numbers.path.stat()
    new = numbers.path.with_name("new")
    new.write_text("2")
    os.utime(new, ns=(status.st_atime_ns, status.st_mtime_ns))
    new.rename(numbers.path)
    assert renewed.get() == [2]


def test_each_of_several_files_counts(numbers: Numbers) -> None:
    other = numbers.path.with_name("other")
    renewed = Renewed([str(numbers.path), str(other)], numbers.read)
    other.touch()
    assert not renewed.is_current
    assert renewed.get() == [1]
    assert numbers.reads == 2


def test_what_cannot_be_read_leaves_what_was_there(numbers: Numbers) -> None:
    renewed = Renewed([str(numbers.path)], numbers.read)
    for spoil in (lambda: numbers.path.write_text("none"), lambda: numbers.path.unlink()):
        with logged() as messages:
            spoil()
            assert renewed.get() == renewed.get() == [1]
        # It is told once, and not read again before it changes again.
        assert messages == ["no number in file; what was known before stays"]
        assert renewed.is_current
    numbers.path.write_text("3")
    assert renewed.get() == [3]


def test_the_first_time_is_the_callers(numbers: Numbers) -> None:
    numbers.path.write_text("none")
    with pytest.raises(NeveError, match="no number"):
        Renewed([str(numbers.path)], numbers.read)


def test_what_comes_from_elsewhere(numbers: Numbers) -> None:
    """The files have not been seen yet; if they cannot be used, it stays."""
    renewed = Renewed([str(numbers.path)], lambda: [0], numbers.read, seen=False)
    assert not renewed.is_current
    assert renewed.get() == [1]
    numbers.path.unlink()
    assert Renewed([str(numbers.path)], lambda: [0], numbers.read, seen=False).get() == [0]


def test_many_at_once_read_it_once(numbers: Numbers) -> None:
    renewed = Renewed([str(numbers.path)], numbers.read)
    numbers.path.write_text("22")
    found: list[list[int]] = []
    threads = [threading.Thread(target=lambda: found.append(renewed.get())) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[22]] * 20
    assert numbers.reads == 2
