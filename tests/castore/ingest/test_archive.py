"""Tar archives as trees: every order and format in, sorted events out; what cannot be a tree is refused."""

from __future__ import annotations

import bz2
import errno
import gzip
import io
import lzma
import os
import random
import shutil
import subprocess
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from neve.castore.ingest import archive
from neve.castore.ingest.archive import ArchiveError, archive_events
from neve.errors import DiskFull, NeveError, Unavailable
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

ROOT = EnterDirectory(b"")
Member = tuple[tarfile.TarInfo, bytes]


def file(name: str, contents: bytes = b"", mode: int = 0o644, kind: bytes = tarfile.REGTYPE) -> Member:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.type = len(contents), mode, kind
    return info, contents


def special(name: str, kind: bytes, linkname: str = "") -> Member:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, linkname, 0o755
    return info, b""


def folder(name: str) -> Member:
    return special(name, tarfile.DIRTYPE)


def symlink(name: str, target: str) -> Member:
    return special(name, tarfile.SYMTYPE, target)


def hardlink(name: str, target: str) -> Member:
    return special(name, tarfile.LNKTYPE, target)


def pack(*members: Member, form: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form, encoding="utf-8", errors="surrogateescape") as tar:
        for info, contents in members:
            tar.addfile(info, io.BytesIO(contents))
    return out.getvalue()


def unpack(data: bytes) -> list[Event]:
    return [event for batch in archive_events(io.BytesIO(data)) for event in batch]


def refusal(data: bytes) -> str:
    with pytest.raises(ArchiveError) as caught:
        unpack(data)
    return str(caught.value)


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


def test_old_sparse_members_are_refused() -> None:
    data = bytearray(pack(file("hole", b"x" * 100)))
    data[156:157] = tarfile.GNUTYPE_SPARSE
    data[386:410] = b"00000000000\0" + b"00000000144\0"
    data[483:495] = b"00000001000\0"
    fix_checksum(data)
    assert "b'hole' is a sparse file" in refusal(bytes(data))


def fix_checksum(header: bytearray) -> None:
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:512])


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": zstandard.ZstdCompressor(write_checksum=True).compress,
}
SAMPLE = pack(file("a", random.Random(1).randbytes(5000)), folder("d"), file("d/b", b"b" * 1000))


@pytest.mark.parametrize("algorithm", COMPRESSORS)
def test_compressed(algorithm: str) -> None:
    data = COMPRESSORS[algorithm](SAMPLE)
    assert unpack(data) == unpack(SAMPLE)
    two = COMPRESSORS[algorithm](SAMPLE[:1500]) + COMPRESSORS[algorithm](SAMPLE[1500:])
    assert unpack(two) == unpack(SAMPLE)


