"""A service manager that listens, as systemd does: a socket for datagrams, by path or by an abstract name."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import Self

SECONDS = 90


class ListeningManager:
    """Has a socket, and what came through it."""

    def __init__(
        self, folder: Path, *, abstract: bool = False, watchdog_seconds: float | None = None
    ) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        name = str(folder / "notify")
        self._socket.bind(f"\0{name}" if abstract else name)
        self.environment = {"NOTIFY_SOCKET": f"@{name}" if abstract else name}
        if watchdog_seconds is not None:
            self.environment["WATCHDOG_USEC"] = str(int(watchdog_seconds * 1_000_000))
        self.told: list[str] = []
        """Every line, in order."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def until(self, line: str, count: int = 1) -> None:
        """Waits until so many lines begin like this, of those that are yet to come."""
        deadline = time.monotonic() + SECONDS
        while count:
            self._socket.settimeout(max(deadline - time.monotonic(), 0.01))
            lines = self._socket.recv(65536).decode().split("\n")
            self.told += lines
            count -= min(count, sum(each.startswith(line) for each in lines))

    def rest(self) -> list[str]:
        """What has come since, without waiting."""
        self._socket.setblocking(False)
        new: list[str] = []
        while True:
            try:
                new += self._socket.recv(65536).decode().split("\n")
            except BlockingIOError:
                self.told += new
                return new

    def inherited(self) -> dict[str, str]:
        """The environment of a process that it starts."""
        ours = {name: value for name, value in os.environ.items() if not name.startswith("LISTEN_")}
        return ours | self.environment
