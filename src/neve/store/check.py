"""Verification of a whole store: every object re-hashed, and what a damaged one breaks."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING

from neve.castore.blobs.local_write import BLOBS
from neve.castore.digest import Digest, b3_digest, format_digest
from neve.castore.directories.local import DIRECTORIES
from neve.castore.directory import Directory
from neve.castore.node import DirectoryNode, FileNode, Node
from neve.castore.traverse import find_below
from neve.errors import NeveError, NotFound, Unavailable
from neve.nix import base32
from neve.packstore import check as packs_check
from neve.packstore.layout import os_errors, read_settings
from neve.packstore.store import PackStore, check_path
from neve.registry import parse_address
from neve.store.gc.digest_set import DigestSet
from neve.store.nar_nodes import NAR_NODES
from neve.store.path_info import PathInfo
from neve.store.pathinfos.base import PathInfoService
from neve.store.pathinfos.local import PATH_INFOS, REFERRERS
from neve.store.pins import PINS
from neve.store.services import Services
from neve.store.small_files import SMALL_FILES
from neve.store.wire import decode_path_info, encode_path_info
from neve.telemetry import LOGGER, NO_PROGRESS, Progress
from neve.tree import WHOLE_FILE_LIMIT

if TYPE_CHECKING:
    from neve.proto.neve.admin.protos.rpc_admin_pb2 import VerifyResponse

TABLES = (BLOBS, DIRECTORIES, PATH_INFOS, NAR_NODES, REFERRERS, SMALL_FILES, PINS)
"""Every table of an embedded store."""

_SHOWN_PATHS = 10
_LOOKS = 3
_MISSING = "is missing"
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


_NOTHING: frozenset[Digest] = frozenset()


class _Below:
    """What is bad at or below Directories that were looked at. Most are whole, and take 30 bytes each."""

    def __init__(self) -> None:
        self._whole = DigestSet()
        self._bad: dict[Digest, frozenset[Digest]] = {}

    def __contains__(self, digest: Digest) -> bool:
        return digest in self._bad or digest in self._whole

    def __setitem__(self, digest: Digest, bad: frozenset[Digest]) -> None:
        if bad:
            self._bad[digest] = bad
        else:
            self._whole.add_new([digest])

    def __getitem__(self, digest: Digest) -> frozenset[Digest]:
        return self._bad.get(digest, _NOTHING)


class PathCheck:
    """Follows path infos into the store and collects which of them each bad object breaks."""

    def __init__(self, services: Services, damaged: dict[Digest, str], progress: Progress) -> None:
        self._services = services
        self._progress = progress
        self._what = dict(damaged)
        self._read_blobs = services.packs is None
        self._below = _Below()
        self._read = DigestSet()
        """Blobs that were read and are whole, by digest and size."""
        self._broken: dict[Digest, list[str]] = {digest: [] for digest in damaged}
        self._lacking: dict[Digest, list[bytes]] = {}
        """The paths that lack each object that is missing."""
        self.kinds: dict[Digest, str] = {}
        """What was found bad: a blob, chunk or Directory."""
        self.count = 0

    def check(self, path_info: PathInfo) -> None:
        """Follows one."""
        self.count += 1
        for digest in self._node(path_info.node):
            self._broken.setdefault(digest, []).append(path_info.store_path.absolute)
            if self._what[digest].endswith(_MISSING):
                self._lacking.setdefault(digest, []).append(path_info.digest)

    def lacking(self) -> list[bytes]:
        """The digests of the paths of which something is missing."""
        return list(dict.fromkeys(chain.from_iterable(self._lacking.values())))

    def problems(self, *, absences: bool) -> Iterator[str]:
        """A line for each object that is missing, or each other bad one, with the paths that it breaks."""
        for digest, paths in self._broken.items():
            if (digest in self._lacking) != absences:
                continue
            kind = self.kinds.get(digest, "object")
            shown = ", ".join(paths[:_SHOWN_PATHS])
            more = f" and {len(paths) - _SHOWN_PATHS} more" if len(paths) > _SHOWN_PATHS else ""
            breaks = f"; breaks {shown}{more}" if paths else "; breaks no store path"
            yield f"{kind} {format_digest(digest)}: {self._what[digest]}{breaks}"

    def _note(self, digest: Digest, kind: str, what: str) -> frozenset[Digest]:
        self._what.setdefault(digest, what)
        self.kinds.setdefault(digest, kind)
        return frozenset((digest,))

    def _node(self, node: Node) -> frozenset[Digest]:
        if isinstance(node, FileNode):
            return self._files([node])
        if isinstance(node, DirectoryNode):
            return self._directory(node.digest)
        return _NOTHING

    def _directory(self, root: Digest) -> frozenset[Digest]:
        """What is bad at or below a Directory; children first, without recursion."""
        stack: list[tuple[Digest, Directory | None, list[Digest]]] = []
        self._push(stack, root, root)
        while stack:
            digest, directory, children = stack[-1]
            while children and children[-1] in self._below:
                children.pop()
            if children:
                self._push(stack, root, children.pop())
                continue
            stack.pop()
            if directory is not None:
                self._below[digest] = self._bad_in(digest, directory)
        return self._below[root]

    def _push(
        self, stack: list[tuple[Digest, Directory | None, list[Digest]]], root: Digest, digest: Digest
    ) -> None:
        if digest in self._below:
            return
        self._progress.advance(0)
        try:
            directory = find_below(self._services.directories, root, digest)
            what = _MISSING
        except NeveError as error:
            directory, what = None, str(error)
        if directory is None:
            self._below[digest] = self._note(digest, "Directory", what)
        else:
            stack.append((digest, directory, [child.digest for _, child in directory.directories()]))

    def _bad_in(self, digest: Digest, directory: Directory) -> frozenset[Digest]:
        bad = self._files([node for _, node in directory if isinstance(node, FileNode)])
        if digest in self._what:
            bad |= self._note(digest, "Directory", self._what[digest])
        for _, child in directory.directories():
            if below := self._below[child.digest]:
                bad |= below
        return bad or _NOTHING

    def _files(self, nodes: list[FileNode]) -> frozenset[Digest]:
        blobs = self._services.blobs
        # What is read shows by that whether it is there; and asking may keep it fresh (``castore.ages``).
        wanted = [] if self._read_blobs else list(dict.fromkeys(node.digest for node in nodes))
        bad = _NOTHING
        try:
            for digest in blobs.missing(wanted):
                bad |= self._note(digest, "blob", _MISSING)
        except NeveError:
            # One bad entry hides the rest of the answer: ask one by one.
            for digest in wanted:
                bad |= self._one_blob(digest)
        for node in nodes:
            if node.digest in bad:
                continue
            if node.digest in self._what:
                bad |= self._note(node.digest, "blob", self._what[node.digest])
            elif self._read_blobs or node.size > WHOLE_FILE_LIMIT:
                bad |= self._contents_once(node)
        return bad

    def _one_blob(self, digest: Digest) -> frozenset[Digest]:
        try:
            return _NOTHING if self._services.blobs.has(digest) else self._note(digest, "blob", _MISSING)
        except NeveError as error:
            return self._note(digest, "blob", str(error))

    def _contents_once(self, node: FileNode) -> frozenset[Digest]:
        """What ``_contents`` gives; of what is whole that is not asked again."""
        key = b3_digest(node.digest + node.size.to_bytes(8, "little"))
        if key in self._read:
            return _NOTHING
        if not (bad := self._contents(node)):
            self._read.add_new([key])
        return bad

    def _contents(self, node: FileNode) -> frozenset[Digest]:
        """Checks the chunks of a large blob, or reads it where nothing was re-hashed before."""
        blobs = self._services.blobs
        try:
            if self._read_blobs:
                size = 0
                for piece in blobs.stream(node.digest):
                    size += len(piece)
                    self._progress.advance(len(piece))
            else:
                chunks = blobs.chunks(node.digest) or []
                size = sum(chunk.size for chunk in chunks)
                digests = list(dict.fromkeys(chunk.digest for chunk in chunks))
                missing = set(blobs.missing(digests))
                if bad := [digest for digest in digests if digest in self._what or digest in missing]:
                    return self._bad_chunks(node, bad)
        except NotFound as error:
            return self._note(node.digest, "blob", _MISSING if self._read_blobs else str(error))
        except NeveError as error:
            return self._note(node.digest, "blob", str(error))
        if size != node.size:
            return self._note(node.digest, "blob", f"has {size} bytes, its node says {node.size}")
        return _NOTHING

    def _bad_chunks(self, node: FileNode, bad: list[Digest]) -> frozenset[Digest]:
        """What is damaged or missing of a large blob breaks it, and the paths that it breaks."""
        chunks = frozenset[Digest]().union(*[self._note(digest, "chunk", _MISSING) for digest in bad])
        what = f"its chunk {format_digest(bad[0])}: {self._what[bad[0]]}"
        return chunks | self._note(node.digest, "blob", what)


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
