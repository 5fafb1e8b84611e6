"""``neve mount``: the store as a file system of this machine."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from neve.cli.background import Ready, in_background
from neve.cli.filesystem import leave, session_options, shown
from neve.cli.interrupts import Postponed, grace
from neve.cli.options import StoreOptions, store_options
from neve.cli.tracing import traced
from neve.errors import Unavailable
from neve.telemetry import LOGGER

if TYPE_CHECKING:
    from neve.fs.fuse.mounting import MountOptions
    from neve.fs.fuse.session import SessionOptions
    from neve.library import Store
    from neve.serving.manager import ServiceManager

_READERS = 2
"""Threads that answer the kernel: one copies contents into it while the other one thinks."""

_GRACE_SECONDS = 30.0
"""How long unmounting may take, with a helper on a machine that has a lot to do."""


@click.command()
@click.argument("directory", type=click.Path(path_type=Path), metavar="DIR")
@click.option("--allow-other", is_flag=True, help="Let other users look into it, not only you.")
@session_options("everybody")
@click.option("--nonempty", is_flag=True, help="Mount also where that hides files.")
@click.option("--noexec", is_flag=True, help="Let nothing in it be executed.")
@click.option("--background", is_flag=True, help="Return once it is mounted; log lines go to syslog then.")
@store_options
def mount(
    directory: Path, store: StoreOptions, session: SessionOptions, background: bool, **options: Any
) -> None:
    """Mount the store at DIR, read-only.

    Each store path appears in it by its base name. Ctrl-C, SIGTERM and `umount DIR` end it. Root mounts by
    itself, others need fusermount3 (Debian: fuse3).

    \b
    Example:
      neve mount /mnt
      neve mount --background --allow-other /mnt --store grpc+unix:///run/neve/socket
    """
    from neve.fs.fuse.mounting import MountOptions, check_mount_point, is_automount
    from neve.serving.manager import ServiceManager

    how = MountOptions(
        source=store.shown(),
        allow_other=options["allow_other"],
        nonempty=options["nonempty"],
        noexec=options["noexec"],
    )
    place = check_mount_point(directory, how)

    otlp = click.get_current_context().find_root().params["otlp"]

    # What goes on in the background has a process of its own, of which nobody waits to hear.
    manager = ServiceManager(None if background else os.environ)

    def serve(ready: Ready) -> None:
        with grace(_GRACE_SECONDS), traced(otlp, "mount"), store.open_for_use() as opened:
            _serve(opened, place, how, session, ready, manager)

    if background:
        in_background(serve, same_group=is_automount(place))
    else:
        serve(lambda: None)


def _serve(
    store: Store,
    place: Path,
    how: MountOptions,
    what: SessionOptions,
    ready: Ready,
    manager: ServiceManager,
) -> None:
    """Mounts, answers the kernel until it is unmounted, or unmounts at an interrupt."""
    from neve.fs.fuse.device import Device
    from neve.fs.fuse.mounting import mount as mount_at
    from neve.fs.fuse.mounting import unmount
    from neve.fs.fuse.session import Session

    session = Session(shown(store), what)
    with Postponed() as interrupts:  # It is either mounted and known to be, or not.
        mounted = mount_at(place, how)
        device = Device(mounted.fd, session, _READERS)
        try:
            device.start()
            with interrupts.taken():
                LOGGER.info("mounted %s at %s", how.source, place)
                ready()
                manager.ready(f"mounted {how.source} at {place}")
                with _watched(place, manager):
                    device.wait()
        except KeyboardInterrupt:
            LOGGER.debug("unmounting %s", place)
            manager.stopping(f"unmounting {place}", _GRACE_SECONDS)
        except OSError as error:
            raise Unavailable(f"/dev/fuse fails: {error.strerror}") from error
        finally:
            unmount(mounted, everywhere=not device.wait_at_most(0))
    session.close()
    leave([session])


@contextlib.contextmanager
def _watched(place: Path, manager: ServiceManager) -> Iterator[None]:
    """In the block, the manager is told that all is well while the kernel gets answers from us."""
    over = threading.Event()

    def ask() -> None:
        with contextlib.suppress(OSError):  # It is unmounted: the end is near.
            while not over.wait(manager.beat_seconds):
                os.statvfs(place)
                manager.alive()

    if manager.beat_seconds is not None:
        threading.Thread(target=ask, name="neve-watch", daemon=True).start()
    try:
        yield
    finally:
        over.set()
