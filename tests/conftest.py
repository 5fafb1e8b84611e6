"""What tests need of the machine, told by markers: a test whose need is not met is skipped.

With ``NEVE_REQUIRE_ALL`` in the environment it fails instead, so that no gap goes unnoticed where
everything is supposed to be there.
"""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from neve.errors import NeveError
from neve.testing.bigtable import emulator_program
from neve.testing.guests import cloud_kernels
from tests.faults import seccomp
from tests.s3 import S3Server, gofakes3_program, gofakes3_server, moto_server

if TYPE_CHECKING:
    from neve.testing.postgresql import PostgresServer

REQUIRE_ALL = "NEVE_REQUIRE_ALL"


def _program(name: str) -> str | None:
    return None if shutil.which(name) else f"{name} is not installed"


def _mounts() -> str | None:
    if os.geteuid() != 0:
        return "not root"
    # In a mount namespace of its own, so that nothing is left behind.
    command = ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/tmp"]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return "root may not mount here"
    return None


def _fuse() -> str | None:
    """Mounts nothing yet: tests do that in folders of their own, as root and as another user."""
    if _mounts():
        return _mounts()
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError as error:
        return f"/dev/fuse cannot be opened: {error.strerror}"
    if os.stat("/dev/fuse").st_mode & 0o006 != 0o006:
        return "/dev/fuse is not open to other users"
    return _program("fusermount3")


KERNEL_SOURCE = Path("/usr/src/linux-source-6.1.tar.xz")


def _kernel_source() -> str | None:
    return None if KERNEL_SOURCE.exists() else "linux-source-6.1 is not installed"


def _guests() -> str | None:
    missing_program = _program("qemu-system-x86_64") or _program("cpio") or _program("busybox")
    return missing_program or (None if cloud_kernels() else "linux-image-cloud-amd64 is not installed")


def _postgresql() -> str | None:
    try:
        from neve.testing.postgresql import server_programs
    except NeveError as error:
        return str(error)
    return None if server_programs() else "PostgreSQL's server is not installed"


def _bigtable() -> str | None:
    return None if emulator_program() else "the Bigtable emulator (cbtemulator) is not installed"


def _gofakes3() -> str | None:
    return None if gofakes3_program() else "gofakes3, the second server that speaks S3, is not installed"


# Each tells what is missing, or None.
NEEDS: dict[str, Callable[[], str | None]] = {
    "bigtable": _bigtable,
    "browser": lambda: _program("chromium") or _program("chromedriver"),
    "completion": lambda: _program("bash") or _program("zsh") or _program("fish"),
    "fuse": _fuse,
    "gofakes3": _gofakes3,
    "kernel": _kernel_source,
    "manual": lambda: _program("groff"),
    "nix": lambda: _program("nix-store"),
    "pgbouncer": lambda: _program("pgbouncer"),
    "postgresql": _postgresql,
    "prometheus": lambda: _program("promtool"),
    "qemu": _guests,
    "root": _mounts,
    "seccomp": seccomp.missing,
    "strace": lambda: _program("strace"),
    "webdav": lambda: _program("rclone"),
    "systemd": lambda: _program("systemd-analyze") or _program("systemd-socket-activate"),
}


def pytest_configure() -> None:
    """Programs that tests start must hear signals, also where those are ignored: as by what a shell runs
    in the background, or nohup. And they tell nobody of what they do."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    # Whoever has the tests traced does not mean the programs that they start.
    for name in [name for name in os.environ if name.startswith(("OTEL_", "TRACEPARENT"))]:
        del os.environ[name]
    # Nor does the configuration of this machine count.
    os.environ["NEVE_CONFIG"] = ""


@functools.cache
def missing(marker: str) -> str | None:
    return NEEDS[marker]()


def pytest_report_header() -> list[str]:
    reasons = {marker: missing(marker) for marker in NEEDS}
    lines = [f"  marked {marker}: {reason}" for marker, reason in reasons.items() if reason]
    if not lines:
        return []
    fate = "will fail" if os.environ.get(REQUIRE_ALL) else "are left out"
    return [f"these tests {fate} (run `make test-system-deps` as root):", *lines]


# Before pytest's own look at the marks skip and skipif, which would hide what is missing.
@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    reasons = (missing(marker) for marker in NEEDS if item.get_closest_marker(marker))
    reason = next(filter(None, reasons), None)
    if reason is None:
        return
    if os.environ.get(REQUIRE_ALL):
        pytest.fail(f"{reason}, and {REQUIRE_ALL} is set", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """A server that speaks S3; each test makes a bucket of its own there."""
    with moto_server() as server:
        yield server


@pytest.fixture(scope="session")
def gofakes3() -> Iterator[S3Server]:
    """Another one. Tests with it are marked ``gofakes3``."""
    with gofakes3_server() as server:
        yield server


@pytest.fixture(params=["s3", pytest.param("gofakes3", marks=pytest.mark.gofakes3)])
def each_s3(request: pytest.FixtureRequest) -> S3Server:
    """One after the other."""
    server = request.getfixturevalue(request.param)
    assert isinstance(server, S3Server)
    return server


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgresServer]:
    """A server for all tests that do it no harm. They are marked ``postgresql``."""
    from neve.testing.postgresql import running_postgresql

    with running_postgresql() as server:
        yield server


@pytest.fixture
def database(postgresql: PostgresServer) -> Iterator[str]:
    """The address of an empty place in it."""
    url = postgresql.url()
    yield url
    postgresql.drop(url)
