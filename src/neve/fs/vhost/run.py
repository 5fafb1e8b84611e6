"""Serving guests from one process, until a signal ends it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field

from neve.fs.vhost.device import DeviceOptions
from neve.fs.vhost.ring import Handler
from neve.fs.vhost.server import Server
from neve.serving.addresses import UnixAddress
from neve.serving.manager import Beat, ServiceManager
from neve.serving.process import raise_file_limit
from neve.serving.sockets import UnixPath
from neve.serving.stopping import OVERTIME_SECONDS, Deadline, stop_signals
from neve.telemetry import LOGGER

OpenHandlers = Callable[[], contextlib.AbstractContextManager[Callable[[], Handler]]]
"""Opens what makes a handler for each front-end."""


@dataclass(frozen=True, kw_only=True)
class GuestOptions:
    """Where to listen, and what the device is like."""

    address: UnixAddress
    socket_mode: int
    socket_group: int | None = None
    device: DeviceOptions = field(default_factory=DeviceOptions)


def run_virtiofs(
    options: GuestOptions, open_handlers: OpenHandlers, manager: ServiceManager | None = None
) -> None:
    """Serves until a signal ends it; then the socket is gone. ``manager`` is told how it goes. To be called
    in the main thread.

    Raises what opening raises, and ``Conflict``, ``PermissionDenied`` and ``Unavailable`` if it cannot
    listen.
    """
    raise_file_limit()
    manager = manager or ServiceManager()
    with contextlib.ExitStack() as stack:
        path = UnixPath(options.address, options.socket_mode, options.socket_group)
        stack.callback(path.close)
        deadline = Deadline(path.withdraw)
        stack.callback(deadline.cancel)
        listener = stack.enter_context(path.bind())
        server = Server(listener, options.device, Beat(manager.beat_seconds, manager.alive))
        stack.callback(server.close)

        def stop() -> None:
            deadline.set(OVERTIME_SECONDS)
            manager.stopping("stopping", OVERTIME_SECONDS)
            server.stop()

        stack.enter_context(stop_signals(stop, path.withdraw))
        handlers = stack.enter_context(open_handlers())
        path.publish()
        LOGGER.info("listening on %s", options.address)
        manager.ready(f"listening on {options.address}")
        try:
            server.run(handlers)
        finally:
            path.withdraw()
