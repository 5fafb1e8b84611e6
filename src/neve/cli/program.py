"""Runs a command, and makes of what it raises an exit code and one line on stderr."""

from __future__ import annotations

import os

import click

from neve.cli import completion, logs, output
from neve.cli.commands import cli
from neve.errors import NeveError


def run(arguments: list[str]) -> int:
    """Runs one command line; returns its exit code. Raises nothing but ``KeyboardInterrupt``."""
    if completion.asked():
        return completion.answer(cli)
    try:
        invoke(arguments)
        return 0
    except click.exceptions.Exit as request:
        return request.exit_code
    except BrokenPipeError:
        output.discard()
        return 1
    except Exception as error:
        logs.failure(_message(error), error)
        return error.exit_code if isinstance(error, click.ClickException) else 1


def invoke(arguments: list[str]) -> None:
    """Runs one command line. Raises what the command raises, and ``click.exceptions.Exit``."""
    try:
        # Not cli.main: that has ideas of its own about interrupts, broken pipes and messages.
        with cli.make_context("neve", arguments) as context:
            cli.invoke(context)
    finally:
        output.flush()


def _message(error: Exception) -> str:
    """What to tell about a failure."""
    if isinstance(error, click.UsageError):
        return _usage_message(error)
    if isinstance(error, click.ClickException):
        return error.format_message()
    if isinstance(error, NeveError):
        return str(error)
    if isinstance(error, MemoryError):
        return "out of memory"
    if isinstance(error, OSError):
        return _os_message(error)
    return f"internal error, please report it: {type(error).__name__}: {error}"


def _usage_message(error: click.UsageError) -> str:
    message = " ".join(error.format_message().split()).removesuffix(".")
    command = error.ctx.command_path if error.ctx is not None else "neve"
    return f"{message[:1].lower()}{message[1:]}; see: {command} --help"


def _os_message(error: OSError) -> str:
    reason = error.strerror or str(error)
    return reason if error.filename is None else f"{os.fsdecode(error.filename)}: {reason}"
