"""Log lines: for people as they were, for machines one object each, and no secrets in either."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import TracerProvider

from neve import telemetry
from neve.cli import logs
from neve.cli.logs import without_secrets
from neve.nix.signing import SecretKey
from neve.telemetry import LOGGER
from neve.telemetry.otlp import OtelTracer
from tests.cli.conftest import Neve, Spawn

KEY = SecretKey.generate("cache.example.org-1")
SECRET = KEY.render()


class Written:
    """What was written to stderr."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture = capture
        self._text = ""

    def getvalue(self) -> str:
        self._text += self._capture.readouterr().err
        return self._text


@pytest.fixture
def written(capsys: pytest.CaptureFixture[str]) -> Iterator[Written]:
    before = LOGGER.handlers[:], LOGGER.level, LOGGER.propagate
    yield Written(capsys)
    LOGGER.handlers[:], LOGGER.level, LOGGER.propagate = before


def documents(written: Written) -> list[dict[str, object]]:
    return [json.loads(line) for line in written.getvalue().splitlines()]


def test_levels(written: Written) -> None:
    for level, expected in (("debug", 4), ("info", 3), ("warning", 2), ("error", 1)):
        logs.configure(logs.LEVELS[level], as_json=True)
        for name in ("debug", "info", "warning", "error"):
            LOGGER.log(logs.LEVELS[name], "%s of %s", name, level)
        found = [each for each in documents(written) if str(each["message"]).endswith(f" of {level}")]
        assert [each["level"] for each in found] == ["debug", "info", "warning", "error"][4 - expected :]


def test_lines_for_people_are_as_they_were(written: Written) -> None:
    logs.configure(logging.DEBUG, as_json=False)
    LOGGER.info("listening on %s", "[::1]:8000")
    LOGGER.warning("a basic idea of me@home: bearer bonds\nand\x1b[31m more")
    LOGGER.debug("x")
    LOGGER.error("y")
    assert written.getvalue().splitlines() == [
        "neve: listening on [::1]:8000",
        "neve: warning: a basic idea of me@home: bearer bonds\\nand\\x1b[31m more",
        "neve: debug: x",
        "neve: y",
    ]


def test_a_line_for_machines(written: Written) -> None:
    logs.configure(logging.INFO, as_json=True)
    before = datetime.now(UTC)
    LOGGER.info("two\nlines and \ud800 %s", "ä")
    try:
        raise ValueError("of a bug")
    except ValueError:
        LOGGER.exception("failed")
    first, second = documents(written)
    assert list(first) == ["time", "level", "logger", "message", "pid"]
    assert first["message"] == "two\nlines and \ud800 ä"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", str(first["time"]))
    assert 0 <= (datetime.fromisoformat(str(first["time"])) - before).total_seconds() + 0.001 < 60
    assert second["level"] == "error"
    assert "Traceback" in str(second["exception"])
    assert str(second["exception"]).endswith("ValueError: of a bug")


def test_a_line_tells_to_which_trace_it_belongs(written: Written) -> None:
    logs.configure(logging.INFO, as_json=True)
    telemetry.trace_with(OtelTracer(TracerProvider(shutdown_on_exit=False), "1"))
    try:
        with telemetry.span("a") as span:
            LOGGER.info("inside")
            (_, header), *_ = span.headers()
        LOGGER.info("outside")
    finally:
        telemetry.trace_with(None)
    inside, outside = documents(written)
    assert header.split("-")[1:3] == [inside["trace_id"], inside["span_id"]]
    assert "trace_id" not in outside


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("opening https://me:pass-word@host/x?a=b", "pass-word"),
        ("near=http%3A%2F%2Fme%3Apass-word%40host", "pass-word"),
        (f"the key {SECRET} is wrong", SECRET.partition(":")[2]),
        ("sent Authorization: Bearer abc.def", "abc.def"),
        ("{'authorization': 'Basic bWU6cGFzcw=='}", "bWU6cGFzcw"),
        ("with the bearer 0123456789abcdef0123456789", "0123456789abcdef"),
    ],
    ids=["url", "encoded", "key", "bearer", "basic", "token"],
)
@pytest.mark.parametrize("as_json", [True, False])
def test_what_looks_like_a_secret_does_not_get_through(
    text: str, secret: str, as_json: bool, written: Written
) -> None:
    assert secret in text
    logs.configure(logging.DEBUG, as_json=as_json)
    LOGGER.info("%s", text)
    logs.failure("it failed", ValueError(text))
    LOGGER.error("x", exc_info=ValueError(text))
    assert secret not in written.getvalue()
    assert "***" in written.getvalue()


def test_a_traceback_steers_no_terminal(written: Written) -> None:
    logs.configure(logging.DEBUG, as_json=False)
    logs.failure("it failed", ValueError("name \x1b[2J\nnext line"))
    assert written.getvalue() == "ValueError: name \\x1b[2J\nnext line\nneve: it failed\n"


@pytest.mark.parametrize(
    "text",
    [
        f"the public key {KEY.public_key().render()}",
        "/nix/store/00000000000000000000000000000000-bearer-token-1.0",
        "b3:" + "A" * 43 + "=",
        "https://cache.example.org:8080/x?y=z@w",
        "an authorization that is missing",
    ],
    ids=["key", "path", "digest", "url", "words"],
)
def test_what_looks_harmless_stays(text: str) -> None:
    assert without_secrets(text) == text


def test_all_of_stderr_is_json(spawn: Spawn, tmp_path: Path) -> None:
    """Also what a failure says while debugging."""
    with spawn("--json", "--log-level", "debug", "import", tmp_path / "none") as process:
        _, err = process.communicate()
    assert process.returncode == 1
    found = [json.loads(line) for line in err.splitlines()]
    assert found[-1]["message"] == f"{tmp_path}/none does not exist"
    assert "Traceback" in found[-1]["exception"]


def test_keys_and_tokens_of_commands_stay_out_of_the_log(neve: Neve, tree: Path, tmp_path: Path) -> None:
    path = neve("import", tree).line
    (tmp_path / "key").write_text(SECRET)
    done = neve("--json", "--log-level", "debug", "sign", "--key", tmp_path / "key", path)
    assert done.code == 0, done.err
    assert SECRET.partition(":")[2] not in done.err
    for line in done.err.splitlines():
        assert json.loads(line)["level"] in logs.LEVELS
