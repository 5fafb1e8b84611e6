"""The name of a store path for what is imported."""

from __future__ import annotations

from pathlib import Path

import pytest

from neve.errors import InvalidRequest, NotFound
from neve.store.importer import ImportOptions, import_path, store_name

from .helpers import memory_services


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (b"c", "c"),
        (b"a/b/c", "c"),
        (b"/a/b/c", "c"),
        (b"a/b/../c", "c"),
        (b"a/b/../c/d/../e", "e"),
        (b"../c", "c"),
        (b"../../c", "c"),
        (b"/../c", "c"),
        (b"a/..//./c", "c"),
        (b"c/", "c"),
        (b"c///", "c"),
        (b"c/.", "c"),
        (b"./c/./", "c"),
        (b"//c", "c"),
        (b"..c", "..c"),
        (b".hidden", ".hidden"),
        (b"a+b_c?d=e.f-1.0", "a+b_c?d=e.f-1.0"),
        (b"x" * 211, "x" * 211),
    ],
)
def test_names(path: bytes, name: str) -> None:
    assert store_name(path) == name


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (b"", "the path to import is empty"),
        (b"/", "/ has no name of its own; give one with --name"),
        (b"//", "has no name of its own"),
        (b"/.", "has no name of its own"),
        (b"..", r"\.\. has no name of its own; give one with --name"),
        (b"../..", "has no name of its own"),
        (b"a/b/..", "a/b/.. has no name of its own"),
        (b"a/../", "has no name of its own"),
        (b"a/../.", "has no name of its own"),
        (b"/..", "has no name of its own"),
        (b"/a/../..", "has no name of its own"),
        (b"dir/\xff", r"dir/\\xff: is no UTF-8; give a name with --name"),
        ("dir/é".encode(), r"character 'é' at position 0"),
        (b"a b", "character ' ' at position 1"),
        (b"a\0b", r"character '\\x00' at position 1"),
        (b".-a", "begins with"),
        (b"..-a", "begins with"),
        (b"x" * 212, "of 212 characters, the limit is 211"),
    ],
)
def test_paths_without_a_name(path: bytes, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        store_name(path)


def test_the_working_directory_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "project-1.0"
    place.mkdir()
    monkeypatch.chdir(place)
    assert store_name(b".") == store_name(b"./") == store_name(b"././.") == "project-1.0"
    place.rmdir()
    with pytest.raises(NotFound, match="the working directory does not exist"):
        store_name(b".")


def test_a_given_name_counts_alone(tmp_path: Path) -> None:
    services = memory_services()
    odd = tmp_path / "a b\udcff"
    odd.write_bytes(b"x")
    with pytest.raises(InvalidRequest, match="give a name with --name"):
        import_path(services, odd)
    assert import_path(services, odd, ImportOptions(name="ab")).store_path.name == "ab"
    for name in ("", "a b", "..", ".-x", "x" * 212):
        with pytest.raises(InvalidRequest):
            import_path(services, odd, ImportOptions(name=name))
    assert len(list(services.path_infos)) == 1


def test_text_that_stands_for_no_bytes() -> None:
    with pytest.raises(InvalidRequest, match="stands for no bytes"):
        import_path(memory_services(), "a\ud800b")
