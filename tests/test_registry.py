"""Addresses: what of them is shown, and the numbers in them."""

from __future__ import annotations

from urllib.parse import quote

import pytest

from neve.errors import InvalidRequest
from neve.registry import nested_addresses, parse_address, shown_address, shown_url


def inside(url: str, times: int = 1) -> str:
    for _ in range(times):
        url = f"cache://?near=memory://&far={quote(url, safe='')}&negative-ttl=1"
    return url


PASSWORDS = ["sesame", "se@sa@me", "se:sa:me", "se%2Fsa%3Fme", "se%40sa%23me", "se&sa=me", ""]


@pytest.mark.parametrize("password", PASSWORDS)
@pytest.mark.parametrize("depth", range(4))
def test_no_password_is_shown(password: str, depth: int) -> None:
    url = f"nix+https://me:{password}@host.example/path?netrc-file=/a@b"
    shown = shown_url(inside(url, depth))
    assert shown == inside(url, depth).replace(quoted(f"me:{password}@", depth), "***@")
    assert "me:" not in shown
    assert "host.example" in shown


@pytest.mark.parametrize("depth", range(4))
@pytest.mark.parametrize(
    "name",
    ["secret_access_key", "aws_session_token", "sas_token", "account_key", "password", "access_key_id"],
)
def test_no_key_of_an_object_store_is_shown(name: str, depth: int) -> None:
    url = f"objectstore+s3://bucket/x?region=r&{name}=se%2Fsa%26me&endpoint=http://host"
    shown = shown_url(inside(url, depth))
    assert shown == inside(url, depth).replace(quoted("se%2Fsa%26me", depth), "***")
    assert "me&endpoint" not in shown
    # At the end of a line, too.
    assert shown_url(f"{name}=sesame and more") == f"{name}=*** and more"


def quoted(text: str, times: int) -> str:
    for _ in range(times):
        text = quote(text, safe="")
    return text


@pytest.mark.parametrize("name", ["password", "sslpassword"])
@pytest.mark.parametrize("password", ["sesame", "se%26sa%25me", "se@sa:me", "se%40sa%3Dme", "se=sa/me?"])
@pytest.mark.parametrize("depth", range(4))
def test_no_password_that_is_a_parameter_is_shown(name: str, password: str, depth: int) -> None:
    url = f"postgresql://host.example/db?{name}={password}&sslmode=require"
    shown = shown_url(inside(url, depth))
    assert shown == inside(url, depth).replace(quoted(password, depth), "***")
    assert "sslmode" in shown


@pytest.mark.parametrize("password", ["se/sa@me", "se?same", "se#same", "/sesame", "80sesame/"])
@pytest.mark.parametrize("depth", range(4))
def test_nor_one_that_was_not_encoded(password: str, depth: int) -> None:
    url = f"nix+https://me:{password}@host.example/path"
    shown = shown_url(inside(url, depth))
    assert shown == inside(url, depth).replace(quoted(f"me:{password}@", depth), "***@")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (
            "cache://?near=memory://&far=nix+https://me:p&q@host/x",
            "cache://?near=memory://&far=nix+https://***@host/x",
        ),
        ("cache://?far=nix+https%3A%2F%2Fme:p@host", "cache://?far=nix+https%3A%2F%2F***@host"),
        ("cache://?far=nix%2bhttps%3a%2f%2fme%3ap%40host", "cache://?far=nix%2bhttps%3a%2f%2f***@host"),
    ],
)
def test_addresses_that_are_encoded_in_part(url: str, shown: str) -> None:
    assert shown_url(url) == shown


@pytest.mark.parametrize(
    "url",
    [
        "local:///srv/a@b",
        "nix+https://host/a@b",
        "nix+https://host?netrc-file=/a@b",
        "nix+https://host:8080/a@b",
        "nix+https://host:8080?netrc-file=/a@b",
        "grpc+http://[::1]:8000?x=a@b",
        inside("nix+https://host:8080/a@b", 2),
        inside("local:///srv/a@b"),
        inside("nix+https://host/a@b", 2),
        "nix+https://host/x?token-file=/a&trusted-public-keys=k:abc",
        "objectstore+s3://bucket?region=eu-central-1",
        "postgresql://host/db?passfile=/a&x=password",
        "memory://",
        "no address",
        "",
    ],
)
def test_what_is_no_password_is_shown(url: str) -> None:
    assert shown_url(url) == url


def test_passwords_in_long_texts() -> None:
    """They are looked for once: a megabyte of beginnings takes no longer than a megabyte of anything."""
    many = "x://a:b/" * 100_000
    assert shown_url(many) == many
    assert shown_url(f"{many}@ {many}") == f"x://***@ {many}"


@pytest.mark.parametrize(
    "url",
    [
        "nix+https://me:sesame@host#x",
        "nix+https://me:sesame@host?a=1&a=2",
        "nix+https://me:sesame@host?a",
        "nix+https://me:sesame@[host",
        "nix+https://me:sesame@ho\u2100st",
        "nix+https://me:open sesame@host#x",
        "nix+https://me:open\tsesame\n@host?a",
    ],
)
def test_errors_show_no_password(url: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse_address(url)
    assert "sesame" not in str(refused.value)
    assert "nix+https://***@" in str(refused.value)


def test_blanks_do_not_end_a_password() -> None:
    address = parse_address("cache://?near=memory://&far=nix%2Bhttps://me:open sesame@host")
    assert str(address.refuse("why")) == ("address 'cache://?near=memory://&far=nix%2Bhttps://***@host': why")
    assert shown_address("postgresql://host/db?password=open sesame") == "postgresql://host/db?password=***"
    assert shown_address("local:///srv/a b@c") == "local:///srv/a b@c"


def test_no_nul_bytes() -> None:
    with pytest.raises(InvalidRequest, match="a path holds no NUL byte"):
        parse_address("local:///a%00b")
    with pytest.raises(InvalidRequest, match="parameter 'ca' holds a NUL byte"):
        parse_address("nix+https://host?ca=a%00b")


def test_addresses_in_addresses() -> None:
    url = inside("nix+https://host?trusted-public-keys=a:b%20c:d")
    assert nested_addresses(url) == {
        "near": "memory://",
        "far": "nix+https://host?trusted-public-keys=a:b%20c:d",
    }
    assert nested_addresses("memory://") == {}


@pytest.mark.parametrize("text", ["", "x", "1.5", "-1", "+1", "0", "11", "²", "1" * 30])
def test_numbers(text: str) -> None:
    address = parse_address(f"x://?n={quote(text)}")
    with pytest.raises(InvalidRequest, match=r"parameter 'n' is '.*', must be a whole number from 1 to 10"):
        address.number("n", 5, most=10)
    assert parse_address("x://?n=7").number("n", 5, most=10) == 7
    assert parse_address("x://").number("n", 5, most=10) == 5


@pytest.mark.parametrize("text", ["", "x", "0", "-1", "nan", "inf", "1e300"])
def test_seconds(text: str) -> None:
    address = parse_address(f"x://?s={quote(text)}")
    with pytest.raises(InvalidRequest, match=r"parameter 's' is '.*', must be a number of seconds above 0"):
        address.seconds("s", 5)
    assert parse_address("x://?s=0.5").seconds("s", 5) == 0.5
    assert parse_address("x://").seconds("s", 5) == 5


def test_what_is_required() -> None:
    assert parse_address("x://?a=b").required("a", "something") == "b"
    for url in ("x://", "x://?a="):
        with pytest.raises(InvalidRequest, match="parameter 'a' is missing; write a=something"):
            parse_address(url).required("a", "something")
