"""Small files beside the store paths: durable, shared, bounded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from neve.errors import InvalidRequest, LimitExceeded, PermissionDenied
from neve.store.check import verify_store
from neve.store.services import open_services
from neve.store.small_files import MAX_MEMORY_BYTES, MAX_NAME_BYTES, SmallFiles, small_files_beside
from tests.store.helpers import memory_services


@pytest.fixture(params=["memory", "local"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SmallFiles]:
    services = memory_services() if request.param == "memory" else open_services(f"local://{tmp_path}/store")
    found = small_files_beside(services.nar_nodes)
    assert found is not None
    yield found
    services.close()


def test_the_last_one_counts(files: SmallFiles) -> None:
    assert files.get("log", "x") is None
    for contents in (b"first", b"", b"first", bytes(1_000_000)):
        files.put("log", "x", contents)
        assert files.get("log", "x") == contents
    assert files.get("other", "x") is None
    assert files.get("log", "X") is None


def test_names(files: SmallFiles) -> None:
    longest = "x" * (MAX_NAME_BYTES - len("log/"))
    files.put("log", longest, b"1")
    files.put("log", "\u00fc!", b"2")
    assert (files.get("log", longest), files.get("log", "\u00fc!")) == (b"1", b"2")
    for kind, name in (("log", ""), ("", "x"), ("log", longest + "x"), ("log", "\u20ac" * 200)):
        with pytest.raises(InvalidRequest):
            files.put(kind, name, b"")
        with pytest.raises(InvalidRequest):
            files.get(kind, name)


def test_they_are_durable_and_shared(tmp_path: Path) -> None:
    url = f"local://{tmp_path}/store"
    for number in range(3):
        services = open_services(url)
        files = small_files_beside(services.nar_nodes)
        assert files is not None
        if number:
            assert files.get("log", "x") == b"%d" % (number - 1)
        files.put("log", "x", b"%d" % number)
        assert verify_store(services).problems == []
        services.close()
    services = open_services(url + "?mode=ro")
    files = small_files_beside(services.nar_nodes)
    assert files is not None
    assert files.get("log", "x") == b"2"
    files.put("log", "x", b"2")  # It is there already.
    with pytest.raises(PermissionDenied):
        files.put("log", "x", b"3")
    services.close()


def test_memory_is_bounded() -> None:
    files = small_files_beside(memory_services().nar_nodes)
    assert files is not None
    half = bytes(MAX_MEMORY_BYTES // 2)
    files.put("log", "a", half)
    files.put("log", "b", half)
    files.put("log", "b", half)
    with pytest.raises(LimitExceeded):
        files.put("log", "c", b"1")
    files.put("log", "b", b"")
    files.put("log", "c", b"1")


def test_listing(files: SmallFiles) -> None:
    names = [("log", "b"), ("log", "\u00fc"), ("a", "z/x"), ("log", "a")]
    for kind, name in names:
        files.put(kind, name, b"contents")
    expected = [("a", "z/x"), ("log", "a"), ("log", "b"), ("log", "\u00fc")]
    assert list(files.list()) == expected
    assert list(files.list(expected[0], 2)) == expected[1:3]
    assert list(files.list(expected[-1])) == []
