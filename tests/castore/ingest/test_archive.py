"""Tar archives as trees: every order and format in, sorted events out; what cannot be a tree is refused."""

from __future__ import annotations

import io
import os
import random
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neve.castore.ingest.archive import archive_events
from neve.testing.strategies import trees
from neve.tree import (
    BATCH_BYTES,
    BATCH_EVENTS,
    END_FILE,
    LEAVE_DIRECTORY,
    WHOLE_FILE_LIMIT,
    BeginFile,
    Data,
    EnterDirectory,
    Event,
    File,
    Symlink,
)

from .tars import ROOT, Member, file, folder, hardlink, pack, refusal, special, symlink, unpack

# what the members are, and the tree below the root
TREES: dict[str, tuple[list[Member], list[Event]]] = {
    "nothing": ([], []),
    "only the root": ([folder("./")], []),
    "sorted, with implied parents": (
        [file("b/y", b"2"), file("b-", b"1"), file("b/x"), file("B")],
        [
            File(b"B", False, b""),
            EnterDirectory(b"b"),
            File(b"x", False, b""),
            File(b"y", False, b"2"),
            LEAVE_DIRECTORY,
            File(b"b-", False, b"1"),
        ],
    ),
    "only the owner's x bit counts": (
        [file("a", mode=0o644), file("b", mode=0o744), file("c", mode=0o655), file("d", mode=0o4100)],
        [File(b"a", False, b""), File(b"b", True, b""), File(b"c", False, b""), File(b"d", True, b"")],
    ),
    "one way to write a path": (
        [folder("./d/"), file("./d//e", b"1"), file("d/./../f", b"2"), file("x/../d/g", b"3")],
        [
            EnterDirectory(b"d"),
            File(b"e", False, b"1"),
            File(b"g", False, b"3"),
            LEAVE_DIRECTORY,
            File(b"f", False, b"2"),
        ],
    ),
    "later members replace earlier ones": (
        [
            *(file("a", b"1"), folder("b"), symlink("c", "x"), file("d", b"1")),
            *(file("a", b"22", mode=0o755), file("b", b"3"), file("c", b"4"), folder("d")),
        ],
        [
            File(b"a", True, b"22"),
            File(b"b", False, b"3"),
            File(b"c", False, b"4"),
            EnterDirectory(b"d"),
            LEAVE_DIRECTORY,
        ],
    ),
    "a directory that comes again keeps its entries": (
        [folder("d"), file("d/f"), folder("d")],
        [EnterDirectory(b"d"), File(b"f", False, b""), LEAVE_DIRECTORY],
    ),
    "hard links": (
        [
            *(
                file("d/a", b"old", mode=0o755),
                hardlink("b", "./d/a"),
                file("d/a", b"new"),
                hardlink("b2", "b"),
            ),
            *(symlink("s", "t"), hardlink("s2", "s"), hardlink("b", "b")),
        ],
        [
            File(b"b", True, b"old"),
            File(b"b2", True, b"old"),
            EnterDirectory(b"d"),
            File(b"a", False, b"new"),
            LEAVE_DIRECTORY,
            Symlink(b"s", b"t"),
            Symlink(b"s2", b"t"),
        ],
    ),
    "symlinks may lead anywhere": (
        [symlink("a", "/etc"), symlink("b", "../.."), symlink("c", "t" * 4095)],
        [Symlink(b"a", b"/etc"), Symlink(b"b", b"../.."), Symlink(b"c", b"t" * 4095)],
    ),
    "odd names": (
        [file("n" * 255), file("\udcff\n"), file("é"), folder("d" * 200 + "/" + "e" * 200), file(" ")],
        [
            File(b" ", False, b""),
            EnterDirectory(b"d" * 200),
            EnterDirectory(b"e" * 200),
            LEAVE_DIRECTORY,
            LEAVE_DIRECTORY,
            File(b"n" * 255, False, b""),
            File("é".encode(), False, b""),
            File(b"\xff\n", False, b""),
        ],
    ),
    "contiguous files are files": (
        [file("f", b"x", kind=tarfile.CONTTYPE)],
        [File(b"f", False, b"x")],
    ),
}


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("name", TREES)
def test_trees(name: str, form: int) -> None:
    members, expected = TREES[name]
    assert unpack(pack(*members, form=form)) == [ROOT, *expected, LEAVE_DIRECTORY]


