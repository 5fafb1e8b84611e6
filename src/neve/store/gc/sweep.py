"""Dropping what is condemned, while others go on: in sweeps, each of which spares what has become fresh.

The order is that of references: whoever refers to something goes before it, so that a crash leaves nothing
that refers to what is gone. Path infos and Directories go all at once, because they refer to each other. That
takes a second for some 200,000 of them, in which others wait for an answer.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from neve.castore.blobs.local_write import BLOBS
from neve.castore.digest import DIGEST_SIZE, Digest, b3_digest
from neve.castore.directories.local import DIRECTORIES
from neve.castore.node import FileNode, Node, SymlinkNode
from neve.errors import DiskFull, InvalidRequest, NotFound
from neve.packstore.dates import forget_used
from neve.packstore.index_writer import IndexWriter
from neve.packstore.layout import os_errors
from neve.packstore.store import PackStore, TableTransaction
from neve.store.gc.contents import PAGE
from neve.store.gc.fresh import Fresh
from neve.store.gc.paths import Paths
from neve.store.nar_nodes import BY_HASH, BY_NODE, NAR_NODES, decode_nar_node
from neve.store.pathinfos.local import PATH_INFOS, REFERRERS
from neve.store.pins import Pins
from neve.store.wire import encode_node
from neve.telemetry import NO_PROGRESS, Progress

_BATCH = 20_000
"""Objects that go in one sweep: others wait for it, for about 50 milliseconds."""

_IN_MEMORY = 16 * 1024 * 1024
_QUIET = 1000


class Keys:
    """Digests in the order in which they came, beyond some number on the disk; if that is full, in memory:
    just then something has to go."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)
        self._file: IO[bytes] | None = None
        self._in_file = 0
        self._rest = bytearray()
        self._keeps_all = False

    def __len__(self) -> int:
        return (self._in_file + len(self._rest)) // DIGEST_SIZE

    def add(self, keys: Sequence[Digest]) -> None:
        self._rest += b"".join(keys)
        if len(self._rest) >= _IN_MEMORY and not self._keeps_all:
            try:
                self._write()
            except DiskFull:
                self._keeps_all = True

    def _write(self) -> None:
        with os_errors("cannot keep what is to be dropped"):
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - see close
            self._file.seek(self._in_file)
            self._file.write(self._rest)
            self._file.flush()
        self._in_file += len(self._rest)
        self._rest = bytearray()

    def batches(self, count: int = _BATCH) -> Iterator[list[Digest]]:
        """All of them, so many at a time."""
        start, size = 0, count * DIGEST_SIZE
        while start < self._in_file:
            assert self._file is not None
            with os_errors("cannot read what is to be dropped"):
                self._file.seek(start)
                data = self._file.read(min(size, self._in_file - start))
            start += len(data)
            yield _digests(data)
        for start in range(0, len(self._rest), size):
            yield _digests(bytes(self._rest[start : start + size]))

    def close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # What could not be written is not wanted any more.
                self._file.close()


def _digests(data: bytes) -> list[Digest]:
    return [data[i : i + DIGEST_SIZE] for i in range(0, len(data), DIGEST_SIZE)]


class Condemned:
    """What is to be dropped, by the order in which it goes."""

    def __init__(self, packs: PackStore) -> None:
        self.paths: list[bytes] = []
        folder = packs.temporary_folder()
        self.directories = Keys(folder)
        self.lists = Keys(folder)
        self.contents = Keys(folder)

    def __len__(self) -> int:
        return len(self.paths) + len(self.directories) + len(self.lists) + len(self.contents)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for keys in (self.directories, self.lists, self.contents):
            keys.close()


def sweep(
    packs: PackStore, paths: Paths, fresh: Fresh, condemned: Condemned, progress: Progress = NO_PROGRESS
) -> None:
    """Drops what is condemned and has not become fresh."""
    if not condemned:
        return
    # Most of it before others have to wait.
    while fresh.catch_up() > _QUIET:
        progress.advance(0)
    gone = _drop_paths_and_directories(packs, paths, fresh, condemned)
    packs.index.run(lambda txn: forget_used(txn, gone))
    progress.advance(len(condemned.paths) + len(condemned.directories))
    for batch in condemned.lists.batches():
        _drop_lists(packs, fresh, batch)
        progress.advance(len(batch))
    for batch in condemned.contents.batches():
        _drop_contents(packs, fresh, batch)
        progress.advance(len(batch))


