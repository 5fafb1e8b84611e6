"""A store that somebody else has made: it is opened, its packs are brought into order, and all is read."""

from __future__ import annotations

import contextlib
import functools
import json
import shutil
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from neve.errors import NeveError
from neve.packstore import check, layout, pack
from neve.packstore.store import PackStore
from neve.store.check import TABLES
from neve.store.services import Services, open_services
from tests.fuzz.target import Bound, Target
from tests.fuzz.targets.disk import KEY, folder

_HEAD = struct.Struct("<BBBBHHI")
"""Kind, codec, transaction, number of entries, bytes of entries and of payload, and of that decompressed."""


@functools.cache
def _template() -> Path:
    """An empty store with a key that is known."""
    path = folder("template") / "store"
    PackStore.open(path).close()
    document = layout.read_description(path)
    text = (path / layout.STORE_FILE).read_text().replace(document.key.hex(), KEY.hex())
    (path / layout.STORE_FILE).write_text(text)
    _seal(path)
    PackStore.open(path).close()
    return path


def _seal(path: Path) -> None:
    document = json.loads((path / layout.STORE_FILE).read_bytes())
    document["check"] = layout._check_of(document)
    (path / layout.STORE_FILE).write_text(json.dumps(document))


def _frames(data: bytes) -> Iterator[bytes]:
    """Frames whose checks are right, whatever they say."""
    at = 0
    while at + _HEAD.size <= len(data):
        kind, codec, seq, count, entries_len, payload_len, raw_len = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        entries = data[at : at + entries_len]
        payload = data[at + entries_len : at + entries_len + payload_len]
        at += entries_len + payload_len
        # Numbers at the end of what has room, too.
        seq = seq if seq < 0xF0 else (1 << 64) - 1 - (seq & 0xF)
        yield (
            pack.encode_head(
                *(KEY,),
                kind=kind,
                codec=codec,
                seq=seq,
                count=count,
                entries=entries,
                payload=payload,
                raw_len=raw_len,
            )
            + entries
            + payload
        )


def _listed(things: Callable[[], Iterable[bytes]]) -> list[bytes]:
    try:
        return list(things())
    except NeveError:
        return []


def _read(read: Callable[[bytes], Iterable[object] | None], digest: bytes) -> None:
    """Whatever can be read is; what cannot is refused."""
    with contextlib.suppress(NeveError):
        for _ in read(digest) or ():
            pass


def _look_through(services: Services) -> None:
    _read(lambda _: services.path_infos, b"")
    for digest in _listed(services.blobs.list):
        _read(lambda each: services.blobs.read_many([each]), digest)
        _read(services.blobs.chunks, digest)
    for digest in _listed(services.directories.list):
        _read(services.directories.get_recursive, digest)


def _store(data: bytes) -> None:
    path = folder("stores") / "store"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(_template(), path)
    packed = pack.encode_header(1, KEY) + b"".join(_frames(data))
    (path / layout.PACKS_DIR / layout.pack_name(1)).write_bytes(packed)
    for rebuilt in (False, True):
        if rebuilt:
            check.rebuild_index(path, TABLES)
        with contextlib.closing(open_services(f"local://{path}")) as services:
            assert services.packs is not None
            _look_through(services)
            check.verify(services.packs, TABLES)
            services.blobs.put_many([b"goes on"])
            assert list(services.blobs.read_many(services.blobs.put_many([b"goes on"]))) == [b"goes on"]


TARGETS = (
    Target(
        "store",
        _store,
        (),
        memory=Bound(64 * 1024 * 1024, 4096),
        steps=Bound(200_000, 4000),
        longest=1024,
        rounds=25,
        words=(struct.pack("<BBBI", 1, 2, 32, 5) + bytes(32), _HEAD.pack(2, 0, 9, 0, 0, 0, 0)),
    ),
)
