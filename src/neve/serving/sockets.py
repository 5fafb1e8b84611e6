"""Places to listen, claimed so that nobody else's is taken: paths, ports, sockets of systemd's."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import socket
import stat
import time
from collections.abc import Iterator, MutableMapping, Sequence
from typing import NamedTuple

from neve.errors import Conflict, InvalidRequest, NeveError, PermissionDenied, Unavailable
from neve.serving.addresses import InheritedAddress, TcpAddress, UnixAddress

BACKLOG = 4096
"""Connections that may wait to be accepted; the kernel bounds it by ``net.core.somaxconn``."""

_LOCK_SECONDS = 10.0
_LOCK_CHECK_SECONDS = 0.01
_STAGED = "s"
_FIRST_PASSED = 3
"""The first descriptor that systemd passes on: sd_listen_fds(3)."""
_MOST_PASSED = 4096
"""systemd passes what its units list, a handful."""
_PASSED_VARIABLES = ("LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES")


def cannot_listen(address: object, reason: object, hint: str = "") -> Unavailable:
    """The error that names an address and why nobody can listen there."""
    text = (reason.strerror or str(reason)) if isinstance(reason, OSError) else reason
    return Unavailable(f"cannot listen on {address}: {text}{hint}")


class UnixPath:
    """The path of a socket. The socket is made elsewhere, with nobody having access, and appears at its
    path with the right permissions and already listening: ``staging`` is where to bind it, then
    ``publish`` it.

    A path where something answers is refused, and so is one that is no socket; a socket where nobody
    answers is removed. A lock on the folder makes sure that of several daemons one gets the path.
    """

    def __init__(self, address: UnixAddress, mode: int, group: int | None = None) -> None:
        self._address = address
        self._mode = mode
        self._group = group
        folder, self._name = os.path.split(address.path)
        self._stage: int | None = None
        self._published: tuple[int, int] | None = None
        try:
            self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise self._error(error) from error
        self._stage_name = f".neve-{secrets.token_hex(8)}"
        try:
            self._make_stage()
        except BaseException:
            self.close()
            raise

    def _make_stage(self) -> None:
        with self._errors():
            with self._locked():
                self._clear()
            os.mkdir(self._stage_name, 0o700, dir_fd=self._folder)
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            self._stage = os.open(self._stage_name, flags, dir_fd=self._folder)

    @property
    def staging(self) -> str:
        """The path to bind to. It is short and plain, wherever the folder is: limits on the length of
        such paths, and gRPC, which decodes them as if they were URLs, do not matter."""
        return f"/proc/self/fd/{self._stage}/{_STAGED}"

    def bind(self) -> socket.socket:
        """A socket that listens and is ready to be published. Raises ``Unavailable``."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with self._errors():
                listener.bind(self.staging)
                listener.listen(BACKLOG)
        except BaseException:
            listener.close()
            raise
        return listener

    def publish(self) -> None:
        """Makes what was bound to ``staging`` appear at the path, if that is free.

        Raises ``Conflict`` if it is not, ``PermissionDenied`` and ``Unavailable``.
        """
        with self._errors(), self._locked():
            self._clear()
            if self._group is not None:
                os.chown(_STAGED, -1, self._group, dir_fd=self._stage)
            os.chmod(_STAGED, self._mode, dir_fd=self._stage)
            # Unlike a rename, this replaces nothing.
            os.link(_STAGED, self._name, src_dir_fd=self._stage, dst_dir_fd=self._folder)
            self._published = _identity(os.stat(_STAGED, dir_fd=self._stage))
            os.unlink(_STAGED, dir_fd=self._stage)
            os.rmdir(self._stage_name, dir_fd=self._folder)

    def withdraw(self) -> None:
        """Removes the path if it is still ours. Does not fail, and a second time does nothing."""
        if self._published is None:
            return
        with contextlib.suppress(OSError, NeveError), self._locked():
            if _identity(os.stat(self._name, dir_fd=self._folder, follow_symlinks=False)) == self._published:
                os.unlink(self._name, dir_fd=self._folder)
        self._published = None

    def close(self) -> None:
        """Removes what is left of it. To be called after what is bound to ``staging`` was closed."""
        self.withdraw()
        if self._folder < 0:
            return
        if self._stage is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(_STAGED, dir_fd=self._stage)
            os.close(self._stage)
        with contextlib.suppress(OSError):
            os.rmdir(self._stage_name, dir_fd=self._folder)
        os.close(self._folder)
        self._folder = -1

    def _clear(self) -> None:
        """Removes a socket that nobody listens on. Raises ``Conflict`` for anything else at the path."""
        try:
            found = os.stat(self._name, dir_fd=self._folder, follow_symlinks=False)
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(found.st_mode):
            raise Conflict(f"cannot listen on {self._address}: there is something else that is no socket")
        if _answers(self._address.path):
            raise Conflict(f"something is already listening on {self._address}")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._name, dir_fd=self._folder)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Among daemons, at most one is in such a block for the same folder."""
        deadline = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(self._folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise Unavailable(
                        f"cannot listen on {self._address}: another process has locked the folder"
                    ) from None
                time.sleep(_LOCK_CHECK_SECONDS)
        try:
            yield
        finally:
            fcntl.flock(self._folder, fcntl.LOCK_UN)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._error(error) from error

    def _error(self, error: OSError) -> NeveError:
        if isinstance(error, FileExistsError):
            return Conflict(f"cannot listen on {self._address}: somebody else has made it just now")
        if isinstance(error, PermissionError):
            return PermissionDenied(f"cannot listen on {self._address}: {error.strerror}")
        return cannot_listen(self._address, error)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _answers(path: str) -> bool:
    """Whether somebody listens on the socket at ``path``. Raises ``OSError`` if that cannot be told."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except BlockingIOError:
            pass  # So many connections wait there that there is no room for another one.
    return True


