"""What a store holds, in numbers."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from neve.castore.blobs.local_write import BLOBS, CHUNK, LIST
from neve.castore.directories.local import DIRECTORIES
from neve.errors import Unsupported
from neve.packstore.check import pack_bytes
from neve.packstore.layout import INDEX_DIR
from neve.packstore.store import PackStore
from neve.store.services import Services
from neve.telemetry import NO_PROGRESS, Progress

if TYPE_CHECKING:
    from neve.store.remote import RemoteAdmin

_PAGE = 10_000


@dataclass(frozen=True)
class Stats:
    """Counts, and sizes in bytes."""

    store_paths: int
    nar_bytes: int
    """The NARs of all store paths together: what they would take without any sharing."""
    blobs: int
    chunks: int
    directories: int
    content_bytes: int
    """Contents kept, each blob and chunk once, before compression."""
    stored_bytes: int
    """The same as it lies on the disk, compressed."""
    disk_bytes: int
    """All files of the store."""

    @property
    def dedup_ratio(self) -> float:
        """How often the bytes kept are used, on average."""
        return self.nar_bytes / self.content_bytes if self.content_bytes else 1.0

    @property
    def compression_ratio(self) -> float:
        """Bytes kept by bytes on disk."""
        return self.content_bytes / self.stored_bytes if self.stored_bytes else 1.0


def collect_stats(services: Services, progress: Progress = NO_PROGRESS) -> Stats:
    """Counts everything in an embedded store; reads the index, not the contents.

    A server counts what it has itself, for those who may administer it. Raises ``Unsupported`` for
    other stores, ``PermissionDenied``.
    """
    if services.remote is not None:
        return _ask(services.remote)
    packs = services.packs
    if packs is None:
        raise Unsupported("only an embedded store (local:///folder) can be counted")
    store_paths = nar_bytes = 0
    for path_info in services.path_infos:
        progress.advance(1, path_info.store_path.base_name)
        store_paths += 1
        nar_bytes += path_info.nar.size if path_info.nar is not None else 0
    blobs, chunks, content_bytes, stored_bytes = _count_blobs(packs, progress)
    return Stats(
        store_paths=store_paths,
        nar_bytes=nar_bytes,
        blobs=blobs,
        chunks=chunks,
        directories=packs.index.count(DIRECTORIES.id),
        content_bytes=content_bytes,
        stored_bytes=stored_bytes,
        disk_bytes=disk_bytes(packs.path),
    )


def _ask(remote: RemoteAdmin) -> Stats:
    from neve.proto.neve.admin.protos import rpc_admin_pb2
    from neve.store.remote import LONG_TIMEOUT

    request = rpc_admin_pb2.StatsRequest()
    answer = remote.call("Stats", request, "count what it holds", timeout=LONG_TIMEOUT)
    return Stats(**{field.name: getattr(answer, field.name) for field in fields(Stats)})


def _count_blobs(packs: PackStore, progress: Progress) -> tuple[int, int, int, int]:
    """Blobs, chunks, bytes of contents, and the share of the frames' stored bytes that is theirs."""
    blobs = chunks = content_bytes = 0
    stored = 0.0
    after = b""
    while page := packs.page(BLOBS, after, _PAGE):
        after = page[-1][0]
        progress.advance(len(page))
        for _, location in page:
            if location.tag == CHUNK:
                chunks += 1
            else:
                blobs += 1
            if location.tag != LIST:
                content_bytes += location.length
                if location.raw_len:
                    stored += location.stored_len * location.length / location.raw_len
    return blobs, chunks, content_bytes, round(stored)


def disk_bytes(path: Path) -> int:
    """What the embedded store in the folder ``path`` takes on the disk, in bytes."""
    index = path / INDEX_DIR / "data.mdb"
    return pack_bytes(path) + index.stat().st_blocks * 512
