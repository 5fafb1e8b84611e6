"""Changing stored bits behind the back of an embedded store."""

from __future__ import annotations

from neve.castore.blobs.base import BlobService
from neve.castore.blobs.local import LocalBlobService
from neve.castore.blobs.local_write import BLOBS
from neve.castore.digest import Digest
from neve.castore.directories.base import DirectoryService
from neve.castore.directories.local import DIRECTORIES, LocalDirectoryService
from neve.packstore.layout import PACKS_DIR, pack_name
from neve.packstore.location import Location, offset_of, pack_of
from neve.packstore.pack import RAW
from neve.packstore.store import PackStore


def damage_blob(service: BlobService, digest: Digest) -> None:
    """Flips a bit of the blob or chunk."""
    assert isinstance(service, LocalBlobService)
    location = service._store.find(BLOBS, [digest])[digest]
    _flip(service._store, location, location.stored_len // 2)


def damage_plain_blob(service: BlobService, digest: Digest) -> None:
    """Flips a bit of the blob, which lies in a frame that is not compressed, and of no other in there."""
    assert isinstance(service, LocalBlobService)
    location = service._store.find(BLOBS, [digest])[digest]
    assert location.codec == RAW
    _flip(service._store, location, location.start + location.length // 2)


def damage_directory(service: DirectoryService, digest: Digest) -> None:
    """Flips a bit of the Directory."""
    assert isinstance(service, LocalDirectoryService)
    location = service._store.find(DIRECTORIES, [digest])[digest]
    _flip(service._store, location, location.stored_len - 2)


def _flip(store: PackStore, location: Location, at: int) -> None:
    path = store.path / PACKS_DIR / pack_name(pack_of(location.place))
    with path.open("r+b") as file:
        file.seek(offset_of(location.place) + at)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 0x10]))
