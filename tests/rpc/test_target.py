"""Addresses of gRPC servers."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from neve.errors import InvalidRequest
from neve.registry import parse_address
from neve.rpc.target import DEFAULT_TIMEOUT, Target, target_of


def target(url: str) -> Target:
    return target_of(parse_address(url))


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("grpc+unix:///run/neve.sock", "unix:///run/neve.sock"),
        ("grpc+unix:///run/with%20space%3f", "unix:///run/with%20space%3F"),
        ("grpc+unix:///run/%ff%C3%BC", "unix:///run/%FF%C3%BC"),
        ("grpc+unix:///run/a%2525", "unix:///run/a%2525"),
        ("grpc+unix:////run//x", "unix:////run//x"),
        ("grpc+unix:///" + "x" * 106, "unix:///" + "x" * 106),
        ("grpc+http://localhost:8000", "dns:///localhost:8000"),
        ("grpc+http://localhost", "dns:///localhost:80"),
        ("grpc+http://localhost/", "dns:///localhost:80"),
        ("grpc+https://cache.example", "dns:///cache.example:443"),
        ("grpc+https://cache.example:8443", "dns:///cache.example:8443"),
        ("grpc+http://127.0.0.1:1", "dns:///127.0.0.1:1"),
        ("grpc+http://127.0.0.1:65535", "dns:///127.0.0.1:65535"),
        ("grpc+http://[::1]:8000", "dns:///[::1]:8000"),
        ("grpc+http://[::1]", "dns:///[::1]:80"),
        ("grpc+http://[::ffff:127.0.0.1]:80", "dns:///[::ffff:127.0.0.1]:80"),
        ("grpc+http://[fe80::1%25eth0]:80", "dns:///[fe80::1%25eth0]:80"),
        # A host of that name, not a scheme of the library's.
        ("grpc+http://unix:8000", "dns:///unix:8000"),
        ("grpc+http://ipv4:8000", "dns:///ipv4:8000"),
    ],
)
def test_names(url: str, name: str) -> None:
    assert target(url).name == name
    assert target(url).is_socket is name.startswith("unix:")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("grpc+unix://host/path", "a socket has no host"),
        ("grpc+unix://run/neve.sock", "a socket has no host"),
        ("grpc+unix://", "the path of the socket is missing"),
        ("grpc+unix:///", "the path of the socket is missing"),
        ("grpc+unix:////", "the path of the socket is missing"),
        ("grpc+unix:///" + "x" * 107, "at most 107 bytes, not 108"),
        ("grpc+unix:///" + "ü" * 54, "at most 107 bytes, not 109"),
        ("grpc+unix:///a%00b", "no NUL byte"),
        ("grpc+http://", "the host is missing"),
        ("grpc+http:///path", "the host is missing"),
        ("grpc+http://user@host:80", "a user name has no meaning"),
        ("grpc+http://user:password@host:80", "a user name has no meaning"),
        ("grpc+http://host:80/path", "a path has no meaning"),
        ("grpc+http://:80", "':80' is no host:port"),
        ("grpc+http://host:", "'host:' is no host:port"),
        ("grpc+http://host:0", "'host:0' is no host:port"),
        ("grpc+http://host:65536", "'host:65536' is no host:port"),
        ("grpc+http://host:-1", "'host:-1' is no host:port"),
        ("grpc+http://host:http", "'host:http' is no host:port"),
        ("grpc+http://host:8\u0660", "is no host:port"),
        ("grpc+http://host:80:80", "'host:80:80' is no host:port"),
        ("grpc+http://::1", "'::1' is no host:port"),
        ("grpc+http://a b:80", "'a b:80' is no host:port"),
        ("grpc+http://a,b:80", "'a,b:80' is no host:port"),
        ("grpc+http://a%20b:80", "'a%20b:80' is no host:port"),
        ("grpc+http://host?ca=x", "parameter 'ca' belongs to grpc+https"),
        ("grpc+unix:///x?cert=x&key=x", "parameter 'cert' belongs to grpc+https"),
        ("grpc+https://host?cert=x", "parameters 'cert' and 'key' belong together"),
        ("grpc+https://host?key=x", "parameters 'cert' and 'key' belong together"),
        ("grpc+http://host?flavor=nix", "parameter 'flavor' is 'nix', must be one of: tvix, snix"),
        ("grpc+http://host?wait-connect=yes", "parameter 'wait-connect' is 'yes'"),
        ("grpc+http://host?timeout=0", "parameter 'timeout' is '0'"),
        ("grpc+http://host?timeout=-1", "parameter 'timeout' is '-1'"),
        ("grpc+http://host?timeout=nan", "parameter 'timeout' is 'nan'"),
        ("grpc+http://host?timeout=inf", "parameter 'timeout' is 'inf'"),
        ("grpc+http://host?timeout=soon", "parameter 'timeout' is 'soon'"),
        ("grpc+http://host?timeout=", "parameter 'timeout' is ''"),
        ("grpc+http://host?timeouts=1", "unknown parameter 'timeouts'"),
    ],
)
def test_refused(url: str, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(reason)) as failed:
        target(url)
    shown = re.sub(r"//.*@", "//***@", url)  # What may be a password is not repeated.
    assert repr(shown) in str(failed.value)


@pytest.mark.parametrize(
    "url", ["grpc+http://[::1]x:80", "grpc+http://[::1]8000", "grpc+http://[]:80", "grpc+http://[x]:80"]
)
def test_brackets(url: str) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(url)):
        target(url)


def test_parameters() -> None:
    plain = target("grpc+http://host")
    assert (plain.flavor, plain.wait, plain.timeout, plain.tls) == ("tvix", False, DEFAULT_TIMEOUT, False)
    assert plain.credentials() is None
    other = target("grpc+https://host?flavor=snix&wait-connect=1&timeout=2.5&ca=/a&cert=/b&key=/c")
    assert (other.flavor, other.wait, other.timeout, other.tls) == ("snix", True, 2.5, True)
    assert (other.ca, other.cert, other.key) == ("/a", "/b", "/c")


def test_identity() -> None:
    """What one connection can serve."""
    base = target("grpc+https://host")
    for same in ("grpc+https://host:443", "grpc+https://host/", "grpc+https://host?wait-connect=1"):
        assert target(same).identity == base.identity
    for other in (
        "grpc+http://host:443",
        "grpc+https://host:444",
        "grpc+https://other",
        "grpc+https://host?flavor=snix",
        "grpc+https://host?timeout=1",
        "grpc+https://host?ca=/x",
    ):
        assert target(other).identity != base.identity
    assert os.getpid() in base.identity


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """They are read when the connection is made, not before."""
    good = tmp_path / "good"
    good.write_bytes(b"whatever")
    for parameters in (
        f"ca={tmp_path}/none",
        f"cert={good}&key={tmp_path}/none",
        f"cert={tmp_path}&key={good}",
    ):
        made = target(f"grpc+https://host?{parameters}")
        with pytest.raises(InvalidRequest, match=re.escape(str(tmp_path))) as failed:
            made.credentials()
        assert "grpc+https://host" in str(failed.value)
