"""A PostgreSQL server of the tests' own: made in a temporary folder, gone with it."""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import psycopg

from neve.postgres.table import FRESH_SECONDS

_START_SECONDS = 120.0
_STOP_SECONDS = 60.0

_PORT = "5432"
"""Also in the name of the socket."""

# Nobody needs what is in it when the machine goes down.
_SETTINGS = {"fsync": "off", "full_page_writes": "off", "listen_addresses": "", "max_connections": "60"}

_ACCESS = """\
local all locked scram-sha-256
local all all trust
hostssl all client 127.0.0.1/32 cert
hostssl all postgres 127.0.0.1/32 trust
"""
"""Who gets in how: only the user ``locked`` needs a password. Over the network all need TLS, and ``client`` a
certificate of that name."""


def server_programs() -> Path | None:
    """The folder of the server's programs; Debian does not have them in the path."""
    folders = [Path(found).parent for found in [shutil.which("initdb")] if found]
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: float(folder.parent.name))
    having = [folder for folder in folders if (folder / "initdb").exists() and (folder / "postgres").exists()]
    return having[-1] if having else None


class PostgresServer:
    """A server that listens on a socket in ``folder``, as ``start`` left it."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self.folder = folder
        self._programs = programs
        self.port = _PORT
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = itertools.count()
        # The server refuses to run as root. A program of its own becomes the other user: Python would have to
        # fork for that, and a child of a process that uses gRPC may crash before it gets anywhere.
        self._as_user: list[str] = []
        if os.geteuid() == 0:
            user = pwd.getpwnam("nobody")
            ids = [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
            self._as_user = ["setpriv", *ids, "--"]
            os.chown(folder, user.pw_uid, user.pw_gid)

    def create(self) -> None:
        """Makes an empty cluster of databases."""
        command = [f"{self._programs}/initdb", "-D", f"{self.folder}/data", "-U", "postgres", "--no-sync"]
        options = ["--locale=C", "--encoding=UTF8", "--auth=trust", "--no-instructions"]
        subprocess.run([*self._as_user, *command, *options], check=True, capture_output=True, cwd=self.folder)
        (self.folder / "data" / "pg_hba.conf").write_text(_ACCESS)

    def start(self, **settings: str) -> None:
        """Starts it, and waits until it lets somebody in."""
        self.port = settings.get("port", _PORT)
        command = [str(self._programs / "postgres"), "-D", str(self.folder / "data"), "-k", str(self.folder)]
        for name, value in {**_SETTINGS, **settings}.items():
            command += ["-c", f"{name}={value}"]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*self._as_user, *command], stdout=log, stderr=log, cwd=self.folder
            )
        end = time.monotonic() + _START_SECONDS
        while True:
            try:
                self.execute("select 1")
                return
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() > end:
                    raise
            time.sleep(0.02)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Ends it: at once and in good order, or with SIGQUIT as in a crash. May be called again."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(how)
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def own(self, *files: Path) -> None:
        """Gives it files: it refuses keys that others can read."""
        for file in files:
            if os.geteuid() == 0:
                user = pwd.getpwnam("nobody")
                os.chown(file, user.pw_uid, user.pw_gid)

    @contextlib.contextmanager
    def pgbouncer(self, folder: Path, **settings: str) -> Iterator[str]:
        """PgBouncer in front of it, which gives each transaction one of two connections; the folder of its
        socket."""
        lines = {
            "listen_addr": "",
            "unix_socket_dir": str(folder),
            "auth_type": "any",
            "pool_mode": "transaction",
            "default_pool_size": "2",
            "max_client_conn": "100",
            **settings,
        }
        (folder / "pgbouncer.ini").write_text(
            f"[databases]\n* = host={self.folder} user=postgres\n[pgbouncer]\nlisten_port = 5432\n"
            + "".join(f"{name} = {value}\n" for name, value in lines.items())
        )
        self.own(folder, folder / "pgbouncer.ini")
        with (folder / "log").open("ab") as log:
            command = [*self._as_user, "pgbouncer", str(folder / "pgbouncer.ini")]
            process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
        try:
            end = time.monotonic() + _START_SECONDS
            while True:
                try:
                    psycopg.connect(host=str(folder), user="postgres", dbname="postgres").close()
                    break
                except psycopg.OperationalError:
                    if process.poll() is not None or time.monotonic() > end:
                        raise
                time.sleep(0.02)
            yield str(folder)
        finally:
            process.terminate()
            process.wait(_STOP_SECONDS)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """None of its processes does anything during the block."""
        assert self._process is not None
        parent = self._process.pid
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        # The parent first, so that no more of them come.
        processes = [parent, *map(int, children)]
        try:
            for process in processes:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGSTOP)
            yield
        finally:
            for process in processes:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGCONT)

    def url(self, *, user: str = "postgres", database: str = "postgres", **parameters: str) -> str:
        """An address; without ``schema``, one that nobody else has."""
        parameters.setdefault("schema", f"test_{next(self._numbers)}")
        place = f"{user}@/{database}"
        return f"postgresql://{place}?{urlencode({'host': str(self.folder), **parameters})}"

    def network_url(self, **parameters: str) -> str:
        """The same, for who comes over the network."""
        return self.url(host="localhost", hostaddr="127.0.0.1", port=self.port, **parameters)

    def execute(self, statement: str, parameters: Any = None) -> list[tuple[Any, ...]]:
        """What an administrator gets for a statement."""
        place = {"host": str(self.folder), "port": self.port, "user": "postgres"}
        with psycopg.connect(**place, autocommit=True) as connection:  # type: ignore[arg-type]
            cursor = connection.execute(statement.encode(), parameters)
            return cursor.fetchall() if cursor.description else []

    def drop(self, url: str) -> None:
        """Forgets what is stored at an address of ``url``."""
        self.execute(f"drop schema if exists {schema_of(url)} cascade")

    def age(self, url: str, table: str, seconds: float = 10 * FRESH_SECONDS) -> None:
        """Makes all records of a table used so many seconds earlier."""
        self.execute(
            f"update {schema_of(url)}.{table} set used_at = used_at - make_interval(secs => %s)", [seconds]
        )


def schema_of(url: str) -> str:
    """The schema that is named in an address of ``PostgresServer.url``."""
    return url.partition("schema=")[2].partition("&")[0]


@contextlib.contextmanager
def running_postgresql(**settings: str) -> Iterator[PostgresServer]:
    """A new server, while the block runs."""
    programs = server_programs()
    assert programs is not None, "PostgreSQL is not installed"
    # Sockets need short paths.
    with tempfile.TemporaryDirectory(prefix="neve-pg-", ignore_cleanup_errors=True) as folder:
        server = PostgresServer(programs, Path(folder))
        server.create()
        try:
            server.start(**settings)
            yield server
        finally:
            server.stop()
