"""What addresses of object stores say, and who is asked for credentials."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from neve.castore.blobs.objectstore import ObjectBlobService
from neve.castore.blobs.urls import BLOB_SERVICES
from neve.castore.directories.urls import DIRECTORY_SERVICES
from neve.castore.objectstore.settings import _OWN, _SECONDS, settings_of
from neve.errors import InvalidRequest, NeveError, PermissionDenied, Unsupported
from neve.registry import parse_address
from neve.testing.blob_reading import MIB, incompressible, put
from tests.s3 import S3Server, s3_url


def settings(url: str) -> dict[str, object]:
    made = settings_of(parse_address(url))
    assert "hush" not in repr(made)
    return made.options


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("objectstore+memory://host/", "takes neither host nor path"),
        ("objectstore+memory:///x", "takes neither host nor path"),
        ("objectstore+memory:///?region=x", "unknown parameter 'region'"),
        ("objectstore+file://host/x", "there is no host"),
        ("objectstore+file:///", "the folder is missing"),
        ("objectstore+file://", "the folder is missing"),
        ("objectstore+file:///srv/x?timeout=3", "unknown parameter 'timeout'"),
        ("objectstore+s3:///prefix", "the bucket or container is missing"),
        ("objectstore+http:///prefix", "the host is missing"),
        ("objectstore+s3://me:hush@bucket", "no user or password belongs before the host"),
        ("objectstore+s3://bucket?nonsense=x", "nonsense"),
        ("objectstore+s3://bucket?avg_chunk_size=17", "avg_chunk_size"),
        ("objectstore+s3://bucket?avg_chunk_size=many", "avg_chunk_size"),
        ("objectstore+s3://bucket?max_chunk_bytes=500000", "less than twice the avg_chunk_size"),
        ("objectstore+file:///srv/x?max_chunk_bytes=99999&avg_chunk_size=50000", "written must be readable"),
        ("objectstore+s3://bucket?parallel=0", "parallel"),
        ("objectstore+s3://bucket?max_retries=-1", "max_retries"),
        ("objectstore+s3://bucket?timeout=soon", "timeout"),
        ("objectstore+s3://bucket?allow_http=perhaps", "a value that cannot be used"),
        ("objectstore+http://host/x?region=x", "unknown parameter 'region'"),
        ("objectstore+ftp://host/x", "objectstore.ftp"),
    ],
)
def test_addresses_that_are_none(url: str, reason: str) -> None:
    for services in (BLOB_SERVICES, DIRECTORY_SERVICES):
        with pytest.raises(InvalidRequest, match=reason) as error:
            services.open(url)
        assert "hush" not in str(error.value)
        assert "\n" not in str(error.value)


def test_opening_connects_to_nothing() -> None:
    for url in (s3_url(1, "bucket", "/some/prefix"), "objectstore+http://127.0.0.1:1/x"):
        for services in (BLOB_SERVICES, DIRECTORY_SERVICES):
            services.open(url).close()


def test_parameters_go_where_they_belong() -> None:
    options = settings(
        "objectstore+s3://bucket/x?region=r&secret_access_key=hush&access_key_id=me&user_agent=u"
        "&max_retries=3&avg_chunk_size=65536&parallel=7&max_chunk_bytes=199999"
    )
    assert options["config"] == {"region": "r", "secret_access_key": "hush", "access_key_id": "me"}
    made = settings_of(parse_address("objectstore+s3://bucket/x?avg_chunk_size=65536&parallel=7"))
    assert (made.average_chunk, made.parallel, made.url) == (65536, 7, "objectstore+s3://bucket/x")
    assert made.library_url == "s3://bucket/x"


@pytest.mark.parametrize(
    ("endpoint", "allowed"), [("http://host", "true"), ("https://host", None), (None, None)]
)
def test_what_is_not_encrypted_is_only_used_when_the_address_says_so(
    endpoint: str | None, allowed: str | None
) -> None:
    options = settings("objectstore+s3://bucket" + (f"?endpoint={endpoint}" if endpoint else ""))
    client = options["client_options"]
    assert isinstance(client, dict)
    assert client.get("allow_http") == allowed


def test_a_prefix_holds_a_store_of_its_own(s3: S3Server) -> None:
    bucket = s3.bucket()
    one, other = (BLOB_SERVICES.open(s3.url(bucket, prefix)) for prefix in ("/one", "/other/below"))
    digest = put(one, b"contents")
    assert one.list() == [digest]
    assert other.list() == []
    assert other.missing([digest]) == [digest]
    for service in (one, other):
        service.close()


def test_chunks_of_another_size(tmp_path: Path) -> None:
    """Are read by whoever has other settings."""
    contents = incompressible(2 * MIB)
    counts = []
    for average in (32 * 1024, 1024 * 1024):
        url = f"objectstore+file://{tmp_path}/{average}"
        service = BLOB_SERVICES.open(f"{url}?avg_chunk_size={average}")
        digest = put(service, contents)
        counts.append(len(service.chunks(digest) or []))
        service.close()
        service = BLOB_SERVICES.open(url)
        assert service.read(digest) == contents
        service.close()
    assert counts[0] > 20 * counts[1]


def test_every_parameter_is_told_with_its_default() -> None:
    text = (Path(__file__).parents[3] / "docs" / "objectstore.md").read_text()
    table = text.partition("## Parameters")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| `([a-z_]+)` \| ([^|]+) \|", table, re.MULTILINE))
    assert set(rows) == {*_OWN, *_SECONDS, "profile"}
    made = settings_of(parse_address("objectstore+s3://bucket"))
    client, retries = made.options["client_options"], made.options["retry_config"]
    assert {name: int(default) for name, default in rows.items() if name != "profile"} == {
        "avg_chunk_size": made.average_chunk,
        "max_chunk_bytes": made.max_chunk_bytes,
        "parallel": made.parallel,
        "timeout": client["timeout"].seconds,
        "connect_timeout": client["connect_timeout"].seconds,
        "max_retries": retries["max_retries"],
        "retry_timeout": retries["retry_timeout"].seconds,
    }
    for name in BLOB_SERVICES.names():
        assert not name.startswith("objectstore+") or f"{name}://" in text


# Credentials.


def _bare(s3: S3Server) -> str:
    """An address without any."""
    return f"objectstore+s3://{s3.bucket()}?endpoint=http://127.0.0.1:{s3.port}&region=us-east-1"


def test_credentials_of_the_environment(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    service = BLOB_SERVICES.open(_bare(s3))
    assert service.read(put(service, b"contents")) == b"contents"
    service.close()


@pytest.mark.parametrize("way", ["parameter", "environment"])
def test_credentials_of_a_profile(
    s3: S3Server, way: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "credentials"
    file.write_text("[me]\naws_access_key_id = somebody\naws_secret_access_key = hush\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    url = _bare(s3)
    if way == "parameter":
        url += "&profile=me"
    else:
        monkeypatch.setenv("AWS_PROFILE", "me")
    service = BLOB_SERVICES.open(url)
    assert service.read(put(service, b"contents")) == b"contents"
    service.close()
    with pytest.raises(InvalidRequest, match="profile 'nobody'"):
        BLOB_SERVICES.open(_bare(s3) + "&profile=nobody")


def test_no_credentials_at_all(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the machine is asked for its own; here something that is not there answers for that."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    service = BLOB_SERVICES.open(f"{_bare(s3)}&metadata_endpoint=http://127.0.0.1:1&max_retries=0")
    with pytest.raises(NeveError, match="cannot read chunks/b3/") as error:
        service.read(bytes(32))
    assert isinstance(error.value, PermissionDenied)
    assert "no credentials" in str(error.value)
    service.close()


@pytest.mark.parametrize(
    ("module", "url", "hint"),
    [
        ("obstore.store", "objectstore+memory:///", r"pip install 'neve\[objectstore\]'"),
        ("boto3", "objectstore+s3://bucket?profile=me", "pip install boto3"),
    ],
)
def test_what_is_not_installed_is_named(
    module: str, url: str, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(Unsupported, match=hint):
        BLOB_SERVICES.open(url)


def test_a_folder_is_made_when_it_is_missing(tmp_path: Path) -> None:
    service = BLOB_SERVICES.open(f"objectstore+file://{tmp_path}/a/b%20c")
    assert isinstance(service, ObjectBlobService)
    put(service, b"contents")
    assert (tmp_path / "a" / "b c" / "chunks").is_dir()
    service.close()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InvalidRequest, match=r"objectstore.file://.*/file"):
        BLOB_SERVICES.open(f"objectstore+file://{tmp_path}/file")
