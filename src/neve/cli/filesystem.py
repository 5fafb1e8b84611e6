"""What ``mount`` and ``virtiofs`` share: options, the tree that is shown, and how it ends."""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from neve.cli import output
from neve.telemetry import LOGGER

if TYPE_CHECKING:
    from neve.fs.fuse.session import Session
    from neve.fs.tree import Tree
    from neve.library import Store

_SWITCH_SECONDS = 0.0005
"""How long a thread that decodes Directories keeps one waiting that has a request to answer."""

_COLLECT_AFTER = 50_000
"""New objects before Python looks for cycles among them. What a file system keeps has none, and there may be
hundreds of thousands of them to look at in vain."""

_END_SECONDS = 2.0
"""How long what is under way may take at the end. It is read only: nothing is lost."""


def session_options(who: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Adds the options that say how a store is shown to ``who``; the command gets them as
    ``session: SessionOptions``."""
    options = [
        click.option(
            "--threads",
            type=click.IntRange(1, 1024),
            default=16,
            show_default=True,
            help="Most calls of the store at once; more wait.",
        ),
        click.option(
            "--list-root", is_flag=True, help=f"Let {who} list all store paths, not only look them up."
        ),
        click.option(
            "--show-xattr/--no-show-xattr",
            default=True,
            help="Tell digests as extended attributes (user.tvix.castore.…, user.snix.castore.…).  "
            "[default: yes]",
        ),
    ]

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @wraps(function)
        def command(threads: int, list_root: bool, show_xattr: bool, **others: Any) -> None:
            from neve.fs.fuse.session import SessionOptions

            session = SessionOptions(threads=threads, list_root=list_root, show_xattr=show_xattr)
            function(session=session, **others)

        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def shown(store: Store) -> Tree:
    """The tree of a store's paths; from now on, who has a request to answer has his turn soon, whatever is
    decoded or collected meanwhile."""
    from neve.fs.tree import Tree
    from neve.store.root_nodes import PathInfoRoots

    sys.setswitchinterval(_SWITCH_SECONDS)
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER, 20, 20)
    return Tree(store.blobs, store.directories, PathInfoRoots(store.path_infos))


def leave(sessions: Sequence[Session]) -> None:
    """Waits a little for calls of the store that sessions, which are closed, still make; ends the process
    if they go on: a store that does not answer would not let itself be closed either."""
    end = time.monotonic() + _END_SECONDS
    if not all(session.wait_until_idle(max(end - time.monotonic(), 0)) for session in sessions):
        LOGGER.debug("not waiting for a call of the store that hangs")
        output.flush()
        os._exit(0)
