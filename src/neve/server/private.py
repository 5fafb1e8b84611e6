"""The private sockets of workers, in a folder that only we may enter."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Sequence
from urllib.parse import quote

from neve.server.listen import Route
from neve.server.settings import Endpoint
from neve.serving.addresses import SUN_PATH_BYTES

_LONGEST_NAME = len("/1000-1000000-admin-tls")
_SHORT_FOLDER = "/tmp"


class PrivateSockets:
    """Names of sockets in a temporary folder, which is removed by ``close``."""

    def __init__(self) -> None:
        base = tempfile.gettempdir()
        if len(os.fsencode(base)) + len("/neve-12345678") + _LONGEST_NAME > SUN_PATH_BYTES:
            base = _SHORT_FOLDER
        self.folder = tempfile.mkdtemp(prefix="neve-", dir=base)
        # Programs that clean up temporary folders leave one alone that is locked.
        self._lock = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(self._lock, fcntl.LOCK_SH | fcntl.LOCK_NB)

    def paths(self, owner: str, routes: Sequence[Route]) -> dict[str, str]:
        """Where the process by the name ``owner`` listens for each route."""
        return {route.name: f"{self.folder}/{owner}-{route.name}" for route in routes}

    def endpoints(self, owner: str, routes: Sequence[Route]) -> list[Endpoint]:
        """The same for that process itself."""
        paths = self.paths(owner, routes)
        # gRPC decodes paths as if they were URLs.
        return [Endpoint(f"unix:{quote(paths[route.name])}", route.admin, route.tls) for route in routes]

    def remove(self, owner: str, routes: Sequence[Route]) -> None:
        """The process has ended: removes what it may have left."""
        for path in self.paths(owner, routes).values():
            with contextlib.suppress(OSError):
                os.unlink(path)

    def close(self) -> None:
        """Removes the folder. A second time it does nothing."""
        if self._lock >= 0:
            shutil.rmtree(self.folder, ignore_errors=True)
            os.close(self._lock)
            self._lock = -1


def abandon(folder: str) -> None:
    """For those who outlive whoever made the folder: the last one that removed its sockets removes it."""
    with contextlib.suppress(OSError):
        os.rmdir(folder)
