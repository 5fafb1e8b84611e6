"""What a mirror costs in memory: bounded, however many objects there are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from neve.tree import LEAVE_DIRECTORY, EnterDirectory, Event, File

from .stores import add, check_whole, fill, store

SCRIPT = """
import resource, sys
from neve.store.mirror import mirror
from neve.store.services import open_services
source, target, more = map(open_services, sys.argv[1:])
assert mirror(more, target).copied  # What this loads and keeps is not counted.
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
report = mirror(source, target)
assert (report.copied, report.failures) == (1, {}), report
print(report.blobs, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.slow
def test_many_small_files(tmp_path: Path) -> None:
    """Groups on their way, decompressed frames, digests of Directories: none of it grows with the files.

    They take 15 MB as they are, and several times that as Python's objects.
    """
    events: list[Event] = [EnterDirectory(b"")]
    for folder in range(250):
        events.append(EnterDirectory(b"%03d" % folder))
        events += [File(b"%03d" % i, False, b"%d\n" % (1000 * folder + i) * 20) for i in range(400)]
        events.append(LEAVE_DIRECTORY)
    events.append(LEAVE_DIRECTORY)
    with store("local", tmp_path / "a") as source, store("local", tmp_path / "c") as more:
        path_info = add(source, "many", events=events)
        others = fill(more, 8)
    (tmp_path / "b").mkdir()
    urls = [f"local://{tmp_path}/{name}/store" for name in ("a", "b", "c")]
    done = subprocess.run([sys.executable, "-c", SCRIPT, *urls], check=True, capture_output=True, text=True)
    blobs, grown = map(int, done.stdout.split())
    assert blobs == 100_000
    assert grown < 100
    with store("local", tmp_path / "b") as target:
        check_whole(target, [path_info, *others])
