"""Names, sizes and contents as they are shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neve.http_cache.pages.text import decoded, disposition, exact_size, honest, short_size, shown


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (b"README.md", "README.md"),
        ("Grüße ❄".encode(), "Grüße ❄"),
        (b"caf\xe9", "caf\\xe9"),
        (b"a\nb\tc\x00", "a\\nb\\tc\\x00"),
        ("turned\u202etxt.exe".encode(), "turned\\u202etxt.exe"),
        ("zero\u200bwidth".encode(), "zero\\u200bwidth"),
        (b"\x1b[31mred", "\\x1b[31mred"),
        ("\u3164".encode(), "\\u3164"),
        ("\u2800\u115f".encode(), "\\u2800\\u115f"),
        ("same\ufe0f".encode(), "same\\ufe0f"),
        ("same\U000e0101".encode(), "same\\U000e0101"),
        (b" ", "\\x20"),
        (b"   ", "\\x20\\x20\\x20"),
        (b" blanks  ", " blanks  "),
    ],
)
def test_what_cannot_be_seen_is_escaped(name: bytes, text: str) -> None:
    assert shown(name) == text


@given(st.binary(max_size=60))
def test_any_name_is_shown_as_printable_text(name: bytes) -> None:
    assert shown(name).isprintable()


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (1023, "1,023 bytes"),
        (1024, "1.0 KiB"),
        (1024 * 1024 - 1, "1.0 MiB"),
        (3 * 1024**3, "3.0 GiB"),
        (2**63, "8.0 EiB"),
        (2**80, "1048576.0 EiB"),
    ],
)
def test_sizes_that_people_can_compare(size: int, text: str) -> None:
    assert short_size(size) == text


def test_exact_sizes_have_groups_of_digits() -> None:
    assert exact_size(1_468_006) == "1,468,006 bytes"


@pytest.mark.parametrize(
    ("head", "whole", "text"),
    [
        (b"", True, ""),
        (b"plain\r\n\ttext\f", True, "plain\r\n\ttext\f"),
        ("❄".encode()[:2], False, ""),
        ("❄".encode()[:2], True, None),
        (b"a\0b", True, None),
        (b"\x7fELF", True, None),
        (b"\xff\xfe", False, None),
        (b"\x1b[31mred\x1b[0m", True, "\x1b[31mred\x1b[0m"),
    ],
)
def test_text_is_told_from_other_contents(head: bytes, whole: bool, text: str | None) -> None:
    assert decoded(head, whole=whole) == text


def test_a_preview_shows_what_would_reorder_it() -> None:
    assert honest("if a:\u202e\u2066# x\u2069\n\x1b[2J") == "if a:\\u202e\\u2066# x\\u2069\n\\x1b[2J"


@given(st.binary(min_size=1, max_size=40))
def test_the_name_of_a_download_cannot_leave_its_header(name: bytes) -> None:
    value = disposition("attachment", name)
    assert value.isascii()
    assert value.isprintable()
    plain = value.split('"')[1]
    assert value == f"attachment; filename=\"{plain}\"; filename*=UTF-8''{value.rpartition(chr(39))[2]}"
    assert ";" not in plain