@pytest.mark.parametrize("algorithm", COMPRESSORS)
def test_damaged_compression(algorithm: str) -> None:
    data = COMPRESSORS[algorithm](SAMPLE)
    for size in range(6, len(data) - 4, 97):
        assert refusal(data[:size])
    damaged = bytearray(data)
    damaged[len(data) // 2] ^= 0x55
    assert f"the {algorithm} data of the archive is damaged" in refusal(bytes(damaged))
    assert f"the {algorithm} data of the archive is damaged" in refusal(data + b"rubbish!")


def test_the_checksum_at_the_end_counts() -> None:
    data = bytearray(gzip.compress(SAMPLE))
    data[-6] ^= 1
    assert "the gzip data of the archive is damaged" in refusal(bytes(data))


def test_every_truncation_is_refused() -> None:
    members = SAMPLE[: len(SAMPLE.rstrip(b"\0")) // 512 * 512 + 512]
    assert unpack(members + bytes(512)) == unpack(SAMPLE)
    for size in [*range(0, len(members), 100), *range(0, len(members) + 1, 512)]:
        message = refusal(members[:size])
        assert "the archive" in message or "not a tar archive" in message
    assert "b'a' has 5000 bytes, but the archive ends after 488" in refusal(SAMPLE[:1000])
    assert "damaged after member b'd/b': the data ends before the end marker" in refusal(members)


@pytest.mark.parametrize("garbage", [b"x", b"x" * 512, b"x" * 5000, b"PK\3\4" + bytes(2000)])
def test_garbage_is_refused(garbage: bytes) -> None:
    assert "not a tar archive, or damaged at the beginning" in refusal(garbage)
    assert "the archive is empty" in refusal(b"")


def test_an_invalid_header_in_the_middle_is_not_the_end() -> None:
    data = pack(file("a"), file("b"), form=tarfile.GNU_FORMAT)
    damaged = data[:512] + b"?" + data[513:]
    assert "damaged after member b'a': the next header is none (bad checksum)" in refusal(damaged)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_claimed_sizes_are_not_believed(kind: bytes) -> None:
    info = tarfile.TarInfo("h")
    info.type, info.size = kind, 2**40
    header = info.tobuf(tarfile.GNU_FORMAT)
    tracemalloc.start()
    try:
        assert f"the next header claims {2**40} bytes" in refusal(header + bytes(10_000))
        info.type = tarfile.REGTYPE
        assert "b'h' has 1099511627776 bytes" in refusal(info.tobuf(tarfile.GNU_FORMAT) + b"x" * 1000)
        assert tracemalloc.get_traced_memory()[1] < 3_000_000
    finally:
        tracemalloc.stop()


def test_a_chain_of_headers_does_not_exhaust_the_stack() -> None:
    info = tarfile.TarInfo("h")
    info.type = tarfile.GNUTYPE_LONGNAME
    assert "not a tar archive, or damaged" in refusal(info.tobuf(tarfile.GNU_FORMAT) * 3000)


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


class Dribble(io.RawIOBase):
    """A stream without seek that gives a few bytes at a time."""

    def __init__(self, data: bytes, error: OSError | None = None) -> None:
        self.inner, self.error = io.BytesIO(data), error

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self.inner.read(min(size, 700) if size >= 0 else size)
        if not data and self.error is not None:
            raise self.error
        return data


@pytest.mark.parametrize("compress", [bytes, *COMPRESSORS.values()])
def test_any_stream_will_do(compress: Callable[[bytes], bytes]) -> None:
    stream = Dribble(compress(SAMPLE))
    assert [event for batch in archive_events(stream) for event in batch] == unpack(SAMPLE)  # type: ignore[arg-type]
    assert not stream.closed
    assert not stream.inner.read()


@pytest.mark.parametrize("compress", [bytes, *COMPRESSORS.values()])
def test_errors_of_the_stream_are_not_the_archives(compress: Callable[[bytes], bytes]) -> None:
    for size in (0, 3, 1000):
        stream = Dribble(compress(SAMPLE)[:size], OSError(errno.EIO, "no disk"))
        with pytest.raises(Unavailable, match="no disk"):
            list(archive_events(stream))  # type: ignore[arg-type]


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, DiskFull), (errno.EIO, Unavailable)])
def test_errors_of_the_spool(monkeypatch: pytest.MonkeyPatch, number: int, kind: type) -> None:
    class Broken(io.BytesIO):
        def write(self, data: object) -> int:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(archive.tempfile, "TemporaryFile", lambda **options: Broken())
    with pytest.raises(kind, match="spool") as caught:
        unpack(SAMPLE)
    assert type(caught.value) is kind


def test_the_spool_leaves_nothing_behind(tmp_path: Path) -> None:
    batches = archive_events(io.BytesIO(SAMPLE), spool_dir=str(tmp_path))
    next(batches)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(Unavailable, match="cannot spool"):
        next(archive_events(io.BytesIO(SAMPLE), spool_dir=str(tmp_path / "missing")))


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


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damaged_headers_never_raise_anything_else(data: st.DataObject) -> None:
    form = data.draw(st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]))
    members = [file("a", b"1"), symlink("s", "t" * 120), file("ä\udcff" * 60, b"2"), hardlink("h", "a")]
    archive_bytes = bytearray(pack(*members, form=form)[:8192])
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(archive_bytes) // 512 - 1)) * 512
        at = start + data.draw(st.sampled_from([0, 100, 124, 135, 156, 157, 257, 345, 386, 482, 483]))
        piece = data.draw(
            st.one_of(st.binary(max_size=12), st.sampled_from([b"S", b"x", b"g", b"K", b"L", b"\xff" * 12]))
        )
        archive_bytes[at : at + len(piece)] = piece
        header = archive_bytes[start : start + 512]
        fix_checksum(header)
        archive_bytes[start : start + 512] = header
    try:
        assert unpack(bytes(archive_bytes))[0] == ROOT
    except NeveError as error:
        assert isinstance(error, ArchiveError)


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
