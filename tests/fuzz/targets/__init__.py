"""The table: every parser of neve that reads what strangers wrote.

What is not here: messages of gRPC as such and TLS, which libraries read; and what only neve itself writes
behind a key or a checksum of its own (spools, frames of the index), beyond what is here.
"""

from __future__ import annotations

from tests.fuzz.target import Target
from tests.fuzz.targets import (
    addresses,
    castore,
    compression,
    disk,
    fuse,
    http,
    nix,
    objects,
    operation,
    remote,
    served,
    stores,
    telemetry,
    vhost,
)

TARGETS: dict[str, Target] = {
    target.name: target
    for module in (
        *(nix, compression, castore, objects, disk, stores, addresses, remote, http, served, telemetry),
        *(fuse, vhost, operation),
    )
    for target in module.TARGETS
}
