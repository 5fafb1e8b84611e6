"""Files of tokens, and who may do what with one."""

from __future__ import annotations

import base64
import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from neve.errors import InvalidRequest, NotFound, PermissionDenied, Unavailable
from neve.http_cache.tokens import (
    MAX_FILE_BYTES,
    PULL,
    PUSH,
    InvalidTokens,
    TokenFile,
    generate,
    parse_tokens,
    presented,
)
from neve.store.services import Services
from tests.http_cache.samples import nar_url, push, sample
from tests.http_cache.serving import Served, client_of, serving
from tests.logged import logged
from tests.store.helpers import memory_services

HASH = f"sha256:{hashlib.sha256(b'secret').hexdigest()}"


def test_a_file() -> None:
    text = f"# who\n\nci pull,push {HASH}  # the builder\n\tlaptops\tpull\t{HASH}\r\npusher push {HASH}"
    first, second, third = parse_tokens(text)
    assert (first.name, first.sha256) == ("ci", hashlib.sha256(b"secret").digest())
    assert first.rights == {PULL, PUSH}
    assert (second.may(PULL), second.may(PUSH)) == (True, False)
    assert (third.may(PULL), third.may(PUSH)) == (True, True)
    assert parse_tokens("") == parse_tokens("\n # nothing\n") == ()


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("ci", "1 words"),
        (f"ci pull {HASH} more", "4 words"),
        (f"ci everything {HASH}", "there is no right 'everything'"),
        (f"ci pull,, {HASH}", "there is no right ''"),
        (f"c\u00ef pull {HASH}", "a name is"),
        (f"{'x' * 101} pull {HASH}", "a name is"),
        ("ci pull secret", "the last word is not sha256:"),
        (f"ci pull {HASH[:-1]}", "the last word is not sha256:"),
        (f"ci pull {HASH.upper()}", "the last word is not sha256:"),
    ],
)
def test_lines_that_cannot_be_read(line: str, complaint: str) -> None:
    with pytest.raises(InvalidTokens, match=f"line 2: {complaint}") as error:
        parse_tokens(f"# first\n{line}\n")
    # It may be a token that was put there by mistake.
    assert "secret" not in str(error.value)
    assert HASH not in str(error.value)


def test_a_new_token_is_known_by_its_line() -> None:
    secret, line = generate("ci", [PUSH, PULL])
    assert len(secret) >= 43
    [token] = parse_tokens(line)
    assert token.sha256 == hashlib.sha256(secret.encode()).digest()
    assert token.rights == {PULL, PUSH}
    assert generate("ci", [PULL])[0] != generate("ci", [PULL])[0]
    for name, rights in (("", [PULL]), ("a b", [PULL]), ("ci", []), ("ci", ["all"])):
        with pytest.raises(InvalidRequest):
            generate(name, rights)


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("", None),
        ("Bearer abc", "abc"),
        ("bearer  abc ", "abc"),
        ("Bearer", None),
        ("Bearer ", None),
        (basic("user:abc"), "abc"),
        (basic(":a:b"), "a:b"),
        (basic("abc"), None),
        (basic("abc:"), None),
        ("Basic !!!", None),
        ("Basic " + base64.b64encode(b"\xff:\xff").decode(), None),
        ("Digest abc", None),
        ("abc", None),
    ],
)
def test_what_is_presented(header: str | None, expected: str | None) -> None:
    assert presented(header) == expected


