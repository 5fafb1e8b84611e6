"""Whatever would change something is refused, as on any file system that is mounted read-only."""

from __future__ import annotations

import errno

import pytest

from .conftest import Stored
from .mounts import Mount, python, run

pytestmark = pytest.mark.fuse

CHANGES = {
    "create": "open('new', 'x')",
    "create in the root": "open('../new', 'x')",
    "append": "open('text', 'a')",
    "write": "os.open('text', os.O_RDWR)",
    "write only": "os.open('text', os.O_WRONLY)",
    "truncate": "os.truncate('text', 0)",
    "open and truncate": "os.open('text', os.O_WRONLY | os.O_TRUNC)",
    "unnamed file": "os.open('.', os.O_TMPFILE | os.O_RDWR)",
    "remove": "os.unlink('text')",
    "remove a directory": "os.rmdir('empty')",
    "remove a store path": "os.rmdir(os.getcwd())",
    "make a directory": "os.mkdir('new')",
    "make a symlink": "os.symlink('a', 'new')",
    "make a link": "os.link('text', 'new')",
    "make a pipe": "os.mkfifo('new')",
    "rename": "os.rename('text', 'new')",
    "rename into a directory": "os.rename('text', 'bin/text')",
    "change the mode": "os.chmod('text', 0o600)",
    "change the owner": "os.chown('text', 1, 1)",
    "change the times": "os.utime('text')",
    "set an attribute": "os.setxattr('text', 'user.x', b'x')",
    "remove an attribute": "os.removexattr('text', 'user.tvix.castore.blob.digest')",
}

TRY = """
import os, sys
os.chdir(sys.argv[1])
try:
    {change}
except OSError as error:
    print(error.errno)
"""


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_refused(stored: Stored, shared_mount: Mount, change: str) -> None:
    result = python(TRY.format(change=CHANGES[change]), shared_mount.path(stored.base_name))
    assert (result.stdout, result.stderr) == (f"{errno.EROFS}\n", "")


def test_nothing_has_changed(stored: Stored, shared_mount: Mount) -> None:
    for change in CHANGES.values():
        python(TRY.format(change=change), shared_mount.path(stored.base_name))
    result = run("diff", "--recursive", "--no-dereference", stored.tree, shared_mount.path(stored.base_name))
    assert (result.returncode, result.stdout) == (0, "")
