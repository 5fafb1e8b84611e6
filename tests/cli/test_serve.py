"""What ``neve serve`` and ``neve token`` take on their command lines, and what they make of it."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from neve.cli.serve import LIMIT_HELP
from neve.http_cache.limits import Limits
from neve.http_cache.run import CacheOptions
from neve.http_cache.settings import Settings, from_json, to_json
from neve.http_cache.tokens import PULL, PUSH, TokenFile, read_tokens
from neve.nix.signing import SecretKey
from neve.serving.main import WorkerStart
from neve.serving.tls import Tls, TlsFiles
from neve.testing.servers import make_certificates
from tests.cli.conftest import Neve, Spawn

Given = list[tuple[CacheOptions, WorkerStart]]
KEY = SecretKey.generate("cache-1")
OTHER = SecretKey.generate("other-1").public_key().render()


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Given:
    """What the command asks for, instead of doing it."""
    calls: Given = []

    def run(options: CacheOptions, _env: object, _open: object, _pages: object, worker: WorkerStart) -> None:
        calls.append((options, worker))

    monkeypatch.setattr("neve.http_cache.run.run_cache", run)
    return calls


def test_defaults(neve: Neve, given: Given, tmp_path: Path) -> None:
    assert neve("serve").code == 0
    ((options, worker),) = given
    assert options.workers == 1
    assert options.listen.addresses == ("[::1]:8080",)
    assert options.listen.socket_mode == 0o600
    assert options.settings == Settings()
    assert worker.command[0] == sys.executable
    assert worker.command[-1] == "serve-worker"
    assert worker.store["url"] == f"local://{tmp_path}/store"
    assert worker.store["write"] is True


def test_everything_given(neve: Neve, given: Given, tmp_path: Path) -> None:
    files = make_certificates(tmp_path)
    key, tokens = tmp_path / "key", tmp_path / "tokens"
    key.write_text(KEY.render() + "\n")
    assert neve("token", "ci", "--push", "--file", tokens).code == 0
    result = neve(
        *("serve", "--workers", "3", "-l", "unix:/a", "--listen", "sd-listen", "--grace", "1.5"),
        *("--name", "Our cache", "--url", "https://cache.example", "--priority", "7", "--private"),
        *("--narinfo-compression", "zstd", f"--sign-key={key}", f"--token-file={tokens}"),
        *(f"--trusted-public-key={OTHER}", "--require-signatures", f"--skip-signed-by={OTHER} {OTHER}"),
        *("--insecure-allow-upload", "--socket-mode", "0666", "--socket-group", "0"),
        *(f"--tls-cert={files.server_certificate}", f"--tls-key={files.server_key}"),
        *(f"--tls-client-ca={files.ca}", "--max-nar-bytes", "1GiB", "--idle-seconds", "0.5"),
    )
    assert result.code == 0, result.err
    ((options, _),) = given
    assert options.workers == 3
    assert options.listen.addresses == ("unix:/a", "sd-listen")
    assert (options.listen.socket_mode, options.listen.socket_group) == (0o666, 0)
    expected = Settings(
        limits=dataclasses.replace(Limits(), max_nar_bytes=1 << 30, idle_seconds=0.5),
        name="Our cache",
        url="https://cache.example",
        priority=7,
        narinfo_compression="zstd",
        secret_key=KEY.render(),
        trusted_keys=(OTHER,),
        require_signatures=True,
        upstream_keys=(OTHER, OTHER),
        token_file=str(tokens),
        private=True,
        insecure_allow_upload=True,
        grace=1.5,
        tls=Tls(
            certificate=files.server_certificate.read_text(),
            key=files.server_key.read_text(),
            client_ca=files.ca.read_text(),
            files=TlsFiles(
                certificate=str(files.server_certificate), key=str(files.server_key), client_ca=str(files.ca)
            ),
        ),
    )
    assert options.settings == expected
    # Workers get it as JSON, and nobody sees the key who looks at it.
    assert from_json(to_json(expected)) == expected
    assert KEY.render().partition(":")[2] not in repr(expected)
    assert "PRIVATE KEY" not in repr(expected)
    assert expected.shown_keys() == (KEY.public_key().render(), OTHER)


def test_a_cache_that_is_only_read_opens_its_store_so(neve: Neve, given: Given) -> None:
    assert neve("serve", "--read-only").code == 0
    assert given[0][1].store["write"] is False
    assert given[0][0].settings.read_only


def test_every_limit_is_an_option(neve: Neve) -> None:
    text = " ".join(neve("serve", "--help").out.decode().split())
    fields = dataclasses.fields(Limits)
    assert {field.name for field in fields} == set(LIMIT_HELP)
    for field in fields:
        assert f"--{field.name.replace('_', '-')} " in text
    assert "[default: 64GiB]" in text
    assert "serve-worker" not in neve("--help").out.decode()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["-l", "8000"], "'8000' is no address to listen on"),
        (["--private"], "--private needs --token-file"),
        (["--read-only", "--insecure-allow-upload"], "contradict"),
        (["--require-signatures"], "--require-signatures needs"),
        (["--narinfo-compression", "xz"], "'xz' is not one of"),
        (["--priority", "-1"], "priority"),
        (["--max-nar-bytes", "many"], "'many' is no size"),
        (["extra"], "unexpected extra argument"),
    ],
)
def test_wrong_usage(neve: Neve, given: Given, arguments: list[str], complaint: str) -> None:
    result = neve("serve", *arguments)
    assert (result.code, given) == (2, [])
    assert complaint in result.err
    assert result.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--sign-key", "none"], "cannot read the key in none: No such file or directory"),
        (["--sign-key", "public"], "public: secret key"),
        (["--sign-key", "noise"], "noise: secret key"),
        (["--trusted-public-key", "x"], "--trusted-public-key: public key"),
        (["--skip-signed-by", "x:y"], "--skip-signed-by: public key"),
        (["--token-file", "none"], "token file none: No such file or directory"),
        (["--token-file", "noise"], "token file"),
        (["--tls-cert", "none"], "--tls-key is missing"),
        (["--tls-cert", "none", "--tls-key", "none"], "--tls-cert none: No such file"),
    ],
)
def test_what_is_wrong_with_files(
    neve: Neve,
    given: Given,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    complaint: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("public").write_text(KEY.public_key().render())
    Path("noise").write_bytes(b"\xff secret noise")
    result = neve("serve", *arguments)
    assert (result.code, given) == (2, [])  # A service manager need not try again.
    assert complaint in result.err
    assert "secret noise" not in result.err
    assert result.err.count("\n") == 1


def test_what_may_pass_is_a_failure(neve: Neve, given: Given) -> None:
    assert "one process only" in neve("serve", "--workers", "2", "--store", "memory://").failure
    assert "Input/output error" in neve("serve", "--sign-key", "/proc/self/mem").failure
    assert given == []


def test_what_is_not_installed_is_named(neve: Neve, given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec

    def find(name: str, *arguments: Any) -> Any:
        return None if name in ("uvicorn", "starlette") else real(name, *arguments)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    assert "starlette, uvicorn, not installed here: install neve[serve]" in neve("serve").failure
    assert given == []


def test_nothing_of_it_is_loaded_for_other_commands() -> None:
    heavy = ("uvicorn", "starlette", "httptools", "prometheus_client", "jinja2", "ssl", "asyncio")
    code = f"import sys, neve.cli.program; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code]) == b"[]\n"


def test_it_serves_and_ends(spawn: Spawn, tmp_path: Path) -> None:
    with spawn("serve", "-l", f"unix:{tmp_path}/socket") as process:
        assert process.stderr is not None
        assert process.stderr.readline() == f"neve: listening on unix:{tmp_path}/socket\n".encode()
        process.terminate()
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, b"")
    assert err == b"neve: stopping; requests in flight have 30 s\n"


# Tokens.


def test_a_token_and_its_line(neve: Neve, tmp_path: Path) -> None:
    secret, line = neve("token", "ci").out.decode().splitlines()
    (tmp_path / "tokens").write_text(line)
    found = TokenFile(str(tmp_path / "tokens")).find(secret)
    assert found is not None
    assert (found.name, found.rights) == ("ci", frozenset({PULL}))


def test_tokens_in_a_file(neve: Neve, tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    first = neve("token", "ci", "--push", "--file", path).line
    assert first not in path.read_text()
    path.write_text("# ours\n" + path.read_text().rstrip("\n"))  # Without a line break at its end.
    second = neve("token", "laptops", "--file", path).line
    tokens = TokenFile(str(path))
    for secret, name, rights in ((first, "ci", {PULL, PUSH}), (second, "laptops", {PULL})):
        found = tokens.find(secret)
        assert found is not None
        assert (found.name, found.rights) == (name, frozenset(rights))
    before = path.read_text()
    assert "has a token named ci already" in neve("token", "ci", "--file", path).failure
    assert path.read_text() == before


def test_a_token_whose_writer_has_died_locks_nobody_out(neve: Neve, tmp_path: Path) -> None:
    """Wherever it was killed: the file is one that a server takes, and takes the same token again."""
    path = tmp_path / "tokens"
    neve("token", "old", "--file", path)
    before = path.read_bytes()
    neve("token", "new", "--file", path)
    added = path.read_bytes()[len(before) :]
    for end in range(1, len(added) + 1):
        path.write_bytes(before + b"#" + added[1:end])
        assert [token.name for token in read_tokens(str(path))] == ["old"]
        assert neve("token", "new", "--file", path).code == 0
        assert [token.name for token in read_tokens(str(path))] == ["old", "new"]


def test_a_token_is_none_before_its_line_is_on_the_disk(
    neve: Neve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tokens"
    seen: list[tuple[str, ...]] = []
    real = os.fsync

    def sync(fd: int) -> None:
        seen.append(tuple(token.name for token in read_tokens(str(path))))
        real(fd)

    monkeypatch.setattr(os, "fsync", sync)
    assert neve("token", "ci", "--file", path).code == 0
    assert seen == [(), ("ci",)]


def test_a_token_is_seen_by_who_has_read_half_of_its_line(
    neve: Neve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if no time has passed on the clock of the file system."""
    path = tmp_path / "tokens"
    neve("token", "old", "--file", path)
    sizes: list[int] = []
    pwrite = os.pwrite

    def looked_at(descriptor: int, data: bytes, offset: int) -> int:
        sizes.append(path.stat().st_size)
        assert [token.name for token in read_tokens(str(path))] == ["old"]
        written = pwrite(descriptor, data, offset)
        sizes.append(path.stat().st_size)
        return written

    monkeypatch.setattr(os, "pwrite", looked_at)
    assert neve("token", "new", "--file", path).code == 0
    assert sizes
    assert path.stat().st_size not in sizes
    assert path.read_bytes().endswith(b"\n")


def test_tokens_of_several_at_once(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    command = [sys.executable, "-m", "neve.cli", "token"]
    started = [subprocess.Popen([*command, f"name-{n}", "--file", path]) for n in range(4)]
    assert [each.wait() for each in started] == [0] * 4
    assert {token.name for token in read_tokens(str(path))} == {f"name-{n}" for n in range(4)}


def test_tokens_that_cannot_be(neve: Neve, tmp_path: Path) -> None:
    assert "a name is 1 to 100 characters" in neve("token", "a b").failure
    assert "Not a directory" in neve("token", "ci", "--file", "/dev/null/tokens").failure
    (tmp_path / "tokens").write_text("nonsense\n")
    assert "line 1" in neve("token", "ci", "--file", tmp_path / "tokens").failure
    assert (tmp_path / "tokens").read_text() == "nonsense\n"
    if os.geteuid():
        (tmp_path / "tokens").write_text("")
        (tmp_path / "tokens").chmod(0o400)
        assert "Permission denied" in neve("token", "ci", "--file", tmp_path / "tokens").failure
