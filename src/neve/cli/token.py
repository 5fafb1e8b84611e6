"""Tokens of a binary cache: ``token``."""

from __future__ import annotations

import contextlib
import os

import click

from neve.cli import output
from neve.cli.server_options import FILE
from neve.errors import Conflict, NotFound


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

    try:
        known = read_tokens(path)
    except NotFound:
        known = ()
    if any(each.name == name for each in known):
        raise Conflict(f"{path} has a token named {name} already; delete its line first")
    try:
        # No secret; but who may write it may let himself in, whatever the umask.
        with open(path, "a+b", opener=lambda name, flags: os.open(name, flags, 0o644)) as file:
            end = file.tell()
            file.seek(max(0, end - 1))
            broken = end > 0 and file.read(1) != b"\n"
            _write_or_cut(file.fileno(), end, (b"\n" if broken else b"") + line.encode() + b"\n")
    except OSError as error:
        raise translate_os_error(error, f"cannot write {path}") from error


def _write_or_cut(descriptor: int, end: int, data: bytes) -> None:
    """Appends to a file that ends at ``end``. What fails leaves nothing: not half a line, which no server
    takes, nor a name that the next attempt would find taken."""
    try:
        while data:
            data = data[os.write(descriptor, data) :]
        os.fsync(descriptor)
    except BaseException:
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, end)
        raise
