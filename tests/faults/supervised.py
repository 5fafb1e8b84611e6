"""Something done in a process of its own, all of whose writes are seen, and one of which goes wrong."""

from __future__ import annotations

import mmap
import os
import select
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from tests.faults import seccomp
from tests.faults.seccomp import Kind, Request

SECONDS = 120
"""Whatever takes longer hangs."""

_MAX_PATH = 4096
_IOVEC = struct.Struct("<QQ")


class Way(Enum):
    """How a call goes wrong."""

    ERROR = "error"
    """It fails, once."""
    FULL = "full"
    """It fails, and so does from then on all that needs room."""
    BROKEN = "broken"
    """It fails, and so do all that follow."""
    SHORT = "short"
    """It writes half, and says so; what follows goes well."""
    TORN = "torn"
    """It writes half, and the process dies."""
    DEATH = "death"
    """The process dies before it."""


NEEDS_ROOM = (Kind.WRITE, Kind.CREATE, Kind.MOVE)


class Fault(NamedTuple):
    """At which call, counted from 0, what happens."""

    at: int
    way: Way
    error: int = 0

    def __str__(self) -> str:
        reason = f" {os.strerror(self.error)!r}" if self.error else ""
        return f"{self.way.value}{reason} at call {self.at}"


class Call(NamedTuple):
    """A call that was seen."""

    kind: Kind
    name: str
    path: str
    size: int
    """Bytes that it writes."""


@dataclass
class Outcome:
    """What became of it."""

    status: int = 0
    """The exit code, or less than 0: the signal of which it died."""
    output: str = ""
    errors: str = ""
    calls: list[Call] = field(default_factory=list)
    struck: Call | None = None
    """The call that went wrong."""


def run(
    action: Callable[[], int],
    folder: Path,
    scratch: Path,
    fault: Fault | None = None,
    *,
    watch: bool = True,
) -> Outcome:
    """Has a child do ``action``, which returns its exit code. The calls that count are those about what lies
    in ``folder``; what it prints goes through files in ``scratch``, which is not in there."""
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        ours.close()
        _be_the_child(action, scratch, theirs if watch else None)
    theirs.close()
    outcome = Outcome()
    try:
        with ours:
            if watch:
                _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
                _Supervisor(descriptors[0], child, folder, fault, outcome).run()
        outcome.status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    except BaseException:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
    outcome.output = (scratch / "output").read_text(errors="replace")
    outcome.errors = (scratch / "errors").read_text(errors="replace")
    return outcome


