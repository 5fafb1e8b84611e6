"""Who is told who we are: the cache, and nobody to whom it sends us; and TLS."""

from __future__ import annotations

import base64
import logging
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from neve.errors import InvalidRequest, NeveError, PermissionDenied, Unavailable, Unsupported
from neve.registry import parse_address
from neve.store.services import Services, open_services
from neve.store.substitute import address as address_module
from neve.store.substitute.address import open_files
from neve.store.substitute.credentials import MAX_FILE_BYTES, MAX_NETRC_BYTES, netrc_files, token_file
from neve.store.substitute.files import CacheFiles, InvalidAnswer
from neve.testing.servers import Certificates, make_certificates
from tests.logged import logged
from tests.store.helpers import leaving_nothing_open, memory_services
from tests.store.substitute.caches import Cache, assert_refused, assert_substituted, http_cache, narinfo_name
from tests.store.substitute.server import Server, plain, redirect, running_server, status


@pytest.fixture
def server() -> Iterator[Server]:
    with running_server() as server:
        yield server


@pytest.fixture(autouse=True)
def _no_netrc_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address_module, "NIX_NETRC", str(tmp_path / "etc-netrc"))


@pytest.fixture
def services() -> Iterator[Services]:
    services = memory_services()
    yield services
    services.close()


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def asked(server: Server, url: str, netrc_file: str | None = None) -> str | None:
    """What a server at this address is told about us."""
    files = open_files(parse_address(url), netrc_file)
    files.read("nix-cache-info", 100)
    files.close()
    return server.requests[-1].headers.get("authorization")


# Where credentials come from.


def test_nobody_in_particular(server: Server, tmp_path: Path) -> None:
    assert asked(server, f"nix+{server.url}") is None
    assert asked(server, f"nix+{server.url}", str(tmp_path / "no-netrc")) is None
    (tmp_path / "netrc").write_text("machine elsewhere login me password secret\n")
    assert asked(server, f"nix+{server.url}", str(tmp_path / "netrc")) is None


def test_a_user_in_the_address(server: Server) -> None:
    host = server.url.removeprefix("http://")
    assert asked(server, f"nix+http://me:p%40ss%2Fw%C3%B6rd@{host}/") == basic("me", "p@ss/wörd")
    assert asked(server, f"nix+http://me@{host}") == basic("me", "")


