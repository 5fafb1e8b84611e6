"""How gRPC's library is set up, by environment variables that it reads when it is loaded.

For programs of our own: the command line and the benchmarks. A library must not change the environment of
a program that it is a part of, so others set these themselves if they want them.
"""

from __future__ import annotations

from collections.abc import MutableMapping

_SETTINGS = {
    # It would log lines of its own, for instance when a server goes.
    "GRPC_VERBOSITY": "NONE",
    # Its older way of polling takes a fifth less time for a small call than the newer one that is the
    # default, and moves half as much again in a stream (benchmarks/daemon.py tells, with and without).
    "GRPC_EXPERIMENTS": "-event_engine_client,-event_engine_listener",
}


def tune(environment: MutableMapping[str, str]) -> None:
    """Sets what is not set already. Must come before gRPC is imported."""
    for name, value in _SETTINGS.items():
        environment.setdefault(name, value)
