"""Store paths for the guests of virtual machines: ``virtiofs``."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import click

from neve.cli.filesystem import leave, session_options, shown
from neve.cli.options import StoreOptions, store_options
from neve.cli.server_options import OWNER_AND_GROUP, OWNER_ONLY, GroupType, ModeType
from neve.errors import InvalidRequest

if TYPE_CHECKING:
    from neve.fs.fuse.session import SessionOptions
    from neve.fs.vhost.ring import Handler
    from neve.serving.addresses import UnixAddress


@click.command()
@click.argument("socket", metavar="SOCKET")
@session_options("the guest")
@click.option(
    "--tag",
    metavar="NAME",
    help="Name of the file system, for a VMM that asks the device for it. QEMU does not: it is given one.",
)
@click.option(
    "--unsealed-memory",
    is_flag=True,
    help="Take guest memory that may shrink, such as memory-backend-file. If it does, this process dies.",
)
@click.option(
    "--socket-mode",
    type=ModeType(),
    help="Permission bits of the socket.  [default: 0600, with --socket-group 0660]",
)
@click.option("--socket-group", type=GroupType(), metavar="GROUP", help="Group of the socket.")
@store_options
def virtiofs(
    socket: str,
    session: SessionOptions,
    tag: str | None,
    unsealed_memory: bool,
    socket_mode: int | None,
    socket_group: int | None,
    store: StoreOptions,
) -> None:
    """Serve store paths to the guest of a virtual machine, as a virtio-fs device.

    It listens on SOCKET for a VMM that speaks vhost-user, one at a time, and serves the next one when it has
    gone. The memory of the guest must be shared. SIGTERM and Ctrl-C end it.

    \b
    Example:
      neve virtiofs /run/neve-fs.sock
      qemu-system-x86_64 -m 2G ... \\
        -object memory-backend-memfd,id=mem,size=2G,share=on -numa node,memdev=mem \\
        -chardev socket,id=fs,path=/run/neve-fs.sock \\
        -device vhost-user-fs-pci,chardev=fs,tag=store,queue-size=1024
      mount -t virtiofs -o ro store /nix/store    # in the guest
    """
    from neve.fs.vhost.device import DeviceOptions
    from neve.fs.vhost.run import GuestOptions, run_virtiofs
    from neve.serving.manager import ServiceManager

    default_mode = OWNER_ONLY if socket_group is None else OWNER_AND_GROUP
    options = GuestOptions(
        address=_address(socket),
        socket_mode=default_mode if socket_mode is None else socket_mode,
        socket_group=socket_group,
        device=DeviceOptions(tag=_tag(tag), unsealed_memory=unsealed_memory),
    )
    run_virtiofs(options, lambda: _sessions(store, session), ServiceManager(os.environ))


@contextlib.contextmanager
def _sessions(store: StoreOptions, options: SessionOptions) -> Iterator[Callable[[], Handler]]:
    """What makes a session for each front-end, over one opened store."""
    from neve.fs.fuse.session import Session

    sessions: list[Session] = []

    class GuestSession(Session):
        def close(self) -> None:
            """Nothing of it stays, which may be much, unless a call of the store still hangs."""
            super().close()
            sessions[:] = [session for session in sessions if not session.wait_until_idle(0)]

    def make() -> Session:
        sessions.append(GuestSession(shown(opened), options))
        return sessions[-1]

    with store.open_for_use() as opened:
        yield make
        leave(sessions)


def _address(text: str) -> UnixAddress:
    """The socket, which may be given relative to the current folder."""
    from neve.serving.addresses import UnixAddress, parse_listen_address

    if not text:
        raise click.UsageError("the path of the socket is empty")
    scheme = "unix:"
    try:
        address = parse_listen_address(f"{scheme}{os.path.abspath(text.removeprefix(scheme))}")
    except InvalidRequest as error:
        raise click.UsageError(str(error)) from error
    assert isinstance(address, UnixAddress)
    return address


def _tag(text: str | None) -> bytes | None:
    from neve.fs.vhost.device import TAG_BYTES

    if text is None:
        return None
    tag = os.fsencode(text)
    if not 1 <= len(tag) <= TAG_BYTES or b"\0" in tag:
        raise click.UsageError(f"--tag: {text!r} has not 1 to {TAG_BYTES} bytes")
    return tag