class Host(NamedTuple):
    """An address of a machine."""

    family: int
    number: str
    scope: int = 0
    """Of a link-local address: which link."""


class TcpPort:
    """A port of an address that is ours alone, to be shared by our processes.

    Held by a socket that is bound and does not listen. Others may bind beside it with SO_REUSEPORT:
    processes of the same user, if they do not look before, as all of neve do.
    """

    def __init__(self, host: Host, port: int) -> None:
        """Raises ``OSError``: EADDRINUSE if anyone listens there, or is about to."""
        family = host.family
        place = (host.number, port, 0, host.scope) if family == socket.AF_INET6 else (host.number, port)
        with _tcp_socket(family) as first:
            first.bind(place)
            # Of several that come this far at once, the kernel lets only one listen.
            first.listen(1)
            first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            self._socket = _tcp_socket(family)
            try:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                self._socket.bind(first.getsockname())
                # Binding without SO_REUSEPORT fails from now on, for as long as this socket is open.
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
            except BaseException:
                self._socket.close()
                raise
        self._family = family
        self.port: int = self._socket.getsockname()[1]
        self.address = str(TcpAddress(host.number, self.port))

    def bind(self) -> socket.socket:
        """A socket that is bound there, beside others that are. Connections are spread over those that
        listen, so each is for one process. Raises ``OSError``."""
        bound = _tcp_socket(self._family)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            bound.bind(self._socket.getsockname())
        except BaseException:
            bound.close()
            raise
        return bound

    def close(self) -> None:
        """Gives it up."""
        self._socket.close()


def _tcp_socket(family: int) -> socket.socket:
    created = socket.socket(family, socket.SOCK_STREAM)
    # Old connections of an earlier process do not count.
    created.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        # As gRPC does it: [::] stands for IPv4 too.
        created.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    return created


def claim_ports(address: TcpAddress, hosts: Sequence[Host]) -> list[TcpPort]:
    """The port on each of its hosts that this machine has; port 0 becomes the same on all of them.

    Raises ``Conflict``, ``PermissionDenied``, ``Unavailable``.
    """
    claimed: list[TcpPort] = []
    failure: OSError | None = None
    try:
        for host in hosts:
            port = claimed[0].port if claimed else address.port
            try:
                claimed.append(TcpPort(host, port))
            except OSError as error:
                # A machine may know an address of localhost that it does not have.
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                failure = error
        if not claimed and failure is not None:
            raise failure
    except OSError as error:
        for port_ in claimed:
            port_.close()
        raise _port_error(address, error) from error
    return claimed


