"""What servers answer, and what says who we are to them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import grpc
from google.cloud.bigtable_v2.types import bigtable
from google.protobuf.message import DecodeError

from neve.bigtable.address import NAR_FAMILY, target_of
from neve.bigtable.messages import RowReader, escaped
from neve.castore.objectstore.settings import settings_of
from neve.errors import Corrupt, InvalidRequest, LimitExceeded, NeveError, Unavailable
from neve.nix.narinfo import NarInfo
from neve.postgres.address import target_of as database_of
from neve.registry import parse_address
from neve.rpc.status import ERROR_TRAILER, error_of, one_line, shortened, status_of
from neve.serving.tls import _certificates
from neve.store.substitute.credentials import MAX_NETRC_BYTES, netrc_files, token_file
from neve.store.substitute.files import InvalidAnswer, checked_name
from neve.store.substitute.http import _asked_delay, _redirected, origin_of
from neve.store.substitute.nars import check_nar_file
from tests.fuzz.target import Bound, Target
from tests.fuzz.targets.disk import folder
from tests.fuzz.targets.nix import text_of

_BASE = "https://cache.example.org/base"
_WHERE = "a cache"
_ReadRowsResponse: Any = bigtable.ReadRowsResponse.pb()


def _nar_url(data: bytes) -> None:
    """The URL of a narinfo stays below the cache, also for servers that decode it."""
    name = checked_name(text_of(data), _BASE)
    assert not name.startswith("/")
    assert origin_of(f"{_BASE}/{name}") == origin_of(_BASE)
    assert ".." not in name.partition("?")[0].split("/")


def _nar_file(data: bytes) -> None:
    check_nar_file(NarInfo.parse(data), _BASE)


def _redirect(data: bytes) -> None:
    """The header Location of an answer. No credentials, and never from https to http."""
    target = _redirected(f"{_BASE}/nar/x.nar", data.decode("latin-1"), _WHERE)
    assert target.startswith("https://")
    assert target.isascii()
    assert target.isprintable()
    assert "@" not in urlsplit(target).netloc
    assert "#" not in target
    origin_of(target)


def _retry_after(data: bytes) -> None:
    assert _asked_delay(data.decode("latin-1")) >= 0


def _netrc(data: bytes) -> None:
    path = folder("netrc") / "netrc"
    path.write_bytes(data)
    found = netrc_files("cache.example.org", str(path), ())()
    assert found is None or found.startswith("Basic ")


def _token(data: bytes) -> None:
    """What is taken is one word, and can be the value of a header."""
    path = folder("netrc") / "token"
    path.write_bytes(data)
    value = token_file(str(path))()
    assert value is not None
    assert value.isascii()
    assert value.isprintable()
    assert len(value.split()) == 2


def _status(data: bytes) -> None:
    """A status with its code in the first byte, the class of the error in the next, and the details. What
    becomes of it can be sent on."""
    code = list(grpc.StatusCode)[data[0] % len(grpc.StatusCode)] if data else None
    kinds: list[Any] = [*NeveError.__subclasses__(), SimpleNamespace(__name__="x")]
    kind = kinds[data[1] % len(kinds)].__name__ if len(data) > 1 else data
    details = data[2:].decode("utf-8", "replace")
    failure: Any = SimpleNamespace(
        code=lambda: code, details=lambda: details, trailing_metadata=lambda: ((ERROR_TRAILER, kind),)
    )
    error = error_of(failure, "doing")
    assert isinstance(error, NeveError)
    assert str(error).isprintable()
    shortened(details).encode()
    assert one_line(details).isprintable()
    assert len(status_of(error).details) < 3000


def _certificate(data: bytes) -> None:
    assert _certificates("--tls-cert", "a file", data.decode("utf-8", "replace"))


def _bigtable_rows(data: bytes) -> None:
    """Answers to ReadRows, each after its length. What comes of them is no more than what they hold."""
    reader = RowReader()
    total = 0
    for part in _prefixed(data):
        try:
            answer = _ReadRowsResponse.FromString(part)
        except DecodeError as error:
            raise Unavailable("the library refuses this before us") from error
        for row in reader.feed(answer):
            total += sum(len(cell.value) for cell in row.cells)
            with contextlib.suppress(Corrupt):
                assert row.cell.key == row.key == row.cell.qualifier
    reader.finish()
    assert total <= len(data)


def _prefixed(data: bytes) -> Iterator[bytes]:
    while data:
        size = data[0]
        yield data[1 : 1 + size]
        data = data[1 + size :]


def _bigtable_address(data: bytes) -> None:
    target = target_of(parse_address(f"bigtable://i?{text_of(data)}"), NAR_FAMILY)
    assert target.table_path.count("/") == 5
    assert escaped(target.family.encode()).isascii()


def _postgresql_address(data: bytes) -> None:
    """The password is in nothing that is shown, be the address taken or refused."""
    text = text_of(data)
    try:
        target = database_of(parse_address(f"postgresql://user:s3cret@{text}"))
    except InvalidRequest as error:
        if "s3cret" in f"{error!r} {error}":
            raise AssertionError("it is in the message") from error
        raise
    assert "s3cret" not in repr(target)
    assert target.schema.isascii()
    assert target.timeout > 0
    assert dict(target.conninfo)


def _objectstore_address(data: bytes) -> None:
    """Of what needs no library to be asked: only profiles do."""
    address = parse_address(f"objectstore+{text_of(data)}")
    if "profile" in address.parameters or address.scheme not in _OBJECT_STORES:
        raise address.refuse("elsewhere")
    settings = settings_of(address)
    assert address.url.startswith(settings.url)
    assert settings.parallel >= 1
    for name in ("secret_access_key", "token", "password"):
        secret = parse_address(f"objectstore+gs://bucket/a?{name}=s3cret")
        assert "s3cret" not in repr(settings_of(secret))


_OBJECT_STORES = tuple(
    f"objectstore+{kind}" for kind in ("memory", "file", "s3", "gs", "az", "http", "https")
)

TARGETS = (
    Target(
        "postgresql-address",
        _postgresql_address,
        (InvalidRequest,),
        memory=Bound(256 * 1024, 300),
        words=(
            *(b"host:5432/db", b"?schema=", b"&timeout=", b"pool=4", b"sslmode=require", b"user=u", b"%00"),
            *(b"options=-c", b"%zz", b"[::1]", b",", b"password=", b"connect_timeout=", b"%2Frun"),
        ),
    ),
    Target(
        "objectstore-address",
        _objectstore_address,
        (InvalidRequest,),
        memory=Bound(128 * 1024, 300),
        words=(
            *(b"s3://", b"gs://", b"http://", b"?endpoint=", b"&parallel=", b"avg_chunk_size=", b"timeout="),
            *(b"memory:///", b"file:///", b"max_retries=", b"user:pw@", b"%2F", b"1e999", b"-1"),
        ),
    ),
    Target(
        "bigtable-rows",
        _bigtable_rows,
        (Unavailable, Corrupt),
        memory=Bound(128 * 1024, 300),
        words=(b"\x0a\x05", b"\x10\x0a\x0e\x0a\x01k", b"\x32\x01v", b"\x48\x01", b"\x40\x01", b"\x38\x09"),
    ),
    Target(
        "bigtable-address",
        _bigtable_address,
        (InvalidRequest,),
        memory=Bound(128 * 1024, 300),
        words=(
            *(b"project_id=p&", b"table_name=t&", b"family_name=f&", b"nar_family_name=", b"timeout="),
            *(b"is_read_only=true", b"channel_size=", b"app_profile_id=", b"%2F", b":", b"%00"),
        ),
    ),
    Target(
        "nar-url",
        _nar_url,
        (InvalidRequest,),
        memory=Bound(64 * 1024, 300),
        words=(b"%25", b"%2f", b"..", _BASE.encode(), b"?", b"#"),
    ),
    Target(
        "nar-file",
        _nar_file,
        (InvalidRequest, LimitExceeded),
        words=(b"Compression: ", b"URL: ", b"FileSize: "),
    ),
    Target(
        "redirect", _redirect, (InvalidAnswer,), words=(b"//", b"http://", b"https://", b"user@", b"[", b"]")
    ),
    Target(
        "retry-after",
        _retry_after,
        (),
        words=(b"GMT", b"-0000", b"+9999", b"Fri, ", b"31 Dec ", b"9999", b"0000", b"23:59:59", b":"),
    ),
    Target(
        "netrc",
        _netrc,
        (InvalidRequest, Unavailable),
        memory=Bound(2 * MAX_NETRC_BYTES, 64),
        words=(b"machine ", b"default\n", b"login ", b"password ", b"macdef x\n\n", b"account ", b"#", b'"'),
    ),
    Target("token", _token, (InvalidRequest, Unavailable), memory=Bound(128 * 1024, 64)),
    Target("status", _status, ()),
    Target(
        "certificate",
        _certificate,
        (InvalidRequest,),
        longest=2048,
        rounds=60,
        words=(b"-----BEGIN CERTIFICATE-----\n", b"-----END CERTIFICATE-----\n"),
    ),
)