def test_a_token_is_read_each_time(server: Server, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("  first.token=\n")
    files = open_files(parse_address(f"nix+{server.url}?token-file={token}"), None)
    files.read("x", 100)
    token.write_text("second")
    files.read("x", 100)
    files.close()
    assert [request.headers["authorization"] for request in server.requests] == [
        "Bearer first.token=",
        "Bearer second",
    ]


def test_a_token_that_goes_away_is_not_the_fault_of_who_asks(
    server: Server, tmp_path: Path, services: Services
) -> None:
    token = tmp_path / "token"
    token.write_text("secret")
    opened = open_services("memory://", path_info_service=f"nix+{server.url}?token-file={token}")
    token.unlink()
    with pytest.raises(Unavailable, match=f"{server.url}: {token}: No such file"):
        opened.path_infos.get(bytes(20))
    opened.close()
    assert server.requests == []


def test_netrc(server: Server, tmp_path: Path) -> None:
    ours, other, nix = tmp_path / "netrc", tmp_path / "other", tmp_path / "etc-netrc"
    ours.write_text("# mine\nmachine 127.0.0.1 login me password secret#1\n")
    other.write_text("machine elsewhere login a password b\ndefault login anybody password anything\n")
    nix.write_text("machine 127.0.0.1\n  login nix\n  password of-nix\n")
    url = f"nix+{server.url}"
    assert asked(server, url, str(ours)) == basic("me", "secret#1")
    assert asked(server, url, str(other)) == basic("anybody", "anything")
    # Where Nix has it, if the user has nothing to say; but if a file is named, that one counts.
    assert asked(server, url, str(tmp_path / "absent")) == basic("nix", "of-nix")
    assert asked(server, url) == basic("nix", "of-nix")
    assert asked(server, f"{url}?netrc-file={other}", str(ours)) == basic("anybody", "anything")
    other.write_text("machine elsewhere login a password b\n")
    assert asked(server, f"{url}?netrc-file={other}", str(ours)) is None


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (None, "No such file or directory"),
        (b"machine 127.0.0.1 login me password secret oops-secret\n", "line [12]: cannot be read"),
        (b"\xff\xfe\x00", "."),
        (b"# secret\n" * (MAX_NETRC_BYTES // 9 + 1), f"longer than the limit of {MAX_NETRC_BYTES} bytes"),
    ],
)
def test_a_netrc_that_cannot_be_read(
    server: Server, tmp_path: Path, contents: bytes | None, message: str
) -> None:
    netrc = tmp_path / "netrc"
    if contents is not None:
        netrc.write_bytes(contents)
    with pytest.raises(InvalidRequest, match=message) as refused:
        asked(server, f"nix+{server.url}?netrc-file={netrc}")
    assert str(netrc) in str(refused.value)
    assert "secret" not in str(refused.value)
    assert refused.value.__cause__ is None or "secret" not in str(refused.value.__cause__)
    # That of the user need not be there, and is nobody's business here.
    assert asked(server, f"nix+{server.url}", str(netrc)) is None
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (None, "No such file or directory"),
        (b"", "must hold one token, of printable ASCII characters"),
        (b"sec ret", "must hold one token"),
        (b"secret\r\nHost: other", "must hold one token"),
        (b"secret\xff", "must hold one token"),
        (b"secret" * MAX_FILE_BYTES, "is longer than the limit"),
    ],
)
def test_a_token_that_is_none(server: Server, tmp_path: Path, contents: bytes | None, message: str) -> None:
    token = tmp_path / "token"
    if contents is not None:
        token.write_bytes(contents)
    with pytest.raises(InvalidRequest, match=message) as refused:
        asked(server, f"nix+{server.url}?token-file={token}")
    assert str(token) in str(refused.value)
    assert "secret" not in str(refused.value)
    assert server.requests == []


def test_files_that_are_none(tmp_path: Path) -> None:
    for read in (token_file(str(tmp_path)), netrc_files("host", str(tmp_path), [])):
        with pytest.raises(Unavailable, match="Is a directory"):
            read()


# Whom they are told.


def test_the_cache_is_told_each_time(server: Server, services: Services) -> None:
    cache = Cache()
    narinfo = cache.add("tool")
    server.serve(cache.files)
    server.routes[f"/{narinfo.url}"] = [redirect("/moved")]
    server.routes["/moved"] = [plain(cache.files[narinfo.url])]
    assert_substituted(server, services, narinfo, credentials=lambda: "Bearer secret")
    assert [request.headers.get("authorization") for request in server.requests] == ["Bearer secret"] * 4


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"], ids=["another-port", "another-name"])
def test_nobody_else_is_told(server: Server, services: Services, host: str) -> None:
    cache = Cache()
    narinfo = cache.add("tool")
    server.serve(cache.files)
    with running_server() as other:
        target = other.url.replace("127.0.0.1", host)
        with_user = target.replace("http://", "http://evil:evil@")
        server.routes[f"/{narinfo.url}"] = [redirect(f"{with_user}/there")]
        server.routes["/back"] = [plain(cache.files[narinfo.url])]
        other.routes["/there"] = [redirect("/here")]
        other.routes["/here"] = [redirect(f"{server.url}/back")]
        assert_substituted(server, services, narinfo, others=[other], credentials=lambda: "Bearer secret")
        assert other.paths() == ["/there", "/here"]
        for request in other.requests:
            assert "authorization" not in request.headers
            assert "secret" not in str(request.headers)
    assert server.requests[-1].path == "/back"
    assert server.requests[-1].headers["authorization"] == "Bearer secret"


def test_another_name_of_the_same_host_is_another_host(server: Server, services: Services) -> None:
    cache = Cache()
    narinfo = cache.add("tool")
    server.serve(cache.files)
    server.routes[f"/{narinfo.url}"] = [redirect(f"{server.url.replace('127.0.0.1', 'localhost')}/there")]
    server.routes["/there"] = [plain(cache.files[narinfo.url])]
    assert_substituted(server, services, narinfo, credentials=lambda: "Bearer secret")
    assert "authorization" not in server.requests[-1].headers


