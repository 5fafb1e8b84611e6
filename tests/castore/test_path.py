from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neve.castore.path import InvalidName, check_name, is_valid_name, parse_path, show_name
from neve.errors import InvalidRequest
from neve.testing.strategies import names

VALID = [b"a", b"...", b".a", b"a.", b" ", b"\n", b"a\nb", b"\xff\xfe", b"\\", b"n" * 255]
INVALID = [
    (b"", "a name is empty"),
    (b".", "name b'.' is reserved"),
    (b"..", "name b'..' is reserved"),
    (b"a/b", "name b'a/b' contains a slash"),
    (b"/", "name b'/' contains a slash"),
    (b"a\0b", "name b'a\\x00b' contains a NUL byte"),
    (b"a\n\0", "name b'a\\n\\x00' contains a NUL byte"),
    (b"n" * 256, f"name {b'n' * 80!r}... (256 bytes) is longer than 255 bytes"),
]


@pytest.mark.parametrize("name", VALID)
def test_valid_names(name: bytes) -> None:
    check_name(name)
    assert is_valid_name(name)


@pytest.mark.parametrize(("name", "message"), INVALID)
def test_invalid_names(name: bytes, message: str) -> None:
    assert not is_valid_name(name)
    with pytest.raises(InvalidName) as caught:
        check_name(name)
    assert str(caught.value) == message
    assert isinstance(caught.value, InvalidRequest)


@given(st.binary(max_size=4) | st.text("./\0a", max_size=3).map(str.encode))
def test_names_follow_the_rule(name: bytes) -> None:
    valid = name not in (b"", b".", b"..") and b"/" not in name and b"\0" not in name
    assert bool(is_valid_name(name)) == valid


@given(names())
def test_strategy_yields_valid_names(name: bytes) -> None:
    check_name(name)


@pytest.mark.parametrize(
    ("path", "components"),
    [
        (b"", ()),
        (b"/", ()),
        (b"//", ()),
        (b"a", (b"a",)),
        (b"/keep/.keep", (b"keep", b".keep")),
        (b"//v/oid", (b"v", b"oid")),
        (b"v///oid", (b"v", b"oid")),
        (b"v/oid/", (b"v", b"oid")),
        (b"\xff/\n", (b"\xff", b"\n")),
        (b".../..a", (b"...", b"..a")),
    ],
)
def test_parse_path(path: bytes, components: tuple[bytes, ...]) -> None:
    assert parse_path(path) == components


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (b".", "path b'.': name b'.' is reserved"),
        (b"a/../b", "path b'a/../b': name b'..' is reserved"),
        (b"./a", "path b'./a': name b'.' is reserved"),
        (b"a/b\0", "path b'a/b\\x00': name b'b\\x00' contains a NUL byte"),
    ],
)
def test_parse_path_refuses(path: bytes, message: str) -> None:
    with pytest.raises(InvalidName) as caught:
        parse_path(path)
    assert str(caught.value) == message


@given(st.lists(names(), max_size=5))
def test_paths_round_trip(components: list[bytes]) -> None:
    assert parse_path(b"/".join(components)) == tuple(components)


def test_show_name_is_short_and_printable() -> None:
    assert show_name(b"\xff\n") == r"b'\xff\n'"
    assert len(show_name(b"a" * 1_000_000)) < 120
