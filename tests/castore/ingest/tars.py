"""Tar archives for tests, member by member."""

from __future__ import annotations

import io
import tarfile

import pytest

from neve.castore.ingest.archive import ArchiveError, archive_events
from neve.tree import EnterDirectory, Event

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


def fix_checksum(header: bytearray) -> None:
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:512])
