"""What no path info reaches, and what lies beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from neve.castore.blobs.transfer import GROUP_BLOBS, BlobCopies
from neve.castore.digest import Digest, format_digest
from neve.castore.directories.base import GET_MANY, directory_not_found
from neve.castore.directories.held import HeldClosure
from neve.errors import Corrupt, NeveError, Unsupported
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
        for digest in page:
            if digest in there:
                continue
            progress.advance(0, "Directories")
            try:
                _copy_closure(source, target, digest)
                report.directories += 1
            except CONCERNS_ALL:
                raise
            except NeveError as error:
                report.fail(f"Directory {format_digest(digest)}", error)


def _copy_closure(source: Services, target: Services, root: Digest) -> None:
    with HeldClosure() as closure:
        for directory in source.directories.get_recursive(root):
            closure.add(directory)
        if not closure:
            raise directory_not_found(root)
        closure.put(root, target.directories)


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
    if found is not None and nar is not None:
        target.nar_nodes.put(found[0], Nar(*nar), file_sha256=None if sha256 == nar.sha256 else sha256)


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
