"""Servers that speak S3, for tests: moto's, gofakes3, and how to address what is in them.

Different people have written them, in different languages: what is right for both is no habit of one of them.
"""

from __future__ import annotations

import http.client
import os
import re
import shutil
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from urllib.parse import urlencode

_MOTO_RUNS = re.compile(rb"Running on http://127\.0\.0\.1:([0-9]+)")
_GOFAKES3_RUNS = re.compile(rb"using port: ([0-9]+)")
_START_SECONDS = 120


class S3Server:
    """A server on a port of this machine that takes any credentials."""

    def __init__(self, port: int) -> None:
        self.port = port

    def bucket(self) -> str:
        """The name of a new bucket."""
        name = f"b{uuid.uuid4().hex}"
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("PUT", f"/{name}")
        assert connection.getresponse().status == 200
        connection.close()
        return name

    def url(self, bucket: str, prefix: str = "", port: int | None = None, **more: object) -> str:
        """The address of a store; ``port`` is that of something in front of the server."""
        return s3_url(port or self.port, bucket, prefix, **more)


def s3_url(port: int, bucket: str, prefix: str = "", **more: object) -> str:
    """The address of a store on a server of this machine."""
    parameters: dict[str, object] = {
        "endpoint": f"http://127.0.0.1:{port}",
        "region": "us-east-1",
        "access_key_id": "somebody",
        "secret_access_key": "hush",
    }
    return f"objectstore+s3://{bucket}{prefix}?{urlencode(parameters | more)}"


@contextmanager
def moto_server() -> Iterator[S3Server]:
    """Moto's server, in a process of its own."""
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with running(command, _MOTO_RUNS) as port:
        yield S3Server(port)


def gofakes3_program() -> str | None:
    """Where it is, if it is installed: in the path, or where Go puts it."""
    built = str(Path.home() / "go/bin/gofakes3")
    return shutil.which("gofakes3") or (built if os.access(built, os.X_OK) else None)


@contextmanager
def gofakes3_server() -> Iterator[S3Server]:
    """gofakes3, with everything in its memory. Tests that need it are marked ``gofakes3``."""
    program = gofakes3_program()
    assert program is not None
    with running([program, "-backend", "memory", "-host", "127.0.0.1:0"], _GOFAKES3_RUNS) as port:
        yield S3Server(port)


@contextmanager
def running(command: Sequence[str], says: re.Pattern[bytes]) -> Iterator[int]:
    """The port of a server that tells it in its log."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        assert process.stderr is not None
        port = _port(process.stderr, says)
        # It says what it is asked, and would wait when nobody reads that.
        threading.Thread(target=_drained, args=(process.stderr,), daemon=True).start()
        yield port
    finally:
        process.terminate()
        process.wait(_START_SECONDS)


def _port(log: IO[bytes], says: re.Pattern[bytes]) -> int:
    for line in log:
        found = says.search(line)
        if found is not None:
            return int(found[1])
    raise AssertionError("the server did not start")


def _drained(log: IO[bytes]) -> None:
    with log:
        for _ in log:
            pass
