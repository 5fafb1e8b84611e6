"""A random walk over the embedded store, held against dicts: whatever happens, both tell the same."""

from __future__ import annotations

import random
import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from neve.castore.blobs.base import BlobBatch
from neve.castore.blobs.local import LocalBlobService
from neve.castore.blobs.local_write import BLOBS
from neve.castore.digest import Digest, b3_digest
from neve.castore.directories.local import DIRECTORIES, LocalDirectoryService
from neve.castore.directory import Directory
from neve.castore.node import DirectoryNode, FileNode, Node
from neve.packstore.check import rebuild_index, verify
from neve.packstore.store import PackStore

TABLES = (BLOBS, DIRECTORIES)

small = st.binary(max_size=40)
large = st.builds(
    lambda size, seed: random.Random(seed).randbytes(size), st.integers(500_000, 900_000), st.integers(0, 3)
)


class Walk(RuleBasedStateMachine):
    """The models hold what was acknowledged; ``gone`` what was and is deleted again.

    What a batch staged and gave up may have become visible with somebody else's commit: ``perhaps``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="neve-walk-"))
        self.blobs: dict[Digest, bytes] = {}
        self.directories: dict[Digest, Directory] = {}
        self.perhaps: set[Digest] = set()
        self.gone: set[Digest] = set()

    @initialize()
    def open(self) -> None:
        store = PackStore.open(self.folder / "store")
        self.blob_service = LocalBlobService(store)
        self.directory_service = LocalDirectoryService(PackStore.open(self.folder / "store"))

    def close(self) -> None:
        self.blob_service.close()
        self.directory_service.close()

    def teardown(self) -> None:
        self.close()
        shutil.rmtree(self.folder)

    def remember(self, contents: bytes) -> None:
        if contents:
            self.blobs[b3_digest(contents)] = contents
            self.gone.discard(b3_digest(contents))

    @rule(contents=small | large, pieces=st.integers(1, 3))
    def write_a_blob(self, contents: bytes, pieces: int) -> None:
        with self.blob_service.open_write() as writer:
            for number in range(pieces):
                writer.write(
                    contents[number * len(contents) // pieces : (number + 1) * len(contents) // pieces]
                )
            assert writer.close() == b3_digest(contents)
        self.remember(contents)

    @rule(contents=st.lists(small, max_size=30))
    def put_many_blobs(self, contents: list[bytes]) -> None:
        assert self.blob_service.put_many(contents) == [b3_digest(one) for one in contents]
        for one in contents:
            self.remember(one)

    @rule(contents=st.lists(small, max_size=10), long=large, commits=st.booleans())
    def put_a_batch(self, contents: list[bytes], long: bytes, commits: bool) -> None:
        with self.blob_service.batch() as batch:
            batch.put_many(contents)
            self.write_in(batch, long)
            if commits:
                batch.commit()
        for one in [*contents, long]:
            if commits:
                self.remember(one)
            elif b3_digest(one) not in self.blobs:
                self.perhaps.add(b3_digest(one))

    def write_in(self, batch: BlobBatch, contents: bytes) -> None:
        with batch.open_write() as writer:
            writer.write(contents)
            writer.close()

    @rule(contents=small | large)
    def abandon_a_blob(self, contents: bytes) -> None:
        with self.blob_service.open_write() as writer:
            writer.write(contents)

    @precondition(lambda self: self.blobs)
    @rule(data=st.data())
    def delete_blobs(self, data: st.DataObject) -> None:
        digests = data.draw(st.lists(st.sampled_from(sorted(self.blobs)), max_size=3, unique=True))
        assert self.blob_service.delete_many([*digests, b3_digest(b"never stored")]) == len(digests)
        for digest in digests:
            del self.blobs[digest]
            self.gone.add(digest)

    @rule(data=st.data())
    def put_a_closure(self, data: st.DataObject) -> None:
        known = st.sampled_from(
            [Directory(), *(self.directories[digest] for digest in sorted(self.directories))]
        )
        children = data.draw(st.lists(known, max_size=3))
        entries: dict[bytes, Node] = {b"file": FileNode(b3_digest(b""), data.draw(st.integers(0, 5)))}
        with self.directory_service.put_multiple() as putter:
            closure = dict.fromkeys(one for child in children for one in self.closure(child))
            for directory in closure:
                putter.put(directory)
            for number, child in enumerate(children):
                entries[b"%d" % number] = DirectoryNode(child.digest, child.size())
            putter.put(Directory(entries))
            if data.draw(st.booleans()):
                assert putter.close() == Directory(entries).digest
                self.directories |= {one.digest: one for one in [*closure, Directory(entries)]}

    def closure(self, directory: Directory) -> list[Directory]:
        """Leaves to root."""
        below = [one for _, node in directory.directories() for one in self.closure(self.known(node.digest))]
        return [*below, directory]

    def known(self, digest: Digest) -> Directory:
        return self.directories.get(digest) or Directory()

    @rule()
    def reopen(self) -> None:
        self.close()
        self.open()

    @rule()
    def rebuild(self) -> None:
        self.close()
        assert rebuild_index(self.folder / "store", TABLES).problems == []
        self.open()

    @rule()
    def verify(self) -> None:
        report = verify(self.blob_service._store, TABLES)
        assert report.problems == []
        assert report.records[DIRECTORIES.name] == len(self.directories)
        assert report.records[BLOBS.name] >= len(self.blobs)

    @invariant()
    def blobs_are_there(self) -> None:
        if not hasattr(self, "blob_service"):
            return
        digests = sorted(self.blobs)
        assert self.blob_service.missing(digests) == []
        assert list(self.blob_service.read_many(digests)) == [self.blobs[digest] for digest in digests]
        listed = set(self.blob_service.list())
        assert listed >= set(digests)
        assert listed <= set(digests) | self.perhaps
        gone = sorted(self.gone - self.perhaps)
        assert self.blob_service.missing(gone) == gone

    @invariant()
    def directories_are_there(self) -> None:
        if not hasattr(self, "directory_service"):
            return
        assert self.directory_service.get_many(sorted(self.directories)) == self.directories
        assert self.directory_service.list() == sorted(self.directories)
        for digest in sorted(self.directories)[:3]:
            found = {one.digest for one in self.directory_service.get_recursive(digest)}
            assert found == {one.digest for one in self.closure(self.directories[digest])}


TestRandomWalk = Walk.TestCase
TestRandomWalk.settings = settings(
    max_examples=15, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
