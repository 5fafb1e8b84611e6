"""Compressed, damaged, cut and hostile archives, and streams and spools that fail."""

from __future__ import annotations

import bz2
import errno
import gzip
import io
import lzma
import os
import random
import tarfile
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from neve.castore.ingest.archive import ArchiveError, archive_events
from neve.errors import DiskFull, Unavailable

from .tars import ROOT, file, fix_checksum, folder, hardlink, pack, refusal, symlink, unpack


def test_old_sparse_members_are_refused() -> None:
    data = bytearray(pack(file("hole", b"x" * 100)))
    data[156:157] = tarfile.GNUTYPE_SPARSE
    data[386:410] = b"00000000000\0" + b"00000000144\0"
    data[483:495] = b"00000001000\0"
    fix_checksum(data)
    assert "b'hole' is a sparse file" in refusal(bytes(data))


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
    assert "b'a' is cut short: the archive ends before its 5000 bytes do" in refusal(SAMPLE[:1000])
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
        assert f"b'h' is cut short: the archive ends before its {2**40} bytes do" in refusal(
            info.tobuf(tarfile.GNU_FORMAT) + b"x" * 1000
        )
        assert tracemalloc.get_traced_memory()[1] < 3_000_000
    finally:
        tracemalloc.stop()


def test_a_chain_of_headers_does_not_exhaust_the_stack() -> None:
    info = tarfile.TarInfo("h")
    info.type = tarfile.GNUTYPE_LONGNAME
    assert "not a tar archive, or damaged" in refusal(info.tobuf(tarfile.GNU_FORMAT) * 3000)


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

    monkeypatch.setattr("tempfile.TemporaryFile", lambda **options: Broken())
    with pytest.raises(kind, match="contents of the archive in the temporary folder") as caught:
        unpack(SAMPLE)
    assert type(caught.value) is kind


def test_a_spool_that_lost_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.pread", lambda fd, size, offset: bytes(size - 1))
    with pytest.raises(Unavailable, match="the spooled archive ends 1 bytes too early"):
        unpack(SAMPLE)


def test_the_spool_leaves_nothing_behind(tmp_path: Path) -> None:
    batches = archive_events(io.BytesIO(SAMPLE), spool_dir=str(tmp_path))
    next(batches)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(Unavailable, match=r"cannot keep the contents of the archive .*missing"):
        next(archive_events(io.BytesIO(SAMPLE), spool_dir=str(tmp_path / "missing")))


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
    with suppress(ArchiveError):
        assert unpack(bytes(archive_bytes))[0] == ROOT
