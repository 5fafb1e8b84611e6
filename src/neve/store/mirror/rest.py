"""What no path info reaches, and what lies beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from neve.castore.blobs.transfer import GROUP_BLOBS, BlobCopies
from neve.castore.digest import Digest, format_digest
from neve.castore.directories.base import GET_MANY, directory_not_found
from neve.castore.directories.held import HeldClosure
from neve.castore.node import DirectoryNode, FileNode, Node
from neve.errors import Corrupt, NeveError, NotFound, Unsupported
from neve.store.mirror.report import CONCERNS_ALL, MirrorReport
from neve.store.nar_nodes import Nar
from neve.store.services import Services
from neve.store.small_files import small_files_beside
from neve.telemetry import LOGGER, Progress

T = TypeVar("T")

_PAGE = 1000


def copy_rest(source: Services, target: Services, report: MirrorReport, progress: Progress) -> None:
    """Copies all blobs and Directories, what is known of NARs, and small files; of those that both have, the
    source's count. Raises ``Unsupported`` if the source cannot list blobs or Directories."""
    progress.start(None)
    _copy_blobs(source, target, report, progress)
    _copy_directories(source, target, report, progress)
    _copy_nars(source, target, report, progress)
    _copy_small_files(source, target, report, progress)


def _pages(
    page: Callable[[T, int], Sequence[T]], first: T, size: int, progress: Progress
) -> Iterator[Sequence[T]]:
    after = first
    while found := page(after, size):
        progress.advance(0)
        yield found
        after = found[-1]


def _copy_blobs(source: Services, target: Services, report: MirrorReport, progress: Progress) -> None:
    def tell() -> None:
        progress.advance(copies.taken(), "blobs")

    with BlobCopies(source.blobs, target.blobs, tick=tell) as copies:
        for page in _pages(source.blobs.list, b"", GROUP_BLOBS, progress):
            copies.add(dict.fromkeys(page))
            tell()
        copies.finish()
        report.blobs += copies.copied
        report.blob_bytes += copies.copied_bytes
        for (digest, _), error in copies.failures.items():
            report.fail(f"blob {format_digest(digest)}", error)


def _copy_directories(source: Services, target: Services, report: MirrorReport, progress: Progress) -> None:
    for page in _pages(source.directories.list, b"", GET_MANY, progress):
        there = target.directories.get_many(page)
        with target.one_commit():
            for digest in page:
                if digest not in there:
                    progress.advance(0, "Directories")
                    _copy_directory(source, target, digest, report)


def _copy_directory(source: Services, target: Services, root: Digest, report: MirrorReport) -> None:
    """Copies one with all below it: those that it refers to may come later in the list."""
    try:
        with HeldClosure() as closure:
            files: list[Digest] = []
            for directory in source.directories.get_recursive(root):
                closure.add(directory)
                files += [node.digest for _, node in directory if isinstance(node, FileNode)]
                if len(files) >= GROUP_BLOBS:
                    _check_blobs(target, files)
                    files = []
            _check_blobs(target, files)
            if not closure:
                raise directory_not_found(root)
            closure.put(root, target.directories)
        report.directories += 1
    except CONCERNS_ALL:
        raise
    except NeveError as error:
        report.fail(f"Directory {format_digest(root)}", error)


def _check_blobs(target: Services, digests: Sequence[Digest]) -> None:
    """Raises ``NotFound`` if a blob could not be copied, or came later than the list of blobs."""
    if missing := target.blobs.missing(digests):
        raise NotFound(f"the target does not have the blob {format_digest(missing[0])}, which it refers to")


def _copy_nars(source: Services, target: Services, report: MirrorReport, progress: Progress) -> None:
    """Only what was computed on our side: it may be signed."""
    if not source.nar_nodes.is_ours:
        LOGGER.info("what the source knows of NARs is not copied: it is the word of a server")
        return
    try:
        for page in _pages(source.nar_nodes.list_hashes, b"", _PAGE, progress):
            with target.one_commit():
                for sha256 in page:
                    _copy_nar(source, target, sha256, report)
    except Unsupported as error:
        LOGGER.info("what the source knows of NARs is not copied: %s", error)


def _copy_nar(source: Services, target: Services, sha256: bytes, report: MirrorReport) -> None:
    try:
        found = source.nar_nodes.node(sha256)
        nar = None if found is None else source.nar_nodes.nar(found[0])
    except Corrupt as error:
        report.fail(f"NAR {sha256.hex()}", error)
        return
    if found is not None and nar is not None and _has_contents(target, found[0]):
        target.nar_nodes.put(found[0], Nar(*nar), file_sha256=None if sha256 == nar.sha256 else sha256)


def _has_contents(services: Services, node: Node) -> bool:
    """Whether the tree is there: who uploads a NAR that is known need not send it."""
    if isinstance(node, FileNode):
        return not services.blobs.missing([node.digest])
    return not isinstance(node, DirectoryNode) or bool(services.directories.get_many([node.digest]))


def _copy_small_files(source: Services, target: Services, report: MirrorReport, progress: Progress) -> None:
    here, there = small_files_beside(source.nar_nodes), small_files_beside(target.nar_nodes)
    if here is None or there is None:
        LOGGER.info("logs and realisations are not copied: they cannot be listed, or kept, by a server")
        return
    for page in _pages(here.list, ("", ""), _PAGE, progress):
        for kind, name in page:
            try:
                contents = here.get(kind, name)
            except Corrupt as error:
                report.fail(f"{kind} {name}", error)
                continue
            if contents is not None:
                there.put(kind, name, contents)
