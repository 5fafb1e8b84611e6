"""What lies beside blobs and Directories: path infos, who refers to whom, NARs, small files."""

from __future__ import annotations

from neve.castore.at_once import CallsAtOnce
from neve.errors import NotFound
from neve.nix.store_path import DIGEST_SIZE
from neve.packstore.frames import Record
from neve.packstore.store import PackStore
from neve.store.mirror.contents import Contents
from neve.store.mirror.order import Item
from neve.store.nar_nodes import NAR_NODES
from neve.store.pathinfos.local import REFERRERS
from neve.store.repair.objects import replace_records
from neve.store.services import Services
from neve.store.small_files import SMALL_FILES, small_files_beside
from neve.telemetry import Progress


def repair_path_info(services: Services, source: Services, digest: bytes, progress: Progress) -> None:
    """Puts the source's path info in the place of one, once its contents are there. Raises what fails."""
    found = source.path_infos.get(digest)
    if found is None:
        raise NotFound("the source does not have it")
    item = Item(found)
    calls = CallsAtOnce()
    try:
        with Contents(source, services, calls, progress, nars=False) as contents:
            contents.add(item)
            contents.finish()
    finally:
        calls.close()
    if item.error is not None:
        raise item.error
    services.path_infos.put(found, replace=True)


def repair_referrer(services: Services, packs: PackStore, key: bytes) -> None:
    """Writes anew that a path refers to another, or forgets it. Raises ``Corrupt``."""
    reference, digest = key[:DIGEST_SIZE], key[DIGEST_SIZE:]
    path_info = services.path_infos.get(digest)
    if path_info is not None and reference in path_info.references:
        replace_records(packs, REFERRERS, [Record(1, key, b"")])
    else:
        packs.delete_many(REFERRERS, [key])


def forget_nar(packs: PackStore, key: bytes) -> None:
    """What is known of a NAR only saves work: it is computed again when it is needed."""
    packs.delete_many(NAR_NODES, [key])


def repair_small_file(packs: PackStore, source: Services, key: bytes) -> None:
    """Puts the source's file in the place of one. Raises ``NotFound``."""
    kind, _, name = key.decode().partition("/")
    files = small_files_beside(source.nar_nodes)
    contents = None if files is None else files.get(kind, name)
    if contents is None:
        raise NotFound("the source does not have it, or does not tell")
    replace_records(packs, SMALL_FILES, [Record(1, key, contents)])
