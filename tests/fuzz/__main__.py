"""Feeds targets for as long as one likes: ``make fuzz``, or ``python -m tests.fuzz`` with arguments.

With atheris, which ``make fuzz`` installs, it is led by what code an input reaches, and what it finds of
interest is kept in ``.fuzz`` for the next time; without, it makes variations at random. An input that
something is wrong with goes into the corpus, where the tests have it from then on: the parser is to be
mended, and the file to be given a name that says what was wrong.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.util
import os
import resource
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from tests.fuzz.target import CORPUS, Target
from tests.fuzz.variations import variations

SCRATCH = Path(".fuzz")

MEMORY_MB = 2048
"""Of a process, with all libraries: an input must not fill the machine."""

SECONDS_PER_INPUT = 10

_ROUNDS = 1000


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Feed parsers with rubbish.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="all of them, if none is named")
    parser.add_argument("--seconds", type=int, default=60, help="for each target (default: %(default)s)")
    parser.add_argument("--led", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.led:
        _led(options.targets[0], options.seconds)
    from tests.fuzz.targets import TARGETS

    for name in options.targets:
        if name not in TARGETS:
            parser.error(f"there is no target {name}; there are: {', '.join(TARGETS)}")
    with_atheris = importlib.util.find_spec("atheris") is not None
    if not with_atheris:
        print("atheris is not installed: variations at random", flush=True)
    failed = [
        name
        for name in options.targets or TARGETS
        if not (_led_elsewhere if with_atheris else _at_random)(TARGETS[name], options.seconds)
    ]
    print(f"failed: {', '.join(failed)}" if failed else "nothing was found")
    return 1 if failed else 0


def _at_random(target: Target, seconds: int) -> bool:
    """Whether all went well, for so many seconds."""
    print(f"== {target.name}", flush=True)
    seeds = list(target.corpus().values())
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        name = f"{target.name} {time.time_ns()}"
        for data in variations(seeds, _ROUNDS, name, target.longest, target.words):
            try:
                target.feed(data)
            except Exception:
                traceback.print_exc()
                file = CORPUS / target.name / f"crash-{hashlib.sha1(data).hexdigest()}"
                file.write_bytes(data)
                print(f"kept as {file}", flush=True)
                return False
            if time.monotonic() > end:
                break
    return True


def _led_elsewhere(target: Target, seconds: int) -> bool:
    """The same in a process of its own: it ends with the first failure, and as it likes."""
    print(f"== {target.name}", flush=True)
    command = [sys.executable, "-m", "tests.fuzz", "--led", "--seconds", str(seconds), target.name]
    done = subprocess.run(command, stderr=subprocess.STDOUT, stdout=subprocess.PIPE)
    if done.returncode:
        sys.stdout.buffer.write(done.stdout)
        sys.stdout.flush()
    return done.returncode == 0


def _led(name: str, seconds: int) -> None:
    """Does not return."""
    # A library that most have not.
    atheris: Any = importlib.import_module("atheris")
    # Whatever is imported now, reports which of its branches are taken.
    with atheris.instrument_imports(include=["neve", "tarfile", "netrc", "shlex", "email"]):
        from tests.fuzz.targets import TARGETS
    target: Target = TARGETS[name]
    interesting = SCRATCH / name
    interesting.mkdir(parents=True, exist_ok=True)
    words = SCRATCH / f"{name}.dict"
    words.write_text("".join(f'"{_escaped(word)}"\n' for word in target.words))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def feed(data: bytes) -> None:
        target.feed(data)

    arguments = [
        f"-max_len={target.longest}",
        f"-max_total_time={seconds}",
        f"-rss_limit_mb={MEMORY_MB}",
        f"-timeout={SECONDS_PER_INPUT}",
        f"-artifact_prefix={CORPUS / name}{os.sep}",
        *([f"-dict={words}"] if target.words else []),
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], *arguments, str(interesting), str(CORPUS / name)], feed)
    atheris.Fuzz()


def _escaped(word: bytes) -> str:
    """As libFuzzer writes the words of a dictionary."""
    return "".join(f"\\x{byte:02X}" for byte in word)


if __name__ == "__main__":
    sys.exit(main())