def _be_the_child(action: Callable[[], int], scratch: Path, supervisor: socket.socket | None) -> None:
    status = 99
    try:
        for number, name in ((1, "output"), (2, "errors")):
            os.dup2(os.open(scratch / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        if supervisor is not None:
            listener = seccomp.install()
            socket.send_fds(supervisor, [b"x"], [listener])
            os.close(listener)
            supervisor.close()
        status = action()
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


class _Supervisor:
    """Who answers the calls of one child."""

    def __init__(
        self, listener: int, child: int, folder: Path, fault: Fault | None, outcome: Outcome
    ) -> None:
        self._listener = listener
        self._child = child
        self._folder = f"{folder}/"
        self._fault = fault
        self._outcome = outcome

    def run(self) -> None:
        """Until the child has ended."""
        end = time.monotonic() + SECONDS
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        try:
            while True:
                events = poll.poll(max(0, end - time.monotonic()) * 1000)
                if not events:
                    raise AssertionError(f"it takes longer than {SECONDS} s")
                if not events[0][1] & select.POLLIN:
                    return
                try:
                    request = seccomp.receive(self._listener)
                except FileNotFoundError:
                    continue
                self._answer(request)
        finally:
            os.close(self._listener)

    def _answer(self, request: Request) -> None:
        try:
            call = self._call(request)
        except OSError:  # It died meanwhile, or names nothing that there is: it is told so by the kernel.
            call = None
        if call is None:
            seccomp.go_on(self._listener, request)
            return
        number = len(self._outcome.calls)
        self._outcome.calls.append(call)
        if self._fault is None or number < self._fault.at:
            seccomp.go_on(self._listener, request)
        elif number == self._fault.at:
            self._outcome.struck = call
            self._strike(request, call, self._fault)
        elif self._goes_on_failing(call, self._fault):
            seccomp.fail(self._listener, request, self._fault.error)
        else:
            seccomp.go_on(self._listener, request)

    def _goes_on_failing(self, call: Call, fault: Fault) -> bool:
        return fault.way is Way.BROKEN or (fault.way is Way.FULL and call.kind in NEEDS_ROOM)

    def _strike(self, request: Request, call: Call, fault: Fault) -> None:
        if fault.way in (Way.ERROR, Way.FULL, Way.BROKEN):
            seccomp.fail(self._listener, request, fault.error)
            return
        half = fault.way is not Way.DEATH and call.kind is Kind.WRITE  # Calls of threads may change places.
        written = self._write_half(request, call) if half else 0
        if fault.way is Way.SHORT and not half:
            seccomp.go_on(self._listener, request)
        elif fault.way is Way.SHORT:
            seccomp.give(self._listener, request, written)
        else:
            os.kill(self._child, signal.SIGKILL)

    def _call(self, request: Request) -> Call | None:
        """None: it is of no interest."""
        shape, arguments = request.shape, request.arguments
        if shape.path is not None and arguments[shape.path]:
            path = self._path(request, arguments[shape.path])
            if shape.flags is not None and os.path.lexists(path) and not os.path.isdir(path):
                return None  # Opening what is there makes nothing.
        elif shape.fd is not None:
            path = os.readlink(f"/proc/{request.thread}/fd/{arguments[shape.fd]}")
        elif shape.folder is not None:  # A descriptor and no path.
            path = os.readlink(f"/proc/{request.thread}/fd/{arguments[shape.folder]}")
        else:
            return None
        if not f"{path}/".startswith(self._folder):
            return None
        size = sum(length for _, length in self._pieces(request)) if shape.kind is Kind.WRITE else 0
        return Call(shape.kind, shape.name, path[len(self._folder) :], size)

    def _path(self, request: Request, address: int) -> str:
        # It may end before the end of the memory's last page.
        data = self._memory(request, address, min(_MAX_PATH, 4096 - address % 4096))
        if b"\0" not in data:
            data += self._memory(request, address + len(data), _MAX_PATH)
        path = os.fsdecode(data.partition(b"\0")[0])
        folder = request.shape.folder
        number = -100 if folder is None else (request.arguments[folder] ^ 1 << 31) % (1 << 32) - (1 << 31)
        base = f"/proc/{request.thread}/" + ("cwd" if number == -100 else f"fd/{number}")
        return os.path.normpath(os.path.join(os.readlink(base), path))

    def _memory(self, request: Request, address: int, size: int) -> bytes:
        with open(f"/proc/{request.thread}/mem", "rb", buffering=0) as memory:
            return os.pread(memory.fileno(), size, address)

    def _pieces(self, request: Request) -> list[tuple[int, int]]:
        """Where in its memory lies what is to be written: addresses and lengths."""
        name, arguments = request.shape.name, request.arguments
        if name in ("write", "pwrite64"):
            return [(arguments[1], arguments[2])]
        if name in ("writev", "pwritev", "pwritev2"):
            vector = self._memory(request, arguments[1], _IOVEC.size * arguments[2])
            return list(_IOVEC.iter_unpack(vector))
        raise AssertionError(f"nothing is known of what {name} writes")

    def _write_half(self, request: Request, call: Call) -> int:
        """Writes the first half of it in its place."""
        wanted = call.size // 2
        data = b""
        for address, length in self._pieces(request):
            data += self._memory(request, address, min(length, wanted - len(data)))
        file = seccomp.same_descriptor(self._child, request.arguments[0])
        try:
            if request.shape.name.startswith("p"):
                return os.pwrite(file, data, request.arguments[3])
            # In pages of its own: LMDB copies itself past the kernel's cache, which demands that.
            with mmap.mmap(-1, max(len(data), 1)) as pages:
                pages.write(data)
                with memoryview(pages) as view:
                    return os.write(file, view[: len(data)])
        finally:
            os.close(file)