def _drop_paths_and_directories(
    packs: PackStore, paths: Paths, fresh: Fresh, condemned: Condemned
) -> list[bytes]:
    """Returns the paths that are gone."""

    def change(transaction: TableTransaction) -> list[bytes]:
        fresh.catch_up()
        fresh.keep_paths(path.digest for pin in Pins(packs).list() for path in pin.paths)
        gone = [digest for digest in condemned.paths if digest not in fresh.kept]
        for digest in gone:
            for reference in set(paths.referred(digest)):
                transaction.delete(REFERRERS, reference + digest)
            transaction.delete(PATH_INFOS, digest)
        for batch in condemned.directories.batches():
            for digest in batch:
                if digest not in fresh.spared:
                    transaction.delete(DIRECTORIES, digest)
        return gone

    with packs.uses.sweeping():
        return packs.update(change)


def _drop_lists(packs: PackStore, fresh: Fresh, batch: Sequence[Digest]) -> None:
    """Lists of chunks are deleted for good: a list without its chunks must not come back with a new index."""

    def change(transaction: TableTransaction) -> None:
        fresh.catch_up()
        for digest in batch:
            if digest not in fresh.spared:
                transaction.delete(BLOBS, digest)

    with packs.uses.sweeping():
        packs.update(change)


def _drop_contents(packs: PackStore, fresh: Fresh, batch: Sequence[Digest]) -> None:
    """Of contents only the index forgets: one that is made anew may find some that nobody needs."""

    def change(txn: IndexWriter) -> None:
        fresh.catch_up()
        for digest in batch:
            if digest not in fresh.spared:
                txn.delete(BLOBS.id, digest)

    with packs.uses.sweeping():
        packs.index.run(change)


def drop_nar_nodes(packs: PackStore, progress: Progress = NO_PROGRESS) -> None:
    """Drops what the map of NARs knows of trees that are gone."""
    after = BY_HASH
    while page := packs.page(NAR_NODES, after, PAGE):
        after = page[-1][0]
        nodes: dict[bytes, Node] = {}
        for key, location in sorted(page, key=lambda item: item[1].place):
            if key.startswith(BY_HASH):
                try:
                    nodes[key] = decode_nar_node(packs.read(NAR_NODES, key, location))
                except (NotFound, InvalidRequest):
                    continue
        stale = _of_absent_trees(packs, nodes)
        progress.advance(0)
        if stale:
            packs.index.run(lambda txn, stale=stale: _forget_nars(txn, stale))  # type: ignore[misc]


def _of_absent_trees(packs: PackStore, nodes: dict[bytes, Node]) -> dict[bytes, Node]:
    roots = [node for node in nodes.values() if not isinstance(node, SymlinkNode)]
    there: set[Digest] = set()
    for table in (BLOBS, DIRECTORIES):
        wanted = [node.digest for node in roots if isinstance(node, FileNode) == (table is BLOBS)]
        there.update(packs.find(table, wanted))
    return {
        key: node
        for key, node in nodes.items()
        if not isinstance(node, SymlinkNode) and node.digest not in there and not _is_empty_file(node)
    }


def _is_empty_file(node: Node) -> bool:
    return isinstance(node, FileNode) and not node.size


def _forget_nars(txn: IndexWriter, stale: dict[bytes, Node]) -> None:
    for key, node in stale.items():
        assert not isinstance(node, SymlinkNode)
        table = BLOBS if isinstance(node, FileNode) else DIRECTORIES
        # Whoever has stored the tree anew since, has found this entry, and not made another.
        if txn.get(table.id, node.digest) is None:
            txn.delete(NAR_NODES.id, key)
            txn.delete(NAR_NODES.id, BY_NODE + b3_digest(encode_node(node)))
