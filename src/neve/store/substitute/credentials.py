"""What a cache is told about us, for each request anew: files with tokens may change meanwhile.

No message repeats any of it.
"""

from __future__ import annotations

import base64
import contextlib
import netrc
import os
import re
from collections.abc import Callable, Iterator, Sequence

from neve.errors import InvalidRequest, NeveError, PermissionDenied, Unavailable
from neve.telemetry import LOGGER

Credentials = Callable[[], str | None]
"""Gives the value of the header ``Authorization``, if there is to be one."""

NIX_NETRC = "/etc/nix/netrc"
"""Where Nix looks, unless its settings say otherwise."""

MAX_FILE_BYTES = 64 * 1024
"""Longest token file: servers take headers of some kilobytes; this bounds what a wrong name makes us read."""

MAX_NETRC_BYTES = 1024 * 1024
"""Longest netrc file: some thousand hosts, and again no more than that of what is none."""

_TOKEN = re.compile(r"[!-~]+")


def no_credentials() -> str | None:
    """For caches that everybody may read."""
    return None


def basic(user: str, password: str) -> Credentials:
    """A user name and a password, as of an address."""
    value = _basic(user, password)
    return lambda: value


def _basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode("utf-8", "surrogateescape")).decode()


def token_file(path: str) -> Credentials:
    """A bearer token: all that the file holds, without white space around it.

    Raises ``InvalidRequest`` and ``PermissionDenied``, naming the file, when it is asked.
    """

    def read() -> str:
        token = _read(path, MAX_FILE_BYTES).decode("utf-8", "surrogateescape").strip()
        if not _TOKEN.fullmatch(token):
            raise InvalidRequest(f"token file {path}: must hold one token, of printable ASCII characters")
        return f"Bearer {token}"

    return read


def netrc_files(host: str, required: str | None, others: Sequence[str]) -> Credentials:
    """What netrc files have for ``host``; the first that has something counts.

    ``required`` must be there and readable, if it is given, and is the only one then; of ``others``,
    those that are not count as empty.
    """

    def read() -> str | None:
        if required is not None:
            return _from_netrc(required, host)
        for path in others:
            try:
                found = _from_netrc(path, host)
            except NeveError as error:
                if os.path.exists(path):
                    LOGGER.debug("leaving out %s", error)
                continue
            if found is not None:
                return found
        return None

    return read


def _from_netrc(path: str, host: str) -> str | None:
    try:
        with _as_file(_read(path, MAX_NETRC_BYTES)) as copy:
            found = netrc.netrc(copy).authenticators(host)
    except netrc.NetrcParseError as error:
        # Not chained, and without its message: that repeats what it cannot read, which may be a password.
        raise InvalidRequest(f"netrc file {path}, line {error.lineno}: cannot be read") from None
    except UnicodeDecodeError:
        raise InvalidRequest(f"netrc file {path}: is no text") from None
    return None if found is None else _basic(found[0], found[2] or "")


def _read(path: str, limit: int) -> bytes:
    with _file_errors(path), open(path, "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise InvalidRequest(f"{path} is longer than the limit of {limit} bytes")
    return data


@contextlib.contextmanager
def _as_file(data: bytes) -> Iterator[str]:
    """A path to ``data`` for the library, which reads files of any length and nothing but files."""
    with open(os.memfd_create("neve-netrc"), "wb") as file:
        file.write(data)
        file.flush()
        yield f"/proc/self/fd/{file.fileno()}"


@contextlib.contextmanager
def _file_errors(path: str) -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        raise PermissionDenied(f"{path}: {error.strerror}") from error
    except FileNotFoundError as error:
        raise InvalidRequest(f"{path}: {error.strerror}") from error
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror}") from error