def failing_ways(server: Server) -> dict[str, Callable[[], None]]:
    return {
        "status": lambda: server.routes.update({"/nix-cache-info": [status(401)]}),
        "garbage": lambda: server.routes.update({"/nix-cache-info": [plain(b"x")]}),
        "redirect": lambda: server.routes.update({"/nix-cache-info": [redirect("ftp://x")]}),
        "unavailable": lambda: server.routes.update({"/nix-cache-info": [status(500)]}),
    }


@pytest.mark.parametrize("way", ["status", "garbage", "redirect", "unavailable"])
def test_no_error_shows_a_password(server: Server, tmp_path: Path, way: str) -> None:
    failing_ways(server)[way]()
    host = server.url.removeprefix("http://")
    url = f"nix+http://me:secret@{host}?attempts=1"
    with logged(logging.DEBUG) as lines:
        services = open_services("memory://", path_info_service=url)
        with pytest.raises(NeveError) as refused:
            services.path_infos.get(bytes(20))
        services.close()
    assert f"{server.url}/nix-cache-info" in str(refused.value)
    assert "secret" not in " ".join([str(refused.value), *lines])
    assert server.requests[0].headers["authorization"] == basic("me", "secret")


# Addresses.


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nix+https://", "the host is missing; write nix\\+https://host/path"),
        ("nix+http:///path", "the host is missing"),
        ("nix+http://me:secret@/path", "the host is missing"),
        ("nix+http://ho st/", "'ho st' is no name of a host"),
        ("nix+http://host:port/", "Port could not be cast"),
        (
            "nix+http://me:secret/word@host",
            r"\*\*\*@host': Port could not be cast to integer value$",
        ),
        ("nix+http://host:99999/", "Port out of range"),
        ("nix+https://host?token=x", "unknown parameter 'token'"),
        ("nix+https://host?timeout=0", "'timeout' is '0', must be a number of seconds above 0"),
        ("nix+https://host?timeout=nan", "'timeout' is 'nan'"),
        ("nix+https://host?attempts=0", "'attempts' is '0', must be a whole number from 1 to 100"),
        ("nix+https://host?attempts=1.5", "'attempts' is '1.5'"),
        ("nix+https://host?ca=/absent", "ca=/absent: No such file"),
        ("nix+https://host?ca=/dev/null", "ca=/dev/null: "),
        ("nix+http://host?ca=/x", "'ca' belongs to nix\\+https"),
        ("nix+https://host?trusted-public-keys=", "is empty; leave it out to trust whoever answers"),
        (
            "nix+https://host?trusted-public-keys=x",
            "'trusted-public-keys': public key of 1 characters has no",
        ),
        ("nix+https://host?trusted-public-keys=x:AAAA", "'trusted-public-keys': public key 'x': 4 base64"),
        ("nix+https://me@host?token-file=/x", "three ways to say who you are; choose one"),
        ("nix+https://host?netrc-file=/x&token-file=/x", "three ways to say who you are; choose one"),
        ("nix+file:///", "the folder is missing; write nix\\+file:///folder"),
        ("nix+file://host/folder", "a folder has no host"),
        ("nix+file:///folder%00x", "a path holds no NUL byte"),
        (
            "nix+file:///folder?token-file=/x",
            "unknown parameter 'token-file' \\(known: trusted-public-keys\\)",
        ),
    ],
)
def test_bad_addresses(url: str, message: str) -> None:
    with leaving_nothing_open(), pytest.raises(InvalidRequest, match=message) as refused:
        open_services("memory://", path_info_service=url)
    assert "secret" not in str(refused.value)
    assert "address 'nix+" in str(refused.value)


def test_a_cache_needs_services_beside_it() -> None:
    from neve.store.pathinfos.urls import PATH_INFO_SERVICES

    with pytest.raises(InvalidRequest, match="needs services beside it that keep what is fetched"):
        PATH_INFO_SERVICES.open("nix+https://host")


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "httpcore", None)
    for name in ("http", "pace"):
        monkeypatch.delitem(sys.modules, f"neve.store.substitute.{name}", raising=False)
    match = r"httpcore is not installed, which caches need: install neve\[http\]"
    with pytest.raises(Unsupported, match=match):
        open_services("memory://", path_info_service="nix+https://host")