def write(path: Path, text: str) -> None:
    """As an editor does: another file in its place."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.rename(path)


def test_changes_are_seen(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text(f"ci push {HASH}\n")
    tokens = TokenFile(str(path))
    found = tokens.find("secret")
    assert found is not None
    assert found.name == "ci"
    assert tokens.find("Secret") is None
    assert tokens.find("\udcff") is None
    secret, line = generate("new", [PULL])
    write(path, line)
    assert tokens.find("secret") is None
    assert tokens.find(secret) is not None
    with logged() as messages:
        write(path, "new all sha256:0\n")
        # A slip while it is edited locks nobody out.
        assert tokens.find(secret) is not None
        path.write_bytes(b"\xff\xfe")
        assert tokens.find(secret) is not None
        path.unlink()
        assert tokens.find(secret) is None
    assert len(messages) == 3
    assert "stay" in messages[0]
    assert "nobody has a token any more" in messages[2]
    write(path, line)
    assert tokens.find(secret) is not None


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="No such file"):
        TokenFile(str(tmp_path / "none"))
    with pytest.raises(Unavailable, match="directory"):
        TokenFile(str(tmp_path))
    for contents, complaint in (
        (b"\xff", "UTF-8"),
        (b"x" * (MAX_FILE_BYTES + 1), "more than"),
        (b"x", "line 1"),
    ):
        (tmp_path / "tokens").write_bytes(contents)
        with pytest.raises(InvalidTokens, match=complaint):
            TokenFile(str(tmp_path / "tokens"))
    if os.geteuid():
        (tmp_path / "tokens").chmod(0)
        with pytest.raises(PermissionDenied):
            TokenFile(str(tmp_path / "tokens"))


# Before a cache.

READER, READER_LINE = generate("reader", [PULL])
WRITER, WRITER_LINE = generate("writer", [PULL, PUSH])


@pytest.fixture
def services() -> Iterator[Services]:
    opened = memory_services()
    yield opened
    opened.close()


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_text(f"{READER_LINE}\n{WRITER_LINE}\n")
    return path


def uploads(cache: Served, headers: dict[str, str]) -> list[int]:
    """How each kind of upload is answered."""
    what = sample("upload")
    urls = (
        *(nar_url(what.nar), what.narinfo_url, f"/{what.digest}.ls"),
        *(f"/log/{what.digest}-x.drv", f"/realisations/sha256:{'0' * 64}!out.doi"),
        f"/debuginfo/{'0' * 40}.debug",
    )
    return [cache.http.put(url, content=what.nar, headers=headers).status_code for url in urls]


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        (None, 401),
        ("Bearer wrong", 401),
        (f"Bearer {WRITER[:-1]}", 401),
        (f"Bearer {WRITER_LINE.split()[2]}", 401),
        (f"Token {WRITER}", 401),
        (basic(f"{WRITER}:"), 401),
        (f"Bearer {READER}", 403),
        (basic(f"user:{READER}"), 403),
    ],
    ids=("none", "wrong", "cut", "its hash", "other scheme", "as a user", "reader", "reader's password"),
)
def test_uploads_without_the_right(
    services: Services, token_file: Path, authorization: str | None, status: int
) -> None:
    headers = {} if authorization is None else {"authorization": authorization}
    with serving(services, token_file=str(token_file), insecure_allow_upload=False) as cache:
        assert uploads(cache, headers) == [status] * 6
        answer = cache.http.put("/nar/x.nar", content=b"", headers=headers)
        assert answer.text.count("\n") == 1
        if status == 401:
            assert "Basic" in answer.headers["www-authenticate"]
        assert cache.is_fine()
        assert cache.http.get("/nix-cache-info").status_code == 200
    assert list(services.path_infos) == []
    assert list(services.blobs.list()) == []


@pytest.mark.parametrize(
    "authorization",
    [f"Bearer {WRITER}", basic(f"any:{WRITER}"), basic(f":{WRITER}")],
    ids=("bearer", "password", "password of nobody"),
)
def test_uploads_with_the_right(services: Services, token_file: Path, authorization: str) -> None:
    with serving(services, token_file=str(token_file), insecure_allow_upload=False) as cache:
        with client_of(cache.url, headers={"authorization": authorization}) as http:
            push(http, sample("allowed"))
        assert cache.http.get(sample("allowed").narinfo_url).status_code == 200


def test_a_token_that_is_taken_back(services: Services, token_file: Path) -> None:
    headers = {"authorization": f"Bearer {WRITER}"}
    with serving(services, token_file=str(token_file), insecure_allow_upload=False) as cache:
        url = f"/log/{'0' * 32}-x.drv"
        assert cache.http.put(url, content=b"", headers=headers).status_code == 201
        write(token_file, READER_LINE)
        assert cache.http.put(url, content=b"", headers=headers).status_code == 401
        token_file.unlink()
        assert cache.http.put(url, content=b"", headers=headers).status_code == 401


def test_a_file_that_takes_its_time_holds_up_nobody_else(services: Services, token_file: Path) -> None:
    headers = {"authorization": f"Bearer {WRITER}"}
    url, answers = f"/log/{'0' * 32}-x.drv", []
    with serving(services, token_file=str(token_file), insecure_allow_upload=False) as cache:

        def upload() -> None:
            with client_of(cache.url, headers=headers) as http:
                answers.append(http.put(url, content=b"").status_code)

        # Whoever opens it to read waits for somebody who writes.
        os.mkfifo(token_file.with_suffix(".new"))
        token_file.with_suffix(".new").rename(token_file)
        thread = threading.Thread(target=upload)
        thread.start()
        try:
            with token_file.open("w") as file:  # From here on, it is being read.
                assert cache.is_fine()
                assert answers == []
                file.write(f"{WRITER_LINE}\n")
        finally:
            thread.join()
    assert answers == [201]


def test_a_private_cache(services: Services, token_file: Path) -> None:
    what = sample("private")
    with serving(services, token_file=str(token_file), private=True, insecure_allow_upload=False) as cache:
        with client_of(cache.url, headers={"authorization": f"Bearer {WRITER}"}) as http:
            push(http, what)
        urls = ("/", "/nix-cache-info", what.narinfo_url, nar_url(what.nar), f"/{what.digest}.ls", "/metrics")
        for url in (*urls, "/nowhere"):
            assert cache.http.get(url).status_code == 401
            assert cache.http.head(url).status_code == 401
        for secret in (READER, WRITER):
            with client_of(cache.url, headers={"authorization": basic(f"x:{secret}")}) as http:
                answers = {url: http.get(url) for url in urls}
            assert [answer.status_code for answer in answers.values()] == [404, *[200] * 5]
            assert answers[nar_url(what.nar)].headers["cache-control"].startswith("private,")
        # Who watches over it needs no token.
        assert cache.http.get("/healthz").status_code == 200
        assert cache.http.get("/healthz/live").status_code == 200


def test_nobody_uploads_where_nobody_may(services: Services, token_file: Path) -> None:
    headers = {"authorization": f"Bearer {WRITER}"}
    with serving(services, insecure_allow_upload=False) as cache:
        assert uploads(cache, headers) == [403] * 6
    with serving(services, read_only=True, token_file=str(token_file), insecure_allow_upload=False) as cache:
        assert uploads(cache, headers) == [403] * 6
        assert "read-only" in cache.http.put("/nar/x.nar", content=b"", headers=headers).text


def test_a_file_that_is_wrong_is_told_at_the_start(services: Services, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("ci everything sha256:0\n")
    with pytest.raises(InvalidTokens), serving(services, token_file=str(tmp_path / "tokens")):
        raise AssertionError("it serves")
