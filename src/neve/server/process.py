"""One process that serves: its event loop, and its life as a worker of another process."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from neve.errors import NeveError
from neve.server.app import Binding, Daemon
from neve.server.private import abandon
from neve.server.settings import Endpoint, Settings, from_json
from neve.serving.process import SWITCH_SECONDS, Parent, loop_factory
from neve.serving.stopping import OVERTIME_SECONDS, Deadline, Stop, stop_signals
from neve.store.services import Services

OpenStore = Callable[[], AbstractContextManager[Services]]


def serve(
    services: Services,
    endpoints: Sequence[Endpoint],
    settings: Settings,
    stop: Stop,
    *,
    ready: Callable[[], None],
    stopping: Callable[[], None],
) -> None:
    """Serves until it is asked to stop and calls in flight have ended, or their grace time has.

    ``ready`` is called when it listens, ``stopping`` when it was asked to stop. Raises what these raise,
    and ``Unavailable`` if it cannot listen.
    """
    sys.setswitchinterval(SWITCH_SECONDS)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_serve(services, endpoints, settings, stop, ready, stopping))


async def _serve(
    services: Services,
    endpoints: Sequence[Endpoint],
    settings: Settings,
    stop: Stop,
    ready: Callable[[], None],
    stopping: Callable[[], None],
) -> None:
    daemon = Daemon(services, settings.limits, read_only=settings.read_only)
    grace = 0.0
    try:
        await daemon.start([_binding(endpoint, settings) for endpoint in endpoints])
        ready()
        grace = settings.grace
        await stop.wait()
        stopping()
    finally:
        await daemon.stop(grace)


def _binding(endpoint: Endpoint, settings: Settings) -> Binding:
    if not endpoint.tls:
        return Binding(endpoint.address, admin=endpoint.admin)
    assert settings.tls is not None
    return Binding(endpoint.address, settings.tls.credentials(admin=endpoint.admin), endpoint.admin)


def serve_as_worker(open_store: Callable[[Mapping[str, Any]], AbstractContextManager[Services]]) -> bool:
    """Serves as the worker of the process that started this one. ``open_store`` gets from the
    configuration what belongs to the store. Returns whether it came to serve; if not, the parent knows
    why."""
    parent = Parent()
    # Whoever types Ctrl-C means the parent, which tells us. The signals were blocked until now.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGHUP))
    configuration = parent.configuration()
    settings, endpoints = from_json(configuration)
    stop = Stop()
    deadline = Deadline(lambda: None)
    served = False

    def ready() -> None:
        nonlocal served
        served = True
        parent.report(ready=True)

    def stopping() -> None:
        parent.report(stopping=True)
        deadline.set(settings.grace + OVERTIME_SECONDS)

    with stop_signals(stop.request, lambda: None):
        parent.listen(stop)
        try:
            with open_store(configuration["store"]) as services:
                serve(services, endpoints, settings, stop, ready=ready, stopping=stopping)
        except (NeveError, OSError) as error:
            if served:
                raise
            parent.report(failed=str(error))
        finally:
            deadline.cancel()
            if parent.gone and configuration["folder"] is not None:
                abandon(configuration["folder"])
    return served
