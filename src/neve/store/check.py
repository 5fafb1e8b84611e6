"""Verification of a whole store: every object re-hashed, and what a damaged one breaks."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from neve.castore.blobs.local_write import BLOBS
from neve.castore.digest import Digest
from neve.castore.directories.local import DIRECTORIES
from neve.errors import NeveError, Unavailable
from neve.nix import base32
from neve.packstore import check as packs_check
from neve.packstore.layout import os_errors, read_settings
from neve.packstore.store import PackStore, check_path
from neve.registry import parse_address
from neve.store.nar_nodes import NAR_NODES
from neve.store.path_check import PathCheck
from neve.store.path_info import PathInfo
from neve.store.pathinfos.base import PathInfoService
from neve.store.pathinfos.local import PATH_INFOS, REFERRERS
from neve.store.pins import PINS
from neve.store.services import Services
from neve.store.small_files import SMALL_FILES
from neve.store.wire import decode_path_info, encode_path_info
from neve.telemetry import LOGGER, NO_PROGRESS, Progress

if TYPE_CHECKING:
    from neve.proto.neve.admin.protos.rpc_admin_pb2 import VerifyResponse

TABLES = (BLOBS, DIRECTORIES, PATH_INFOS, NAR_NODES, REFERRERS, SMALL_FILES, PINS)
"""Every table of an embedded store."""

_LOOKS = 3
_SHOWN_PLACES = 5
_SPOOL_IN_MEMORY = 16 * 1024 * 1024


@dataclass
class VerifyReport:
    """What a verification found: one line for each problem, and one that sums up."""

    problems: list[str] = field(default_factory=list)
    summary: str = ""
    damaged: list[packs_check.Problem] = field(default_factory=list)
    """Records of the embedded store that are damaged."""


def verify_store(
    services: Services, progress: Progress = NO_PROGRESS, *, nar_hashes: bool = False
) -> VerifyReport:
    """Re-hashes all objects and follows every path info to its last blob; changes nothing.

    An embedded store is read pack by pack, a server verifies itself for those who may administer it,
    anything else is read from its path infos. With ``nar_hashes`` the NAR of each path is rendered too
    and compared with its path info.
    """
    remote = services.remote
    if remote is not None:
        report = remote.unless_refused(
            lambda: _ask(remote.verify(nar_hashes=nar_hashes), progress, remote.url), lambda: None
        )
        if report is not None:
            return report
        LOGGER.info("%s is not to be administered by us: reading all that its path infos name", remote.url)
    # A verification must not make everything stay that it has come across.
    with contextlib.nullcontext() if services.packs is None else services.packs.only_looking():
        return _verify(services, progress, nar_hashes=nar_hashes)


def _verify(services: Services, progress: Progress, *, nar_hashes: bool) -> VerifyReport:
    report = VerifyReport()
    damaged = {} if services.packs is None else _check_packs(services.packs, report, progress)
    paths = PathCheck(services, damaged, progress)
    try:
        # A verification may take hours, and no server keeps a listing open for so long.
        path_infos = (
            _spooled(services.path_infos)
            if services.packs is None
            else readable_path_infos(services.path_infos)
        )
        for path_info in path_infos:
            progress.advance(0, path_info.store_path.base_name)
            paths.check(path_info)
            if nar_hashes:
                _check_nar(services, path_info, report, progress)
    except NeveError as error:
        report.problems.append(f"the path infos cannot be read: {error}")
    report.problems.extend(paths.problems(absences=False))
    report.problems.extend(_still_missing(services, damaged, paths, progress))
    if services.packs is None:
        report.summary = f"read everything that {paths.count} store paths refer to"
    return report


def _still_missing(
    services: Services, damaged: dict[Digest, str], paths: PathCheck, progress: Progress
) -> Iterator[str]:
    """What is missing, once the paths that lack something have been looked at again: a collection may have
    dropped them, or somebody have put them, just while they were looked at."""
    for _ in range(_LOOKS):
        lacking = paths.lacking()
        if not lacking:
            break
        paths = PathCheck(services, damaged, progress)
        for digest in lacking:
            with contextlib.suppress(NeveError):  # That one is damaged has been told.
                if (path_info := services.path_infos.get(digest)) is not None:
                    paths.check(path_info)
    return paths.problems(absences=True)


def _ask(messages: Iterable[VerifyResponse], progress: Progress, url: str) -> VerifyReport:
    """What a server tells of itself."""
    report = VerifyReport()
    for message in messages:
        if message.total:
            progress.start(message.total)
        if message.advance or message.current:
            progress.advance(message.advance, message.current)
        report.problems.extend(message.problems)
        if message.done:
            report.summary = message.summary
            return report
    raise Unavailable(f"{url}: Verify: the server ended before it was done")


def _check_packs(packs: PackStore, report: VerifyReport, progress: Progress) -> dict[Digest, str]:
    """Which blobs, chunks and Directories are damaged, and how; ``report`` gets what else is."""
    damaged: dict[Digest, str] = {}
    progress.start(packs_check.pack_bytes(packs.path))
    found = packs_check.verify(packs, TABLES, progress.advance)
    report.damaged = [problem for problem in found.problems if problem.table]
    for problem in found.problems:
        if problem.table in (BLOBS.name, DIRECTORIES.name):
            damaged[problem.key] = problem.what
        else:
            report.problems.append(_describe(problem))
    objects = ", ".join(f"{count} {name}" for name, count in found.records.items() if count)
    report.summary = f"read {found.stored_bytes} bytes in {found.frames} frames: {objects or 'nothing'}"
    if found.unused:
        report.summary += f"; damage where nothing is in use: {'; '.join(found.unused[:_SHOWN_PLACES])}"
    return damaged


def readable_path_infos(path_infos: PathInfoService) -> Iterator[PathInfo]:
    """All but those that are damaged."""
    after = b""
    while page := path_infos.list_encoded(after):
        after = page[-1][0]
        for _, encoded in page:
            if isinstance(encoded, bytes):
                yield decode_path_info(encoded)


def _spooled(path_infos: Iterable[PathInfo]) -> Iterator[PathInfo]:
    """The same path infos, once all of them have been read."""
    with (
        os_errors("cannot keep the listing for the verification"),
        tempfile.SpooledTemporaryFile(_SPOOL_IN_MEMORY) as spool,
    ):
        for path_info in path_infos:
            encoded = encode_path_info(path_info)
            spool.write(len(encoded).to_bytes(4, "little") + encoded)
        spool.seek(0)
        while head := spool.read(4):
            yield decode_path_info(spool.read(int.from_bytes(head, "little")))


def _describe(problem: packs_check.Problem) -> str:
    if not problem.table:
        return problem.what
    if problem.table == PATH_INFOS.name:
        return f"path info of {base32.encode(problem.key)}: {problem.what}"
    return f"{problem.table} entry {problem.key.hex()}: {problem.what}"


def _check_nar(services: Services, path_info: PathInfo, report: VerifyReport, progress: Progress) -> None:
    if path_info.nar is None:
        return
    hasher = hashlib.sha256()
    size = 0
    try:
        for piece in services.renderer.stream(path_info.node):
            hasher.update(piece)
            size += len(piece)
            progress.advance(0)
    except NeveError:
        return  # what is missing or damaged has been reported already
    if (size, hasher.digest()) != (path_info.nar.size, path_info.nar.sha256):
        report.problems.append(f"{path_info.store_path}: its path info states another NAR hash or size")


def rebuild_index(url: str, progress: Progress = NO_PROGRESS) -> packs_check.Rebuilt:
    """Rebuilds the index of the embedded store at an address from its packs.

    No process may have the store open. Raises ``InvalidRequest`` for an address of another kind.
    """
    address = parse_address(url)
    if address.scheme != "local" or not address.path:
        raise address.refuse("only an embedded store (local:///folder) has an index to rebuild")
    path = check_path(address.path)
    read_settings(path)  # Before anything is counted: it says what is wrong if there is no store.
    progress.start(packs_check.pack_bytes(path))
    return packs_check.rebuild_index(path, TABLES, progress.advance)
