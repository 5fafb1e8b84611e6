"""Store paths to upload: their NARs, narinfos, and what is wrong with some of them."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from neve.nix import base32
from neve.nix.compression import SUFFIXES
from neve.nix.narinfo import NarInfo
from neve.nix.store_path import StorePath, source_path
from neve.store.importer import import_nar
from neve.store.path_info import PathInfo
from neve.store.services import Services
from neve.tree import LEAVE_DIRECTORY, EnterDirectory, Event, File, Symlink
from tests.nix.compressing import COMPRESSORS
from tests.store.helpers import encoded


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def tree(text: bytes) -> list[Event]:
    """A small tree with ``text`` in it."""
    return [
        EnterDirectory(b""),
        File(b"a", False, text),
        File(b"run", True, b"#!/bin/sh\n"),
        Symlink(b"to", b"a"),
        LEAVE_DIRECTORY,
    ]


@dataclass(frozen=True)
class Sample:
    """A store path, and what Nix would upload of it."""

    path: StorePath
    nar: bytes
    references: tuple[StorePath, ...] = ()

    @property
    def digest(self) -> str:
        return base32.encode(self.path.digest)

    @property
    def narinfo_url(self) -> str:
        return f"/{self.digest}.narinfo"

    def file(self, compression: str = "none") -> bytes:
        return COMPRESSORS[compression](self.nar)

    def narinfo(self, **changes: Any) -> NarInfo:
        """What describes it, with ``changes``."""
        narinfo = NarInfo(
            store_path=self.path,
            url=nar_url(self.nar),
            nar_sha256=sha256(self.nar),
            nar_size=len(self.nar),
            references=self.references,
        )
        return dataclasses.replace(narinfo, **changes)


def sample(name: str, text: bytes = b"", references: Sequence[StorePath] = ()) -> Sample:
    """A store path of a small tree; what it holds follows from name and text."""
    nar = encoded(tree(text or name.encode()))
    return Sample(source_path(name, sha256(nar), references), nar, tuple(references))


def nar_url(file: bytes, compression: str = "none", suffix: str | None = None) -> str:
    """Where a file is uploaded to."""
    ending = SUFFIXES[compression] if suffix is None else suffix
    return f"/nar/{base32.encode(sha256(file))}.nar{ending}"


def put_narinfo(http: httpx.Client, sample: Sample, **changes: Any) -> httpx.Response:
    return http.put(sample.narinfo_url, content=sample.narinfo(**changes).render())


def push(http: httpx.Client, sample: Sample, compression: str = "none") -> None:
    """Uploads it as Nix does."""
    file = sample.file(compression)
    answer = http.put(nar_url(file, compression), content=file)
    assert answer.status_code == 201, answer.text
    answer = put_narinfo(http, sample)
    assert answer.status_code == 200, answer.text


def stored(services: Services, sample: Sample) -> PathInfo:
    """Puts it into a store without any cache."""
    found = import_nar(services, [sample.nar], name=sample.path.name)
    assert found.store_path == sample.path
    return found
