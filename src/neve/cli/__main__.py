"""``neve`` and ``python -m neve.cli``: runs a command, and makes what it raises an exit code and one line.

====  =================================================================
0     everything asked for was done
1     it failed; also: whoever read stdout has gone (then silently)
2     wrong usage
130   interrupted (128 and the number of the signal: 143 after SIGTERM)
====  =================================================================
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import NoReturn

import click

from neve.cli import logs, output
from neve.cli.commands import cli
from neve.errors import NeveError

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_GRACE_SECONDS = 3.0
"""How long what was interrupted may take to tidy up. A store needs none of it: it survives a crash."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line (default: that of the process); returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    logs.configure(logging.INFO, as_json=False)
    with _interruptible():
        code = _guarded(lambda: _run(arguments))
        return _guarded(output.flush) or code


def _run(arguments: list[str]) -> None:
    # Not cli.main: that has ideas of its own about interrupts, broken pipes and messages.
    with cli.make_context("neve", arguments) as context:
        cli.invoke(context)


def _guarded(run: Callable[[], None]) -> int:
    """The exit code for how ``run`` ends; says on stderr what went wrong."""
    try:
        run()
    except click.exceptions.Exit as request:
        return request.exit_code
    except KeyboardInterrupt as interrupt:
        return _fail(interrupt, "interrupted", 128 + getattr(interrupt, "signal", signal.SIGINT))
    except BrokenPipeError:
        output.discard()
        return 1
    except click.UsageError as error:
        return _fail(error, _usage_message(error), error.exit_code)
    except click.ClickException as error:
        return _fail(error, error.format_message(), error.exit_code)
    except NeveError as error:
        return _fail(error, str(error))
    except MemoryError as error:
        return _fail(error, "out of memory")
    except OSError as error:
        return _fail(error, _os_message(error))
    except Exception as error:
        return _fail(error, f"internal error, please report it: {type(error).__name__}: {error}")
    return 0


def _fail(error: BaseException, message: str, code: int = 1) -> int:
    if logs.is_debug():
        traceback.print_exception(error)
    with contextlib.suppress(OSError):
        logs.failure(message)
    return code


def _usage_message(error: click.UsageError) -> str:
    message = " ".join(error.format_message().split()).removesuffix(".")
    command = error.ctx.command_path if error.ctx is not None else "neve"
    return f"{message[:1].lower()}{message[1:]}; see: {command} --help"


def _os_message(error: OSError) -> str:
    reason = error.strerror or str(error)
    return reason if error.filename is None else f"{os.fsdecode(error.filename)}: {reason}"


class _Interrupted(KeyboardInterrupt):
    """Raised in the main thread by one of the signals that end a command."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.signal = number


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Makes SIGINT, SIGTERM and SIGHUP end the block by an exception, and the process soon after.

    A second signal ends it at once. Signals that whoever started the process had ignored stay so.
    """
    received: list[int] = []

    def interrupt(number: int, _: FrameType | None) -> None:
        received.append(number)
        if len(received) > 1:
            _exit_now(number)
        threading.Thread(target=_exit_later, args=(number, over), daemon=True).start()
        raise _Interrupted(number)

    over = threading.Event()
    previous = {}
    if threading.current_thread() is threading.main_thread():
        handlers = {number: signal.getsignal(number) for number in _SIGNALS}
        previous = {n: h for n, h in handlers.items() if h in (signal.SIG_DFL, signal.default_int_handler)}
        for number in previous:
            signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        over.set()


def _exit_later(number: int, over: threading.Event) -> None:
    if not over.wait(_GRACE_SECONDS):
        _exit_now(number)


def _exit_now(number: int) -> NoReturn:
    if sys.stderr is not None and sys.stderr.isatty():
        # Where a progress bar may have been: clears the line and shows the cursor again.
        os.write(sys.stderr.fileno(), b"\r\x1b[K\x1b[?25h")
    os._exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
