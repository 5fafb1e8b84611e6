"""Tokens of a binary cache: ``token``."""

from __future__ import annotations

import contextlib
import fcntl
import os

import click

from neve.cli import output
from neve.cli.server_options import FILE
from neve.errors import Conflict, NotFound

_COMMENT = b"#"


@click.command()
@click.argument("name")
@click.option("--push", is_flag=True, help="It may push too, not only pull.")
@click.option("--file", "path", type=FILE, help="Append its line to this file, made if it is missing.")
def token(name: str, push: bool, path: str | None) -> None:
    """Make a token for a binary cache.

    Writes the token, which is for the client, and then its line for the file that `neve serve
    --token-file` reads; with --file, the token only. The line has a hash of the token: who reads it
    cannot use it. NAME says whose it is. To take a token back, delete its line.

    \b
    Example:
      neve token ci --push --file /etc/neve/tokens
    """
    from neve.http_cache.tokens import PULL, PUSH, generate

    secret, line = generate(name, (PULL, PUSH) if push else (PULL,))
    if path is not None:
        _append(path, name, line)
    output.line(secret)
    if path is None:
        output.line(line)


def _append(path: str, name: str, line: str) -> None:
    """Adds a line to a file of tokens, which must have none by that name. Raises ``Conflict``, and what
    reading it raises."""
    from neve.http_cache.tokens import read_tokens
    from neve.packstore.layout import translate_os_error

    with contextlib.suppress(NotFound):
        read_tokens(path)  # Before it is opened: what is none is left alone.
    try:
        # No secret; but who may write it may let himself in, whatever the umask.
        with open(path, "r+b", opener=lambda name, flags: os.open(name, flags | os.O_CREAT, 0o644)) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if any(each.name == name for each in read_tokens(path)):
                raise Conflict(f"{path} has a token named {name} already; delete its line first")
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - 1))
            begun = b"\n" if end > 0 and file.read(1) != b"\n" else b""
            _write_or_cut(file.fileno(), end, begun, line.encode())
    except OSError as error:
        raise translate_os_error(error, f"cannot write {path}") from error


def _write_or_cut(descriptor: int, end: int, begun: bytes, line: bytes) -> None:
    """Adds to a file that ends at ``end``. What fails leaves nothing, not a name that the next attempt would
    find taken. Whoever dies leaves a line or, at worst, a comment: half a line, no server takes. The file
    gets longer once more at the end: a server that has read the comment may see no other change, for the
    times of a file are those of a clock that stands still for some milliseconds."""
    from neve.packstore.layout import write_whole

    try:
        os.lseek(descriptor, end, os.SEEK_SET)
        write_whole(descriptor, begun + _COMMENT + line[1:])
        os.fsync(descriptor)
        os.pwrite(descriptor, line[:1], end + len(begun))
        write_whole(descriptor, b"\n")
        os.fsync(descriptor)
    except BaseException:
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, end)
        raise
