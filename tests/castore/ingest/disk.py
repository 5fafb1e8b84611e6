"""Trees on disk, as odd as they come, and running as somebody who may not read everything."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from neve.castore.ingest.exclude import Exclude
from neve.castore.ingest.filesystem import FilesystemWalk
from neve.tree import BeginFile, Data, EndFile, Event, File

NOBODY = 65534


def events_of(path: bytes | Path, *, exclude: Exclude | None = None) -> list[Event]:
    """The events of a walk, batches joined."""
    return [event for batch in FilesystemWalk(os.fsencode(path), exclude=exclude) for event in batch]


def joined(events: list[Event]) -> list[Event]:
    """The events with every large file as one ``File``."""
    result: list[Event] = []
    begun: BeginFile | None = None
    pieces: list[bytes] = []
    for event in events:
        if isinstance(event, BeginFile):
            begun, pieces = event, []
        elif isinstance(event, Data):
            pieces.append(event.data)
        elif isinstance(event, EndFile):
            assert begun is not None
            assert sum(map(len, pieces)) == begun.size
            result.append(File(begun.name, begun.executable, b"".join(pieces)))
        else:
            result.append(event)
    return result


def make_deep(place: bytes, depth: int, name: bytes = b"dir0") -> None:
    """``depth`` directories inside each other in the directory ``place``, each with a file before and
    after the next one, and a file ``bottom``."""
    fd = os.open(place, os.O_RDONLY)
    try:
        for level in range(depth):
            os.mkdir(name, dir_fd=fd)
            for sibling in (b"a", b"z"):
                write_at(fd, sibling, b"%b%d" % (sibling, level))
            following = os.open(name, os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = following
        write_at(fd, b"bottom", b"bottom")
    finally:
        os.close(fd)


def write_at(fd: int, name: bytes, contents: bytes) -> None:
    file = os.open(name, os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=fd)
    os.write(file, contents)
    os.close(file)


@contextmanager
def public_folder() -> Iterator[Path]:
    """A folder that everybody may look into, and that may hold trees too deep for ``shutil``."""
    # In memory where that is possible: making and removing thousands of directories takes its time.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="neve-test-", dir=memory))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        remove_all(folder)


def remove_all(folder: Path) -> None:
    """Removes a tree that ``shutil`` cannot: too deep, or folders without write permission."""
    subprocess.run(["chmod", "-R", "u+rwx", folder], check=False, capture_output=True)
    subprocess.run(["rm", "-rf", folder], check=True)


def as_nobody(imports: str, code: str, *arguments: str | Path) -> str:
    """Runs Python code as a user without rights, after its imports; what it prints.

    Where the tests are not run by root, they are that user.
    """
    drop = ""
    if os.geteuid() == 0:
        drop = f"os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})"
    script = "\n".join(["import os, sys", imports, drop, code])
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
