"""From addresses to bytes and back."""

from __future__ import annotations

from urllib.parse import urljoin, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.types import Scope

from neve.errors import InvalidRequest
from neve.http_cache.pages.locations import (
    asked_for,
    fields_of,
    links_from,
    number_of,
    public_url,
    resolved,
)
from tests.http_cache.pages.samples import named

PATH = named("hello-2.12")
BASE = PATH.base_name

names = st.binary(min_size=1, max_size=30).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")
)


def scope_of(address: str, *, root: str = "", host: str = "cache.test") -> Scope:
    """What a server makes of a request."""
    parts = urlsplit(address)
    return {
        "type": "http",
        "scheme": "http",
        "server": ("cache.test", 80),
        "path": parts.path,
        "raw_path": parts.path.encode(),
        "root_path": root,
        "query_string": parts.query.encode(),
        "headers": [(b"host", host.encode())],
    }


@given(st.lists(names, max_size=5))
def test_every_name_gets_into_an_address_and_back(components: list[bytes]) -> None:
    here = scope_of(f"/path/{BASE}/share/doc")
    address = urljoin("http://cache.test" + here["path"], links_from(here).path(PATH, components))
    assert asked_for(scope_of(address)) == (PATH, tuple(components), True)


@given(st.lists(names, min_size=1, max_size=4))
def test_links_are_right_below_a_prefix(components: list[bytes]) -> None:
    here = scope_of(f"/nix/cache/path/{BASE}", root="/nix/cache")
    address = urljoin("http://cache.test" + here["path"], links_from(here).raw(PATH, components))
    assert urlsplit(address).path.startswith("/nix/cache/raw/")
    assert asked_for(scope_of(address, root="/nix/cache")) == (PATH, tuple(components), True)


def test_slashes_too_many_are_noticed() -> None:
    assert asked_for(scope_of(f"/path/{BASE}//share/")) == (PATH, (b"share",), False)


@pytest.mark.parametrize(
    "address",
    [
        "/path/",
        "/path/nonsense",
        f"/path/{BASE}/..",
        f"/path/{BASE}/%2e%2e/etc",
        f"/path/{BASE}/a%2fb",
        f"/path/{BASE}/a%00b",
        f"/path/{BASE}/{'a' * 256}",
        "/path/%ff%fe",
        f"/path/{BASE}{'/a' * 2100}",
        f"/path/{BASE}" + f"/{'a' * 255}" * 16,
    ],
)
def test_addresses_that_name_nothing_are_refused(address: str) -> None:
    with pytest.raises(InvalidRequest):
        asked_for(scope_of(address))


def test_places_as_deep_as_linux_has_them_are_shown() -> None:
    longest = (4095 - len(BASE)) // 2
    assert len(asked_for(scope_of(f"/path/{BASE}{'/a' * longest}"))[1]) == longest
    with pytest.raises(InvalidRequest, match=r"4,09[67] bytes"):
        asked_for(scope_of(f"/path/{BASE}{'/a' * (longest + 1)}"))


def test_a_query_of_too_many_fields_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="query"):
        fields_of(scope_of("/search?" + "&".join(f"a{i}=1" for i in range(100))))


@pytest.mark.parametrize("text", ["0", "-1", "x", "", "1e3", "9" * 30, "\u0661", "0" * 19 + "1" + "9" * 5000])
def test_numbers_of_pages_are_numbers(text: str) -> None:
    with pytest.raises(InvalidRequest, match="number"):
        number_of({"page": text}, "page")


def test_the_first_page_needs_no_number() -> None:
    assert number_of({}, "page") == 1


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("cache.test:8080", "http://cache.test:8080"),
        ("[::1]:8080", "http://[::1]:8080"),
        ("evil.test/;rm -rf ~", "http://localhost"),
        ("a b", "http://localhost"),
        ("", "http://localhost"),
    ],
)
def test_lines_to_copy_have_an_address_and_nothing_else(host: str, url: str) -> None:
    assert public_url(Request(scope_of("/", host=host)), None) == url


def test_a_configured_address_counts() -> None:
    assert (
        public_url(Request(scope_of("/", host="other.test")), "https://cache.test/x/")
        == "https://cache.test/x"
    )


@pytest.mark.parametrize(
    ("components", "target", "found"),
    [
        ((b"bin", b"hi"), b"hello", (PATH, (b"bin", b"hello"))),
        ((b"bin", b"hi"), b"../share/x", (PATH, (b"share", b"x"))),
        ((b"lib",), PATH.absolute.encode(), (PATH, ())),
        ((b"lib",), b"//nix/store/" + BASE.encode() + b"/x", (PATH, (b"x",))),
        ((b"lib",), b"../../../etc/passwd", None),
        ((b"lib",), b"/etc/passwd", None),
        ((b"lib",), b"//evil.example/x", None),
        ((b"lib",), b"..", None),
        ((), b"javascript:alert(1)", None),
    ],
)
def test_symlinks_are_followed_by_their_text(
    components: tuple[bytes, ...], target: bytes, found: object
) -> None:
    assert resolved(PATH, components, target) == found