def resolved(address: TcpAddress) -> list[Host]:
    """What the host of an address stands for, each once. Raises ``InvalidRequest``."""
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidRequest(f"cannot listen on {address}: {reason}") from error
    known = dict.fromkeys(
        Host(int(family), str(place[0]), int(place[3]) if len(place) == 4 else 0)
        for family, _, _, _, place in found
        if family in (socket.AF_INET, socket.AF_INET6)
    )
    return list(known)


def _port_error(address: TcpAddress, error: OSError) -> NeveError:
    if error.errno == errno.EADDRINUSE:
        return Conflict(f"cannot listen on {address}: address already in use")
    if isinstance(error, PermissionError):
        return PermissionDenied(f"cannot listen on {address}: {error.strerror}")
    hint = "; is there no IPv6 here? try 127.0.0.1" if address.host == "::1" else ""
    return cannot_listen(address, error, hint)


class PassedSocket(NamedTuple):
    """A listening socket that systemd passed on."""

    name: str
    socket: socket.socket


def passed_names(count: str, names: str) -> list[str]:
    """The names of all sockets that were passed on, by ``LISTEN_FDS`` and ``LISTEN_FDNAMES``; nobody needs
    to have named them. Raises ``InvalidRequest``."""
    if re.fullmatch("[0-9]{1,9}", count) is None or int(count) > _MOST_PASSED:
        shown = count if len(count) < 20 else f"{count[:20]}..."
        raise InvalidRequest(f"sd-listen: LISTEN_FDS is {shown!r}, not a number up to {_MOST_PASSED}")
    given = names.split(":")[: int(count)]
    return given + [""] * (int(count) - len(given))


class PassedSockets:
    """The sockets that systemd passed on (sd_listen_fds(3)), handed out to the addresses that ask."""

    def __init__(self, environment: MutableMapping[str, str]) -> None:
        """Takes them, and the variables that describe them out of ``environment``, so that nobody takes
        them a second time. Raises ``InvalidRequest``."""
        values = {name: environment.pop(name, "") for name in _PASSED_VARIABLES}
        self._left: list[PassedSocket] = []
        if values["LISTEN_PID"] != str(os.getpid()):
            return
        try:
            for index, name in enumerate(passed_names(values["LISTEN_FDS"], values["LISTEN_FDNAMES"])):
                self._left.append(_passed(_FIRST_PASSED + index, name))
        except BaseException:
            self.close()
            raise

    def take(self, address: InheritedAddress) -> list[PassedSocket]:
        """Those by the name, or all that are left. Raises ``InvalidRequest`` if there is none."""
        taken = [each for each in self._left if address.name in (None, each.name)]
        if not taken:
            known = ", ".join(each.name for each in self._left) or "none"
            raise InvalidRequest(f"{address}: no such socket was passed on by systemd (there: {known})")
        self._left = [each for each in self._left if each not in taken]
        return taken

    def close(self) -> list[str]:
        """Closes those that nobody took; their names."""
        left, self._left = self._left, []
        for each in left:
            each.socket.close()
        return [each.name or "unnamed" for each in left]


def _passed(descriptor: int, name: str) -> PassedSocket:
    shown = f"sd-listen: descriptor {descriptor} ({name or 'unnamed'})"
    try:
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            raise InvalidRequest(f"{shown} is no socket")
        os.set_inheritable(descriptor, False)
        passed = socket.socket(fileno=descriptor)
    except OSError as error:
        raise InvalidRequest(f"{shown}: {error.strerror}") from error
    if (
        passed.family not in (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6)
        or passed.type != socket.SOCK_STREAM
        or not passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    ):
        passed.close()
        raise InvalidRequest(f"{shown} is no listening stream socket")
    return PassedSocket(name, passed)