PLUS = "cache.example-1:++/+" + "A" * 35 + "+++A="
OTHER = "other-1:" + "B" * 43 + "="


@pytest.mark.parametrize(
    "written",
    [
        f"{PLUS} {OTHER}",
        f"{PLUS}+{OTHER}",
        f"{PLUS.replace('+', '%2B')}%20{OTHER}",
        f"{PLUS}%0A{OTHER}",
        f" {PLUS}  {OTHER} ",
        f"{PLUS}%20%20%0A{OTHER}".replace("=", "%3D"),
    ],
)
def test_keys_may_be_written_as_they_are(written: str) -> None:
    address = parse_address(f"nix+https://host?trusted-public-keys={written}")
    keys = address_module.trusted_keys(address)
    assert [key.render().rstrip("=")[:-1] for key in keys] == [key.rstrip("=")[:-1] for key in (PLUS, OTHER)]


# TLS.


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return make_certificates(tmp_path)


def test_a_cache_behind_tls(certificates: Certificates, services: Services) -> None:
    cache = Cache()
    narinfo = cache.add("tool", compression="xz")
    with running_server(certificates) as server:
        server.serve(cache.files)
        assert_substituted(server, services, narinfo, ca=str(certificates.ca))


def test_a_certificate_of_nobody_we_know(certificates: Certificates, services: Services) -> None:
    cache = Cache()
    narinfo = cache.add("tool")
    with running_server(certificates) as server:
        server.serve(cache.files)
        assert_refused(server, services, narinfo, "certificate verify failed")
        # Asking again would not help.
        assert server.requests == []


def test_from_https_to_http_is_not_followed(
    server: Server, certificates: Certificates, services: Services
) -> None:
    cache = Cache()
    narinfo = cache.add("tool")
    with running_server(certificates) as secure:
        secure.serve(cache.files)
        secure.routes[f"/{narinfo.url}"] = [redirect(f"{server.url}/there")]
        match = "redirected from https to http, which is not followed"
        assert_refused(secure, services, narinfo, match, ca=str(certificates.ca))
        assert server.requests == []
        # The other way round is fine, whatever comes after.
        server.serve(cache.files)
        server.routes[f"/{narinfo.url}"] = [redirect(f"{secure.url}/there")]
        secure.routes["/there"] = [redirect(f"{server.url}/here")]
        with leaving_nothing_open():
            service = http_cache(server.url, services, ca=str(certificates.ca))
            with pytest.raises(InvalidAnswer, match=match):
                service.get(narinfo.store_path.digest)
            secure.routes["/there"] = [plain(cache.files[narinfo.url])]
            assert service.get(narinfo.store_path.digest) is not None
            service.close()
            server.settle()
            secure.settle()


def test_a_server_that_does_not_take_part_in_the_handshake(services: Services) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        logged(logging.WARNING),
        leaving_nothing_open(),
    ):
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        service = http_cache(url, services, timeout=0.3, attempts=1)
        with pytest.raises(Unavailable, match=f"{url}/nix-cache-info: no connection in time"):
            service.get(bytes(20))
        service.close()


def test_files_are_named_without_credentials() -> None:
    files: CacheFiles = open_files(parse_address("nix+https://me:secret@host:8080/a/b/?attempts=1"), None)
    assert files.url == "https://host:8080/a/b"
    assert files.where(narinfo_name_of(bytes(20))) == f"https://host:8080/a/b/{'0' * 32}.narinfo"
    files.close()


def narinfo_name_of(digest: bytes) -> str:
    from neve.nix.store_path import StorePath

    return narinfo_name(StorePath(digest, "x"))


def test_who_may_not_read_a_file_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import builtins

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(builtins, "open", denied)
    with pytest.raises(PermissionDenied, match=f"{tmp_path}/token: Permission denied"):
        token_file(str(tmp_path / "token"))()
