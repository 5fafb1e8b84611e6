"""``neve mount``: the store as a file system of this machine."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from neve.cli import output
from neve.cli.background import Ready, in_background
from neve.cli.interrupts import grace
from neve.cli.options import StoreOptions, store_options
from neve.errors import Unavailable
from neve.registry import shown_url
from neve.telemetry import LOGGER

if TYPE_CHECKING:
    from neve.fs.fuse.mounting import Mounted, MountOptions
    from neve.fs.fuse.session import SessionOptions
    from neve.library import Store

_READERS = 2
"""Threads that answer the kernel: one copies contents into it while the other one thinks."""

_SWITCH_SECONDS = 0.0005
"""How long a thread that decodes Directories keeps one waiting that has a request to answer."""

_END_SECONDS = 2.0
"""How long what is under way may take when the file system is unmounted. It is read only: nothing is lost."""

_GRACE_SECONDS = 30.0
"""How long unmounting may take, with a helper on a machine that has a lot to do."""


@click.command()
@click.argument("directory", type=click.Path(path_type=Path), metavar="DIR")
@click.option(
    "--threads",
    type=click.IntRange(1, 1024),
    default=16,
    show_default=True,
    help="Most calls of the store at once; more wait.",
)
@click.option("--allow-other", is_flag=True, help="Let other users look into it, not only you.")
@click.option("--list-root", is_flag=True, help="Let everybody list all store paths, not only look them up.")
@click.option(
    "--show-xattr/--no-show-xattr",
    default=True,
    help="Tell digests as extended attributes (user.tvix.castore.…, user.snix.castore.…).  [default: yes]",
)
@click.option("--nonempty", is_flag=True, help="Mount also where that hides files.")
@click.option("--noexec", is_flag=True, help="Let nothing in it be executed.")
@click.option("--background", is_flag=True, help="Return once it is mounted; log lines go to syslog then.")
@store_options
def mount(directory: Path, store: StoreOptions, background: bool, **options: Any) -> None:
    """Mount the store at DIR, read-only.

    Each store path appears in it by its base name. Ctrl-C, SIGTERM and `umount DIR` end it. Root mounts by
    itself, others need fusermount3 (Debian: fuse3).

    \b
    Example:
      neve mount /mnt
      neve mount --background --allow-other /mnt --store grpc+unix:///run/neve/socket
    """
    from neve.fs.fuse.mounting import MountOptions, check_mount_point
    from neve.fs.fuse.session import SessionOptions

    how = MountOptions(
        source=shown_url(store.url),
        allow_other=options["allow_other"],
        nonempty=options["nonempty"],
        noexec=options["noexec"],
    )
    what = SessionOptions(
        threads=options["threads"], list_root=options["list_root"], show_xattr=options["show_xattr"]
    )
    place = check_mount_point(directory, how)

    def serve(ready: Ready) -> None:
        with grace(_GRACE_SECONDS), store.open() as opened:
            _serve(opened, place, how, what, ready)

    if background:
        in_background(serve)
    else:
        serve(lambda: None)


def _serve(store: Store, place: Path, how: MountOptions, what: SessionOptions, ready: Ready) -> None:
    """Mounts, answers the kernel until it is unmounted, or unmounts at an interrupt."""
    from neve.fs.fuse.device import Device
    from neve.fs.fuse.mounting import mount as mount_at
    from neve.fs.fuse.mounting import unmount
    from neve.fs.fuse.session import Session
    from neve.fs.tree import Tree
    from neve.store.root_nodes import PathInfoRoots

    sys.setswitchinterval(_SWITCH_SECONDS)
    services = store.services
    tree = Tree(services.blobs, services.directories, PathInfoRoots(services.path_infos))
    session = Session(tree, what)
    mounted: Mounted | None = None
    try:
        with _no_interrupts():
            mounted = mount_at(place, how)
        device = Device(mounted.fd, session, _READERS)
        device.start()
        LOGGER.info("mounted %s at %s", how.source, place)
        ready()
        device.wait()
    except KeyboardInterrupt:
        LOGGER.debug("unmounting %s", place)
    except OSError as error:
        raise Unavailable(f"/dev/fuse fails: {error.strerror}") from error
    finally:
        if mounted is not None:
            with _no_interrupts():
                unmount(mounted)
    session.close()
    if not session.wait_until_idle(_END_SECONDS):
        # A store that does not answer would not let itself be closed either.
        LOGGER.debug("not waiting for a call of the store that hangs")
        output.flush()
        os._exit(0)


@contextlib.contextmanager
def _no_interrupts() -> Iterator[None]:
    """In the block, signals wait: it is either mounted and known to be, or not."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