REFUSED: dict[str, tuple[list[Member], str]] = {
    "absolute": ([file("/etc/passwd")], "b'/etc/passwd' has the absolute path"),
    "outside": ([file("a/../../b")], "b'a/../../b' leaves the root"),
    "hard link outside": ([hardlink("a", "../b")], "b'a' leaves the root of the archive: b'../b'"),
    "hard link absolute": ([hardlink("a", "/b")], "b'a' has the absolute path b'/b'"),
    "hard link to nothing": ([hardlink("a", "b"), file("b")], "b'a' is a hard link to b'b', which is not in"),
    "hard link below a file": ([file("f"), hardlink("a", "f/b")], "b'a' is a hard link to b'f/b', which"),
    "hard link to a directory": ([folder("d"), hardlink("a", "d")], "a hard link to b'd', a directory"),
    "fifo": ([special("p", tarfile.FIFOTYPE)], "b'p' is a fifo"),
    "character device": ([special("d/null", tarfile.CHRTYPE)], "b'd/null' is a character device"),
    "block device": ([special("sda", tarfile.BLKTYPE)], "b'sda' is a block device"),
    "unknown type": ([file("v", kind=b"V")], "b'v' is of the unknown type b'V'"),
    "below a file": ([file("f"), file("f/x")], "b'f/x' is below b'f', which is no directory"),
    "below a symlink": (
        [symlink("s", "/etc"), file("s/x/y")],
        "b's/x/y' is below b's', which is no directory",
    ),
    "directory below a file": ([file("f"), folder("f/x/y")], "b'f/x/y' is below b'f', which is no"),
    "over a full directory": ([file("d/x"), symlink("d", "x")], "b'd' would replace a directory that is not"),
    "the root as a file": ([file("./.")], "b'./.' is the root of the archive"),
    "name too long": ([file("n" * 256)], "cannot be stored: name"),
    "path too long": ([file("n/" * 33000)], "has a path of 6"),
    "no target": ([symlink("s", "")], "b's' symlink target has 0 bytes"),
    "target too long": ([symlink("s", "t" * 4096)], "b's' symlink target has 4096 bytes"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_members_that_cannot_be_in_a_tree_are_refused_by_name(name: str) -> None:
    members, message = REFUSED[name]
    assert message in refusal(pack(file("before", b"1"), *members))


def test_large_files_come_in_pieces_and_batches_stay_small() -> None:
    sizes = [WHOLE_FILE_LIMIT, WHOLE_FILE_LIMIT + 1, 3 * BATCH_BYTES + 7]
    contents = [random.Random(size).randbytes(size) for size in sizes]
    members = [file(f"big{index}", data) for index, data in enumerate(contents)]
    batches = list(archive_events(io.BytesIO(pack(*members, *[file(f"f{i:04}") for i in range(3000)]))))
    events = [event for batch in batches for event in batch]
    assert [event.contents for event in events if isinstance(event, File)][:1] == contents[:1]
    for index in (1, 2):
        start = events.index(BeginFile(b"big%d" % index, False, sizes[index]))
        data = [
            event.data
            for event in events[start + 1 : events.index(END_FILE, start)]
            if isinstance(event, Data)
        ]
        assert b"".join(data) == contents[index]
        assert max(map(len, data)) <= WHOLE_FILE_LIMIT
    assert max(map(len, batches)) <= BATCH_EVENTS
    for batch in batches:
        sizes = [
            len(e.contents) if isinstance(e, File) else len(e.data)
            for e in batch
            if isinstance(e, File | Data)
        ]
        assert sum(sizes[:-1]) < BATCH_BYTES


def test_a_batch_may_be_exactly_full() -> None:
    batches = list(archive_events(io.BytesIO(pack(*[file(f"f{i:04}") for i in range(BATCH_EVENTS - 2)]))))
    assert [len(batch) for batch in batches] == [BATCH_EVENTS]


def members_of(events: list[Event]) -> list[Member]:
    """The tree as members with full paths."""
    members: list[Member] = []
    path: list[bytes] = []
    for event in events[1:-1]:
        if isinstance(event, EnterDirectory | File | Symlink):
            name = b"/".join([*path, event.name]).decode("utf-8", "surrogateescape")
            if isinstance(event, EnterDirectory):
                members.append(folder(name))
                path.append(event.name)
            elif isinstance(event, File):
                members.append(file(name, event.contents, 0o755 if event.executable else 0o644))
            else:
                members.append(symlink(name, event.target.decode("utf-8", "surrogateescape")))
        else:
            path.pop()
    return members


directories = trees().filter(lambda events: isinstance(events[0], EnterDirectory))


@given(
    directories, st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]), st.randoms(use_true_random=False)
)
def test_any_tree_in_any_order(events: list[Event], form: int, order: random.Random) -> None:
    members = members_of(events)
    order.shuffle(members)
    assert unpack(pack(*members, form=form)) == events


@pytest.mark.skipif(shutil.which("tar") is None, reason="tar is not installed")
@pytest.mark.parametrize("form", ["v7", "oldgnu", "gnu", "ustar", "posix"])
def test_what_gnu_tar_packs(tmp_path: Path, form: str) -> None:
    root = tmp_path / "root"
    (root / "d" / "empty").mkdir(parents=True)
    (root / "d" / "script").write_bytes(b"#!/bin/sh\n")
    (root / "d" / "script").chmod(0o755)
    os.link(root / "d" / "script", root / "link")
    (root / "s").symlink_to("d/script")
    (root / "zz").write_bytes(b"x" * 600_000)
    expected = [
        ROOT,
        EnterDirectory(b"d"),
        EnterDirectory(b"empty"),
        LEAVE_DIRECTORY,
        File(b"script", True, b"#!/bin/sh\n"),
        LEAVE_DIRECTORY,
        File(b"link", True, b"#!/bin/sh\n"),
        Symlink(b"s", b"d/script"),
        BeginFile(b"zz", False, 600_000),
        Data(b"x" * WHOLE_FILE_LIMIT),
        Data(b"x" * (600_000 - WHOLE_FILE_LIMIT)),
        END_FILE,
        LEAVE_DIRECTORY,
    ]
    command = ["tar", f"--format={form}", "-C", str(root), "-cf", "-", "."]
    assert unpack(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout) == expected


@pytest.mark.skipif(shutil.which("tar") is None, reason="tar is not installed")
@pytest.mark.parametrize("version", ["0.0", "0.1", "1.0"])
def test_sparse_members_of_gnu_tar_are_refused(tmp_path: Path, version: str) -> None:
    with (tmp_path / "hole").open("wb") as hole:
        hole.seek(1 << 20)
        hole.write(b"x")
    command = [
        "tar",
        "--format=posix",
        "--sparse",
        f"--sparse-version={version}",
        "-C",
        str(tmp_path),
        "-c",
        "hole",
    ]
    assert "b'hole' is a sparse file" in refusal(
        subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    )
